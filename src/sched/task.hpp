// SPDX-License-Identifier: Apache-2.0
// gossamer.Task: the handle of a spawned virtual thread.
//
// The virtual thread owns a reference to its task until it ends; the task keeps the result. Joiners wait in the parking
// lot under the task's address, so any virtual thread of any hub, or an OS thread, may wait.
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <cstddef>

#include "core/intrusive_list.hpp"
#include "cpython/module_state.hpp"
#include "sched/hub.hpp"

namespace gossamer::sched {

struct ScopeObject;

struct TaskObject {
    PyObject ob_base;
    VirtualThread* thread;  // null once it has ended
    const Hub* hub;         // that it runs or ran on; never changes
    PyObject* callable;     // owned until it has returned
    PyObject* args;         // owned until it is called
    PyObject* kwargs;
    PyObject* result;  // owned; null while it runs, or when it failed
    PyObject* exception;
    PyObject* traceback;  // the exception's, at the end of the task
    PyObject* callbacks;  // owned list or null: called once with the task, at its end
    ScopeObject* scope;   // owned while the task runs in one
    PyObject* weak_references;
    std::atomic<bool> is_done;
    bool is_cancelled;
    bool is_retrieved;       // somebody was told of the exception
    core::ListHook sibling;  // in the scope's list while it runs
};

/// Creates the class. Throws ErrorSet.
PyTypeObject* create_task_type(PyObject* module);

/// Spawns `callable(*args, **kwargs)` with a copy of the current context; new reference to its task. `scope` may be null.
TaskObject* spawn_task(cpython::ModuleState& state, Hub& hub, PyObject* callable, PyObject* const* args,
                       std::size_t count, PyObject* keyword_names, ScopeObject* scope, std::size_t stack_bytes);

/// Asks for a task's cancellation; one that has not started never does.
void cancel_task(TaskObject& task) noexcept;

}  // namespace gossamer::sched
