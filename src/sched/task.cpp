// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/task.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "core/parking_lot.hpp"
#include "cpython/args.hpp"
#include "cpython/critical_section.hpp"
#include "cpython/exceptions.hpp"
#include "cpython/ref.hpp"
#include "sched/scope.hpp"
#include "sched/wait.hpp"

namespace gossamer::sched {

using cpython::CriticalSection;
using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

TaskObject& as_task(PyObject* self) noexcept { return *reinterpret_cast<TaskObject*>(self); }

PyObject* as_object(TaskObject& task) noexcept { return &task.ob_base; }

Ref take_callbacks(TaskObject& task) noexcept {
    const CriticalSection section(as_object(task));
    return Ref::steal_or_null(std::exchange(task.callbacks, nullptr));
}

/// After it is done: who looks later is not among them.
void call_callbacks(TaskObject& task) {
    const Ref callbacks = take_callbacks(task);
    if (!callbacks) {
        return;
    }
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(callbacks.ptr()); ++index) {
        const Ref callback = cpython::borrow(PyList_GET_ITEM(callbacks.ptr(), index));
        if (!Ref::steal_or_null(PyObject_CallOneArg(callback.ptr(), as_object(task)))) {
            PyErr_WriteUnraisable(callback.ptr());
        }
    }
}

void finish_task(TaskObject& task, PyObject* result, Ref exception) {
    task.result = result;
    task.is_cancelled = exception && cpython::is_cancelled_error(exception.ptr());
    task.exception = Py_XNewRef(exception.ptr());
    task.traceback = exception ? PyException_GetTraceback(exception.ptr()) : nullptr;
    task.thread = nullptr;
    task.is_done = true;
    core::ParkingLot::instance().unpark_all(&task);
    call_callbacks(task);
    if (task.scope != nullptr) {
        task.sibling.unlink();
        ScopeObject* scope = std::exchange(task.scope, nullptr);
        task.is_retrieved = true;  // the scope has it
        scope_task_ended(*scope, task.is_cancelled ? nullptr : exception.ptr());
        Py_DECREF(reinterpret_cast<PyObject*>(scope));
    }
}

/// The result of a coroutine, which is run here; any other object unchanged. Null with the error indicator set.
PyObject* run_if_coroutine(PyObject* object) {
    if (object == nullptr || !PyCoro_CheckExact(object)) {
        return object;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Ref coroutine = steal(object);
        const Ref module = steal(PyImport_ImportModule("gossamer._coroutines"));
        return steal(PyObject_CallMethod(module.ptr(), "run_coroutine", "O", coroutine.ptr())).release();
    });
}

/// Raises the exception of a task that failed, with the traceback that it ended with: joiners' frames do not pile up.
[[noreturn]] void raise_exception_of(TaskObject& task) {
    if (PyException_SetTraceback(task.exception, task.traceback == nullptr ? Py_None : task.traceback) < 0) {
        throw ErrorSet{};
    }
    PyErr_SetRaisedException(Py_NewRef(task.exception));
    throw ErrorSet{};
}

/// Does for a spawned virtual thread what threading does for a Thread: threading.settrace() and setprofile() are asked.
void begin_tracing(const cpython::ModuleState& state) {
    if (state.threading_names == nullptr) {
        return;  // nobody can have asked
    }
    const std::pair<PyObject*, const char*> hooks[] = {{state.trace_hook_name, "settrace"},
                                                       {state.profile_hook_name, "setprofile"}};
    for (const auto& [name, setter] : hooks) {
        PyObject* hook = PyDict_GetItemWithError(state.threading_names, name);
        if (hook != nullptr && hook != Py_None) {
            const Ref kept = cpython::borrow(hook);
            steal(PyObject_CallOneArg(PySys_GetObject(setter), kept.ptr()));
        }
    }
}

