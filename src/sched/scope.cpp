// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/scope.hpp"

#include <cstddef>
#include <new>

#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "sched/task.hpp"
#include "sched/wait.hpp"

namespace gossamer::sched {

using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

ScopeObject& as_scope(PyObject* self) noexcept { return *reinterpret_cast<ScopeObject*>(self); }

TaskObject& of_sibling(core::ListHook& hook) noexcept {
    // Safety: every hook in a scope's list is the `sibling` of a TaskObject, which is a standard-layout class.
    return *reinterpret_cast<TaskObject*>(reinterpret_cast<char*>(&hook) - offsetof(TaskObject, sibling));
}

void reach_deadline(core::Timer& timer) noexcept {
    ScopeObject& scope = static_cast<ScopeTimer&>(timer).scope;
    scope.is_timed_out = true;
    abort_scope(scope);
}

Hub& owner_hub(ScopeObject& scope) {
    Hub* hub = Hub::current();
    if (scope.owner == nullptr || hub == nullptr || &scope.owner->hub() != hub) {
        cpython::raise(PyExc_RuntimeError,
                       scope.owner == nullptr ? "this scope is not open" : "this scope belongs to another OS thread");
    }
    return *hub;
}

PyObject* scope_new(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) {
        new (&as_scope(self).tasks) core::IntrusiveList<core::ListHook>;
        new (&as_scope(self).timer) ScopeTimer(as_scope(self));
    }
    return self;
}

/// _open(timeout): the running virtual thread enters.
PyObject* scope_open(PyObject* self, PyObject* timeout) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        Hub* hub = Hub::current();
        if (hub == nullptr) {
            cpython::raise(PyExc_RuntimeError, "a scope can only be opened inside gossamer.run() or `gossamer run`");
        }
        if (scope.owner != nullptr || scope.is_aborted) {
            cpython::raise(PyExc_RuntimeError, "this scope has been opened before");
        }
        if (timeout != Py_None) {
            const core::Nanoseconds delay(cpython::nanoseconds_from_seconds(timeout));
            hub->timers().arm(scope.timer, hub->deadline_after(delay));
        }
        scope.owner = &hub->running();
        Py_RETURN_NONE;
    });
}

PyObject* scope_spawn(PyObject* self, PyTypeObject* defining_class, PyObject* const* args, Py_ssize_t count,
                      PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        if (count < 1) {
            cpython::raise(PyExc_TypeError, "spawn() needs a callable");
        }
        Hub& hub = owner_hub(scope);
        TaskObject* task =
            spawn_task(cpython::state_of_defining_class(defining_class), hub, args[0], args + 1,
                       static_cast<std::size_t>(count - 1), names, &scope, 0);
        if (scope.is_aborted) {
            cancel_task(*task);
        }
        return &task->ob_base;
    });
}

/// _spawn_with(stack_size, callable, args, kwargs)
PyObject* scope_spawn_with(PyObject* self, PyTypeObject* defining_class, PyObject* const* args, Py_ssize_t count,
                           PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        if (count < 2) {
            cpython::raise(PyExc_TypeError, "_spawn_with() needs a stack size and a callable");
        }
        const std::size_t stack_bytes = PyLong_AsSize_t(args[0]);
        if (stack_bytes == static_cast<std::size_t>(-1) && PyErr_Occurred()) {
            throw ErrorSet{};
        }
        Hub& hub = owner_hub(scope);
        TaskObject* task =
            spawn_task(cpython::state_of_defining_class(defining_class), hub, args[1], args + 2,
                       static_cast<std::size_t>(count - 2), names, &scope, stack_bytes);
        if (scope.is_aborted) {
            cancel_task(*task);
        }
        return &task->ob_base;
    });
}

PyObject* scope_cancel(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        owner_hub(as_scope(self));
        abort_scope(as_scope(self));
        Py_RETURN_NONE;
    });
}

/// _join(): waits for every task. A cancellation or a signal handler's exception aborts the scope, the wait goes on, and
/// it is raised at the end. Returns None.
PyObject* scope_join(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        Hub& hub = owner_hub(scope);
        const Ref keep_alive = cpython::borrow(self);
        scope.is_joining = true;
        Ref interruption;
        const auto is_over = [&scope] { return scope.live_tasks == 0; };
        while (!is_over()) {
            const bool over = guarded(false, [&] {
                return wait_until(hub, &scope, {.what = "the tasks of a scope", .object = &scope},
                                  core::Deadline::never(), is_over,
                                  interruption ? Cancellable::kNo : Cancellable::kYes);
            });
            if (!over) {
                Ref raised = Ref::steal_or_null(PyErr_GetRaisedException());
                if (!interruption) {
                    interruption = std::move(raised);
                }
                abort_scope(scope);
            }
        }
        scope.is_joining = false;
        if (interruption) {
            PyErr_SetRaisedException(interruption.release());
            throw ErrorSet{};
        }
        Py_RETURN_NONE;
    });
}

