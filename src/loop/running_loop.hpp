// SPDX-License-Identifier: Apache-2.0
// Where a loop begins to run on a thread and where it ends, whoever's loop it is: each of them tells asyncio by
// _set_running_loop(), whose C function is replaced. Neither is inside of a callback or a step of a task.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::loop {

/// Replaces the function in `_asyncio`, unless it is. From then on each change calls gossamer._running_loops.note(loop or
/// None), in interpreters that have imported that module. Throws ErrorSet, ImportError.
void install_running_loop_watch(PyObject* asyncio_module);
void uninstall_running_loop_watch() noexcept;

/// watch_running_loops(): the same for a program that is not on a carrier.
PyObject* watch_running_loops(PyObject* module, PyObject*);

}  // namespace gossamer::loop
