// SPDX-License-Identifier: Apache-2.0
// Data for asyncio's streams, put into the StreamReader's buffer without the four Python functions between: what
// StreamReaderProtocol.data_received and StreamReader.feed_data do. Objects of other classes, and functions that somebody
// has patched, are called as always.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>

#include "loop/parts.hpp"

namespace gossamer::loop {

/// Remembers what is replaced. Throws ErrorSet.
void adopt_streams(Parts& parts, PyObject* protocol_type, PyObject* reader_type);

/// Whether the protocol's data can be fed. Throws ErrorSet.
[[nodiscard]] bool is_stream_protocol(const Parts& parts, PyObject* protocol);

/// Feeds `size` bytes that came for `protocol`. Returns whether it did; false: call data_received. Throws ErrorSet.
[[nodiscard]] bool feed_stream(const Parts& parts, PyObject* protocol, const char* bytes, std::size_t size);

}  // namespace gossamer::loop