void run_task(VirtualThread& thread, void* argument) {
    auto& task = *static_cast<TaskObject*>(argument);
    const Ref keep_alive = Ref::steal_or_null(as_object(task));  // the reference that the virtual thread owned
    PyObject* args = std::exchange(task.args, nullptr);
    PyObject* kwargs = std::exchange(task.kwargs, nullptr);
    PyObject* result = nullptr;
    if (thread.must_cancel()) {
        // Cancelled before it began: never called. The exception is made the same way as at a park.
        guarded(0, [&]() -> int { raise_wake(thread.hub(), Wake::kCancelled); });
    } else {
        result = guarded<PyObject*>(nullptr, [&] {
            begin_tracing(cpython::state_of_defining_class(Py_TYPE(&task.ob_base)));
            return run_if_coroutine(PyObject_Call(task.callable, args, kwargs));
        });
    }
    Ref exception = Ref::steal_or_null(result == nullptr ? PyErr_GetRaisedException() : nullptr);
    // Let go before the task counts as ended: a finaliser that this runs belongs to the task, as the death of its
    // thread-local data does.
    Py_DECREF(std::exchange(task.callable, nullptr));
    Py_DECREF(args);
    Py_XDECREF(kwargs);
    cpython::FiberState::clear_thread_data(thread.hub().tstate());
    finish_task(task, result, std::move(exception));
    thread.object = nullptr;
}

bool wait_for_end(TaskObject& task, core::Deadline deadline) {
    const auto is_over = [&task] { return task.is_done.load(); };
    if (task.is_done) {
        return true;
    }
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return wait_until_on_os_thread(&task, deadline, is_over);
    }
    if (task.thread == &hub->running()) {
        cpython::raise(PyExc_RuntimeError, "a task cannot wait for its own end");
    }
    return wait_until(*hub, &task, {.what = "Task.result", .object = &task}, deadline, is_over);
}

core::Deadline deadline_of(PyObject* timeout) {
    if (timeout == nullptr || timeout == Py_None) {
        return core::Deadline::never();
    }
    // The past is as good as now: a negative time-out looks once, as in concurrent.futures.
    return core::Deadline::after(core::monotonic_now(), core::Nanoseconds(std::max<std::int64_t>(
                                                            cpython::nanoseconds_from_seconds(timeout), 0)));
}

/// Parses `(timeout=None)`, waits, raises TimeoutError when the time is up.
void wait_with_timeout(TaskObject& task, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    if (count > 1 || (names != nullptr && PyTuple_GET_SIZE(names) + count > 1)) {
        cpython::raise(PyExc_TypeError, "at most one argument, timeout, is accepted");
    }
    if (names != nullptr && PyTuple_GET_SIZE(names) == 1 &&
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "timeout") != 0) {
        cpython::raise(PyExc_TypeError, "unexpected keyword argument %R", PyTuple_GET_ITEM(names, 0));
    }
    const bool has_timeout = count == 1 || (names != nullptr && PyTuple_GET_SIZE(names) == 1);
    if (!wait_for_end(task, deadline_of(has_timeout ? args[0] : nullptr))) {
        cpython::raise(PyExc_TimeoutError, "the task did not end in time");
    }
}

PyObject* task_result(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        TaskObject& task = as_task(self);
        const Ref keep_alive = cpython::borrow(self);
        wait_with_timeout(task, args, count, names);
        if (task.exception != nullptr) {
            task.is_retrieved = true;
            raise_exception_of(task);
        }
        return Py_NewRef(task.result);
    });
}

PyObject* task_exception(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        TaskObject& task = as_task(self);
        const Ref keep_alive = cpython::borrow(self);
        wait_with_timeout(task, args, count, names);
        task.is_retrieved = true;
        if (task.is_cancelled) {
            raise_exception_of(task);
        }
        return Py_NewRef(task.exception == nullptr ? Py_None : task.exception);
    });
}

