// SPDX-License-Identifier: Apache-2.0
// Awaiting in a plain function: what an awaitable yields is given to asyncio by the step that the function runs on, as if
// the task's coroutine had awaited it.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::loop {

/// await_in_task(awaitable, otherwise): what awaiting gives, if the caller runs in an asyncio task on a stack of its own;
/// else `otherwise`. The error is the awaitable's, or a TypeError. Parks: yes. Python: attached.
PyObject* await_in_task(PyObject* module, PyObject* const* args, Py_ssize_t count);

/// can_await_in_task(): whether the caller runs in such a task.
PyObject* can_await_in_task(PyObject* module, PyObject*);

/// can_park_in_task(): whether a blocking call there suspends that task alone, too.
PyObject* can_park_in_task(PyObject* module, PyObject*);

/// is_in_step(): whether the caller runs on a stack that a coroutine was sent into.
PyObject* is_in_step(PyObject* module, PyObject*);

/// let_plain_functions_await(is_wanted): see coroutine_slots.hpp.
PyObject* let_plain_functions_await(PyObject* module, PyObject* wanted);

/// lend_context(): the caller's own contextvars.Context, left if it was entered, so that other code can run in it while the
/// caller waits; and whether it was entered.
PyObject* lend_context(PyObject* module, PyObject*);

/// take_context_back(context, was_entered): the end of that. RuntimeError: other code still runs in it.
PyObject* take_context_back(PyObject* module, PyObject* const* args, Py_ssize_t count);

}  // namespace gossamer::loop
