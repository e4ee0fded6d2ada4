// SPDX-License-Identifier: Apache-2.0
// _thread._ThreadHandle (3.13 on): the handle of a virtual thread is a real one whose words say "running, no OS thread
// behind it". Everything but join() is then the original's; when the virtual thread ends the original `_set_done` marks
// it, which also wakes OS threads that join. The words' place is checked at start-up against a handle made by
// `_make_thread_handle`. Source: ThreadHandle in Modules/_threadmodule.c.
#include "cpython/api.hpp"

#include "core/parking_lot.hpp"
#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_join = nullptr;
PyCFunction original_is_done = nullptr;
PyCFunction original_set_done = nullptr;

struct HandleWords {
    void* nodes[4];
    unsigned long long ident;
    unsigned long os_handle;
    int has_os_handle;
    int state;
};
struct HandleObject {
    PyObject ob_base;
    HandleWords* words;
};

int not_started = 0;
int running = 0;

HandleWords& words_of(PyObject* handle) noexcept { return *reinterpret_cast<HandleObject*>(handle)->words; }

bool is_done(PyObject* handle) {
    const Ref answer = steal(original_is_done(handle, nullptr));
    return answer.ptr() == Py_True;
}

PyObject* join(PyObject* self, PyObject* args) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_join(self, args);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        PyObject* timeout = nullptr;
        if (!PyArg_ParseTuple(args, "|O:join", &timeout)) {
            throw cpython::ErrorSet{};
        }
        core::Deadline deadline = core::Deadline::never();
        if (timeout != nullptr && timeout != Py_None) {
            deadline = core::Deadline::after(core::monotonic_now(),
                                             core::Nanoseconds(cpython::nanoseconds_from_seconds(timeout)));
        }
        const HandleWords& words = words_of(self);
        const bool is_ours = words.state == running && words.has_os_handle == 0;
        if (!is_ours) {
            // Never started, an OS thread (which runs on while the carrier is detached), or done.
            return original_join(self, args);
        }
        if (words.ident == hub->running().ident() && !is_done(self)) {
            cpython::raise(PyExc_RuntimeError, "Cannot join current thread");
        }
        const auto is_over = [self] { return is_done(self); };
        if (!is_over() && !sched::wait_until(*hub, self, {.what = "Thread.join", .object = self}, deadline, is_over)) {
            Py_RETURN_NONE;
        }
        return original_join(self, args);  // done: returns at once
    });
}

PyObject* set_done(PyObject* self, PyObject* args) {
    PyObject* result = original_set_done(self, args);
    if (result != nullptr) {
        core::ParkingLot::instance().unpark_all(self);
    }
    return result;
}

void find_handle_words(PyObject* thread_module, PyObject* type) {
    constexpr unsigned long long kIdent = 0x1234567;
    const Ref fresh = steal(PyObject_CallNoArgs(type));
    const Ref made = steal(PyObject_CallMethod(thread_module, "_make_thread_handle", "K", kIdent));
    const HandleWords& words = words_of(made.ptr());
    not_started = words_of(fresh.ptr()).state;
    running = words.state;
    const bool is_known = words.ident == kIdent && words.has_os_handle == 0 && words_of(fresh.ptr()).ident == 0 &&
                          not_started == 1 && running == 3;
    steal(PyObject_CallMethod(made.ptr(), "_set_done", nullptr));
    if (!is_known || words.state != 4) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of _ThreadHandle in this Python");
    }
}

}  // namespace

void start_handle(PyObject* handle, unsigned long ident) {
    HandleWords& words = words_of(handle);
    if (words.state != not_started) {
        cpython::raise(PyExc_RuntimeError, "thread already started");
    }
    words.ident = ident;
    words.has_os_handle = 0;
    words.state = running;
}

void finish_handle(PyObject* handle) noexcept {
    PyObject* pending = PyErr_GetRaisedException();
    PyObject* result = set_done(handle, nullptr);
    if (result == nullptr) {
        PyErr_WriteUnraisable(handle);
    }
    Py_XDECREF(result);
    PyErr_SetRaisedException(pending);
}

void plan_thread_handles(PyObject* thread_module) {
    const Ref type = steal(PyObject_GetAttrString(thread_module, "_ThreadHandle"));
    find_handle_words(thread_module, type.ptr());
    original_is_done = method_of(type.ptr(), "is_done").ml_meth;
    const Replacement joins[] = {{METH_VARARGS, join}};
    const Replacement set_dones[] = {{METH_NOARGS, set_done}};
    plan_swap(type.ptr(), "join", joins, original_join);
    plan_swap(type.ptr(), "_set_done", set_dones, original_set_done);
}

}  // namespace gossamer::interpose
