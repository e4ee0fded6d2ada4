// SPDX-License-Identifier: Apache-2.0
// The functions of the `_thread` module that start threads and wait for their end.
#include "cpython/api.hpp"

#include <atomic>
#include <memory>

#include "core/parking_lot.hpp"
#include "cpython/exceptions.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/offload.hpp"
#include "sched/wait.hpp"

#if PY_VERSION_HEX < 0x030D0000
extern "C" void _PyErr_WriteUnraisableMsg(const char* message, PyObject* object);
#endif

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

PyCFunction original_start_new_thread = nullptr;
PyCFunction original_start_new = nullptr;
PyCFunction original_start_joinable_thread = nullptr;
PyCFunction original_shutdown = nullptr;
PyCFunction original_main_ident = nullptr;
PyCFunction original_excepthook = nullptr;
PyCFunction original_interrupt_main = nullptr;

std::atomic<bool> error_was_lost{false};

/// What a started thread runs; the virtual thread owns it until it ends.
struct Start {
    Ref function;
    Ref args;
    Ref kwargs;
};

void report_unraisable(PyObject* function) {
#if PY_VERSION_HEX >= 0x030D0000
    PyErr_FormatUnraisable("Exception ignored in thread started by %R", function);
#else
    _PyErr_WriteUnraisableMsg("in thread started by", function);
#endif
}

/// Whether `exception` is the cancellation that the end of the program sent to the threads that were left.
bool is_end_of_program(Hub& hub, PyObject* exception) noexcept {
    return hub.is_closing && cpython::is_cancelled_error(exception);
}

void run_started(VirtualThread& thread, void* argument) {
    const std::unique_ptr<Start> start(static_cast<Start*>(argument));
    const Ref result = Ref::steal_or_null(PyObject_Call(start->function.ptr(), start->args.ptr(), start->kwargs.ptr()));
    if (!result) {
        const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
        // SystemExit ends the thread alone, as in _threadmodule.c.
        if (!PyErr_GivenExceptionMatches(error.ptr(), PyExc_SystemExit) &&
            !is_end_of_program(thread.hub(), error.ptr())) {
            PyErr_SetRaisedException(Py_NewRef(error.ptr()));
            report_unraisable(start->function.ptr());
        }
    }
    start->function.reset();
    start->args.reset();
    start->kwargs.reset();
    // Thread-local data dies before the thread counts as ended, as an OS thread's does.
    cpython::FiberState::clear_thread_data(thread.hub().tstate());
    finish_thread(thread);
    core::ParkingLot::instance().unpark_all(&thread.hub());  // join_non_daemons
}

/// Whether the interpreter is at its end, where it starts no threads.
bool is_finalizing([[maybe_unused]] PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return tstate.interp->finalizing != 0;
#endif
}

VirtualThread& start_virtual(Hub& hub, Ref function, Ref args, Ref kwargs, Ref handle, bool is_daemon) {
    if (hub.is_closing || is_finalizing(hub.tstate())) {
        cpython::raise(PyExc_RuntimeError, "can't create new thread at interpreter shutdown");
    }
    auto start = std::make_unique<Start>(Start{std::move(function), std::move(args), std::move(kwargs)});
    if (handle && !is_startable(handle.ptr())) {
        cpython::raise(PyExc_RuntimeError, "thread already started");
    }
    VirtualThread& thread = hub.spawn({.run = &run_started, .argument = start.get()}, hub.thread_stack_bytes);
    thread.set_ident_apart_from_tasks();
    thread.is_daemon = is_daemon;
    if (handle) {
        start_handle(handle.ptr(), thread);
    }
    start.release();
    return thread;
}

Hub* hub_that_makes_threads_virtual() noexcept {
    Hub* hub = Hub::current();
    return hub != nullptr && hub->makes_threads_virtual ? hub : nullptr;
}

