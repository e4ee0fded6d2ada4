// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/scope.hpp"

#include <cstddef>
#include <new>
#include <vector>

#include "cpython/args.hpp"
#include "cpython/exceptions.hpp"
#include "cpython/ref.hpp"
#include "sched/task.hpp"
#include "sched/wait.hpp"

namespace gossamer::sched {

using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::size_t kSmallestStack = 32 * 1024;  // threading.stack_size()'s
constexpr std::size_t kLargestStack = 1024 * 1024 * 1024;

ScopeObject& as_scope(PyObject* self) noexcept { return *reinterpret_cast<ScopeObject*>(self); }

TaskObject& of_sibling(core::ListHook& hook) noexcept {
    // Safety: every hook in a scope's list is the `sibling` of a TaskObject.
    return *reinterpret_cast<TaskObject*>(reinterpret_cast<char*>(&hook) - offsetof(TaskObject, sibling));
}

ScopeObject& of_open(core::ListHook& hook) noexcept {
    // Safety: every hook in a virtual thread's open_scopes is the `open` of a ScopeObject.
    return *reinterpret_cast<ScopeObject*>(reinterpret_cast<char*>(&hook) - offsetof(ScopeObject, open));
}

/// Calls `function()` in a virtual thread of its own: who asks may be the hub, on whose stack no Python may run.
void call_soon(Hub& hub, PyObject* function) noexcept {
    const auto run = [](VirtualThread&, void* argument) {
        const Ref called = Ref::steal_or_null(static_cast<PyObject*>(argument));
        if (!Ref::steal_or_null(PyObject_CallNoArgs(called.ptr()))) {
            PyErr_WriteUnraisable(called.ptr());
        }
    };
    if (!guarded(false, [&] {
            hub.spawn({.run = run, .argument = function});
            return true;
        })) {
        PyErr_WriteUnraisable(function);  // no memory for a stack
    } else {
        Py_INCREF(function);
    }
}

void reach_deadline(core::Timer& timer) noexcept {
    ScopeObject& scope = static_cast<ScopeTimer&>(timer).scope;
    scope.is_timed_out = true;
    scope.has_cut_tasks_short = scope.live_tasks > 0;
    abort_scope(scope);
}

/// The hub of an open scope, which the calling code must run on. Throws ErrorSet.
Hub& hub_of(ScopeObject& scope) {
    Hub* hub = Hub::current();
    if (scope.owner == nullptr) {
        cpython::raise(PyExc_RuntimeError, scope.was_entered ? "this scope has been left" : "this scope is not open");
    }
    if (hub == nullptr || &scope.owner->hub() != hub) {
        cpython::raise(PyExc_RuntimeError,
                       "this scope belongs to another OS thread: only its virtual threads can spawn in it");
    }
    return *hub;
}

PyObject* scope_new(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (self != nullptr) {
        new (&as_scope(self).open) core::ListHook;
        new (&as_scope(self).tasks) core::IntrusiveList<core::ListHook>;
        new (&as_scope(self).timer) ScopeTimer(as_scope(self));
    }
    return self;
}

/// _open(timeout, canceller): the running virtual thread enters, or the asyncio task that it runs, which `canceller()`
/// cancels; None: no task.
PyObject* scope_open(PyObject* self, PyObject* const* args, Py_ssize_t) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        PyObject* timeout = args[0];
        Hub* hub = Hub::current();
        if (hub == nullptr) {
            cpython::raise(PyExc_RuntimeError, "not in a virtual thread: use gossamer.run() or `gossamer run`");
        }
        if (scope.was_entered) {
            cpython::raise(PyExc_RuntimeError, "this scope has been entered before");
        }
        VirtualThread& owner = hub->running();
        core::Nanoseconds delay{1};
        if (timeout != Py_None) {
            delay = core::Nanoseconds(cpython::nanoseconds_from_seconds(timeout));
            if (delay.count() < 0) {
                cpython::raise(PyExc_ValueError, "a timeout is 0 seconds or more");
            }
            if (delay.count() > 0) {
                hub->timers().arm(scope.timer, hub->deadline_after(delay));
            }
        }
        scope.was_entered = true;
        scope.canceller = args[1] == Py_None ? nullptr : Py_NewRef(args[1]);
        scope.owner = &owner;
        scope.hub = hub;
        scope.requests_at_entry = owner.cancel_requests;
        owner.open_scopes.push_back(scope.open);
        if (delay.count() == 0) {
            reach_deadline(scope.timer);  // the first park of the body is cancelled
        }
        Py_RETURN_NONE;
    });
}

