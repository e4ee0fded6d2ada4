// SPDX-License-Identifier: Apache-2.0
// The part of a PyThreadState that belongs to one step of an asyncio task that runs on a stack of its own.
//
// A step is not a thread: it runs on top of the virtual thread that runs the loop, as a call would, and shares its
// identity, thread-local data, trace functions and context. Four transitions exchange the rest:
//
//     enter    the caller's fields are kept, the step begins with an empty data stack
//     leave    the step is over: the caller gets its fields back
//     park     the step's fields are kept, the caller gets its own back and goes on
//     resume   the fields of whoever resumes are kept, which need not be the first caller; the step gets its own back
//
// Each step has a *stub frame* and a *base exception item* at the bottom of its chains. Entering and resuming link them to
// the caller's, so that a stack and a handled exception are seen through them as in a plain call; parking unlinks them.
// (To patch the coroutine's own frame instead does not do: `throw` into `await agen.asend()` does not link that frame.)
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <utility>

#include "cpython/fiber_state.hpp"

namespace gossamer::cpython {

class StepState final {
public:
    StepState() noexcept = default;
    StepState(const StepState&) = delete;
    StepState& operator=(const StepState&) = delete;
    ~StepState() = default;

    /// Once for each stack. `stub_code` is borrowed for as long as the stack is used.
    void prepare(PyObject* stub_code, StackBounds bounds, void* chunk, void* chunk_end) noexcept {
        bounds_ = bounds;
        prepare_stub(reinterpret_cast<PyCodeObject*>(stub_code));
        empty_data_stack_.begin(chunk, chunk_end);
#if PY_VERSION_HEX < 0x030E0000
        CountedRecursion recursion;
        recursion.begin(bounds.size_bytes);
        recursion_limit_ = recursion.remaining();
#endif
    }

    /// Parks: no. Thread: carrier. Python: attached; the four.
    void enter(PyThreadState& tstate, FiberState& thread) noexcept {
        keep_caller(tstate, thread);
        begin_frames(tstate);
        tstate.exc_info = &exc_base_;
        empty_data_stack_.restore(tstate);
        begin_stack(tstate);
    }

    void leave(PyThreadState& tstate, FiberState& thread) noexcept {
        give_back(tstate, thread);
        if (has_callers_context_) {
            put_context(tstate);
        }
    }

    void park(PyThreadState& tstate, FiberState& thread) noexcept {
        frames_.save(tstate);
        exc_info_ = tstate.exc_info;
        data_stack_.save(tstate);
        depth_ = caller_remaining_ - tstate.py_recursion_remaining;
        tracing_ = tstate.tracing;
        what_event_ = tstate.what_event;
        parked_bounds_ = thread.bounds();  // of a greenlet's stack, if it parks inside of one
        tstate.py_recursion_remaining = caller_remaining_;
        tstate.tracing = caller_tracing_;
        tstate.what_event = caller_what_event_;
        stub_.previous = nullptr;
        exc_base_.previous_item = nullptr;
        park_stack(tstate);
        give_back(tstate, thread);
        park_context(tstate);
    }

    void resume(PyThreadState& tstate, FiberState& thread) noexcept {
        keep_caller(tstate, thread);
        thread.set_bounds(parked_bounds_);
        frames_.restore(tstate);
        tstate.exc_info = exc_info_;
        data_stack_.restore(tstate);
        tstate.py_recursion_remaining = caller_remaining_ - depth_;
        tstate.tracing = tracing_;
        tstate.what_event = what_event_;
        if (context_ != nullptr) {
            callers_context_ = std::exchange(tstate.context, std::exchange(context_, nullptr));
            has_callers_context_ = true;
            ++tstate.context_ver;
        }
        resume_stack(tstate);
    }

