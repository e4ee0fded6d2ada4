// SPDX-License-Identifier: Apache-2.0
#include "cpython/fiber_state.hpp"

#include <utility>

namespace gossamer::cpython {

void FiberState::begin(PyThreadState& tstate, StackBounds bounds, void* chunk, void* chunk_end) noexcept {
    bounds_ = bounds;
    version_.begin(tstate, bounds.size_bytes);
    data_stack_.begin(chunk, chunk_end);
    depth_ = 0;
    exc_base_ = {};
    exc_info_ = &exc_base_;
    context_ = nullptr;
    exception_ = nullptr;
    tracing_ = 0;
    what_event_ = -1;
}

void FiberState::need_rare() {
    if (!rare_) {
        rare_ = std::make_unique<RareState>();
        rare_->coroutine_origin_tracking_depth = usual_origin_depth;
    }
}

void FiberState::save_rare(PyThreadState& tstate) noexcept {
    need_rare();
    rare_->dict = std::exchange(tstate.dict, nullptr);
    rare_->async_exc = std::exchange(tstate.async_exc, nullptr);
    rare_->async_gen_firstiter = std::exchange(tstate.async_gen_firstiter, nullptr);
    rare_->async_gen_finalizer = std::exchange(tstate.async_gen_finalizer, nullptr);
    rare_->trace_function = std::exchange(tstate.c_tracefunc, nullptr);
    rare_->trace_object = std::exchange(tstate.c_traceobj, nullptr);
    rare_->profile_function = std::exchange(tstate.c_profilefunc, nullptr);
    rare_->profile_object = std::exchange(tstate.c_profileobj, nullptr);
    rare_->coroutine_origin_tracking_depth = std::exchange(tstate.coroutine_origin_tracking_depth, usual_origin_depth);
    VersionState::take_local_key(tstate, rare_->local_key, rare_->local_sentinel);
    VersionState::take_loop(tstate, rare_->running_loop, rare_->running_task);
}

void FiberState::restore_rare(PyThreadState& tstate) noexcept {
    tstate.dict = std::exchange(rare_->dict, nullptr);
    tstate.async_exc = std::exchange(rare_->async_exc, nullptr);
    tstate.async_gen_firstiter = std::exchange(rare_->async_gen_firstiter, nullptr);
    tstate.async_gen_finalizer = std::exchange(rare_->async_gen_finalizer, nullptr);
    tstate.c_tracefunc = std::exchange(rare_->trace_function, nullptr);
    tstate.c_traceobj = std::exchange(rare_->trace_object, nullptr);
    tstate.c_profilefunc = std::exchange(rare_->profile_function, nullptr);
    tstate.c_profileobj = std::exchange(rare_->profile_object, nullptr);
    tstate.coroutine_origin_tracking_depth = std::exchange(rare_->coroutine_origin_tracking_depth, usual_origin_depth);
    VersionState::put_local_key(tstate, std::exchange(rare_->local_key, nullptr),
                                std::exchange(rare_->local_sentinel, nullptr));
    VersionState::put_loop(tstate, std::exchange(rare_->running_loop, nullptr),
                           std::exchange(rare_->running_task, nullptr));
    if (tstate.async_exc != nullptr) {
        VersionState::signal_async_exception(tstate);
    }
}

PyObject* FiberState::set_async_exception(PyObject* exception) {
    need_rare();
    return std::exchange(rare_->async_exc, Py_XNewRef(exception));
}

PyObject* FiberState::set_async_exception_of(PyThreadState& tstate, PyObject* exception) noexcept {
    PyObject* old = std::exchange(tstate.async_exc, Py_XNewRef(exception));
    VersionState::signal_async_exception(tstate);
    return old;
}

PyObject* FiberState::handled_exception() const noexcept {
    for (const _PyErr_StackItem* item = exc_info_; item != nullptr; item = item->previous_item) {
        if (item->exc_value != nullptr && item->exc_value != Py_None) {
            return item->exc_value;
        }
    }
    return nullptr;
}

// The interpreter counts the threads that are traced, and what it instruments follows from the count.

namespace {

/// Sets by `set`, the interpreter's own function, with the words of a fiber in the running thread state meanwhile.
template <typename Set>
PyObject* set_for(Set set, Py_tracefunc& function_word, PyObject*& object_word, Py_tracefunc& running_function,
                  PyObject*& running_object, Py_tracefunc function, PyObject* argument) noexcept {
    PyObject* old = Py_XNewRef(object_word);
    std::swap(running_function, function_word);
    std::swap(running_object, object_word);
    set(function, argument);
    std::swap(running_function, function_word);
    std::swap(running_object, object_word);
    return old;
}

#ifdef Py_GIL_DISABLED
/// Exchanges the words and corrects the count: the interpreter's own function would stop the world, which is stopped.
PyObject* exchange(Py_tracefunc& function_word, PyObject*& object_word, Py_ssize_t& count, Py_tracefunc function,
                   PyObject* argument) noexcept {
    count += (function != nullptr ? 1 : 0) - (function_word != nullptr ? 1 : 0);
    function_word = function;
    return std::exchange(object_word, Py_XNewRef(argument));
}
#endif

}  // namespace

PyObject* FiberState::set_trace(PyThreadState& tstate, Py_tracefunc function, PyObject* argument) {
    need_rare();
#ifdef Py_GIL_DISABLED
    return exchange(rare_->trace_function, rare_->trace_object, tstate.interp->sys_tracing_threads, function, argument);
#else
    return set_for(&PyEval_SetTrace, rare_->trace_function, rare_->trace_object, tstate.c_tracefunc, tstate.c_traceobj,
                   function, argument);
#endif
}

PyObject* FiberState::set_profile(PyThreadState& tstate, Py_tracefunc function, PyObject* argument) {
    need_rare();
#ifdef Py_GIL_DISABLED
    return exchange(rare_->profile_function, rare_->profile_object, tstate.interp->sys_profiling_threads, function,
                    argument);
#else
    return set_for(&PyEval_SetProfile, rare_->profile_function, rare_->profile_object, tstate.c_profilefunc,
                   tstate.c_profileobj, function, argument);
#endif
}

void FiberState::drop_trace_functions(PyThreadState& tstate) noexcept {
    if (rare_ != nullptr && rare_->trace_function != nullptr) {
        Py_XDECREF(set_for(&PyEval_SetTrace, rare_->trace_function, rare_->trace_object, tstate.c_tracefunc,
                           tstate.c_traceobj, nullptr, nullptr));
    }
    if (rare_ != nullptr && rare_->profile_function != nullptr) {
        Py_XDECREF(set_for(&PyEval_SetProfile, rare_->profile_function, rare_->profile_object, tstate.c_profilefunc,
                           tstate.c_profileobj, nullptr, nullptr));
    }
}

void FiberState::clear_thread_data(PyThreadState& tstate) noexcept {
    if (!has_rare(tstate, tstate.coroutine_origin_tracking_depth)) {
        return;
    }
    if (tstate.c_tracefunc != nullptr) {
        PyEval_SetTrace(nullptr, nullptr);
    }
    if (tstate.c_profilefunc != nullptr) {
        PyEval_SetProfile(nullptr, nullptr);
    }
    Py_CLEAR(tstate.async_gen_firstiter);
    Py_CLEAR(tstate.async_gen_finalizer);
    Py_CLEAR(tstate.async_exc);
    Py_CLEAR(tstate.dict);
    PyObject* key = nullptr;
    PyObject* sentinel = nullptr;
    VersionState::take_local_key(tstate, key, sentinel);
    Py_XDECREF(key);
    Py_XDECREF(sentinel);
    PyObject* loop = nullptr;
    PyObject* task = nullptr;
    VersionState::take_loop(tstate, loop, task);
    Py_XDECREF(loop);
    Py_XDECREF(task);
}

void FiberState::free_pushed_chunks(PyThreadState& tstate) noexcept {
    tstate.datastack_chunk = DataStack::down_to_first(tstate.datastack_chunk);
}

void FiberState::free_chunks_of_parked() noexcept { data_stack_.free_pushed_chunks(); }

}  // namespace gossamer::cpython