/// Takes the keyword stack_size out of the arguments. Returns its value, 0 when it is not given.
std::size_t take_stack_size(Ref& names, std::vector<PyObject*>& values, PyObject* const* args, Py_ssize_t count) {
    std::size_t stack_bytes = 0;
    const Ref given = std::move(names);
    names = steal(PyList_New(0));
    values.assign(args, args + count);
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(given.ptr()); ++index) {
        PyObject* name = PyTuple_GET_ITEM(given.ptr(), index);
        if (PyUnicode_CompareWithASCIIString(name, "stack_size") != 0) {
            cpython::check(PyList_Append(names.ptr(), name));
            values.push_back(args[count + index]);
            continue;
        }
        stack_bytes = PyLong_AsSize_t(args[count + index]);
        if (stack_bytes == static_cast<std::size_t>(-1) && PyErr_Occurred() &&
            !PyErr_ExceptionMatches(PyExc_OverflowError)) {
            throw ErrorSet{};
        }
        if (stack_bytes != 0 && (stack_bytes < kSmallestStack || stack_bytes > kLargestStack)) {
            PyErr_Clear();
            cpython::raise(PyExc_ValueError, "stack_size is 0 (the default) or from 32768 bytes to 1 GiB");
        }
    }
    names = steal(PyList_AsTuple(names.ptr()));
    return stack_bytes;
}

PyObject* scope_spawn(PyObject* self, PyTypeObject* defining_class, PyObject* const* args, Py_ssize_t count,
                      PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        if (count < 1) {
            cpython::raise(PyExc_TypeError, "spawn() needs a callable");
        }
        Hub& hub = hub_of(scope);
        if (scope.is_joining && scope.live_tasks == 0) {
            cpython::raise(PyExc_RuntimeError, "this scope has been left");
        }
        cpython::ModuleState& state = cpython::state_of_defining_class(defining_class);
        TaskObject* task = nullptr;
        if (names == nullptr) {
            task = spawn_task(state, hub, args[0], args + 1, static_cast<std::size_t>(count - 1), nullptr, &scope, 0);
        } else {
            Ref other_names = cpython::borrow(names);
            std::vector<PyObject*> values;
            const std::size_t stack_bytes = take_stack_size(other_names, values, args, count);
            task = spawn_task(state, hub, values[0], values.data() + 1, static_cast<std::size_t>(count - 1),
                              other_names.ptr(), &scope, stack_bytes);
        }
        if (scope.is_aborted) {
            cancel_task(*task);
        }
        return &task->ob_base;
    });
}

PyObject* scope_cancel(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        ScopeObject& scope = as_scope(self);
        const auto abort_if_open = [&scope] {
            if (scope.owner != nullptr) {
                abort_scope(scope);
            }
        };
        if (scope.hub == Hub::current()) {
            abort_if_open();
            Py_RETURN_NONE;
        }
        const Ref canceller = scope.has_cancelled_owner ? Ref() : cpython::borrow(scope.canceller);
        scope.has_cancelled_owner |= static_cast<bool>(canceller);  // it is called from here
        cpython::while_others_stand(abort_if_open);
        if (canceller) {
            steal(PyObject_CallNoArgs(canceller.ptr()));
        }
        Py_RETURN_NONE;
    });
}

/// Records `exception` (borrowed) as a failure of the scope.
void add_failure(ScopeObject& scope, PyObject* exception) noexcept {
    if (scope.failures == nullptr) {
        scope.failures = PyList_New(0);
    }
    if (scope.failures == nullptr || PyList_Append(scope.failures, exception) < 0) {
        PyErr_WriteUnraisable(exception);  // no memory for the list: told, if not raised
    }
}

/// Lets go of tasks that did not end when they were cancelled in a deadlock: nobody waits for them any more.
void disown_tasks(ScopeObject& scope) noexcept {
    while (core::ListHook* hook = scope.tasks.pop_front()) {
        TaskObject& task = of_sibling(*hook);
        task.thread->is_scoped = false;
        ScopeObject* owned = std::exchange(task.scope, nullptr);
        --scope.live_tasks;
        Py_DECREF(&owned->ob_base);
    }
}

