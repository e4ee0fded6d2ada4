// SPDX-License-Identifier: Apache-2.0
// CPython 3.12: frames hang on a _PyCFrame, C recursion is counted, the trash can counts nesting, thread-local data is in
// PyThreadState.dict. So is asyncio's running loop, but with a cache in _asyncio that is keyed by PyThreadState.id (as
// are the caches of context variables), so each fiber has an id of its own.
#pragma once

#include "cpython/fiber_state_parts.hpp"

#include <atomic>
#include <cstdint>

namespace gossamer::cpython {

class VersionState final {
public:
    void begin(PyThreadState&, std::size_t stack_bytes) noexcept {
        root_cframe_ = {};
        cframe_ = &root_cframe_;
        trash_nesting_ = 0;
        id_ = next_id();
        recursion_.begin(stack_bytes);
    }
    void save(PyThreadState& tstate) noexcept {
        cframe_ = tstate.cframe;
        id_ = tstate.id;
        trash_nesting_ = tstate.trash.delete_nesting;
        recursion_.save(tstate);
    }
    void restore(PyThreadState& tstate, void*, std::size_t) noexcept {
        tstate.cframe = cframe_;
        tstate.id = id_;
        tstate.trash.delete_nesting = trash_nesting_;
        recursion_.restore(tstate);
    }
    _PyInterpreterFrame* frame() const noexcept { return cframe_ == nullptr ? nullptr : cframe_->current_frame; }

    static bool has_local_key(const PyThreadState&) noexcept { return false; }
    static void take_local_key(PyThreadState&, PyObject*&, PyObject*&) noexcept {}
    static void put_local_key(PyThreadState&, PyObject*, PyObject*) noexcept {}
    static bool has_loop(const PyThreadState&) noexcept { return false; }
    static void take_loop(PyThreadState&, PyObject*&, PyObject*&) noexcept {}
    static void put_loop(PyThreadState&, PyObject*, PyObject*) noexcept {}
    static void signal_async_exception(PyThreadState& tstate) noexcept {
        tstate.interp->ceval.pending.async_exc = 1;
        _Py_atomic_store_relaxed(&tstate.interp->ceval.eval_breaker, 1);
    }

private:
    // Far above what the interpreter counts up to, so that no thread state has the same.
    static std::uint64_t next_id() noexcept {
        static std::atomic<std::uint64_t> next{std::uint64_t{1} << 63};
        // relaxed: only the number matters.
        return next.fetch_add(1, std::memory_order_relaxed);
    }

    _PyCFrame* cframe_ = nullptr;
    std::uint64_t id_ = 0;
    int trash_nesting_ = 0;
    CountedRecursion recursion_;
    _PyCFrame root_cframe_{};
};

}  // namespace gossamer::cpython
