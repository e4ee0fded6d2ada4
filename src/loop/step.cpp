// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/step.hpp"

#include <algorithm>
#include <new>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/exceptions.hpp"
#include "loop/parked_steps.hpp"
#include "loop/step_loop.hpp"
#include "loop/steps.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;
using sched::Cancellable;
using sched::ThreadStatus;
using sched::VirtualThread;
using sched::Wake;

void Step::prepare(const core::Stack& stack, PyObject* stub_code) noexcept {
    stack_ = stack;
    auto* top = reinterpret_cast<std::byte*>(this);
    const cpython::StackBounds bounds{stack.limit, static_cast<std::size_t>(top - stack.limit)};
    state_.prepare(stub_code, bounds, stack.chunk, stack.chunk_end);
}

void Step::run_body(void* self) {
    auto& step = *static_cast<Step*>(self);
    step.result_kind_ = step.body_.run(step.coroutine_, step.body_.argument, &step.result_);
}

PySendResult Step::start(PyObject* coroutine, const StepBody& body, PyObject** result) noexcept {
    sched::Hub& hub = steps_->hub();
    VirtualThread& thread = hub.running();
    ++steps_->started;
    coroutine_ = coroutine;
    body_ = body;
    result_ = nullptr;
    loop = nullptr;  // the record may be one that was used before
    is_orphan = false;
    status_ = ThreadStatus::kRunning;
    parent_ = static_cast<Step*>(thread.inner_waits);
    caller_owning_call_ = thread.owning_call;
    thread.inner_waits = this;
    core::ExceptionGlobals& exceptions = hub.os_thread_exceptions();
    caller_exceptions_ = std::exchange(exceptions, {});
    state_.enter(hub.tstate(), thread.state);
    core::call_on_stack(pivot_, context_, stack_.limit, this, &Step::run_body, this);
    return outcome(result);
}

PySendResult Step::resume(PyObject* exception, PyObject** result) noexcept {
    sched::Hub& hub = steps_->hub();
    VirtualThread& thread = hub.running();
    ParkedSteps::instance().remove(*this);
    --steps_->parked_count_;
    if (is_linked()) {
        unlink();
    }
    status_ = ThreadStatus::kRunning;
    Py_XSETREF(exception_, exception);
    result_ = nullptr;
    parent_ = static_cast<Step*>(thread.inner_waits);
    thread.inner_waits = leaf_;
    link_owning_calls(thread);
    hand_over_locks(*leaf_, parked_ident(), thread.ident());
    core::ExceptionGlobals& exceptions = hub.os_thread_exceptions();
    caller_exceptions_ = std::exchange(exceptions, exceptions_);
    state_.resume(hub.tstate(), thread.state);
    core::switch_context(pivot_, context_);
    return outcome(result);
}

/// On the caller's stack, after the step has ended or parked.
PySendResult Step::outcome(PyObject** result) noexcept {
    Steps& steps = *steps_;  // the record may be gone once it was given back
    PySendResult kind = PYGEN_NEXT;
    *result = std::exchange(result_, nullptr);
    if (status_ == ThreadStatus::kRunning) {
        VirtualThread& thread = steps.hub().running();
        steps.hub().os_thread_exceptions() = caller_exceptions_;
        state_.leave(steps.hub().tstate(), thread.state);
        thread.inner_waits = parent_;
        kind = result_kind_;
        if (!rlocks_.empty()) [[unlikely]] {
            rlocks_.clear();
        }
        if (exception_ != nullptr) [[unlikely]] {
            kind = raise_late(kind, result);
        } else {
            steps.give_back(*this);
        }
        if (steps.is_someone_told_when_none_is_left()) [[unlikely]] {
            steps.call_if_none_is_left();
        }
    } else if (std::exchange(wants_future_, false) && !give_future(result)) {
        return resume(PyErr_GetRaisedException(), result);
    }
    if (steps.to_complete != nullptr) [[unlikely]] {
        steps.to_complete->complete_woken();
    }
    if (steps.has_condemned()) [[unlikely]] {
        steps.close_condemned();
    }
    return kind;
}

/// Makes the future that asyncio waits for. Here, not where the step parks: it takes Python code, and a parked stack keeps
/// the pages that it has ever used. Returns false with the error set.
bool Step::give_future(PyObject** result) noexcept {
    return cpython::guarded(false, [&] {
        Ref awaited = steps_->pending_future();
        if (loop != nullptr && loop->drives) {
            loop->arrange_call();
        }
        if (status_ == ThreadStatus::kReady) {
            steps_->set_result(awaited.ptr());  // woken meanwhile
        }
        future = Py_NewRef(awaited.ptr());
        *result = awaited.release();
        return true;
    });
}

