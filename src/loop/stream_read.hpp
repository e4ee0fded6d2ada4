// SPDX-License-Identifier: Apache-2.0
// StreamReader.read(n) of a reader whose connection our transport feeds (stream.hpp), for n > 0.
#pragma once

#include "cpython/api.hpp"

#include "loop/parts.hpp"

namespace gossamer::loop {

/// Creates the class of what `read_stream` returns. Throws ErrorSet.
PyTypeObject* create_stream_read_type(PyObject* module);

/// What `reader.read(size)` returns: an awaitable with a coroutine's methods. `loop` is one of ours. Throws ErrorSet.
PyObject* read_stream(const Parts& parts, PyObject* loop, PyObject* reader, Py_ssize_t size);

}  // namespace gossamer::loop
