// SPDX-License-Identifier: Apache-2.0
// The part of a PyThreadState that belongs to one fiber: saved when it is left, restored when it is continued.
//
// A carrier has one PyThreadState. At every switch the fields that differ from fiber to fiber are exchanged: the frame
// chain, the data stack, the exception state, the context, the recursion depth, and what the version adds (VersionState:
// one file a version). The rare ones (thread-local data, trace functions, a pending asynchronous exception, hooks) live
// in a RareState that a fiber has only once one of them is set; when it is left they are moved there and cleared.
// Sources: Include/cpython/pystate.h and Include/internal/pycore_tstate.h of each version.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <memory>

#if PY_VERSION_HEX >= 0x030F0000
#include "cpython/fiber_state_315.hpp"
#elif PY_VERSION_HEX >= 0x030E0000
#include "cpython/fiber_state_314.hpp"
#elif PY_VERSION_HEX >= 0x030D0000
#include "cpython/fiber_state_313.hpp"
#else
#include "cpython/fiber_state_312.hpp"
#endif

namespace gossamer::cpython {

/// Fields that most fibers never set. All are null, zero or as usual in a thread state that has just been left.
struct RareState {
    PyObject* dict = nullptr;
    PyObject* async_exc = nullptr;
    PyObject* async_gen_firstiter = nullptr;
    PyObject* async_gen_finalizer = nullptr;
    Py_tracefunc trace_function = nullptr;
    PyObject* trace_object = nullptr;
    Py_tracefunc profile_function = nullptr;
    PyObject* profile_object = nullptr;
    PyObject* local_key = nullptr;
    PyObject* local_sentinel = nullptr;
    PyObject* running_loop = nullptr;
    PyObject* running_task = nullptr;
    int coroutine_origin_tracking_depth = 0;
};

/// Bounds of the C stack that a fiber runs on; null for the OS thread's own.
struct StackBounds {
    void* base = nullptr;
    std::size_t size_bytes = 0;
};

class FiberState final {
public:
    FiberState() noexcept = default;
    FiberState(const FiberState&) = delete;
    FiberState& operator=(const FiberState&) = delete;
    ~FiberState() = default;

    /// Prepares the state of a fiber that has not run: no frames, an empty data stack in [chunk, chunk_end), no context.
    /// Parks: no. Thread: carrier. Python: attached.
    void begin(PyThreadState& tstate, StackBounds bounds, void* chunk, void* chunk_end) noexcept;

    /// Marks the state as that of the OS thread's own stack; save() fills it.
    void adopt_thread() noexcept { bounds_ = {}; }

    /// The bounds of the stack that the fiber runs on: a step of an asyncio task (cpython/step_state.hpp) borrows it another.
    StackBounds bounds() const noexcept { return bounds_; }
    void set_bounds(StackBounds bounds) noexcept { bounds_ = bounds; }

    /// Parks: no. Thread: carrier. Python: attached.
    void save(PyThreadState& tstate) noexcept {
        save_shared(tstate);
        if (has_rare(tstate, usual_origin_depth)) {
            save_rare(tstate);
        }
    }

    /// The same without what belongs to the thread: for one of several stacks of a thread (loop/greenlet_thread.hpp).
    void save_shared(PyThreadState& tstate) noexcept {
        version_.save(tstate);
        data_stack_.save(tstate);
        depth_ = tstate.py_recursion_limit - tstate.py_recursion_remaining;
        exception_ = tstate.current_exception;
        exc_info_ = tstate.exc_info;
        context_ = tstate.context;
        tracing_ = tstate.tracing;
        what_event_ = tstate.what_event;
    }

    /// The context of a fiber that does not run: null for none. Owned by the fiber.
    PyObject* context() const noexcept { return context_; }
    void set_context(PyObject* context) noexcept { context_ = context; }