PyObject* start_new_thread_with(PyCFunction original, PyObject* module, PyObject* args) {
    Hub* hub = hub_that_makes_threads_virtual();
    if (hub == nullptr) {
        return original(module, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* function = nullptr;
        PyObject* arguments = nullptr;
        PyObject* keywords = nullptr;
        if (!PyArg_UnpackTuple(args, "start_new_thread", 2, 3, &function, &arguments, &keywords)) {
            throw cpython::ErrorSet{};
        }
        if (!PyCallable_Check(function)) {
            cpython::raise(PyExc_TypeError, "first arg must be callable");
        }
        if (!PyTuple_Check(arguments)) {
            cpython::raise(PyExc_TypeError, "2nd arg must be a tuple");
        }
        if (keywords != nullptr && !PyDict_Check(keywords)) {
            cpython::raise(PyExc_TypeError, "optional 3rd arg must be a dictionary");
        }
        cpython::check(PySys_Audit("_thread.start_new_thread", "OOO", function, arguments,
                                   keywords == nullptr ? Py_None : keywords));
        // Whether threading waits for it at the end is told by the lock of _set_sentinel, or by nobody.
        VirtualThread& thread = start_virtual(*hub, cpython::borrow(function), cpython::borrow(arguments),
                                              cpython::borrow(keywords), Ref(), true);
        return PyLong_FromUnsignedLong(thread.ident());
    });
}

PyObject* start_new_thread(PyObject* module, PyObject* args) {
    return start_new_thread_with(original_start_new_thread, module, args);
}
PyObject* start_new(PyObject* module, PyObject* args) {
    return start_new_thread_with(original_start_new, module, args);
}

PyObject* start_joinable_thread(PyObject* module, PyObject* args, PyObject* kwargs) {
    Hub* hub = hub_that_makes_threads_virtual();
    if (hub == nullptr) {
        return as<KeywordFunction>(original_start_joinable_thread)(module, args, kwargs);
    }
    return guarded<PyObject*>(nullptr, [&] {
        static const char* const names[] = {"function", "handle", "daemon", nullptr};
        PyObject* function = nullptr;
        PyObject* handle = nullptr;
        int is_daemon = 1;
        if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Op:start_joinable_thread", const_cast<char**>(names),
                                         &function, &handle, &is_daemon)) {
            throw cpython::ErrorSet{};
        }
        if (!PyCallable_Check(function)) {
            cpython::raise(PyExc_TypeError, "thread function must be callable");
        }
        const Ref handle_type = steal(PyObject_GetAttrString(module, "_ThreadHandle"));
        if (handle != nullptr && handle != Py_None &&
            !Py_IS_TYPE(handle, reinterpret_cast<PyTypeObject*>(handle_type.ptr()))) {
            cpython::raise(PyExc_TypeError, "'handle' must be a _ThreadHandle");
        }
        cpython::check(PySys_Audit("_thread.start_joinable_thread", "OiO", function, is_daemon,
                                   handle == nullptr ? Py_None : handle));
        Ref owned = handle == nullptr || handle == Py_None ? steal(PyObject_CallNoArgs(handle_type.ptr()))
                                                           : cpython::borrow(handle);
        Ref result = cpython::borrow(owned.ptr());
        start_virtual(*hub, cpython::borrow(function), steal(PyTuple_New(0)), Ref(), std::move(owned), is_daemon != 0);
        return result.release();
    });
}

PyObject* main_ident(PyObject* module, PyObject* unused) {
    const unsigned long ident = Hub::main_thread_ident();
    return ident == 0 ? original_main_ident(module, unused) : PyLong_FromUnsignedLong(ident);
}

bool has_os_threads(const Hub& hub) noexcept {
    PyThreadState* other = PyInterpreterState_ThreadHead(hub.tstate().interp);
    while (other == &hub.tstate()) {
        other = PyThreadState_Next(other);
    }
    return other != nullptr;
}

PyObject* call_original_shutdown(PyObject* module, PyObject*, PyObject*) { return original_shutdown(module, nullptr); }

