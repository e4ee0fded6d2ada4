// SPDX-License-Identifier: Apache-2.0
// Awaiting an asyncio.Future from C++.
#pragma once

#include "cpython/api.hpp"

#include "loop/parts.hpp"

namespace gossamer::loop {

/// The descriptor of Future._asyncio_future_blocking. Throws ErrorSet.
PyGetSetDef* future_blocking_of(const Parts& parts);

/// Says that the future, which a coroutine is about to yield, is awaited. Throws ErrorSet.
void mark_awaited(const Parts& parts, PyObject* future);

}  // namespace gossamer::loop
