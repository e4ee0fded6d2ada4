// SPDX-License-Identifier: Apache-2.0
// The part of gossamer.Scope that the scheduler must know: which tasks run in it, its deadline, its failures.
//
// The owner is the virtual thread that entered it. A failure of a task, or the deadline, aborts the scope: its tasks and,
// inside the body, its owner are cancelled. What leaving raises is decided in python/gossamer/_scope.py.
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
    VirtualThread* owner;          // while it is entered
    PyObject* failures;            // owned list of exceptions, or null
    PyObject* weak_references;
    Py_ssize_t live_tasks;
    bool is_aborted;
    bool is_timed_out;
    bool has_cancelled_owner;      // we asked for a cancellation of the owner that its body has not seen as an exception
    bool is_joining;               // the owner waits for the tasks
    core::IntrusiveList<core::ListHook> tasks;
    ScopeTimer timer;
};

PyTypeObject* create_scope_type(PyObject* module);

/// A task of the scope has ended; `exception` (borrowed) is null unless it failed. Parks: no. Thread: carrier.
void scope_task_ended(ScopeObject& scope, PyObject* exception);

/// Cancels what runs in the scope, and its owner inside the body.
void abort_scope(ScopeObject& scope) noexcept;

}  // namespace gossamer::sched
