// SPDX-License-Identifier: Apache-2.0
// The end of a thread as threading of 3.12 sees it: a lock made by `_thread._set_sentinel()` in the thread, and released
// when the thread has ended. For a virtual thread we make and release it.
//
// For an OS thread the interpreter releases it in C, by a function kept in its thread state, and not by the lock's method,
// so a virtual thread that waits in Thread.join() would not be woken. That function is replaced by one that wakes, also
// for the threads that run already when Gossamer is installed. Source: release_sentinel in Modules/_threadmodule.c.
#include "cpython/api.hpp"

#if PY_VERSION_HEX < 0x030D0000

#include "core/parking_lot.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_set_sentinel = nullptr;
void (*original_on_delete)(void*) = nullptr;  // the same for every thread; process-wide

/// Runs while a thread state is cleared: no Python may run.
void release_and_wake(void* weak_lock) {
    const void* lock = PyWeakref_GET_OBJECT(static_cast<PyObject*>(weak_lock));
    original_on_delete(weak_lock);
    core::ParkingLot::instance().unpark_all(lock);
}

void wake_at_end_of(PyThreadState& tstate) noexcept {
    if (tstate.on_delete != nullptr && tstate.on_delete != &release_and_wake) {
        original_on_delete = tstate.on_delete;
        tstate.on_delete = &release_and_wake;
    }
}

PyObject* set_sentinel(PyObject* module, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr || &hub->running() == &hub->main()) {
        PyObject* lock = original_set_sentinel(module, unused);
        wake_at_end_of(*PyThreadState_Get());
        return lock;
    }
    return cpython::guarded<PyObject*>(nullptr, [&] {
        Ref lock = steal(PyObject_CallMethod(module, "allocate_lock", nullptr));
        const Ref old = Ref::steal_or_null(std::exchange(hub->running().end_marker, Py_NewRef(lock.ptr())));
        return lock.release();
    });
}

}  // namespace

bool is_startable(PyObject*) noexcept { return true; }

void start_handle(PyObject*, sched::VirtualThread&) noexcept {}

void finish_thread(sched::VirtualThread& thread) {
    const Ref lock = Ref::steal_or_null(std::exchange(thread.end_marker, nullptr));
    if (!lock) {
        return;
    }
    const Ref is_locked = Ref::steal_or_null(PyObject_CallMethod(lock.ptr(), "locked", nullptr));
    const Ref released = is_locked.ptr() == Py_True
                             ? Ref::steal_or_null(PyObject_CallMethod(lock.ptr(), "release", nullptr))
                             : cpython::borrow(Py_None);
    if (!is_locked || !released) {
        PyErr_WriteUnraisable(lock.ptr());
    }
}

void keep_thread_alive_after_fork(sched::VirtualThread&) noexcept {}

void plan_thread_end(PyObject* thread_module) {
    plan_swap(thread_module, "_set_sentinel", {{METH_NOARGS, set_sentinel}}, original_set_sentinel);
}

void adopt_thread_ends() {
    PyThreadState* tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != nullptr; tstate = PyThreadState_Next(tstate)) {
        wake_at_end_of(*tstate);
    }
}

void release_thread_ends() noexcept {
    PyThreadState* tstate = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; tstate != nullptr; tstate = PyThreadState_Next(tstate)) {
        if (tstate->on_delete == &release_and_wake) {
            tstate->on_delete = original_on_delete;
        }
    }
}

}  // namespace gossamer::interpose

#endif
