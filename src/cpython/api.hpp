// SPDX-License-Identifier: Apache-2.0
// The only includer of Python.h, and of the interpreter's internal headers that the saved state of a fiber needs.
//
// The version tests of the whole code base are the three constants below; what differs in layout is in one file a
// version (fiber_state_3xx.hpp, object_layout.hpp).
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if PY_VERSION_HEX < 0x030C0000 || PY_VERSION_HEX >= 0x03100000
#error "Gossamer supports CPython 3.12 to 3.15"
#endif

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wold-style-cast"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wvolatile"
#ifndef Py_BUILD_CORE
#define Py_BUILD_CORE 1
#endif
#if PY_VERSION_HEX < 0x030D0000
// 3.12 takes its atomics from C's stdatomic.h unless told to use the compiler's; the layout is the same.
#undef HAVE_STD_ATOMIC
#undef _PyGC_FINALIZED
#else
#include <internal/pycore_object.h>
#include <internal/pycore_gc.h>
#include <internal/pycore_ceval.h>
#ifdef Py_GIL_DISABLED
#include <internal/pycore_critical_section.h>
#endif
#endif
#include <internal/pycore_dict.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_genobject.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_pystate.h>
#include <internal/pycore_runtime.h>
#if PY_VERSION_HEX >= 0x030E0000
#include <internal/pycore_interpframe.h>
#endif
#undef Py_BUILD_CORE
#pragma GCC diagnostic pop

namespace gossamer::cpython {

inline constexpr bool kPython313 = PY_VERSION_HEX >= 0x030D0000;
inline constexpr bool kPython314 = PY_VERSION_HEX >= 0x030E0000;
inline constexpr bool kPython315 = PY_VERSION_HEX >= 0x030F0000;

/// The thread state attached to this OS thread, or null.
inline PyThreadState* attached_thread_state() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

}  // namespace gossamer::cpython
