// SPDX-License-Identifier: Apache-2.0
#include "cpython/pending_calls.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "cpython/error.hpp"

#if PY_VERSION_HEX < 0x030D0000
extern "C" int _PyEval_AddPendingCall(PyInterpreterState* interpreter, int (*function)(void*), void* argument,
                                      int main_thread_only);
#endif

namespace gossamer::cpython {

namespace {

_pending_calls& queue_of(PyInterpreterState& interpreter) noexcept { return interpreter.ceval.pending; }

enum class Seen : std::uint8_t { kNothing, kMarkSet, kMarkClear };

// What a probe saw that ran on this OS thread. Not kept in the object, which a probe in the queue may outlive.
thread_local Seen probe_saw = Seen::kNothing;

}  // namespace

bool PendingCalls::add(PyInterpreterState& interpreter, Function function, void* argument) noexcept {
    return static_cast<int>(_PyEval_AddPendingCall(&interpreter, function, argument, 0)) == 0;
}

int PendingCalls::probe(void*) noexcept {
    PyThreadState* tstate = PyThreadState_Get();
#if PY_VERSION_HEX >= 0x030D0000
    const bool is_set = queue_of(*tstate->interp).handling_thread == tstate;
#else
    const bool is_set = queue_of(*tstate->interp).busy == 1;
#endif
    probe_saw = is_set ? Seen::kMarkSet : Seen::kMarkClear;
    return 0;
}

PendingCalls::Check PendingCalls::verify(PyThreadState& tstate) {
    if (is_verified_) {
        return Check::kPassed;
    }
    _pending_calls& queue = queue_of(*interpreter_);
#if PY_VERSION_HEX >= 0x030D0000
    const auto is_marked = [&queue] { return __atomic_load_n(&queue.handling_thread, __ATOMIC_RELAXED) != nullptr; };
#else
    const auto is_marked = [&queue] { return queue.busy != 0; };
#endif
    if (is_marked()) {
        return Check::kBusy;
    }
    probe_saw = Seen::kNothing;
    if (!add(*interpreter_, &PendingCalls::probe, this)) {
        return Check::kBusy;  // the queue is full
    }
    if (!has_entry(&PendingCalls::probe, this)) {
        return Check::kFailed;
    }
    check(_PyEval_MakePendingCalls(&tstate));
    if (probe_saw == Seen::kNothing) {
        return Check::kBusy;  // it is still there, or another thread was faster
    }
    if (probe_saw != Seen::kMarkSet || is_marked()) {
        return Check::kFailed;
    }
#if PY_VERSION_HEX >= 0x030D0000
    mark_ = &queue.handling_thread;
#else
    mark_ = &queue.busy;
#endif
    is_verified_ = true;
    return Check::kPassed;
}

bool PendingCalls::has_entry(Function function, const void* argument) const noexcept {
    // Safety: read while attached. Without a GIL another thread may write an entry meanwhile; a word is read whole.
    const _pending_calls& queue = queue_of(*interpreter_);
    return std::any_of(std::begin(queue.calls), std::end(queue.calls),
                       [&](const auto& call) { return call.func == function && call.arg == argument; });
}

#if PY_VERSION_HEX >= 0x030D0000

void PendingCalls::give_up_mark(PyThreadState& tstate) noexcept {
    _pending_calls& queue = queue_of(*interpreter_);
#ifdef Py_GIL_DISABLED
    PyMutex_Lock(&queue.mutex);
    queue.handling_thread = nullptr;
    PyMutex_Unlock(&queue.mutex);
#else
    __atomic_store_n(&queue.handling_thread, nullptr, __ATOMIC_SEQ_CST);
#endif
    if (has_calls()) {
        signal(tstate);  // what is queued behind the call that parks is for the next who looks
    }
}

bool PendingCalls::try_take_mark(PyThreadState& tstate) noexcept {
    _pending_calls& queue = queue_of(*interpreter_);
#ifdef Py_GIL_DISABLED
    PyMutex_Lock(&queue.mutex);
    const bool is_free = queue.handling_thread == nullptr;
    if (is_free) {
        queue.handling_thread = &tstate;
    }
    PyMutex_Unlock(&queue.mutex);
    return is_free;
#else
    PyThreadState* nobody = nullptr;
    return __atomic_compare_exchange_n(&queue.handling_thread, &nobody, &tstate, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
#endif
}

bool PendingCalls::has_calls() const noexcept {
    return __atomic_load_n(&queue_of(*interpreter_).npending, __ATOMIC_RELAXED) != 0 || has_calls_for_main();
}

bool PendingCalls::has_calls_for_main() noexcept {
    return __atomic_load_n(&_PyRuntime.ceval.pending_mainthread.npending, __ATOMIC_RELAXED) != 0;
}

void PendingCalls::signal(PyThreadState& tstate) noexcept { _Py_set_eval_breaker_bit(&tstate, _PY_CALLS_TO_DO_BIT); }

#else

namespace {

// Whether another OS thread of the interpreter could be the one that runs pending calls.
bool has_other_thread(PyInterpreterState& interpreter, const PyThreadState& tstate) noexcept {
    PyThreadState* other = PyInterpreterState_ThreadHead(&interpreter);
    while (other == &tstate) {
        other = PyThreadState_Next(other);
    }
    return other != nullptr;
}

}  // namespace

void PendingCalls::give_up_mark(PyThreadState& tstate) noexcept {
    *mark_ = 0;
    if (has_calls()) {
        signal(tstate);
    }
}

// 3.12's mark has no name on it. If it may be another OS thread's, clearing it lets a third one in early, which breaks
// nothing but the order of calls; it is not taken back then, because nobody would clear it if it was not ours.
bool PendingCalls::give_up_nameless_mark(PyThreadState& tstate) noexcept {
    give_up_mark(tstate);
    return !has_other_thread(*interpreter_, tstate);
}

bool PendingCalls::try_take_mark(PyThreadState&) noexcept {
    if (*mark_ != 0) {
        return false;
    }
    *mark_ = 1;
    return true;
}

bool PendingCalls::has_calls() const noexcept {
    const _pending_calls& queue = queue_of(*interpreter_);
    return queue.first != queue.last || has_calls_for_main();
}

bool PendingCalls::has_calls_for_main() noexcept {
    const _pending_calls& queue = _PyRuntime.ceval.pending_mainthread;
    return queue.first != queue.last;
}

void PendingCalls::signal(PyThreadState& tstate) noexcept {
    // As SIGNAL_PENDING_CALLS: one flag for the queue, one that makes the evaluation loop look.
    _ceval_state& ceval = tstate.interp->ceval;
    _Py_atomic_store_relaxed(&ceval.pending.calls_to_do, 1);
    _Py_atomic_store_relaxed(&ceval.eval_breaker, 1);
}

#endif

}  // namespace gossamer::cpython
