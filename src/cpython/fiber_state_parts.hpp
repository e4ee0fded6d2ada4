// SPDX-License-Identifier: Apache-2.0
// Parts of a fiber's saved state that several versions share; each version's file puts its own together.
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace gossamer::cpython {

/// Where the interpreter puts the frames of Python functions: the chunk of memory that is used, and its rest.
class DataStack {
public:
    /// An empty one in [chunk, chunk_end).
    void begin(void* chunk, void* chunk_end) noexcept {
        // Safety: a root chunk is one whose `previous` is null; its first slot stays empty, so that popping the last frame
        // never pops the chunk (push_chunk in Python/pystate.c). The interpreter frees only chunks that it pushed itself.
        chunk_ = static_cast<_PyStackChunk*>(chunk);
        chunk_->previous = nullptr;
        chunk_->size = static_cast<std::size_t>(static_cast<char*>(chunk_end) - static_cast<char*>(chunk));
        chunk_->top = 0;
        chunk_->data[0] = nullptr;
        top_ = &chunk_->data[1];
        limit_ = static_cast<PyObject**>(chunk_end);
    }
    void save(const PyThreadState& tstate) noexcept {
        chunk_ = tstate.datastack_chunk;
        top_ = tstate.datastack_top;
        limit_ = tstate.datastack_limit;
    }
    void restore(PyThreadState& tstate) const noexcept {
        tstate.datastack_chunk = chunk_;
        tstate.datastack_top = top_;
        tstate.datastack_limit = limit_;
    }
    /// Of a saved one that is not restored any more: frees the chunks that the interpreter pushed after the first.
    void free_pushed_chunks() noexcept { chunk_ = down_to_first(chunk_); }
    /// Frees those above the first of a data stack, which is returned.
    static _PyStackChunk* down_to_first(_PyStackChunk* chunk) noexcept {
        PyObjectArenaAllocator arena;
        PyObject_GetArenaAllocator(&arena);
        while (chunk != nullptr && chunk->previous != nullptr) {
            _PyStackChunk* previous = chunk->previous;
            arena.free(arena.ctx, chunk, chunk->size);
            chunk = previous;
        }
        return chunk;
    }

private:
    _PyStackChunk* chunk_ = nullptr;
    PyObject** top_ = nullptr;
    PyObject** limit_ = nullptr;
};

#if PY_VERSION_HEX < 0x030E0000
/// 3.12 and 3.13 count C recursion.
class CountedRecursion {
public:
    void begin(std::size_t stack_bytes) noexcept {
        // The worst C recursion seen takes 1.7 KB a unit (sort, compile); 32 KB stay for what is called at the limit.
        constexpr int kThreadLimit = 1500;  // C_RECURSION_LIMIT of the first releases, the lowest
        remaining_ = std::clamp(static_cast<int>((stack_bytes - 32 * 1024) / 1900), 120, kThreadLimit);
    }
    int remaining() const noexcept { return remaining_; }
    void save(const PyThreadState& tstate) noexcept { remaining_ = tstate.c_recursion_remaining; }
    void restore(PyThreadState& tstate) const noexcept { tstate.c_recursion_remaining = remaining_; }

private:
    int remaining_ = 0;
};
#endif

#if PY_VERSION_HEX >= 0x030D0000
/// From 3.13 on the frames hang on the thread state itself, and thread-local data is found by a key of its own.
class FrameChain {
public:
    void begin(_PyInterpreterFrame* bottom) noexcept { frame_ = bottom; }
    void save(const PyThreadState& tstate) noexcept { frame_ = tstate.current_frame; }
    void restore(PyThreadState& tstate) const noexcept { tstate.current_frame = frame_; }
    _PyInterpreterFrame* frame() const noexcept { return frame_; }

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

    /// asyncio's running loop of a thread: a strong reference, or null.
    static PyObject*& running_loop(PyThreadState& tstate) noexcept {
        return extension_word(tstate, offsetof(_PyThreadStateImpl, asyncio_running_loop));
    }
#if PY_VERSION_HEX >= 0x030E0000
    static PyObject*& running_task(PyThreadState& tstate) noexcept {
        return extension_word(tstate, offsetof(_PyThreadStateImpl, asyncio_running_task));
    }
#endif
    static bool has_loop(const PyThreadState& tstate) noexcept {
        return running_loop(const_cast<PyThreadState&>(tstate)) != nullptr;
    }
    static void take_loop(PyThreadState& tstate, PyObject*& loop, PyObject*& task) noexcept {
        loop = std::exchange(running_loop(tstate), nullptr);
#if PY_VERSION_HEX >= 0x030E0000
        task = std::exchange(running_task(tstate), nullptr);
#else
        task = nullptr;  // kept by loop in a dictionary
#endif
    }
    static void put_loop(PyThreadState& tstate, PyObject* loop, [[maybe_unused]] PyObject* task) noexcept {
        running_loop(tstate) = loop;
#if PY_VERSION_HEX >= 0x030E0000
        running_task(tstate) = task;
#endif
    }

private:
    // The public part of the thread state grew by a word in releases of one minor version, which moved what follows it;
    // the interpreter publishes the size that it has.
    static PyObject*& extension_word(PyThreadState& tstate, std::size_t compiled_offset) noexcept {
        const std::size_t offset = _PyRuntime.debug_offsets.thread_state.size + compiled_offset - sizeof(PyThreadState);
        return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(&tstate) + offset);
    }

    _PyInterpreterFrame* frame_ = nullptr;
};
#endif

#if PY_VERSION_HEX >= 0x030E0000
/// From 3.14 on the C stack is bounded by address, so the bounds are exchanged with the stack; a JIT executor that runs
/// while a fiber parks is kept alive.
class BoundedStack : public FrameChain {
public:
    void begin(_PyInterpreterFrame* bottom) noexcept {
        FrameChain::begin(bottom);
        executor_ = nullptr;
    }
    void save(PyThreadState& tstate) noexcept {
        FrameChain::save(tstate);
        // Safety: the executor's code is on this fiber's stack; nothing else may own it while the fiber is parked.
        executor_ = Py_XNewRef(reinterpret_cast<PyObject*>(tstate.current_executor));
    }
    void restore(PyThreadState& tstate, void* base, std::size_t size_bytes) noexcept {
        FrameChain::restore(tstate);
        PyObject* executor = std::exchange(executor_, nullptr);
        tstate.current_executor = executor;
        Py_XDECREF(executor);  // the frame that runs it has a reference of its own
        // Last: between this call and the switch nothing else of the interpreter may be called.
        if (base == nullptr) {
            PyUnstable_ThreadState_ResetStackProtection(&tstate);
        } else {
            PyUnstable_ThreadState_SetStackProtection(&tstate, base, size_bytes);
        }
    }

private:
    PyObject* executor_ = nullptr;
};
#endif

}  // namespace gossamer::cpython
