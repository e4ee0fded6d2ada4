// SPDX-License-Identifier: Apache-2.0
// Running a Python call on the OS-thread pool while the virtual thread that wants its result parks.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "sched/hub.hpp"

namespace gossamer::sched {

/// While it lives, an OS thread that the interpreter may not know (yet, or any more) will wake a virtual thread of the hub:
/// not a deadlock.
class ExternalWakeExpected final {
public:
    explicit ExternalWakeExpected(Hub& hub) noexcept : hub_(hub) { hub_.expect_external_wake(+1); }
    ExternalWakeExpected(const ExternalWakeExpected&) = delete;
    ExternalWakeExpected& operator=(const ExternalWakeExpected&) = delete;
    ~ExternalWakeExpected() { hub_.expect_external_wake(-1); }

private:
    Hub& hub_;
};

/// Calls `function(module, args, kwargs)` on a pool thread, with a thread state of its own, and parks until it is done.
/// A cancelled wait leaves the call behind: it finishes and its result is dropped. Throws ErrorSet.
cpython::Ref call_on_pool(Hub& hub, const char* what, PyObject* (*function)(PyObject*, PyObject*, PyObject*),
                          PyObject* module, PyObject* args, PyObject* kwargs);

/// The same on an OS thread of its own: for what may wait for ever.
cpython::Ref call_on_own_thread(Hub& hub, const char* what, PyObject* (*function)(PyObject*, PyObject*, PyObject*),
                                PyObject* module, PyObject* args, PyObject* kwargs);

}  // namespace gossamer::sched