/// An exception was thrown in, but the call that was parked had been served: it is raised where the coroutine awaits next,
/// as asyncio does with a cancellation that comes while a task runs.
PySendResult Step::raise_late(PySendResult kind, PyObject** value) noexcept {
    Ref exception = Ref::steal_or_null(std::exchange(exception_, nullptr));
    Ref given = Ref::steal_or_null(std::exchange(*value, nullptr));
    PyObject* coroutine = coroutine_;
    steps_->give_back(*this);  // the record may be gone from here on
    if (kind == PYGEN_ERROR) {
        return kind;
    }
    if (kind == PYGEN_RETURN) {
        PyErr_SetRaisedException(exception.release());
        return PYGEN_ERROR;
    }
    if (cpython::is_cancelled_error(exception.ptr()) && given.ptr() != Py_None) {
        const Ref args = Ref::steal_or_null(PyObject_GetAttrString(exception.ptr(), "args"));
        const Ref cancel = Ref::steal_or_null(PyObject_GetAttrString(given.ptr(), "cancel"));
        const Ref cancelled =
            args && cancel ? Ref::steal_or_null(PyObject_CallObject(cancel.ptr(), args.ptr())) : Ref();
        if (cancelled && PyObject_IsTrue(cancelled.ptr()) > 0) {
            *value = given.release();
            return kind;
        }
        PyErr_Clear();  // it is no future that can be cancelled
    }
    PyObject* thrown = PyObject_CallMethod(coroutine, "throw", "O", exception.ptr());
    if (thrown != nullptr) {
        *value = thrown;
        return PYGEN_NEXT;
    }
    PyObject* returned = nullptr;
    if (_PyGen_FetchStopIterationValue(&returned) == 0) {
        *value = returned;
        return PYGEN_RETURN;
    }
    return PYGEN_ERROR;
}

/// On the stack of `leaf`: gives `value` (owned) to this step's caller. Returns when the step is resumed.
void Step::suspend(Step& leaf, PyObject* value) noexcept {
    sched::Hub& hub = steps_->hub();
    VirtualThread& thread = hub.running();
    leaf_ = &leaf;
    result_ = value;
    exceptions_ = std::exchange(hub.os_thread_exceptions(), caller_exceptions_);
    state_.park(hub.tstate(), thread.state);
    thread.inner_waits = parent_;
    cut_owning_calls(thread);
    hand_over_locks(leaf, thread.ident(), parked_ident());
    core::switch_context(context_, pivot_);
}

core::Wakeable& Step::waiter() noexcept {
    Step* target = steps_->target(*this);
    return target == nullptr ? static_cast<core::Wakeable&>(steps_->hub().running()) : *target;
}

Wake Step::park(const sched::WaitNote& note, core::Deadline deadline, Cancellable cancellable) {
    sched::Hub& hub = steps_->hub();
    Step* target = hub.running().no_switch_depth > 0 ? nullptr : steps_->target(*this);
    return target == nullptr ? hub.park_thread(note, deadline, cancellable)
                             : target->park_task(*this, note, deadline, cancellable);
}

Wake Step::park_task(Step& leaf, const sched::WaitNote& note, core::Deadline deadline, Cancellable cancellable) {
    sched::Hub& hub = steps_->hub();
    if (cancellable == Cancellable::kYes && exception_ != nullptr) {
        return Wake::kCancelled;
    }
    const bool is_known = cpython::guarded(false, [&] {
        if (!deadline.is_never()) {
            hub.timers().arm(*this, deadline);
        }
        ParkedSteps::instance().add(*this);
        return true;
    });
    if (!is_known) {
        hub.timers().disarm(*this);
        return Wake::kFailed;
    }
    // Whoever woke us since target() was asked found us running.
    if (std::exchange(was_woken_, false)) {
        hub.timers().disarm(*this);
        ParkedSteps::instance().remove(*this);
        return Wake::kReady;
    }
    wait_note_ = note;
    parked_at_ = core::coarse_now();
    status_ = ThreadStatus::kParked;
    is_orphan = false;
    loop->parked.push_back(*this);
    ++steps_->parked_count_;
    ++steps_->parks;
    hub.count_park();
    const bool takes_mark_back = hub.preemption().pending_calls().give_up_mark_if_ours(hub.tstate());
    wants_future_ = true;
    suspend(leaf, nullptr);
    hub.timers().disarm(*this);
    const bool is_timed_out = std::exchange(is_timed_out_, false);
    if (takes_mark_back) {
        hub.preemption().take_mark_back();
    }
    const Ref dropped = Ref::steal_or_null(std::exchange(future, nullptr));
    if (cancellable == Cancellable::kYes && exception_ != nullptr) {
        return Wake::kCancelled;
    }
    return is_timed_out ? Wake::kTimedOut : Wake::kReady;
}