/// Waits for every task. Whatever interrupts the wait (a cancellation, a signal handler that raises, a deadlock) cancels
/// the tasks, and the wait goes on. Returns the cancellation or the KeyboardInterrupt that must be raised at the end.
Ref join(Hub& hub, ScopeObject& scope) {
    Ref interruption;
    const std::uint64_t deadlocks_before = hub.statistics().deadlocks;
    const auto is_over = [&scope] { return scope.live_tasks == 0; };
    while (!is_over()) {
        const bool over = guarded(false, [&] {
            return wait_until(hub, &scope, {.what = "the tasks of a scope", .object = &scope}, core::Deadline::never(),
                              is_over);
        });
        if (over) {
            break;
        }
        Ref raised = Ref::steal_or_null(PyErr_GetRaisedException());
        const bool is_cancellation = cpython::is_cancelled_error(raised.ptr());
        if (hub.statistics().deadlocks > deadlocks_before + 1) {
            disown_tasks(scope);  // cancelled in the first deadlock, and still they wait
            break;
        }
        if (PyErr_GivenExceptionMatches(raised.ptr(), PyExc_Exception)) {
            add_failure(scope, raised.ptr());
        } else if (!interruption || (!is_cancellation && cpython::is_cancelled_error(interruption.ptr()))) {
            interruption = std::move(raised);
        }
        abort_scope(scope);
    }
    return interruption;
}

/// _leave(error, is_own): waits for the tasks and closes the scope. `is_own`, in a scope of an asyncio task: whether `error`
/// is the scope's own cancellation. Returns None when there is nothing to tell, else (failures,
/// among them `error` unless it is a cancellation; what interrupted the wait, or None; whether `error` is the scope's
/// own cancellation; whether the time was up and something was cancelled for it).
PyObject* scope_leave(PyObject* self, PyObject* const* args, Py_ssize_t) {
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        ScopeObject& scope = as_scope(self);
        PyObject* error = args[0];
        const Ref keep_alive = cpython::borrow(self);
        Hub* hub = Hub::current();
        // The owner has ended inside, and its hub may have: what is left is to tell of `error`.
        const bool is_orphan = scope.owner == nullptr && scope.was_entered;
        if (!is_orphan && (hub == nullptr || scope.owner == nullptr)) {
            cpython::raise(PyExc_RuntimeError, "this scope is not open");
        }
        const bool is_on_its_hub = hub != nullptr && hub == scope.hub;
        const bool is_cancellation = error != Py_None && cpython::is_cancelled_error(error);
        const bool is_owner = !is_orphan && scope.owner == &hub->running();
        scope.is_joining = true;
        bool is_own = scope.canceller != nullptr && args[1] == Py_True;
        if (scope.has_cancelled_owner && is_owner && scope.canceller == nullptr) {
            scope.owner->withdraw_scope_cancellation(scope.request_stamp);
            is_own = is_cancellation && scope.owner->cancel_requests <= scope.requests_at_entry;
        }
        scope.has_cancelled_owner = false;
        if (error != Py_None) {
            if (!is_cancellation) {
                add_failure(scope, error);
            }
            if (!is_orphan) {  // it was aborted when its owner ended
                abort_scope(scope);
            }
        }
        Ref interruption;
        if (scope.live_tasks > 0 && (!is_orphan || is_on_its_hub)) {
            interruption = join(*hub, scope);
        }
        if (scope.timer.is_armed()) {
            hub->timers().disarm(scope.timer);
        }
        if (scope.open.is_linked()) {
            scope.open.unlink();
        }
        scope.owner = nullptr;
        scope.is_aborted = true;
        const Ref failures = Ref::steal_or_null(std::exchange(scope.failures, nullptr));
        const bool was_cut_short = scope.is_timed_out && (is_own || scope.has_cut_tasks_short);
        if (error == Py_None && !failures && !interruption && !was_cut_short) {
            Py_RETURN_NONE;
        }
        const auto or_none = [](const Ref& object) { return object ? object.ptr() : Py_None; };
        return Py_BuildValue("(OOOO)", or_none(failures), or_none(interruption), is_own ? Py_True : Py_False,
                             was_cut_short ? Py_True : Py_False);
    });
}