PyObject* task_wait(PyObject* self, PyObject* timeout) {
    return guarded<PyObject*>(nullptr, [&] {
        const Ref keep_alive = cpython::borrow(self);
        return Py_NewRef(wait_for_end(as_task(self), deadline_of(timeout)) ? Py_True : Py_False);
    });
}

/// Whether the callback is called at the task's end; otherwise that has been. Throws ErrorSet.
bool add_callback(TaskObject& task, PyObject* callback) {
    const CriticalSection section(as_object(task));
    if (task.is_done) {
        return false;
    }
    if (task.callbacks == nullptr) {
        task.callbacks = steal(PyList_New(0)).release();
    }
    cpython::check(PyList_Append(task.callbacks, callback));
    return true;
}

/// _on_end(callback): calls it with the task in the task's virtual thread, at its end; at once if that has been.
PyObject* task_on_end(PyObject* self, PyObject* callback) {
    return guarded<PyObject*>(nullptr, [&] {
        return add_callback(as_task(self), callback) ? Py_NewRef(Py_None) : PyObject_CallOneArg(callback, self);
    });
}

/// _forget(callback): takes _on_end back, if the task has not ended.
PyObject* task_forget(PyObject* self, PyObject* callback) {
    return guarded<PyObject*>(nullptr, [&] {
        const CriticalSection section(self);
        PyObject* callbacks = as_task(self).callbacks;
        for (Py_ssize_t index = 0; callbacks != nullptr && index < PyList_GET_SIZE(callbacks); ++index) {
            if (PyList_GET_ITEM(callbacks, index) == callback) {
                cpython::check(PySequence_DelItem(callbacks, index));
                break;
            }
        }
        Py_RETURN_NONE;
    });
}

/// `await task`: an iterator made by gossamer/_coroutines.py.
PyObject* task_await(PyObject* self) {
    return guarded<PyObject*>(nullptr, [&] {
        const Ref module = steal(PyImport_ImportModule("gossamer._coroutines"));
        return steal(PyObject_CallMethod(module.ptr(), "await_task", "O", self)).release();
    });
}

PyObject* task_cancel(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        TaskObject& task = as_task(self);
        const bool asked = !task.is_done;
        if (task.hub == Hub::current()) {
            cancel_task(task);
        } else if (asked) {
            cpython::while_others_stand([&task] { cancel_task(task); });
        }
        return Py_NewRef(asked ? Py_True : Py_False);
    });
}

PyObject* task_done(PyObject* self, PyObject*) { return Py_NewRef(as_task(self).is_done ? Py_True : Py_False); }

PyObject* task_cancelled(PyObject* self, PyObject*) {
    return Py_NewRef(as_task(self).is_cancelled ? Py_True : Py_False);
}

PyObject* task_ident(PyObject* self, void*) {
    VirtualThread* thread = as_task(self).thread;
    return thread == nullptr ? Py_NewRef(Py_None) : PyLong_FromUnsignedLong(thread->ident());
}

PyObject* task_is_retrieved(PyObject* self, void*) {
    const TaskObject& task = as_task(self);
    return Py_NewRef(task.exception == nullptr || task.is_retrieved ? Py_True : Py_False);
}

PyObject* task_has_failed(PyObject* self, void*) {
    return Py_NewRef(as_task(self).exception != nullptr ? Py_True : Py_False);
}

/// The qualified name of what a task runs, or its type's; None once the task has ended.
PyObject* task_name(PyObject* self, void*) {
    const Ref callable = cpython::borrow(as_task(self).callable);
    if (!callable) {
        Py_RETURN_NONE;
    }
    PyObject* name = PyObject_GetAttrString(callable.ptr(), "__qualname__");
    if (name == nullptr) {
        PyErr_Clear();
        return PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(callable.ptr())), "__qualname__");
    }
    return name;
}

