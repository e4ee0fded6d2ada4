// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/coroutine_slots.hpp"

#include <atomic>
#include <cstring>
#include <new>
#include <system_error>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/parked_steps.hpp"
#include "loop/steps.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using sched::Hub;

namespace {

using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

// Process-wide on purpose, as the type is; written once, before the entries are replaced.
sendfunc original_send = nullptr;
destructor original_finalize = nullptr;
PyCFunction original_send_method = nullptr;
PyCFunction original_close = nullptr;
FastFunction original_throw = nullptr;
std::atomic<bool> plain_functions_await{false};
bool is_installed = false;  // under the GIL of whoever enters; the entries themselves are stored atomically

bool is_executing(PyObject* coroutine) noexcept {
    return reinterpret_cast<PyCoroObject*>(coroutine)->cr_frame_state == FRAME_EXECUTING;
}

Step* parked_step(PyObject* coroutine) noexcept {
    return is_executing(coroutine) ? ParkedSteps::instance().find(coroutine) : nullptr;
}

/// Whether a step that starts now runs on a stack of its own.
bool starts_on_fiber(const Hub* hub) noexcept {
    return hub != nullptr &&
           (const_cast<Hub*>(hub)->running().blocking_in_tasks == sched::BlockingInTasks::kPark ||
            plain_functions_await.load(std::memory_order_relaxed)) &&
           !are_steps_off();
}

/// Raises unless the calling thread is the one that `step` is parked on.
bool is_ours(const Step& step, const Hub* hub) noexcept {
    if (hub == &step.steps().hub()) {
        return true;
    }
    PyErr_SetString(PyExc_RuntimeError, "the coroutine is parked in a blocking call on another thread");
    return false;
}

PySendResult start_step(Hub& hub, PyObject* coroutine, const StepBody& body, PyObject** result) noexcept {
    Step* step = guarded<Step*>(nullptr, [&] { return &Steps::of(hub).take(); });
    if (step == nullptr) {
        *result = nullptr;
        return PYGEN_ERROR;
    }
    return step->start(coroutine, body, result);
}

PySendResult run_send(PyObject* coroutine, void* argument, PyObject** result) {
    return original_send(coroutine, static_cast<PyObject*>(argument), result);
}

PySendResult send(PyObject* self, PyObject* value, PyObject** result) {
    Hub* hub = Hub::current();
    if (is_executing(self)) [[unlikely]] {
        Step* step = ParkedSteps::instance().find(self);
        if (step == nullptr) {
            return original_send(self, value, result);
        }
        *result = nullptr;
        if (!is_ours(*step, hub)) {
            return PYGEN_ERROR;
        }
        if (!step->steps().may_resume(*step)) {
            PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
            return PYGEN_ERROR;
        }
        return step->resume(nullptr, result);
    }
    if (!starts_on_fiber(hub)) {
        return original_send(self, value, result);
    }
    return start_step(*hub, self, {run_send, value}, result);
}

/// What a method returns for what a slot returned.
PyObject* method_result(PySendResult kind, PyObject* value) noexcept {
    if (kind != PYGEN_RETURN) {
        return value;
    }
    if (value == Py_None) {
        PyErr_SetNone(PyExc_StopIteration);
    } else {
        _PyGen_SetStopIterationValue(value);
    }
    Py_DECREF(value);
    return nullptr;
}

PyObject* send_method(PyObject* self, PyObject* value) {
    Hub* hub = Hub::current();
    if (!is_executing(self) && !starts_on_fiber(hub)) {
        return original_send_method(self, value);
    }
    PyObject* result = nullptr;
    const PySendResult kind = send(self, value, &result);
    return method_result(kind, result);
}

PySendResult run_throw(PyObject* coroutine, void* argument, PyObject** result) {
    auto* exception = static_cast<PyObject*>(argument);
    *result = original_throw(coroutine, &exception, 1);
    if (*result != nullptr) {
        return PYGEN_NEXT;
    }
    return _PyGen_FetchStopIterationValue(result) == 0 ? PYGEN_RETURN : PYGEN_ERROR;
}

/// The exception that `throw(*args)` means. Returns null with the error set.
PyObject* exception_of(PyObject* const* args, Py_ssize_t count) noexcept {
    PyObject* given = args[0];
    if (PyExceptionInstance_Check(given)) {
        return Py_NewRef(given);
    }
    if (!PyExceptionClass_Check(given)) {
        PyErr_Format(PyExc_TypeError, "exceptions must be classes or instances deriving from BaseException, not %s",
                     Py_TYPE(given)->tp_name);
        return nullptr;
    }
    PyObject* value = count > 1 && args[1] != Py_None ? args[1] : nullptr;
    if (value != nullptr && PyExceptionInstance_Check(value)) {
        return Py_NewRef(value);
    }
    PyObject* made = value == nullptr ? PyObject_CallNoArgs(given) : PyObject_CallOneArg(given, value);
    if (made != nullptr && !PyExceptionInstance_Check(made)) {
        PyErr_Format(PyExc_TypeError, "calling %R should have returned an instance of BaseException, not %R", given,
                     Py_TYPE(made));
        Py_CLEAR(made);
    }
    return made;
}

PyObject* throw_method(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    Hub* hub = Hub::current();
    PyObject* result = nullptr;
    Step* step = count >= 1 && count <= 3 ? parked_step(self) : nullptr;
    if (step != nullptr) {
        PyObject* exception = is_ours(*step, hub) ? exception_of(args, count) : nullptr;
        if (exception == nullptr) {
            return nullptr;
        }
        const PySendResult kind = step->resume(exception, &result);
        return method_result(kind, result);
    }
    if (count != 1 || is_executing(self) || !starts_on_fiber(hub)) {
        return original_throw(self, args, count);
    }
    const PySendResult kind = start_step(*hub, self, {run_throw, args[0]}, &result);
    return method_result(kind, result);
}

PyObject* close_method(PyObject* self, PyObject* unused) {
    Step* step = parked_step(self);
    if (step == nullptr) {
        return original_close(self, unused);
    }
    return is_ours(*step, Hub::current()) ? close_parked(*step) : nullptr;
}

/// A coroutine that dies while it is parked is closed there. One that another thread finds dead lives until its own thread
/// closes it; one of a hub that is gone, or of the parent of a forked child, for ever: its frames are on that stack.
void finalize(PyObject* self) {
    Step* step = PyCoro_CheckExact(self) ? parked_step(self) : nullptr;
    if (step == nullptr) {
        original_finalize(self);
        return;
    }
    PyObject* pending = PyErr_GetRaisedException();
    const Hub* hub = Hub::current();
    if (step->status() == sched::ThreadStatus::kFinished) {
        Py_INCREF(self);
    } else if (hub != &step->steps().hub()) {
        Py_INCREF(self);
        guarded(0, [&] {
            step->steps().condemn(self);
            return 0;
        });
        PyErr_Clear();  // out of memory: it is kept
    } else if (!Ref::steal_or_null(close_parked(*step))) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_SetRaisedException(pending);
}

PyMethodDef& method(const char* name, int flags) {
    for (PyMethodDef* definition = PyCoro_Type.tp_methods; definition->ml_name != nullptr; ++definition) {
        if (std::strcmp(definition->ml_name, name) == 0 && definition->ml_flags == flags) {
            return *definition;
        }
    }
    cpython::raise(PyExc_ImportError, "gossamer does not know the method %s of coroutines in this Python", name);
}

template <typename Function>
void store(Function& entry, Function function) noexcept {
    std::atomic_ref<Function>(entry).store(function, std::memory_order_release);
}

template <typename Function>
PyCFunction as_c_function(Function function) noexcept {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

bool are_slots_installed() noexcept { return is_installed; }

bool let_plain_functions_await(bool is_wanted) noexcept { return plain_functions_await.exchange(is_wanted); }

PySendResult send_here(PyObject* iterator, PyObject* value, PyObject** result) {
    if (PyCoro_CheckExact(iterator) && is_installed && !is_executing(iterator)) {
        return original_send(iterator, value, result);
    }
    return PyIter_Send(iterator, value, result);
}

PySendResult throw_here(PyObject* iterator, PyObject* exception, PyObject** result) {
    const Ref thrown = Ref::steal_or_null(exception);
    if (PyCoro_CheckExact(iterator) && is_installed && !is_executing(iterator)) {
        return run_throw(iterator, exception, result);
    }
    const Ref method = Ref::steal_or_null(PyObject_GetAttrString(iterator, "throw"));
    if (!method) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) {  // one that cannot be told is left, as `await` does
            PyErr_SetRaisedException(Py_NewRef(exception));
        }
        return PYGEN_ERROR;
    }
    *result = PyObject_CallOneArg(method.ptr(), exception);
    if (*result != nullptr) {
        return PYGEN_NEXT;
    }
    return _PyGen_FetchStopIterationValue(result) == 0 ? PYGEN_RETURN : PYGEN_ERROR;
}

