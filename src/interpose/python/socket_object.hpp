// SPDX-License-Identifier: Apache-2.0
// Calling a method of _socket.socket so that it does not wait.
#pragma once

#include "cpython/api.hpp"

#include <cstring>

#include "cpython/socket_object.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::SocketWords;
using cpython::words_of_socket;

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
