// SPDX-License-Identifier: Apache-2.0
// Awaiting an asyncio.Future from C++.
#pragma once

#include "cpython/api.hpp"

#include "loop/parts.hpp"

namespace gossamer::loop {

/// Creates the class of what `wait_for` returns. Throws ErrorSet.
PyTypeObject* create_future_wait_type(PyObject* module);

/// The descriptor of Future._asyncio_future_blocking. Throws ErrorSet.
PyGetSetDef* future_blocking_of(const Parts& parts);

/// Says that the future, which a coroutine is about to yield, is awaited. Throws ErrorSet.
void mark_awaited(const Parts& parts, PyObject* future);

/// wait_until_done(future): what waits, when awaited, for a future whose result is None. `await future` makes an exception
/// to return that result.
PyObject* wait_until_done(PyObject* module, PyObject* future);

}  // namespace gossamer::loop
