// SPDX-License-Identifier: Apache-2.0
// Preemption where a pending call must not park, because the interpreter keeps the mark of pending calls elsewhere than
// the one that this was compiled for (cpython/pending_calls.hpp). Only what is public is used: sys.monitoring.
//
// The request *arms* an event instead of parking: the next jump, or the next start, of the code that runs calls back, and
// the callback parks (sched/preemption.hpp). Where that code goes on without either (it has called something that
// computes), the next request arms the events of all code too. Armed code runs slower until the callback has come, which
// disarms it; what was armed for an earlier switch is disarmed and does nothing else.
//
// It takes one of the tool identifiers that sys.monitoring leaves to anyone, 3 or 4; all carriers of an interpreter share
// it, and the last one gives it back.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>

#include "cpython/ref.hpp"

namespace gossamer::sched {

class MonitoringPreemption final {
public:
    MonitoringPreemption() noexcept = default;
    MonitoringPreemption(const MonitoringPreemption&) = delete;
    MonitoringPreemption& operator=(const MonitoringPreemption&) = delete;
    ~MonitoringPreemption() = default;

    /// Takes a tool identifier, if one is free or ours already; `callback` is called as a C function with METH_FASTCALL.
    /// Throws ErrorSet. Python: attached.
    void begin(PyMethodDef& callback);

    /// Disarms, and gives the identifier back unless `is_shared`. Python: attached.
    void end(bool is_shared) noexcept;

    bool has_begun() const noexcept { return tool_ >= 0; }
    int tool() const noexcept { return tool_; }

    /// Has the callback called soon if `code` runs on. `switches` is the hub's count. Thread: carrier. Python: attached.
    void arm(PyObject* code, std::uint64_t switches) noexcept;

    /// Returns whether it was armed, and since the same switch. Thread: carrier. Python: attached.
    bool disarm(std::uint64_t switches) noexcept;

private:
    /// Calls a function of sys.monitoring. An error is dropped: the program may have taken the identifier away, and then
    /// there is no preemption.
    template <typename... Args>
    bool call(const char* function, const char* format, Args... args) noexcept;
    void watch_code(PyObject* code) noexcept;

    cpython::Ref monitoring_;  // sys.monitoring
    int tool_ = -1;
    int jumps_and_starts_ = 0;  // the events
    cpython::Ref armed_code_;
    bool is_armed_everywhere_ = false;
    std::uint64_t armed_at_ = 0;
};

}  // namespace gossamer::sched