PyObject* shutdown(PyObject* module, PyObject* unused) {
    if (Hub* hub = Hub::current()) {
        const bool joined = guarded(false, [&] {
            join_non_daemons();
            if (has_os_threads(*hub)) {
                // The original blocks in C until they end; virtual threads go on meanwhile.
                const Ref result = sched::call_on_own_thread(*hub, "the end of OS threads", call_original_shutdown,
                                                             module, nullptr, nullptr);
            }
            return true;
        });
        if (!joined) {
            PyErr_WriteUnraisable(nullptr);  // interrupted: told and left, as the original does
            Py_RETURN_NONE;
        }
    }
    return original_shutdown(module, unused);
}

PyObject* excepthook(PyObject* module, PyObject* args) {
    // threading.ExceptHookArgs: exc_type, exc_value, exc_traceback, thread.
    const bool is_known = PyTuple_Check(args) && PyTuple_GET_SIZE(args) > 1;
    PyObject* type = is_known ? PyTuple_GET_ITEM(args, 0) : nullptr;
    Hub* hub = Hub::current();
    if (hub != nullptr && is_known && is_end_of_program(*hub, PyTuple_GET_ITEM(args, 1))) {
        Py_RETURN_NONE;
    }
    if (type != PyExc_SystemExit) {
        error_was_lost = true;
    }
    return original_excepthook(module, args);
}

PyObject* interrupt_main(PyObject* module, PyObject* args) {
    PyObject* result = original_interrupt_main(module, args);
    Hub* hub = Hub::current();
    if (hub != nullptr && result != nullptr) {
        hub->look_soon();
    }
    return result;
}

}  // namespace

void end_main_thread_after_fork() {
    if (!cpython::kPython313) {
        return;  // threading does it
    }
    const Ref module_name = steal(PyUnicode_FromString("threading"));
    const Ref threading = Ref::steal_or_null(PyImport_GetModule(module_name.ptr()));
    if (!threading) {
        cpython::check(PyErr_Occurred() != nullptr ? -1 : 0);
        return;
    }
    const Ref main = steal(PyObject_GetAttrString(threading.ptr(), "_main_thread"));
    const char* name = cpython::kPython314 ? "_os_thread_handle" : "_handle";
    const Ref handle = steal(PyObject_GetAttrString(main.ptr(), name));
    steal(PyObject_CallMethod(handle.ptr(), "_set_done", nullptr));
}

bool was_error_lost() noexcept { return error_was_lost; }

void note_lost_error() noexcept { error_was_lost = true; }

void join_non_daemons() {
    Hub& hub = *Hub::current();
    const auto is_over = [&hub] {
        core::IntrusiveList<VirtualThread>& roster = hub.roster();
        for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
            if (!thread->is_daemon && thread != &hub.running() && thread != &hub.main()) {
                return false;
            }
        }
        return true;
    };
    if (!is_over()) {
        (void)sched::wait_until(hub, &hub, {.what = "the end of threads that are not daemons"}, core::Deadline::never(),
                                is_over);
    }
}

void plan_thread() {
    const Ref module = steal(PyImport_ImportModule("_thread"));
    plan_locks(module.ptr());
    plan_thread_identity(module.ptr());
    plan_thread_end(module.ptr());
    plan_swap(module.ptr(), "start_new_thread", {{METH_VARARGS, start_new_thread}}, original_start_new_thread);
    plan_swap(module.ptr(), "start_new", {{METH_VARARGS, start_new}}, original_start_new, true);
    plan_swap(module.ptr(), "_excepthook", {{METH_O, excepthook}}, original_excepthook);
    plan_swap(module.ptr(), "interrupt_main", {{METH_VARARGS, interrupt_main}}, original_interrupt_main);
    if (cpython::kPython313) {
        plan_swap(module.ptr(), "start_joinable_thread", {{METH_VARARGS | METH_KEYWORDS, start_joinable_thread}},
                  original_start_joinable_thread);
        plan_swap(module.ptr(), "_shutdown", {{METH_NOARGS, shutdown}}, original_shutdown);
        plan_swap(module.ptr(), "_get_main_thread_ident", {{METH_NOARGS, main_ident}}, original_main_ident);
    }
}

}  // namespace gossamer::interpose
