// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/await.hpp"

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/coroutine_slots.hpp"
#include "loop/steps.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::Wake;

namespace {

Step* innermost_step(Hub& hub) noexcept { return static_cast<Step*>(hub.running().inner_waits); }

/// The step of the task that the caller runs in, or null.
Step* step_of_task() noexcept {
    Hub* hub = Hub::current();
    Step* innermost = hub == nullptr || hub->running().no_switch_depth > 0 ? nullptr : innermost_step(*hub);
    return innermost == nullptr ? nullptr : innermost->steps().step_of_task(*innermost);
}

/// What `await` iterates over. Throws ErrorSet, TypeError.
Ref iterator_of(PyObject* awaitable) {
    if (PyCoro_CheckExact(awaitable)) {
        return cpython::borrow(awaitable);
    }
    if (PyGen_CheckExact(awaitable) &&
        (PyGen_GetCode(reinterpret_cast<PyGenObject*>(awaitable))->co_flags & CO_ITERABLE_COROUTINE) != 0) {
        return cpython::borrow(awaitable);  // types.coroutine
    }
    const PyAsyncMethods* methods = Py_TYPE(awaitable)->tp_as_async;
    if (methods == nullptr || methods->am_await == nullptr) {
        cpython::raise(PyExc_TypeError, "object %.100s can't be used in 'await' expression",
                       Py_TYPE(awaitable)->tp_name);
    }
    Ref iterator = steal(methods->am_await(awaitable));
    if (!PyIter_Check(iterator.ptr()) || PyCoro_CheckExact(iterator.ptr())) {
        cpython::raise(PyExc_TypeError, "__await__() returned non-iterator of type '%.100s'",
                       Py_TYPE(iterator.ptr())->tp_name);
    }
    return iterator;
}

}  // namespace

PyObject* await_in_task(PyObject*, PyObject* const* args, Py_ssize_t) {
    Step* step = step_of_task();
    if (step == nullptr) {
        return Py_NewRef(args[1]);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        Hub& hub = step->steps().hub();
        const Ref iterator = iterator_of(args[0]);
        PyObject* result = nullptr;
        PySendResult kind = send_here(iterator.ptr(), Py_None, &result);
        while (kind == PYGEN_NEXT) {
            const Wake wake = step->give(*innermost_step(hub), result, {.what = "an await"});
            result = nullptr;
            if (wake == Wake::kFailed) {
                return nullptr;
            }
            if (wake == Wake::kReady) {
                kind = send_here(iterator.ptr(), Py_None, &result);
            } else {
                step->raise_cancellation();
                kind = throw_here(iterator.ptr(), PyErr_GetRaisedException(), &result);
            }
        }
        return result;
    });
}

PyObject* can_await_in_task(PyObject*, PyObject*) { return PyBool_FromLong(step_of_task() != nullptr); }

PyObject* can_park_in_task(PyObject*, PyObject*) {
    const bool parks =
        Hub::current() != nullptr && Hub::current()->running().blocking_in_tasks == sched::BlockingInTasks::kPark;
    return PyBool_FromLong(parks && step_of_task() != nullptr);
}

PyObject* is_in_step(PyObject*, PyObject*) {
    Hub* hub = Hub::current();
    return PyBool_FromLong(hub != nullptr && hub->running().inner_waits != nullptr);
}

PyObject* let_plain_functions_await(PyObject*, PyObject* wanted) {
    const int is_wanted = PyObject_IsTrue(wanted);
    return is_wanted < 0 ? nullptr : PyBool_FromLong(let_plain_functions_await(is_wanted != 0));
}

PyObject* lend_context(PyObject*, PyObject*) {
    PyThreadState* tstate = PyThreadState_Get();
    if (tstate->context == nullptr) {
        tstate->context = PyContext_New();
        if (tstate->context == nullptr) {
            return nullptr;
        }
        ++tstate->context_ver;
    }
    const Ref context = cpython::borrow(tstate->context);
    // What a thread begins with is nowhere entered, and so can be entered elsewhere as it is.
    const bool was_entered = PyContext_Exit(context.ptr()) == 0;
    PyErr_Clear();
    return Py_BuildValue("(OO)", context.ptr(), was_entered ? Py_True : Py_False);
}

PyObject* take_context_back(PyObject*, PyObject* const* args, Py_ssize_t) {
    if (args[1] == Py_True && PyContext_Enter(args[0]) < 0) {
        return nullptr;
    }
    Py_RETURN_NONE;
}

}  // namespace gossamer::loop