    /// The innermost frame of the parked step.
    _PyInterpreterFrame* parked_frame() const noexcept { return frames_.frame(); }
    /// The frame at the bottom, which is no Python function's.
    const _PyInterpreterFrame* stub() const noexcept { return &stub_; }

private:
#if PY_VERSION_HEX >= 0x030D0000
    using Frames = FrameChain;
    static _PyInterpreterFrame* frame_of(const PyThreadState& tstate) noexcept { return tstate.current_frame; }
#else
    /// 3.12: the frames hang on a _PyCFrame.
    struct Frames {
        void save(const PyThreadState& tstate) noexcept { cframe_ = tstate.cframe; }
        void restore(PyThreadState& tstate) const noexcept { tstate.cframe = cframe_; }
        _PyInterpreterFrame* frame() const noexcept { return cframe_->current_frame; }
        _PyCFrame* cframe_ = nullptr;
    };
    static _PyInterpreterFrame* frame_of(const PyThreadState& tstate) noexcept { return tstate.cframe->current_frame; }
#endif

    void prepare_stub(PyCodeObject* code) noexcept {
        stub_ = {};
#if PY_VERSION_HEX >= 0x030E0000
        stub_.f_executable = PyStackRef_FromPyObjectBorrow(reinterpret_cast<PyObject*>(code));
        stub_.instr_ptr = _PyCode_CODE(code);
        stub_.owner = FRAME_OWNED_BY_INTERPRETER;
        stub_.stackpointer = stub_.localsplus;
#elif PY_VERSION_HEX >= 0x030D0000
        stub_.f_executable = reinterpret_cast<PyObject*>(code);
        stub_.instr_ptr = _PyCode_CODE(code);
        stub_.owner = FRAME_OWNED_BY_CSTACK;
#else
        stub_.f_code = code;
        stub_.prev_instr = _PyCode_CODE(code) - 1;
        stub_.owner = FRAME_OWNED_BY_CSTACK;
#endif
    }

    void keep_caller(PyThreadState& tstate, FiberState& thread) noexcept {
        caller_frames_.save(tstate);
        stub_.previous = frame_of(tstate);
        exc_base_.previous_item = caller_exc_info_ = tstate.exc_info;
        caller_context_ = tstate.context;
        caller_data_stack_.save(tstate);
        caller_remaining_ = tstate.py_recursion_remaining;
        caller_tracing_ = tstate.tracing;
        caller_what_event_ = tstate.what_event;
        caller_bounds_ = thread.bounds();
        thread.set_bounds(bounds_);
#if PY_VERSION_HEX >= 0x030E0000
        caller_executor_ = tstate.current_executor;
#else
        caller_c_remaining_ = tstate.c_recursion_remaining;
#endif
#if PY_VERSION_HEX < 0x030D0000
        caller_trash_nesting_ = tstate.trash.delete_nesting;
#endif
#ifdef Py_GIL_DISABLED
        caller_critical_section_ = suspend_critical_sections(tstate);
#endif
    }

    void begin_frames(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
        tstate.current_frame = &stub_;
#else
        cframe_.current_frame = &stub_;
        cframe_.previous = tstate.cframe;
        tstate.cframe = &cframe_;
#endif
    }

    /// What depends on the C stack, for a stack on which nothing runs yet.
    void begin_stack(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030E0000
        tstate.current_executor = nullptr;
        apply_bounds(tstate, bounds_);
#else
        tstate.c_recursion_remaining = recursion_limit_;
#endif
    }

    void park_stack(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030E0000
        executor_ = Py_XNewRef(reinterpret_cast<PyObject*>(tstate.current_executor));
#else
        c_remaining_ = tstate.c_recursion_remaining;
#endif
#if PY_VERSION_HEX < 0x030D0000
        trash_nesting_ = tstate.trash.delete_nesting;
        tstate.trash.delete_nesting = caller_trash_nesting_;
#endif
#ifdef Py_GIL_DISABLED
        critical_section_ = suspend_critical_sections(tstate);
#endif
    }

    void resume_stack(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX < 0x030D0000
        tstate.trash.delete_nesting = trash_nesting_;
#endif
#ifdef Py_GIL_DISABLED
        continue_critical_sections(tstate, critical_section_);
#endif
#if PY_VERSION_HEX >= 0x030E0000
        PyObject* executor = std::exchange(executor_, nullptr);
        tstate.current_executor = executor;
        Py_XDECREF(executor);  // the frame that runs it has a reference of its own
        apply_bounds(tstate, parked_bounds_);
#else
        tstate.c_recursion_remaining = c_remaining_;
#endif
    }

