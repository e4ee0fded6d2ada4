// SPDX-License-Identifier: Apache-2.0
// CPython 3.13: C recursion is counted; free-threaded builds have critical sections, which a fiber that is left gives up.
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace gossamer::cpython {

class VersionState final {
public:
    void begin(PyThreadState&, std::size_t stack_bytes) noexcept {
        frame_ = nullptr;
        critical_section_ = 0;
        c_recursion_remaining_ = c_recursion_limit(stack_bytes);
    }
    void save(PyThreadState& tstate) noexcept {
        frame_ = tstate.current_frame;
        c_recursion_remaining_ = tstate.c_recursion_remaining;
#ifdef Py_GIL_DISABLED
        if (tstate.critical_section != 0) {
            _PyCriticalSection_SuspendAll(&tstate);
        }
        critical_section_ = std::exchange(tstate.critical_section, 0);
#endif
    }
    void restore(PyThreadState& tstate, void*, std::size_t) noexcept {
        tstate.current_frame = frame_;
        tstate.c_recursion_remaining = c_recursion_remaining_;
#ifdef Py_GIL_DISABLED
        tstate.critical_section = critical_section_;
        if (critical_section_ != 0) {
            _PyCriticalSection_Resume(&tstate);
        }
#endif
    }
    _PyInterpreterFrame* frame() const noexcept { return frame_; }

    static _PyInterpreterFrame* running_frame(PyThreadState& tstate) noexcept { return tstate.current_frame; }

    static bool has_local_key(const PyThreadState& tstate) noexcept { return tstate.threading_local_key != nullptr; }
    static void take_local_key(PyThreadState& tstate, PyObject*& key, PyObject*& sentinel) noexcept {
        key = std::exchange(tstate.threading_local_key, nullptr);
        sentinel = std::exchange(tstate.threading_local_sentinel, nullptr);
    }
    static void put_local_key(PyThreadState& tstate, PyObject* key, PyObject* sentinel) noexcept {
        tstate.threading_local_key = key;
        tstate.threading_local_sentinel = sentinel;
    }
    static void signal_async_exception(PyThreadState& tstate) noexcept {
        _Py_set_eval_breaker_bit(&tstate, _PY_ASYNC_EXCEPTION_BIT);
    }

private:
    // The worst C recursion seen takes 1.7 KB a unit (sort, compile); 32 KB stay for what is called at the limit.
    static int c_recursion_limit(std::size_t stack_bytes) noexcept {
        const auto units = static_cast<int>((stack_bytes - 32 * 1024) / 1900);
        return std::clamp(units, 120, Py_C_RECURSION_LIMIT);
    }

    _PyInterpreterFrame* frame_ = nullptr;
    std::uintptr_t critical_section_ = 0;
    int c_recursion_remaining_ = 0;
};

}  // namespace gossamer::cpython
