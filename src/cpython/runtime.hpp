// SPDX-License-Identifier: Apache-2.0
// The few process-wide facts of the interpreter's runtime that scheduling needs: whether a signal waits for its Python
// handler, and which OS thread counts as the main one.
//
// `_PyRuntime.main_thread` is what C code compares with to decide "am I the main thread?": it gates signal handlers,
// signal.signal() and pending calls for the main thread. While a virtual thread other than the main one runs on the main
// OS thread the word is set to 0, so that a handler runs in the main virtual thread only, as in plain Python it runs in
// the main thread only. Source: Python/pystate.c, _Py_ThreadCanHandleSignals in Include/internal/pycore_pystate.h.
#pragma once

#include "cpython/api.hpp"

#include <csignal>
#include <cstring>

namespace gossamer::cpython {

/// Whether a signal came whose Python handler has not run. Thread: any. Python: not needed.
inline bool is_signal_pending() noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    return __atomic_load_n(&_PyRuntime.signals.is_tripped, __ATOMIC_RELAXED) != 0;
#else
    return _Py_atomic_load_relaxed(&_PyRuntime.signals.is_tripped) != 0;
#endif
}

/// Whether every such signal has SA_RESTART (signal.siginterrupt(number, False)): a system call that the kernel restarts
/// after a signal goes on, and its Python handler waits until the call is over. Thread: any. Python: not needed.
inline bool do_pending_signals_restart_calls() noexcept {
    for (int number = 1; number < Py_NSIG; ++number) {
#if PY_VERSION_HEX >= 0x030D0000
        const int is_tripped = __atomic_load_n(&_PyRuntime.signals.handlers[number].tripped, __ATOMIC_RELAXED);
#else
        const int is_tripped = _Py_atomic_load_relaxed(&_PyRuntime.signals.handlers[number].tripped);
#endif
        struct sigaction action{};
        if (is_tripped != 0 && sigaction(number, nullptr, &action) == 0 && (action.sa_flags & SA_RESTART) == 0) {
            return false;
        }
    }
    return true;
}

/// Whether the calling OS thread is the interpreter's main thread. Only right outside a switch.
inline bool is_main_os_thread() noexcept { return _PyRuntime.main_thread == PyThread_get_thread_ident(); }

/// Makes the running main thread look for signals at its next bytecode: another virtual thread of its OS thread may have
/// met the interpreter's request and cleared it, being no main thread. Thread: carrier. Python: attached.
inline void look_for_signals_again(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    _Py_set_eval_breaker_bit(&tstate, _PY_SIGNALS_PENDING_BIT);
#else
    _Py_atomic_store(&_PyRuntime.ceval.signals_pending, 1);
    _Py_atomic_store_relaxed(&tstate.interp->ceval.eval_breaker, 1);
#endif
}

/// Says whether code that runs on the main OS thread from now on is the main thread. Thread: the main OS thread.
inline void set_runs_main(bool is_main, unsigned long main_ident) noexcept {
    _PyRuntime.main_thread = is_main ? main_ident : 0;
}

/// What is installed for a signal: a callable, a constant of `signal`, or null. Borrowed. Python: attached.
inline PyObject* signal_handler(int number) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    return _PyRuntime.signals.handlers[number].func;
#else
    return reinterpret_cast<PyObject*>(_Py_atomic_load_relaxed(&_PyRuntime.signals.handlers[number].func));
#endif
}

/// Says that an uncaught KeyboardInterrupt ended the program, so that the process ends by SIGINT once the interpreter is
/// finalized (Py_RunMain in Modules/main.c). Any eval() since then has taken the word back. Python: attached.
inline void end_by_interrupt() noexcept { _PyRuntime.signals.unhandled_keyboard_interrupt = 1; }

/// Whether `handler` is the one that asyncio.Runner installs for as long as it runs, `partial(runner._on_sigint, ...)`:
/// `on_interrupt` is the function of that method, or null. Python: attached.
inline bool is_handler_of_runner(const void* handler, const void* on_interrupt) noexcept {
    // Safety: a handler is an object; no partial but functools' own has the name, and its `func` is a plain member.
    PyObject* object = static_cast<PyObject*>(const_cast<void*>(handler));
    if (on_interrupt == nullptr || std::strcmp(Py_TYPE(object)->tp_name, "functools.partial") != 0) {
        return false;
    }
    PyObject* function = PyObject_GetAttrString(object, "func");
    if (function == nullptr) {
        PyErr_Clear();
        return false;
    }
    const bool is_its = PyMethod_Check(function) && PyMethod_GET_FUNCTION(function) == on_interrupt;
    Py_DECREF(function);
    return is_its;
}

/// Whether the program installed a Python signal handler itself: something other than what `signal` installs at start-up,
/// than `own_handler`, which is Gossamer's, and than an asyncio.Runner's for Ctrl-C.
/// Python: attached.
inline bool has_program_signal_handler(const void* default_int_handler, const void* own_handler,
                                       const void* on_interrupt) noexcept {
    for (int number = 1; number < Py_NSIG; ++number) {
        const void* handler = signal_handler(number);
        const bool is_default = handler == nullptr || handler == Py_None || handler == default_int_handler ||
                                handler == own_handler || handler == _PyRuntime.signals.default_handler ||
                                handler == _PyRuntime.signals.ignore_handler ||
                                is_handler_of_runner(handler, on_interrupt);
        if (!is_default) {
            return true;
        }
    }
    return false;
}

}  // namespace gossamer::cpython
