// SPDX-License-Identifier: Apache-2.0
// The functions of `sys` that look at, or change, all threads: `_current_frames`, `_current_exceptions`,
// `_settraceallthreads`, `_setprofileallthreads`.
//
// The originals see one thread a carrier: what runs on it, under the carrier's identity. Ours puts that under the virtual
// thread's own, and adds the parked ones.
#include "cpython/api.hpp"

#include <vector>

#include "cpython/frames.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/monitoring.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

PyCFunction original_current_frames = nullptr;
PyCFunction original_current_exceptions = nullptr;
PyCFunction original_settrace = nullptr;
PyCFunction original_setprofile = nullptr;

/// Corrects `of_threads`, a dictionary by identity. `describe(thread)` is a parked thread's entry, empty for none.
template <typename Describe>
void add_virtual_threads(PyObject* of_threads, Describe describe) {
    Hub::for_each(PyInterpreterState_Get(), [&](Hub& hub) {
        const Ref os_ident = steal(PyLong_FromUnsignedLong(hub.os_ident()));
        const Ref running = cpython::borrow(PyDict_GetItemWithError(of_threads, os_ident.ptr()));
        if (running) {
            cpython::check(PyDict_DelItem(of_threads, os_ident.ptr()));
        }
        core::IntrusiveList<VirtualThread>& roster = hub.roster();
        for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
            const Ref entry = thread == &hub.running() ? cpython::borrow(running.ptr()) : describe(*thread);
            if (entry) {
                const Ref ident = steal(PyLong_FromUnsignedLong(thread->ident()));
                cpython::check(PyDict_SetItem(of_threads, ident.ptr(), entry.ptr()));
            }
        }
    });
}

PyObject* current_frames(PyObject* module, PyObject* unused) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref frames = steal(original_current_frames(module, unused));
        add_virtual_threads(frames.ptr(), [](VirtualThread& thread) {
            return cpython::frame_object(thread.hub().tstate(), thread.state.parked_frame());
        });
        return frames.release();
    });
}

PyObject* current_exceptions(PyObject* module, PyObject* unused) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref exceptions = steal(original_current_exceptions(module, unused));
        add_virtual_threads(exceptions.ptr(), [](VirtualThread& thread) {
            PyObject* handled = thread.state.handled_exception();
            return cpython::borrow(handled == nullptr ? Py_None : handled);
        });
        return exceptions.release();
    });
}

using SetFunction = PyObject* (cpython::FiberState::*)(PyThreadState&, Py_tracefunc, PyObject*);

/// Gives every parked virtual thread what the original gave the running ones.
void set_for_parked(SetFunction set, Py_tracefunc function, PyObject* argument) {
    PyThreadState& tstate = *PyThreadState_Get();
    std::vector<Ref> old;  // dies when nothing is in exchange any more: a finaliser may park
    Hub* own = Hub::current();
    if (own != nullptr) {
        ++own->running().no_switch_depth;
    }
    Hub::for_each(tstate.interp, [&](Hub& hub) {
        core::IntrusiveList<VirtualThread>& roster = hub.roster();
        const auto set_unless_running = [&](VirtualThread& thread) {
            if (&thread != &hub.running()) {
                old.push_back(Ref::steal_or_null((thread.state.*set)(tstate, function, argument)));
            }
        };
        set_unless_running(hub.loop_thread());  // what the original found running may have been the hub
        for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
            set_unless_running(*thread);
        }
    });
    if (own != nullptr) {
        --own->running().no_switch_depth;
    }
}

#ifdef Py_GIL_DISABLED
constexpr bool kMustSetOwnAgain = true;  // see FiberState::set_trace
#else
constexpr bool kMustSetOwnAgain = false;
#endif

PyObject* settrace_all_threads(PyObject* module, PyObject* function) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(original_settrace(module, function));
        PyThreadState& tstate = *PyThreadState_Get();
        const Ref argument = cpython::borrow(tstate.c_traceobj);
        set_for_parked(&cpython::FiberState::set_trace, tstate.c_tracefunc, argument.ptr());
        if (kMustSetOwnAgain) {
            PyEval_SetTrace(tstate.c_tracefunc, argument.ptr());
        }
        instrument_parked_code();
        return result.release();
    });
}

PyObject* setprofile_all_threads(PyObject* module, PyObject* function) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(original_setprofile(module, function));
        PyThreadState& tstate = *PyThreadState_Get();
        const Ref argument = cpython::borrow(tstate.c_profileobj);
        set_for_parked(&cpython::FiberState::set_profile, tstate.c_profilefunc, argument.ptr());
        if (kMustSetOwnAgain) {
            PyEval_SetProfile(tstate.c_profilefunc, argument.ptr());
        }
        instrument_parked_code();
        return result.release();
    });
}

}  // namespace

void plan_sys() {
    const Ref module = steal(PyImport_ImportModule("sys"));
    plan_swap(module.ptr(), "_current_frames", {{METH_NOARGS, current_frames}}, original_current_frames);
    plan_swap(module.ptr(), "_current_exceptions", {{METH_NOARGS, current_exceptions}}, original_current_exceptions);
    plan_swap(module.ptr(), "_settraceallthreads", {{METH_O, settrace_all_threads}}, original_settrace);
    plan_swap(module.ptr(), "_setprofileallthreads", {{METH_O, setprofile_all_threads}}, original_setprofile);
}

}  // namespace gossamer::interpose
