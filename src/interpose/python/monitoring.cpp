// SPDX-License-Identifier: Apache-2.0
// sys.monitoring.set_events and restart_events: events that are turned on while a virtual thread is parked reach the
// functions that it is inside of.
//
// The interpreter writes events into a function's code when the function is next called, and at once into the code that
// threads are running, which it finds by their frames. It does not find the frames of parked virtual threads: one in a
// loop would be monitored from its next function on. So their code is touched here: for a moment it gets an event of a
// tool of ours, whereupon the interpreter brings all its events up to date.
//
// Source: instrument_all_executing_code_objects and _PyMonitoring_SetLocalEvents in Python/instrumentation.c.
#include "cpython/api.hpp"

#include "interpose/python/monitoring.hpp"

#include <unordered_map>

#include "cpython/frames.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

PyCFunction original_set_events = nullptr;
PyCFunction original_restart_events = nullptr;

using Codes = std::unordered_map<PyCodeObject*, Ref>;

void add_code_of(const VirtualThread& thread, Codes& codes) {
    const _PyInterpreterFrame* frame = thread.state.parked_frame();
    for (; frame != nullptr; frame = frame->previous) {
        PyCodeObject* code = cpython::code_of(*frame);
        if (code != nullptr) {
            codes.try_emplace(code, cpython::borrow(reinterpret_cast<PyObject*>(code)));
        }
    }
}

Codes parked_code() {
    Codes codes;
    Hub::for_each(PyInterpreterState_Get(), [&codes](Hub& hub) {
        core::IntrusiveList<VirtualThread>& roster = hub.roster();
        for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
            if (thread != &hub.running()) {
                add_code_of(*thread, codes);
            }
        }
    });
    return codes;
}

/// A tool of sys.monitoring, for as long as it lives; none if all identifiers are in use.
class MomentaryTool final {
public:
    explicit MomentaryTool(PyObject* monitoring) : monitoring_(monitoring) {
        for (const int id : {4, 3, 5, 2, 1, 0}) {
            if (steal(PyObject_CallMethod(monitoring, "get_tool", "i", id)).ptr() == Py_None) {
                steal(PyObject_CallMethod(monitoring, "use_tool_id", "is", id, "gossamer, for a moment"));
                id_ = id;
                return;
            }
        }
    }
    MomentaryTool(const MomentaryTool&) = delete;
    MomentaryTool& operator=(const MomentaryTool&) = delete;
    ~MomentaryTool() {
        if (id_ >= 0 && !Ref::steal_or_null(PyObject_CallMethod(monitoring_, "free_tool_id", "i", id_))) {
            PyErr_WriteUnraisable(monitoring_);
        }
    }

    void touch(PyObject* code) {
        constexpr int kPyStart = 1;  // sys.monitoring.events.PY_START
        for (const int events : {kPyStart, 0}) {
            if (id_ >= 0 &&
                !Ref::steal_or_null(PyObject_CallMethod(monitoring_, "set_local_events", "iOi", id_, code, events))) {
                PyErr_Clear();  // code of the interpreter's own, which has no events
            }
        }
    }

private:
    PyObject* const monitoring_;
    int id_ = -1;
};

/// Whether the caller is our own preemption, which is after the running code alone.
bool is_for_preemption(PyObject* const* args, Py_ssize_t count) {
    Hub* hub = Hub::current();
    return hub != nullptr && count > 0 && PyLong_Check(args[0]) && hub->preemption().has_tool(PyLong_AsLong(args[0]));
}

PyObject* set_events(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(as<FastFunction>(original_set_events)(module, args, count));
        if (!is_for_preemption(args, count)) {
            instrument_parked_code();
        }
        return result.release();
    });
}

PyObject* restart_events(PyObject* module, PyObject* unused) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(original_restart_events(module, unused));
        instrument_parked_code();
        return result.release();
    });
}

}  // namespace

void instrument_parked_code() {
    const Codes codes = parked_code();
    if (codes.empty()) {
        return;
    }
    MomentaryTool tool(PySys_GetObject("monitoring"));
    for (const auto& [code, reference] : codes) {
        tool.touch(reference.ptr());
    }
}

void plan_monitoring() {
    PyObject* monitoring = PySys_GetObject("monitoring");
    plan_swap(monitoring, "set_events", {{METH_FASTCALL, set_events}}, original_set_events);
    plan_swap(monitoring, "restart_events", {{METH_NOARGS, restart_events}}, original_restart_events);
}

}  // namespace gossamer::interpose
