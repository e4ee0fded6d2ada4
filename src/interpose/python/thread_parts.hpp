// SPDX-License-Identifier: Apache-2.0
// The parts of the `_thread` module's interposition, a file each: locks, starting threads, handles, identity.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::sched {
class VirtualThread;
}

namespace gossamer::interpose {

void plan_locks(PyObject* thread_module);
void plan_thread_identity(PyObject* thread_module);

/// What threading's joiners wait for: a lock that _set_sentinel() makes (3.12), or a _ThreadHandle (3.13 on).
void plan_thread_end(PyObject* thread_module);

/// Wakes one virtual thread that waits for `key`, if any: one relaxed load otherwise. Thread: any.
void wake_one_waiter(const void* key) noexcept;

/// Whether `handle` (a _ThreadHandle, 3.13 on) was never started.
bool is_startable(PyObject* handle) noexcept;

/// Marks `handle` as running with the identity of `thread`, which owns it from now on.
void start_handle(PyObject* handle, sched::VirtualThread& thread) noexcept;

/// The running virtual thread ends: tells who joins it. The error indicator stays as it is.
void finish_thread(sched::VirtualThread& thread);

/// In a forked child, before Python's own hooks: the running virtual thread has not ended.
void keep_thread_alive_after_fork(sched::VirtualThread& thread) noexcept;

/// In a forked child of a virtual thread, before Python's own hooks: the main thread has ended. From 3.13 on the interpreter
/// takes the handle with the OS identity of the thread that forked, which is the main thread's too, for one that lives.
/// Throws ErrorSet.
void end_main_thread_after_fork();

/// Parks until every virtual thread of the hub that is not a daemon has ended.
void join_non_daemons();

}  // namespace gossamer::interpose