/// _close(): disarms the deadline, takes back a cancellation of the owner that was not raised. Returns (failures or None,
/// is_timed_out, the scope asked for the owner's cancellation, the last cancellation raised came from outside).
PyObject* scope_close(PyObject* self, PyObject* raised_own) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        Hub& hub = owner_hub(scope);
        hub.timers().disarm(scope.timer);
        VirtualThread& owner = *std::exchange(scope.owner, nullptr);
        if (scope.has_cancelled_owner && raised_own != Py_True) {
            owner.withdraw_scope_cancellation();
        }
        scope.is_aborted = true;
        PyObject* failures = std::exchange(scope.failures, nullptr);
        return Py_BuildValue("(NO)", failures == nullptr ? Py_NewRef(Py_None) : failures,
                             scope.is_timed_out ? Py_True : Py_False);
    });
}

/// _was_cancelled_by_scope(): whether the CancelledError that reached the end of the body was our own request.
PyObject* scope_was_own_cancellation(PyObject* self, PyObject*) {
    ScopeObject& scope = as_scope(self);
    const bool own = scope.owner != nullptr && scope.has_cancelled_owner && !scope.owner->was_cancelled_from_outside;
    return Py_NewRef(own ? Py_True : Py_False);
}

PyObject* scope_cancelled(PyObject* self, void*) { return Py_NewRef(as_scope(self).is_aborted ? Py_True : Py_False); }

PyObject* scope_live_tasks(PyObject* self, void*) { return PyLong_FromSsize_t(as_scope(self).live_tasks); }

int scope_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(as_scope(self).failures);
    return 0;
}

int scope_clear(PyObject* self) {
    Py_CLEAR(as_scope(self).failures);
    return 0;
}

void scope_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    ScopeObject& scope = as_scope(self);
    PyObject_GC_UnTrack(self);
    if (scope.timer.is_armed() && scope.owner != nullptr) {
        scope.owner->hub().timers().disarm(scope.timer);
    }
    if (scope.weak_references != nullptr) {
        PyObject_ClearWeakRefs(self);
    }
    scope_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"spawn", _PyCFunction_CAST(scope_spawn), METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("spawn($self, callable, /, *args, **kwargs)\n--\n\n"
               "Run ``callable(*args, **kwargs)`` in a new virtual thread of this scope; return its Task.")},
    {"_spawn_with", _PyCFunction_CAST(scope_spawn_with), METH_METHOD | METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"cancel", scope_cancel, METH_NOARGS,
     PyDoc_STR("cancel($self, /)\n--\n\nCancel every task of the scope, and its body.")},
    {"_open", scope_open, METH_O, nullptr},
    {"_join", scope_join, METH_NOARGS, nullptr},
    {"_close", scope_close, METH_O, nullptr},
    {"_was_own_cancellation", scope_was_own_cancellation, METH_NOARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"cancelled", scope_cancelled, nullptr, PyDoc_STR("Whether the scope was cancelled, failed or timed out."), nullptr},
    {"live_tasks", scope_live_tasks, nullptr, PyDoc_STR("How many tasks have not ended."), nullptr},
    {}};

PyMemberDef members[] = {
    {"__weaklistoffset__", Py_T_PYSSIZET, offsetof(ScopeObject, weak_references), Py_READONLY, nullptr}, {}};

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(scope_new)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(scope_dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(scope_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(scope_clear)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, properties},
                       {Py_tp_members, members},
                       {0, nullptr}};

PyType_Spec spec = {"gossamer._core.ScopeBase", sizeof(ScopeObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

ScopeTimer::ScopeTimer(ScopeObject& whose) noexcept : Timer(&reach_deadline), scope(whose) {}

PyTypeObject* create_scope_type(PyObject* module) {
    return reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, nullptr)).release());
}

void scope_task_ended(ScopeObject& scope, PyObject* exception) {
    --scope.live_tasks;
    if (exception != nullptr) {
        if (scope.failures == nullptr) {
            scope.failures = PyList_New(0);
        }
        if (scope.failures == nullptr || PyList_Append(scope.failures, exception) < 0) {
            PyErr_WriteUnraisable(exception);  // no memory for the list: told, if not raised
        }
        if (!scope.is_aborted) {
            abort_scope(scope);
        }
    }
    if (scope.live_tasks == 0 && scope.is_joining) {
        core::ParkingLot::instance().unpark_all(&scope);
    }
}

void abort_scope(ScopeObject& scope) noexcept {
    scope.is_aborted = true;
    for (core::ListHook* hook = scope.tasks.front(); hook != nullptr; hook = scope.tasks.next_of(*hook)) {
        cancel_task(of_sibling(*hook));
    }
    if (scope.owner != nullptr && !scope.is_joining && !scope.has_cancelled_owner) {
        scope.has_cancelled_owner = true;
        scope.owner->request_scope_cancellation();
    }
}

}  // namespace gossamer::sched
