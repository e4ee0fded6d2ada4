// SPDX-License-Identifier: Apache-2.0
// CPython 3.12: frames hang on a _PyCFrame, C recursion is counted, the trash can counts nesting.
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <cstddef>

namespace gossamer::cpython {

class VersionState final {
public:
    void begin(PyThreadState&, std::size_t stack_bytes) noexcept {
        root_cframe_.current_frame = nullptr;
        root_cframe_.previous = nullptr;
        cframe_ = &root_cframe_;
        trash_nesting_ = 0;
        c_recursion_remaining_ = c_recursion_limit(stack_bytes);
    }
    void save(PyThreadState& tstate) noexcept {
        cframe_ = tstate.cframe;
        trash_nesting_ = tstate.trash.delete_nesting;
        c_recursion_remaining_ = tstate.c_recursion_remaining;
    }
    void restore(PyThreadState& tstate, void*, std::size_t) noexcept {
        tstate.cframe = cframe_;
        tstate.trash.delete_nesting = trash_nesting_;
        tstate.c_recursion_remaining = c_recursion_remaining_;
    }
    _PyInterpreterFrame* frame() const noexcept { return cframe_ == nullptr ? nullptr : cframe_->current_frame; }

    static _PyInterpreterFrame* running_frame(PyThreadState& tstate) noexcept { return tstate.cframe->current_frame; }

    // 3.12 keeps thread-local data in PyThreadState.dict.
    static bool has_local_key(const PyThreadState&) noexcept { return false; }
    static void take_local_key(PyThreadState&, PyObject*&, PyObject*&) noexcept {}
    static void put_local_key(PyThreadState&, PyObject*, PyObject*) noexcept {}
    static void signal_async_exception(PyThreadState& tstate) noexcept {
        tstate.interp->ceval.pending.async_exc = 1;
        _Py_atomic_store_relaxed(&tstate.interp->ceval.eval_breaker, 1);
    }

private:
    static constexpr int kThreadLimit = 1500;  // C_RECURSION_LIMIT of the first releases, the lowest

    // The worst C recursion seen takes 1.7 KB a unit (sort, compile); 32 KB stay for what is called at the limit.
    static int c_recursion_limit(std::size_t stack_bytes) noexcept {
        const auto units = static_cast<int>((stack_bytes - 32 * 1024) / 1900);
        return std::clamp(units, 120, kThreadLimit);
    }

    _PyCFrame* cframe_ = nullptr;
    int trash_nesting_ = 0;
    int c_recursion_remaining_ = 0;
    _PyCFrame root_cframe_{};
};

}  // namespace gossamer::cpython
