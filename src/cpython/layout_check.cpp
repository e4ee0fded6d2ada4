// SPDX-License-Identifier: Apache-2.0
// From 3.13 on the interpreter publishes the offsets of its structures for debuggers (_PyRuntime.debug_offsets). 3.12 does
// not, so there, and for what is not published, facts that public functions tell are looked for where the structures say.
#include "cpython/api.hpp"

#include "cpython/layout_check.hpp"

#include <cstddef>

#include "cpython/fiber_state.hpp"
#include "cpython/ref.hpp"

#ifndef __GLIBC__
#error "Gossamer needs glibc: musl's stacks and relocations are different, and nothing was tested there"
#endif
#if defined(Py_GIL_DISABLED) && PY_VERSION_HEX >= 0x030E0000
#error \
    "free-threaded 3.14 and later are not supported: their garbage collector does not see the frames of parked threads"
#endif
#if PY_VERSION_HEX >= 0x030E0000 && PY_VERSION_HEX < 0x030E0100
#error "CPython 3.14.0 is not supported: it has no call to set the bounds of the C stack; use 3.14.1 or later"
#endif

namespace gossamer::cpython {

namespace {

[[noreturn]] void refuse(const char* what) {
    raise(PyExc_ImportError,
          "gossamer was compiled for CPython %s and this is %s, whose %s differs; build it for this interpreter with: "
          "pip install --force-reinstall --no-binary gossamer gossamer",
          PY_VERSION, Py_GetVersion(), what);
}

bool is_published_layout_known() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    const auto& offsets = _PyRuntime.debug_offsets.thread_state;
    return offsets.prev == offsetof(PyThreadState, prev) && offsets.next == offsetof(PyThreadState, next) &&
           offsets.interp == offsetof(PyThreadState, interp) &&
           offsets.current_frame == offsetof(PyThreadState, current_frame) &&
           offsets.thread_id == offsetof(PyThreadState, thread_id) &&
           offsets.datastack_chunk == offsetof(PyThreadState, datastack_chunk) &&
           _PyRuntime.debug_offsets.free_threaded ==
#ifdef Py_GIL_DISABLED
               1
#else
               0
#endif
#if PY_VERSION_HEX >= 0x030F0000
           && offsets.base_frame == offsetof(PyThreadState, base_frame) &&
           offsets.current_exception == offsetof(PyThreadState, current_exception) &&
           offsets.exc_state == offsetof(PyThreadState, exc_state)
#endif
        ;
#else
    return true;
#endif
}

/// What public functions say of the running thread must be in the words that we exchange at a switch.
bool is_thread_state_known(PyThreadState& tstate) {
    PyObject* data = PyThreadState_GetDict();  // made on demand, kept in `dict`
    const Ref context = steal(PyContext_CopyCurrent());
    const bool has_context = PyContext_Enter(context.ptr()) == 0;
    const bool sees_context = tstate.context == context.ptr();
    if (has_context) {
        check(PyContext_Exit(context.ptr()));
    }
    PyObject** const top = tstate.datastack_top;
    const auto* chunk = reinterpret_cast<const char*>(tstate.datastack_chunk);
    const bool has_data_stack =
        chunk != nullptr && reinterpret_cast<const char*>(top) > chunk && top <= tstate.datastack_limit &&
        reinterpret_cast<const char*>(tstate.datastack_limit) == chunk + tstate.datastack_chunk->size;
    // A sub-interpreter's thread state may have been made on another OS thread than it runs on (3.12).
    const bool is_of_this_thread =
        tstate.thread_id == PyThread_get_thread_ident() || tstate.interp != PyInterpreterState_Main();
    return tstate.interp == PyInterpreterState_Get() && is_of_this_thread && data != nullptr && tstate.dict == data &&
           sees_context && has_data_stack && tstate.py_recursion_limit == Py_GetRecursionLimit() &&
           tstate.py_recursion_remaining <= tstate.py_recursion_limit && tstate.exc_info != nullptr;
}

/// The words of the runtime that tell of signals: the handler of SIGINT must be where the signal module says.
bool is_runtime_known() {
    const Ref module = steal(PyImport_ImportModule("_signal"));
    const Ref handler = steal(PyObject_CallMethod(module.ptr(), "getsignal", "i", 2));
#if PY_VERSION_HEX >= 0x030D0000
    const PyObject* stored = _PyRuntime.signals.handlers[2].func;
#else
    const auto* stored =
        reinterpret_cast<const PyObject*>(_Py_atomic_load_relaxed(&_PyRuntime.signals.handlers[2].func));
#endif
    const int tripped = static_cast<int>(_PyRuntime.signals
                                             .is_tripped
#if PY_VERSION_HEX < 0x030D0000
                                             ._value
#endif
    );
    return (tripped == 0 || tripped == 1) &&
           (stored == handler.ptr() || (stored == nullptr && handler.ptr() == Py_None));
}

}  // namespace

void check_layout() {
    PyThreadState& tstate = *PyThreadState_Get();
#if PY_VERSION_HEX >= 0x030E0000
    if (Py_Version < 0x030E0100) {
        raise(PyExc_ImportError,
              "gossamer does not work on CPython 3.14.0: it has no call to set the bounds of the C "
              "stack; use 3.14.1 or later");
    }
#endif
    if (!is_published_layout_known() || !is_thread_state_known(tstate)) {
        refuse("thread state");
    }
    if (tstate.interp == PyInterpreterState_Main() && !is_runtime_known()) {
        refuse("runtime state");
    }
}

}  // namespace gossamer::cpython
