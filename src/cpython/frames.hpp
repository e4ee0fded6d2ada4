// SPDX-License-Identifier: Apache-2.0
// Python stacks: that of a parked virtual thread as a frame object, and the running one's frames without making any.
#pragma once

#include "cpython/api.hpp"

#include "cpython/fiber_state.hpp"
#include "cpython/ref.hpp"

namespace gossamer::cpython {

/// The word that holds the innermost frame of the running code. Python: attached.
inline _PyInterpreterFrame*& running_frame(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    return tstate.current_frame;
#else
    return tstate.cframe->current_frame;
#endif
}

/// The innermost complete frame of the chain that starts at `frame`; empty when there is none. Parks: no.
/// Thread: carrier. Python: attached.
inline Ref frame_object(PyThreadState& tstate, _PyInterpreterFrame* frame) noexcept {
    // Safety: PyThreadState_GetFrame reads the chain of a thread state and allocates; nothing switches meanwhile.
    _PyInterpreterFrame*& current = running_frame(tstate);
    _PyInterpreterFrame* running = std::exchange(current, frame);
    PyObject* object = frame == nullptr ? nullptr : reinterpret_cast<PyObject*>(PyThreadState_GetFrame(&tstate));
    current = running;
    return Ref::steal_or_null(object);
}

/// Whether the frame stands for a C function that entered the evaluation loop; the one before it (further in) is then the
/// Python function that C called.
inline bool is_entry_from_c(const _PyInterpreterFrame& frame) noexcept {
#if PY_VERSION_HEX >= 0x030E0000
    return frame.owner == FRAME_OWNED_BY_INTERPRETER;
#else
    return frame.owner == FRAME_OWNED_BY_CSTACK;
#endif
}

/// The code that a Python function's frame runs; null for an entry from C. Borrowed.
inline PyCodeObject* code_of(const _PyInterpreterFrame& frame) noexcept {
#if PY_VERSION_HEX >= 0x030E0000
    PyObject* code = PyStackRef_AsPyObjectBorrow(frame.f_executable);
#elif PY_VERSION_HEX >= 0x030D0000
    PyObject* code = frame.f_executable;
#else
    PyObject* code = reinterpret_cast<PyObject*>(frame.f_code);
#endif
    return is_entry_from_c(frame) || !PyCode_Check(code) ? nullptr : reinterpret_cast<PyCodeObject*>(code);
}

/// Whether nothing refers to the frames of this chain but the C stack that evaluates them: no frame object does, and none
/// belongs to a generator. If that stack never goes on, their memory may go.
inline bool is_private_chain(const _PyInterpreterFrame* frame) noexcept {
    for (; frame != nullptr; frame = frame->previous) {
        if (!is_entry_from_c(*frame) && (frame->owner != FRAME_OWNED_BY_THREAD || frame->frame_obj != nullptr)) {
            return false;
        }
    }
    return true;
}

/// The first argument of the Python function that the frame runs (its `self`); null if it has none or has deleted it.
/// Borrowed.
inline PyObject* first_argument(const _PyInterpreterFrame& frame) noexcept {
    const PyCodeObject* code = code_of(frame);
    if (code == nullptr || code->co_argcount == 0) {
        return nullptr;
    }
#if PY_VERSION_HEX >= 0x030E0000
    PyObject* value =
        PyStackRef_IsNull(frame.localsplus[0]) ? nullptr : PyStackRef_AsPyObjectBorrow(frame.localsplus[0]);
#else
    PyObject* value = frame.localsplus[0];
#endif
    return value != nullptr && PyCell_Check(value) ? PyCell_GET(value) : value;
}

}  // namespace gossamer::cpython
