// SPDX-License-Identifier: Apache-2.0
// What is read of a _socket.socket object. The words' place is checked at start-up against a socket with a known timeout
// (interpose/python/socket.cpp). Source: PySocketSockObject in Modules/socketmodule.h, the same in 3.12 to 3.15.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>
#include <sys/socket.h>

#include "core/file_descriptor.hpp"
#include "cpython/ref.hpp"

namespace gossamer::cpython {

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

/// A socket.socket of the connection `fd`, which is non-blocking and was accepted from `listener`; `io_refs_offset` and
/// `closed_offset` are those of the class's own fields. Takes the descriptor over, in any case. Throws ErrorSet.
Ref new_connected_socket(PyTypeObject* type, core::FileDescriptor fd, PyObject* listener, Py_ssize_t io_refs_offset,
                         Py_ssize_t closed_offset);

}  // namespace gossamer::cpython