PyObject* task_repr(PyObject* self) {
    const TaskObject& task = as_task(self);
    const char* state = !task.is_done       ? "running"
                        : task.is_cancelled ? "cancelled"
                        : task.exception    ? "failed"
                                            : "done";
    if (task.callable != nullptr) {
        const Ref name = Ref::steal_or_null(task_name(self, nullptr));
        return name ? PyUnicode_FromFormat("<gossamer.Task %s %S at %p>", task.args == nullptr ? "running" : "ready",
                                           name.ptr(), self)
                    : nullptr;
    }
    return PyUnicode_FromFormat("<gossamer.Task %s at %p>", state, self);
}

int task_traverse(PyObject* self, visitproc visit, void* arg) {
    const TaskObject& task = as_task(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(task.callable);
    Py_VISIT(task.args);
    Py_VISIT(task.kwargs);
    Py_VISIT(task.result);
    Py_VISIT(task.exception);
    Py_VISIT(task.traceback);
    Py_VISIT(task.callbacks);
    Py_VISIT(reinterpret_cast<PyObject*>(task.scope));
    return 0;
}

int task_clear(PyObject* self) {
    TaskObject& task = as_task(self);
    Py_CLEAR(task.callable);
    Py_CLEAR(task.args);
    Py_CLEAR(task.kwargs);
    Py_CLEAR(task.result);
    Py_CLEAR(task.exception);
    Py_CLEAR(task.traceback);
    Py_CLEAR(task.callbacks);
    return 0;
}

/// An exception that nobody asked for goes to threading.excepthook (gossamer/_errors.py).
void task_finalize(PyObject* self) {
    TaskObject& task = as_task(self);
    if (task.exception == nullptr || task.is_retrieved || task.is_cancelled) {
        return;
    }
    PyObject* pending = PyErr_GetRaisedException();
    task.is_retrieved = true;
    guarded(0, [&] {
        const Ref module = steal(PyImport_ImportModule("gossamer._errors"));
        steal(PyObject_CallMethod(module.ptr(), "report_lost", "O", task.exception));
        return 0;
    });
    if (PyErr_Occurred()) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_SetRaisedException(pending);
}

void task_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    if (as_task(self).weak_references != nullptr) {
        PyObject_ClearWeakRefs(self);
    }
    task_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"result", _PyCFunction_CAST(task_result), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("result($self, /, timeout=None)\n--\n\n"
               "Wait for the end; return the result or raise the task's exception.\n\n"
               "Args:\n"
               "    timeout: Seconds to wait, 0 or more; None: no limit.\n\n"
               "Raises:\n"
               "    TimeoutError: The task did not end in time.\n"
               "    asyncio.CancelledError: The task, or the caller, was cancelled.\n"
               "    RuntimeError: A task asks for its own result.")},
    {"exception", _PyCFunction_CAST(task_exception), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("exception($self, /, timeout=None)\n--\n\n"
               "Wait for the end; return the task's exception, or None.\n\n"
               "Args and Raises are those of `result`.")},
    {"_wait", task_wait, METH_O,
     PyDoc_STR("_wait($self, timeout, /)\n--\n\nWait for the end; return whether it came.")},
    {"_on_end", task_on_end, METH_O, nullptr},
    {"_forget", task_forget, METH_O, nullptr},
    {"cancel", task_cancel, METH_NOARGS,
     PyDoc_STR("cancel($self, /)\n--\n\n"
               "Ask for cancellation and return at once; return False if the task has ended.\n\n"
               "asyncio.CancelledError is raised where the task waits, or at its next wait.")},
    {"done", task_done, METH_NOARGS, PyDoc_STR("done($self, /)\n--\n\nReturn whether the task has ended.")},
    {"cancelled", task_cancelled, METH_NOARGS,
     PyDoc_STR("cancelled($self, /)\n--\n\nReturn whether the task ended by cancellation.")},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS,
     PyDoc_STR("__class_getitem__($type, item, /)\n--\n\nTask[int]: the type of a task whose result is an int.")},
    {}};

