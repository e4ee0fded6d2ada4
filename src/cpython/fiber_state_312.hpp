// SPDX-License-Identifier: Apache-2.0
// CPython 3.12: frames hang on a _PyCFrame, C recursion is counted, the trash can counts nesting, thread-local data is in
// PyThreadState.dict.
#pragma once

#include "cpython/fiber_state_parts.hpp"

namespace gossamer::cpython {

class VersionState final {
public:
    void begin(PyThreadState&, std::size_t stack_bytes) noexcept {
        root_cframe_ = {};
        cframe_ = &root_cframe_;
        trash_nesting_ = 0;
        recursion_.begin(stack_bytes);
    }
    void save(PyThreadState& tstate) noexcept {
        cframe_ = tstate.cframe;
        trash_nesting_ = tstate.trash.delete_nesting;
        recursion_.save(tstate);
    }
    void restore(PyThreadState& tstate, void*, std::size_t) noexcept {
        tstate.cframe = cframe_;
        tstate.trash.delete_nesting = trash_nesting_;
        recursion_.restore(tstate);
    }
    _PyInterpreterFrame* frame() const noexcept { return cframe_ == nullptr ? nullptr : cframe_->current_frame; }

    static bool has_local_key(const PyThreadState&) noexcept { return false; }
    static void take_local_key(PyThreadState&, PyObject*&, PyObject*&) noexcept {}
    static void put_local_key(PyThreadState&, PyObject*, PyObject*) noexcept {}
    static void signal_async_exception(PyThreadState& tstate) noexcept {
        tstate.interp->ceval.pending.async_exc = 1;
        _Py_atomic_store_relaxed(&tstate.interp->ceval.eval_breaker, 1);
    }

private:
    _PyCFrame* cframe_ = nullptr;
    int trash_nesting_ = 0;
    CountedRecursion recursion_;
    _PyCFrame root_cframe_{};
};

}  // namespace gossamer::cpython
