// SPDX-License-Identifier: Apache-2.0
// What is read of a _socket.socket object. The words' place is checked at start-up against a socket with a known timeout.
// Source: PySocketSockObject in Modules/socketmodule.h, the same in 3.12 to 3.15.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>
#include <cstring>
#include <sys/socket.h>

#include "sched/wait.hpp"

namespace gossamer::interpose {

struct SocketWords {
    PyObject ob_base;
    int fd;
    int family;
    int type;
    int protocol;
    PyObject* (*error_handler)();
    std::int64_t timeout_nanoseconds;  // -1: blocking, 0: non-blocking
    void* module_state;

    bool is_blocking() const noexcept { return timeout_nanoseconds < 0; }
    bool waits() const noexcept { return timeout_nanoseconds != 0; }
    /// A short read of it means that its buffer is drained; elsewhere a read ends at a message's border too.
    bool is_byte_stream() const noexcept { return type == SOCK_STREAM && (family == AF_INET || family == AF_INET6); }
};

inline SocketWords& words_of_socket(PyObject* socket) noexcept { return *reinterpret_cast<SocketWords*>(socket); }

inline core::Deadline socket_deadline(const sched::Hub& hub, const SocketWords& socket) noexcept {
    return socket.is_blocking() ? core::Deadline::never()
                                : hub.deadline_after(core::Nanoseconds(socket.timeout_nanoseconds));
}

/// A copy of a socket object that says "non-blocking", for an original method to work on: it makes its system call once
/// and fails with BlockingIOError instead of waiting, and the object itself, which other threads may use, stays as it is.
class NonBlockingShadow final {
public:
    explicit NonBlockingShadow(PyObject* socket) noexcept {
        // Safety: the methods of _socket.socket read the words above and take no reference to the object.
        std::memcpy(&words_, socket, sizeof words_);
        words_.timeout_nanoseconds = 0;
    }
    NonBlockingShadow(const NonBlockingShadow&) = delete;
    NonBlockingShadow& operator=(const NonBlockingShadow&) = delete;
    ~NonBlockingShadow() = default;

    PyObject* object() noexcept { return &words_.ob_base; }

private:
    SocketWords words_;
};

/// Raises TimeoutError as the original does.
[[noreturn]] inline void raise_socket_timeout() { cpython::raise(PyExc_TimeoutError, "timed out"); }

}  // namespace gossamer::interpose