PyObject* scope_cancelled(PyObject* self, void*) { return Py_NewRef(as_scope(self).is_aborted ? Py_True : Py_False); }

PyObject* scope_live_tasks(PyObject* self, void*) { return PyLong_FromSsize_t(as_scope(self).live_tasks); }

int scope_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(as_scope(self).failures);
    Py_VISIT(as_scope(self).canceller);
    return 0;
}

int scope_clear(PyObject* self) {
    Py_CLEAR(as_scope(self).failures);
    Py_CLEAR(as_scope(self).canceller);
    return 0;
}

/// Failures of a scope that was never left go to threading.excepthook (gossamer/_errors.py).
void scope_finalize(PyObject* self) {
    ScopeObject& scope = as_scope(self);
    if (scope.failures == nullptr) {
        return;
    }
    PyObject* pending = PyErr_GetRaisedException();
    guarded(0, [&] {
        const Ref failures = steal(std::exchange(scope.failures, nullptr));
        const Ref module = steal(PyImport_ImportModule("gossamer._errors"));
        for (Py_ssize_t index = 0; index < PyList_GET_SIZE(failures.ptr()); ++index) {
            steal(PyObject_CallMethod(module.ptr(), "report_lost", "O", PyList_GET_ITEM(failures.ptr(), index)));
        }
        return 0;
    });
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_SetRaisedException(pending);
}

void scope_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    ScopeObject& scope = as_scope(self);
    PyObject_GC_UnTrack(self);
    if (scope.owner != nullptr) {
        scope.owner->hub().timers().disarm(scope.timer);
        scope.open.unlink();
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
               "Run ``callable(*args, **kwargs)`` in a new virtual thread of this scope; return its Task.\n\n"
               "A coroutine function's coroutine is run there, on an event loop of its own. The task has a copy of the "
               "caller's\n"
               "context. In a scope that was cancelled the task is cancelled before it begins.\n\n"
               "Args:\n"
               "    callable: A function, or a coroutine function.\n"
               "    stack_size: Bytes of C stack, 32768 or more; 0: 512 KiB.\n\n"
               "Raises:\n"
               "    TypeError: ``callable`` is none.\n"
               "    RuntimeError: The scope has been left, or belongs to another OS thread.")},
    {"cancel", scope_cancel, METH_NOARGS,
     PyDoc_STR("cancel($self, /)\n--\n\nCancel every task of the scope, and its body; return at once.")},
    {"_open", _PyCFunction_CAST(scope_open), METH_FASTCALL, nullptr},
    {"_leave", _PyCFunction_CAST(scope_leave), METH_FASTCALL, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"cancelled", scope_cancelled, nullptr, PyDoc_STR("Whether the scope was cancelled, failed, timed out or left."),
     nullptr},
    {"live_tasks", scope_live_tasks, nullptr, PyDoc_STR("How many tasks have not ended."), nullptr},
    {}};

PyMemberDef members[] = {
    {"__weaklistoffset__", Py_T_PYSSIZET, offsetof(ScopeObject, weak_references), Py_READONLY, nullptr}, {}};

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(scope_new)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(scope_dealloc)},
                       {Py_tp_finalize, reinterpret_cast<void*>(scope_finalize)},
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
        add_failure(scope, exception);
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
        if (scope.canceller == nullptr) {
            scope.request_stamp = scope.owner->request_scope_cancellation();
        } else {
            call_soon(scope.owner->hub(), scope.canceller);
        }
    }
}

void orphan_scopes(VirtualThread& owner) noexcept {
    while (core::ListHook* hook = owner.open_scopes.pop_front()) {
        ScopeObject& scope = of_open(*hook);
        owner.hub().timers().disarm(scope.timer);
        scope.owner = nullptr;
        scope.has_cancelled_owner = false;
        abort_scope(scope);
    }
}

void forget_tasks_of_scopes(VirtualThread& owner) noexcept {
    for (core::ListHook* hook = owner.open_scopes.front(); hook != nullptr; hook = owner.open_scopes.next_of(*hook)) {
        ScopeObject& scope = of_open(*hook);
        scope.timer.index = core::Timer::kIdle;
        scope.live_tasks = 0;
        new (&scope.tasks) core::IntrusiveList<core::ListHook>;
    }
}

}  // namespace gossamer::sched
