// SPDX-License-Identifier: Apache-2.0
// The part of gossamer.Scope that the scheduler must know: which tasks run in it, its deadline, its failures.
//
// The owner is the virtual thread that entered it. A failure of a task, or the deadline, aborts the scope: its tasks and,
// inside the body, its owner are cancelled. What leaving raises is decided in python/gossamer/_scope.py.
//
// Whose a CancelledError is that reaches the end of a body is told by counting, as asyncio.timeout does: the scope takes
// its own request back, and if no more requests are left than when it was entered, the exception was its own.
#pragma once

#include "cpython/api.hpp"

#include "core/intrusive_list.hpp"
#include "core/timer_heap.hpp"
#include "cpython/module_state.hpp"
#include "sched/hub.hpp"

namespace gossamer::sched {

struct TaskObject;
struct ScopeObject;

struct ScopeTimer final : core::Timer {
    explicit ScopeTimer(ScopeObject& whose) noexcept;
    ScopeObject& scope;
};

struct ScopeObject {
    PyObject ob_base;
    VirtualThread* owner;  // while it is entered; also null once the owner has ended inside
    const Hub* hub;        // the owner's, once it was entered
    PyObject* failures;    // owned list of exceptions, or null
    PyObject*
        canceller;  // owned: cancels the asyncio task that entered it, from any thread; null: a virtual thread did
    PyObject* weak_references;
    Py_ssize_t live_tasks;
    int requests_at_entry;   // the owner's cancel_requests
    unsigned request_stamp;  // of our request, if has_cancelled_owner
    bool was_entered;
    bool is_aborted;
    bool is_timed_out;
    bool has_cut_tasks_short;  // tasks were running when the time was up
    bool has_cancelled_owner;  // our request is among the owner's
    bool is_joining;           // the owner waits for the tasks
    core::ListHook open;       // in the owner's open_scopes while it is entered
    core::IntrusiveList<core::ListHook> tasks;
    ScopeTimer timer;
};

PyTypeObject* create_scope_type(PyObject* module);

/// A task of the scope has ended; `exception` (borrowed) is null unless it failed. Parks: no. Thread: carrier.
void scope_task_ended(ScopeObject& scope, PyObject* exception);

/// Cancels what runs in the scope, and its owner inside the body. Thread: any. Python: attached.
void abort_scope(ScopeObject& scope) noexcept;

/// The owner ends without having left its scopes (a generator was suspended in one): they are aborted.
void orphan_scopes(VirtualThread& owner) noexcept;

/// In a forked child, where the scope's tasks do not exist and its hub's timers were forgotten.
void forget_tasks_of_scopes(VirtualThread& owner) noexcept;

}  // namespace gossamer::sched