/// The task is continued after the others that are ready, as after `await asyncio.sleep(0)`.
Wake Step::yield() {
    sched::Hub& hub = steps_->hub();
    Step* target = hub.running().no_switch_depth > 0 ? nullptr : steps_->target(*this);
    if (target == nullptr) {
        return hub.yield_thread();
    }
    return target->exception_ != nullptr ? Wake::kCancelled
                                         : target->give(*this, Py_NewRef(Py_None), {.what = "a checkpoint"});
}

Wake Step::give(Step& leaf, PyObject* value, const sched::WaitNote& note) {
    sched::Hub& hub = steps_->hub();
    if (!cpython::guarded(false, [&] {
            ParkedSteps::instance().add(*this);
            return true;
        })) {
        Py_DECREF(value);
        return Wake::kFailed;
    }
    wait_note_ = note;
    parked_at_ = core::coarse_now();
    status_ = ThreadStatus::kReady;
    ++steps_->parked_count_;
    const bool takes_mark_back = hub.preemption().pending_calls().give_up_mark_if_ours(hub.tstate());
    suspend(leaf, value);
    if (takes_mark_back) {
        hub.preemption().take_mark_back();
    }
    return exception_ != nullptr ? Wake::kCancelled : Wake::kReady;
}

bool Step::raise_cancellation() noexcept {
    for (Step* step = this; step != nullptr; step = step->parent_) {
        if (step->exception_ != nullptr) {
            const Ref exception = Ref::steal_or_null(std::exchange(step->exception_, nullptr));
            // Unlike PyErr_SetRaisedException, this chains it to the exception that is handled, as throw() does.
            PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
            return true;
        }
    }
    return false;
}

void Step::wake() noexcept { steps_->hub().post(*this); }

void Step::unpark() noexcept {
    if (status_ != ThreadStatus::kParked) {
        was_woken_ = true;
        return;
    }
    status_ = ThreadStatus::kReady;
    if (loop != nullptr) {
        unlink();
        loop->woken.push_back(*this);
        loop->signal();
    }
}

void Step::time_out(core::Timer& timer) noexcept {
    auto& self = static_cast<Step&>(timer);
    self.is_timed_out_ = true;
    self.unpark();
}

// ---- what belongs to an OS thread and must not look like the other tasks' own ----

void Step::hold_rlock(PyObject* rlock, unsigned long& owner) noexcept {
    try {
        rlocks_.push_back({cpython::borrow(rlock), &owner});
    } catch (const std::bad_alloc&) {  // then the other tasks may enter it too, as on plain asyncio
    }
}

void Step::drop_rlock(PyObject* rlock) noexcept {
    for (Step* step = this; step != nullptr; step = step->parent_) {
        const auto found =
            std::ranges::find_if(step->rlocks_, [&](const HeldRLock& held) { return held.rlock.ptr() == rlock; });
        if (found != step->rlocks_.end()) {
            const Ref last = std::move(found->rlock);  // the caller has one of its own
            step->rlocks_.erase(found);
            return;
        }
    }
}

void Step::hand_over_locks(Step& leaf, unsigned long from, unsigned long to) noexcept {
    for (Step* step = &leaf;; step = step->parent_) {
        for (const HeldRLock& held : step->rlocks_) {
            if (*held.owner == from) {
                *held.owner = to;
            }
        }
        if (step == this) {
            return;
        }
    }
}

void Step::cut_owning_calls(VirtualThread& thread) noexcept {
    owning_call_ = outermost_owning_call_ = nullptr;
    if (thread.owning_call == caller_owning_call_) {
        return;
    }
    owning_call_ = outermost_owning_call_ = thread.owning_call;
    while (outermost_owning_call_->outer != caller_owning_call_) {
        outermost_owning_call_ = outermost_owning_call_->outer;
    }
    thread.owning_call = caller_owning_call_;
}

void Step::link_owning_calls(VirtualThread& thread) noexcept {
    caller_owning_call_ = thread.owning_call;
    if (owning_call_ != nullptr) {
        outermost_owning_call_->outer = thread.owning_call;
        thread.owning_call = owning_call_;
    }
}

void Step::abandon() noexcept {
    index = core::Timer::kIdle;
    is_posted.store(false);
    status_ = ThreadStatus::kFinished;
}

}  // namespace gossamer::loop
