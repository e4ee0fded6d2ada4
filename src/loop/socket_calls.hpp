// SPDX-License-Identifier: Apache-2.0
// loop.sock_recv, sock_recv_into, sock_recvfrom, sock_recvfrom_into, sock_sendall, sock_sendto, sock_connect and
// sock_accept.
//
// Everything that is not the usual case is left to asyncio's own method: debug mode, a subclass of socket, one that is not
// non-blocking where the system call could wait then, a host that is a name, arguments by name.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::loop {

// Methods of a loop: METH_FASTCALL | METH_KEYWORDS.
PyObject* sock_recv(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_recv_into(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_recvfrom(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_recvfrom_into(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_sendall(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_sendto(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_connect(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);
PyObject* sock_accept(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names);

}  // namespace gossamer::loop
