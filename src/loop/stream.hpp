// SPDX-License-Identifier: Apache-2.0
// asyncio's streams on one connection, without the Python code that each message costs: for as long as the connection is
// open, its data is put into the StreamReader's buffer (StreamReaderProtocol.data_received, StreamReader.feed_data), and
// `read` of the reader (stream_read.hpp) and `_drain_helper` of the protocol are ours, as attributes of these two objects.
// Every field keeps the meaning that asyncio gives it, so its own methods and ours work on a reader by turns.
//
// Objects of other classes, and classes that somebody has patched, are left to asyncio.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>

#include "cpython/ref.hpp"
#include "loop/parts.hpp"

namespace gossamer::loop {

/// Remembers what is replaced, and makes the classes. Throws ErrorSet.
void adopt_streams(PyObject* module, Parts& parts, PyObject* protocol_type, PyObject* reader_type);

/// The stream of a connection whose protocol this is; null if it is none of asyncio's. Throws ErrorSet.
cpython::Ref open_stream(PyObject* loop, PyObject* protocol);

/// Feeds `size` bytes that came. Returns whether it did; false: call data_received. Throws ErrorSet.
[[nodiscard]] bool feed_stream(PyObject* stream, const char* bytes, std::size_t size);

/// The transport has told the protocol to pause, or to resume, writing.
void set_writing_paused(PyObject* stream, bool is_paused) noexcept;

/// The connection is over: gives the reader and the protocol their own methods back.
void close_stream(PyObject* stream) noexcept;

}  // namespace gossamer::loop
