// SPDX-License-Identifier: Apache-2.0
// loop.sock_recv, sock_recv_into and sock_sendall: an awaitable that tries its system call, and waits for the next edge of
// the descriptor only when it would block.
//
// It stands where asyncio has a coroutine, so it is one as far as anyone can ask (collections.abc.Coroutine): it can be
// awaited, made a task of, and thrown into. What it yields to its task is an asyncio.Future, so cancelling is asyncio's.
// Everything that is not the usual case, debug mode or a subclass of socket, is left to asyncio's own method.
#pragma once

#include "cpython/api.hpp"

#include "loop/parts.hpp"

namespace gossamer::loop {

/// Creates the class. Throws ErrorSet.
PyTypeObject* create_socket_operation_type(PyObject* module);

// Methods of a loop: METH_FASTCALL.
PyObject* sock_recv(PyObject* loop, PyObject* const* args, Py_ssize_t count);
PyObject* sock_recv_into(PyObject* loop, PyObject* const* args, Py_ssize_t count);
PyObject* sock_sendall(PyObject* loop, PyObject* const* args, Py_ssize_t count);

}  // namespace gossamer::loop
