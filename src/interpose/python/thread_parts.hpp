// SPDX-License-Identifier: Apache-2.0
// The parts of the `_thread` module's interposition, a file each: locks, starting threads, handles.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::sched {
class VirtualThread;
}

namespace gossamer::interpose {

void plan_locks(PyObject* thread_module);
void plan_thread_handles(PyObject* thread_module);

/// Wakes one virtual thread that waits for `key`, if any: one relaxed load otherwise. Thread: any.
void wake_one_waiter(const void* key) noexcept;

/// Marks `handle` (a _ThreadHandle, 3.13 on) as running with the identity `ident`. Throws ErrorSet: it was started before.
void start_handle(PyObject* handle, unsigned long ident);

/// Marks `handle` as done and wakes who joins it. The error indicator stays as it is.
void finish_handle(PyObject* handle) noexcept;

/// Parks until every virtual thread of the hub that is not a daemon has ended.
void join_non_daemons();

}  // namespace gossamer::interpose
