// SPDX-License-Identifier: Apache-2.0
// CPython 3.15: as 3.14, but that every frame chain ends in the thread state's base frame, where profilers expect it; and that
// the code of every frame must be instrumented for the events that are wanted just now.
//
// When the events change (sys.settrace, sys.monitoring), the interpreter instruments the code of all frames that it finds
// through its thread states. A parked fiber's hang on none. Before 3.15 their code follows at its next call or jump; 3.15
// looks an exception's event up in what instrumenting makes of the code, and finds a null pointer there. So a fiber that
// goes on after a change catches up first. Source: instrument_all_executing_code_objects in Python/instrumentation.c.
#pragma once

#include "cpython/fiber_state_parts.hpp"

namespace gossamer::cpython {

class VersionState final : public BoundedStack {
public:
    void begin(PyThreadState& tstate, std::size_t) noexcept {
        BoundedStack::begin(tstate.base_frame);
        events_version_ = events_version(tstate);
    }
    void save(PyThreadState& tstate) noexcept {
        BoundedStack::save(tstate);
        events_version_ = events_version(tstate);
    }
    void restore(PyThreadState& tstate, void* base, std::size_t size_bytes) noexcept {
        if (events_version_ != events_version(tstate)) {
            instrument_frames(tstate);
        }
        BoundedStack::restore(tstate, base, size_bytes);
    }

private:
    /// The version of the wanted events is the upper part of the word that makes a thread look up from its code.
    static std::uintptr_t events_version(const PyThreadState& tstate) noexcept {
        return __atomic_load_n(&tstate.eval_breaker, __ATOMIC_RELAXED) & ~std::uintptr_t{_PY_EVAL_EVENTS_MASK};
    }

    [[gnu::noinline]] void instrument_frames(PyThreadState& tstate) const noexcept {
        PyObject* exception_of_last = std::exchange(tstate.current_exception, nullptr);
        for (_PyInterpreterFrame* each = frame(); each != nullptr; each = each->previous) {
            if (each->owner < FRAME_OWNED_BY_INTERPRETER && _Py_Instrument(_PyFrame_GetCode(each), tstate.interp) < 0) {
                PyErr_Clear();  // no memory: as much as there is
            }
        }
        tstate.current_exception = exception_of_last;
    }

    std::uintptr_t events_version_ = 0;
};

}  // namespace gossamer::cpython