    void give_back(PyThreadState& tstate, FiberState& thread) noexcept {
        caller_frames_.restore(tstate);
        tstate.exc_info = caller_exc_info_;
        caller_data_stack_.restore(tstate);
        thread.set_bounds(caller_bounds_);
#ifdef Py_GIL_DISABLED
        continue_critical_sections(tstate, caller_critical_section_);
#endif
#if PY_VERSION_HEX >= 0x030E0000
        tstate.current_executor = caller_executor_;
        apply_bounds(tstate, caller_bounds_);
#else
        tstate.c_recursion_remaining = caller_c_remaining_;
#endif
    }

    // A step that parks inside Context.run() keeps that context, and the caller gets the one that it gave. Each word owns
    // its reference: tstate.context, the context_prev of a context that is entered, context_, callers_context_.
    void park_context(PyThreadState& tstate) noexcept {
        if (tstate.context == caller_context_) {
            if (has_callers_context_) {
                put_context(tstate);
            }
            return;
        }
        context_ = tstate.context;
        tstate.context = has_callers_context_ ? callers_context_ : Py_XNewRef(caller_context_);
        has_callers_context_ = false;
        ++tstate.context_ver;
    }

    void put_context(PyThreadState& tstate) noexcept {
        has_callers_context_ = false;
        PyObject* old = std::exchange(tstate.context, callers_context_);
        ++tstate.context_ver;
        Py_XDECREF(old);
    }

#if PY_VERSION_HEX >= 0x030E0000
    static void apply_bounds(PyThreadState& tstate, const StackBounds& bounds) noexcept {
        if (bounds.base == nullptr) {
            PyUnstable_ThreadState_ResetStackProtection(&tstate);
        } else {
            PyUnstable_ThreadState_SetStackProtection(&tstate, bounds.base, bounds.size_bytes);
        }
    }
#endif
#ifdef Py_GIL_DISABLED
    static std::uintptr_t suspend_critical_sections(PyThreadState& tstate) noexcept {
        if (tstate.critical_section != 0) {
            _PyCriticalSection_SuspendAll(&tstate);
        }
        return std::exchange(tstate.critical_section, 0);
    }
    static void continue_critical_sections(PyThreadState& tstate, std::uintptr_t sections) noexcept {
        tstate.critical_section = sections;
        if (sections != 0) {
            _PyCriticalSection_Resume(&tstate);
        }
    }
#endif

    // of whoever entered or resumed the step
    Frames caller_frames_;
    _PyErr_StackItem* caller_exc_info_ = nullptr;
    PyObject* caller_context_ = nullptr;  // borrowed
    DataStack caller_data_stack_;
    StackBounds caller_bounds_;
    int caller_remaining_ = 0;
    int caller_tracing_ = 0;
    int caller_what_event_ = -1;

    // the step's own, at its bottom and while it is parked
    int depth_ = 0;
    int tracing_ = 0;
    int what_event_ = -1;
    bool has_callers_context_ = false;  // callers_context_ was taken out of the thread state
    Frames frames_;
    _PyErr_StackItem* exc_info_ = nullptr;
    _PyErr_StackItem exc_base_{};
    PyObject* context_ = nullptr;
    PyObject* callers_context_ = nullptr;
    DataStack empty_data_stack_;
    DataStack data_stack_;
    StackBounds bounds_;
    StackBounds parked_bounds_;
    _PyInterpreterFrame stub_{};
#if PY_VERSION_HEX >= 0x030E0000
    decltype(PyThreadState::current_executor) caller_executor_ = nullptr;
    PyObject* executor_ = nullptr;
#else
    int caller_c_remaining_ = 0;
    int c_remaining_ = 0;
    int recursion_limit_ = 0;
#endif
#if PY_VERSION_HEX < 0x030D0000
    int caller_trash_nesting_ = 0;
    int trash_nesting_ = 0;
    _PyCFrame cframe_{};
#endif
#ifdef Py_GIL_DISABLED
    std::uintptr_t caller_critical_section_ = 0;
    std::uintptr_t critical_section_ = 0;
#endif
};

}  // namespace gossamer::cpython