PyGetSetDef properties[] = {
    {"ident", task_ident, nullptr, PyDoc_STR("threading.get_ident() of the virtual thread; None once it has ended."),
     nullptr},
    {"_name", task_name, nullptr, PyDoc_STR("The name of what the task runs; None once it has ended."), nullptr},
    {"_has_failed", task_has_failed, nullptr, PyDoc_STR("Whether the task ended with an exception."), nullptr},
    {"_is_retrieved", task_is_retrieved, nullptr, PyDoc_STR("Whether no exception of the task can be lost."), nullptr},
    {}};

PyMemberDef members[] = {
    {"__weaklistoffset__", Py_T_PYSSIZET, offsetof(TaskObject, weak_references), Py_READONLY, nullptr}, {}};

PyType_Slot slots[] = {
    {Py_tp_doc,
     const_cast<char*>("The handle of a spawned virtual thread; from `Scope.spawn`.\n\n``await task`` waits for it.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(task_dealloc)},
    {Py_tp_finalize, reinterpret_cast<void*>(task_finalize)},
    {Py_tp_traverse, reinterpret_cast<void*>(task_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(task_clear)},
    {Py_am_await, reinterpret_cast<void*>(task_await)},
    {Py_tp_repr, reinterpret_cast<void*>(task_repr)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_members, members},
    {0, nullptr}};

PyType_Spec spec = {
    "gossamer.Task", sizeof(TaskObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

PyTypeObject* create_task_type(PyObject* module) {
    return reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, nullptr)).release());
}

TaskObject* spawn_task(cpython::ModuleState& state, Hub& hub, PyObject* callable, PyObject* const* args,
                       std::size_t count, PyObject* keyword_names, ScopeObject* scope, std::size_t stack_bytes) {
    if (!PyCallable_Check(callable)) {
        cpython::raise(PyExc_TypeError, "spawn() needs a callable, not %.200s", Py_TYPE(callable)->tp_name);
    }
    if (!cpython::kPython313 && state.threading_names == nullptr) {
        // 3.12 takes the thread that imports it for the main thread: before there is a task that could.
        steal(PyImport_ImportModule("threading"));
    }
    Ref arguments = steal(PyTuple_New(static_cast<Py_ssize_t>(count)));
    for (std::size_t index = 0; index < count; ++index) {
        PyTuple_SET_ITEM(arguments.ptr(), static_cast<Py_ssize_t>(index), Py_NewRef(args[index]));
    }
    Ref keywords;
    if (keyword_names != nullptr && PyTuple_GET_SIZE(keyword_names) > 0) {
        keywords = steal(PyDict_New());
        for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(keyword_names); ++index) {
            cpython::check(PyDict_SetItem(keywords.ptr(), PyTuple_GET_ITEM(keyword_names, index),
                                          args[count + static_cast<std::size_t>(index)]));
        }
    }
    Ref context = steal(PyContext_CopyCurrent());
    Ref object = steal(state.task_type->tp_alloc(state.task_type, 0));
    TaskObject& task = as_task(object.ptr());
    VirtualThread& thread =
        hub.spawn(Entry{.run = &run_task, .argument = &task, .context = context.release()}, stack_bytes);
    new (&task.sibling) core::ListHook;
    task.thread = &thread;
    task.hub = &hub;
    task.callable = Py_NewRef(callable);
    task.args = arguments.release();
    task.kwargs = keywords.release();
    thread.object = object.ptr();
    Py_INCREF(object.ptr());  // the virtual thread's, given back by run_task
    if (scope != nullptr) {
        Py_INCREF(reinterpret_cast<PyObject*>(scope));
        task.scope = scope;
        scope->tasks.push_back(task.sibling);
        ++scope->live_tasks;
        thread.is_scoped = true;
    }
    return reinterpret_cast<TaskObject*>(object.release());
}

void cancel_task(TaskObject& task) noexcept {
    if (task.thread != nullptr) {
        task.thread->request_cancellation();
    }
}

}  // namespace gossamer::sched