void install_slots() {
    if (is_installed) {
        return;
    }
    PyMethodDef& send_definition = method("send", METH_O);
    PyMethodDef& throw_definition = method("throw", METH_FASTCALL);
    PyMethodDef& close_definition = method("close", METH_NOARGS);
    if (original_send == nullptr) {
        original_send = PyCoro_Type.tp_as_async->am_send;
        original_finalize = PyCoro_Type.tp_finalize;
        original_send_method = send_definition.ml_meth;
        original_close = close_definition.ml_meth;
        original_throw = reinterpret_cast<FastFunction>(reinterpret_cast<void (*)()>(throw_definition.ml_meth));
    }
    is_installed = true;
    store(PyCoro_Type.tp_finalize, &finalize);
    store(close_definition.ml_meth, &close_method);
    store(throw_definition.ml_meth, as_c_function(&throw_method));
    store(send_definition.ml_meth, &send_method);
    store(PyCoro_Type.tp_as_async->am_send, &send);
}

void require_none_parked() {
    if (const std::size_t count = ParkedSteps::instance().count(); count > 0) {
        cpython::raise(PyExc_RuntimeError, "%zu tasks are parked in blocking calls", count);
    }
}

void uninstall_slots() {
    if (!is_installed) {
        return;
    }
    is_installed = false;
    store(PyCoro_Type.tp_as_async->am_send, original_send);
    store(method("send", METH_O).ml_meth, original_send_method);
    store(method("throw", METH_FASTCALL).ml_meth, as_c_function(original_throw));
    store(method("close", METH_NOARGS).ml_meth, original_close);
    store(PyCoro_Type.tp_finalize, original_finalize);
}

}  // namespace gossamer::loop
