// SPDX-License-Identifier: Apache-2.0
// The Python stack of a parked virtual thread as a frame object.
#pragma once

#include "cpython/api.hpp"

#include "cpython/fiber_state.hpp"
#include "cpython/ref.hpp"

namespace gossamer::cpython {

/// The innermost complete frame of the chain that starts at `frame`; empty when there is none. Parks: no.
/// Thread: carrier. Python: attached.
inline Ref frame_object(PyThreadState& tstate, _PyInterpreterFrame* frame) noexcept {
    // Safety: PyThreadState_GetFrame reads the chain of a thread state and allocates; nothing switches meanwhile.
#if PY_VERSION_HEX >= 0x030D0000
    _PyInterpreterFrame*& current = tstate.current_frame;
#else
    _PyInterpreterFrame*& current = tstate.cframe->current_frame;
#endif
    _PyInterpreterFrame* running = std::exchange(current, frame);
    PyObject* object = frame == nullptr ? nullptr : reinterpret_cast<PyObject*>(PyThreadState_GetFrame(&tstate));
    current = running;
    return Ref::steal_or_null(object);
}

}  // namespace gossamer::cpython
