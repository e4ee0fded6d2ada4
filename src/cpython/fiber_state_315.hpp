// SPDX-License-Identifier: Apache-2.0
// CPython 3.15: as 3.14, but that every frame chain ends in the thread state's base frame. The C stack is bounded by address, so the bounds are exchanged with the stack; a JIT executor that runs
// while a fiber parks is kept alive.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <utility>

namespace gossamer::cpython {

class VersionState final {
public:
    void begin(PyThreadState& tstate, std::size_t) noexcept {
        frame_ = bottom_frame(tstate);
        executor_ = nullptr;
    }
    void save(PyThreadState& tstate) noexcept {
        frame_ = tstate.current_frame;
        // Safety: the executor's code is on this fiber's stack; nothing else may own it while the fiber is parked.
        executor_ = Py_XNewRef(tstate.current_executor);
    }
    void restore(PyThreadState& tstate, void* base, std::size_t size_bytes) noexcept {
        tstate.current_frame = frame_;
        tstate.current_executor = executor_;
        Py_XDECREF(std::exchange(executor_, nullptr));
        if (base == nullptr) {
            PyUnstable_ThreadState_ResetStackProtection(&tstate);
        } else {
            PyUnstable_ThreadState_SetStackProtection(&tstate, base, size_bytes);
        }
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
    static _PyInterpreterFrame* bottom_frame(PyThreadState& tstate) noexcept { return tstate.base_frame; }

    _PyInterpreterFrame* frame_ = nullptr;
    PyObject* executor_ = nullptr;
};

}  // namespace gossamer::cpython