    /// Parks: no. Thread: carrier. Python: attached.
    void restore(PyThreadState& tstate) noexcept {
        version_.restore(tstate, bounds_.base, bounds_.size_bytes);
        data_stack_.restore(tstate);
        tstate.py_recursion_remaining = tstate.py_recursion_limit - depth_;
        tstate.current_exception = exception_;
        tstate.exc_info = exc_info_;
        tstate.context = context_;
        ++tstate.context_ver;  // ContextVar caches its value by this number
        tstate.tracing = tracing_;
        tstate.what_event = what_event_;
        if (rare_) {
            restore_rare(tstate);
        }
    }

    /// At the end of the fiber that runs: drops thread-local data and trace functions as the end of a thread does.
    /// May run Python. Parks: yes (a finaliser). Thread: carrier. Python: attached.
    static void clear_thread_data(PyThreadState& tstate) noexcept;

    /// At the end of the fiber that runs, after clear_thread_data: frees chunks that it pushed beyond its first.
    static void free_pushed_chunks(PyThreadState& tstate) noexcept;

    /// The same for a parked fiber that will never continue.
    void free_chunks_of_parked() noexcept;

    /// Forgets the frames of a fiber that will never continue (in a forked child). Leaks what they refer to.
    void abandon() noexcept { rare_.reset(); }

    /// The innermost frame of the parked fiber; null if it has none.
    _PyInterpreterFrame* parked_frame() const noexcept { return version_.frame(); }

    /// The innermost exception that the parked fiber handles; borrowed, null if none.
    PyObject* handled_exception() const noexcept;

    /// Leaves an exception (or null) for this parked fiber, raised when it continues. Returns the one that was left before,
    /// a reference of the caller's. Throws std::bad_alloc.
    [[nodiscard]] PyObject* set_async_exception(PyObject* exception);
    /// The same for the fiber that runs on `tstate`.
    [[nodiscard]] static PyObject* set_async_exception_of(PyThreadState& tstate, PyObject* exception) noexcept;

    /// Sets the trace or profile function of this parked fiber. `tstate` is the caller's; nothing may switch meanwhile.
    /// Returns the object that was set before. In a free-threaded build the interpreter's events are set by the next
    /// PyEval_SetTrace() or PyEval_SetProfile() of any thread. Throws std::bad_alloc.
    [[nodiscard]] PyObject* set_trace(PyThreadState& tstate, Py_tracefunc function, PyObject* argument);
    [[nodiscard]] PyObject* set_profile(PyThreadState& tstate, Py_tracefunc function, PyObject* argument);
    /// Takes both from this parked fiber, which never continues: otherwise the interpreter would count it as traced for
    /// ever. Python: attached.
    void drop_trace_functions(PyThreadState& tstate) noexcept;
    /// The coroutine origin tracking depth that a fiber starts with, the same for all of a hub: what differs is rare.
    int usual_origin_depth = 0;

private:
    static bool has_rare(const PyThreadState& tstate, int usual_origin_depth) noexcept;
    void need_rare();
    void save_rare(PyThreadState& tstate) noexcept;
    void restore_rare(PyThreadState& tstate) noexcept;

    VersionState version_;
    DataStack data_stack_;
    int depth_ = 0;
    int tracing_ = 0;
    int what_event_ = -1;
    PyObject* exception_ = nullptr;
    _PyErr_StackItem* exc_info_ = nullptr;
    PyObject* context_ = nullptr;
    std::unique_ptr<RareState> rare_;
    StackBounds bounds_;
    _PyErr_StackItem exc_base_{};
};

inline bool FiberState::has_rare(const PyThreadState& tstate, int usual_origin_depth) noexcept {
    return tstate.dict != nullptr || tstate.async_exc != nullptr || tstate.async_gen_firstiter != nullptr ||
           tstate.async_gen_finalizer != nullptr || tstate.c_tracefunc != nullptr || tstate.c_profilefunc != nullptr ||
           VersionState::has_local_key(tstate) || VersionState::has_loop(tstate) ||
           tstate.coroutine_origin_tracking_depth != usual_origin_depth;
}

}  // namespace gossamer::cpython
