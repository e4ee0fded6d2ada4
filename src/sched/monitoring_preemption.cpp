// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/monitoring_preemption.hpp"

#include <utility>

namespace gossamer::sched {

using cpython::Ref;
using cpython::steal;

namespace {

constexpr const char* kName = "gossamer";

/// The value of an event in sys.monitoring.events. Throws ErrorSet.
int event_of(PyObject* monitoring, const char* name) {
    const Ref events = steal(PyObject_GetAttrString(monitoring, "events"));
    const Ref value = steal(PyObject_GetAttrString(events.ptr(), name));
    const long bit = PyLong_AsLong(value.ptr());
    if (bit < 0) {
        throw cpython::ErrorSet{};
    }
    return static_cast<int>(bit);
}

/// Takes the identifier if it is free. Returns whether it is ours.
bool take_tool(PyObject* monitoring, int tool) {
    const Ref name = steal(PyObject_CallMethod(monitoring, "get_tool", "i", tool));
    if (name.ptr() == Py_None) {
        steal(PyObject_CallMethod(monitoring, "use_tool_id", "is", tool, kName));
        return true;
    }
    return PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), kName) == 0;
}

}  // namespace

template <typename... Args>
bool MonitoringPreemption::call(const char* function, const char* format, Args... args) noexcept {
    const bool succeeded =
        static_cast<bool>(Ref::steal_or_null(PyObject_CallMethod(monitoring_.ptr(), function, format, args...)));
    if (!succeeded) {
        PyErr_Clear();
    }
    return succeeded;
}

void MonitoringPreemption::begin(PyMethodDef& callback) {
    monitoring_ = cpython::borrow(PySys_GetObject("monitoring"));
    for (const int tool : {3, 4}) {
        if (!take_tool(monitoring_.ptr(), tool)) {
            continue;
        }
        const Ref function = steal(PyCFunction_New(&callback, nullptr));
        for (const char* event : {"JUMP", "PY_START"}) {
            const int bit = event_of(monitoring_.ptr(), event);
            jumps_and_starts_ |= bit;
            steal(PyObject_CallMethod(monitoring_.ptr(), "register_callback", "iiO", tool, bit, function.ptr()));
        }
        tool_ = tool;
        return;
    }
}

void MonitoringPreemption::end(bool is_shared) noexcept {
    if (!has_begun()) {
        return;
    }
    PyObject* pending = PyErr_GetRaisedException();
    (void)disarm(armed_at_);
    const int tool = std::exchange(tool_, -1);
    if (!is_shared) {
        call("free_tool_id", "i", tool);
    }
    PyErr_SetRaisedException(pending);
}

void MonitoringPreemption::watch_code(PyObject* code) noexcept {
    const Ref previous = std::exchange(armed_code_, cpython::borrow(code));
    if (previous) {
        call("set_local_events", "iOi", tool_, previous.ptr(), 0);
    }
    if (code != nullptr) {
        call("set_local_events", "iOi", tool_, code, jumps_and_starts_);
    }
}

void MonitoringPreemption::arm(PyObject* code, std::uint64_t switches) noexcept {
    const bool was_no_use = armed_code_ && armed_at_ == switches;
    armed_at_ = switches;
    watch_code(code);
    if (was_no_use && !std::exchange(is_armed_everywhere_, true)) {
        call("set_events", "ii", tool_, jumps_and_starts_);
    }
}

bool MonitoringPreemption::disarm(std::uint64_t switches) noexcept {
    const bool is_due = armed_code_ && armed_at_ == switches;
    watch_code(nullptr);
    if (std::exchange(is_armed_everywhere_, false)) {
        call("set_events", "ii", tool_, 0);
    }
    return is_due;
}

}  // namespace gossamer::sched
