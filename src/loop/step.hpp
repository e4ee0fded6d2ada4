// SPDX-License-Identifier: Apache-2.0
// One step of a coroutine on a stack of its own, so that a blocking call at any depth of it can suspend it alone.
//
// A step begins where asyncio sends into a coroutine and ends where the coroutine awaits, returns or raises: it runs on
// top of its caller as a call would, on a pooled stack. A call that waits meanwhile *parks* it: the step stays where it
// is, and its caller, asyncio's C function, gets a pending future as if the coroutine had awaited one. Whoever ends the
// wait completes the future; asyncio then sends into the coroutine again, which *resumes* the step.
//
//     kRunning --park--> kParked --unpark (timer, descriptor, lock)--> kReady --asyncio sends or throws--> kRunning
//                        kParked --asyncio throws, close(), the coroutine dies--> kRunning
//
// Steps nest: an eager task's first step runs on top of its creator's. The one that parks takes those on top of it along.
// The record lies above the stack, as a virtual thread's does; both are pooled (steps.hpp).
#pragma once

#include "cpython/api.hpp"

#include <utility>
#include <vector>

#include "core/fiber_context.hpp"
#include "core/intrusive_list.hpp"
#include "core/stack_pool.hpp"
#include "cpython/ref.hpp"
#include "cpython/step_state.hpp"
#include "sched/hub.hpp"

namespace gossamer::loop {

class Steps;
struct StepLoop;

/// What a step runs first on its stack: a call that sends or throws into the coroutine.
struct StepBody {
    PySendResult (*run)(PyObject* coroutine, void* argument, PyObject** result) = nullptr;
    void* argument = nullptr;
};

class Step final : public sched::InnerWaits, public sched::Parkable, public core::ListHook {
public:
    explicit Step(Steps& steps) noexcept : Parkable(&time_out), steps_(&steps) {}
    Step(const Step&) = delete;
    Step& operator=(const Step&) = delete;
    ~Step() = default;

    /// Once for each stack.
    void prepare(const core::Stack& stack, PyObject* stub_code) noexcept;

    /// Runs `body` on this step's stack until it ends or parks. As am_send: PYGEN_NEXT also when it parked.
    /// Parks: yes. Thread: carrier. Python: attached.
    PySendResult start(PyObject* coroutine, const StepBody& body, PyObject** result) noexcept;

    /// Continues the parked step; `exception`, if not null, is raised in the call that parked, and owned.
    PySendResult resume(PyObject* exception, PyObject** result) noexcept;

    // InnerWaits
    core::Wakeable& waiter() noexcept override;
    sched::Wake park(const sched::WaitNote& note, core::Deadline deadline, sched::Cancellable cancellable) override;
    sched::Wake yield() override;
    bool raise_cancellation() noexcept override;
    void hold_rlock(PyObject* rlock, unsigned long& owner) noexcept override;
    void drop_rlock(PyObject* rlock) noexcept override;

    // Parkable
    void wake() noexcept override;
    void unpark() noexcept override;

    PyObject* coroutine() const noexcept { return coroutine_; }
    Step* parent() const noexcept { return parent_; }
    Steps& steps() const noexcept { return *steps_; }
    const core::Stack& stack() const noexcept { return stack_; }
    const sched::WaitNote& wait_note() const noexcept { return wait_note_; }
    sched::ThreadStatus status() const noexcept { return status_; }
    core::Nanoseconds parked_at() const noexcept { return parked_at_; }
    /// The innermost step that parked together with this one, and the innermost frame of all.
    _PyInterpreterFrame* parked_frame() const noexcept { return state_.parked_frame(); }

    /// The frame below the step's, which is no Python function's.
    const _PyInterpreterFrame* bottom_frame() const noexcept { return state_.stub(); }

    /// The future that asyncio waits for while the step is parked: owned by the loop's StepLoop, through this word.
    PyObject* future = nullptr;
    StepLoop* loop = nullptr;  // of the last park; borrowed, null once it is gone
    bool is_orphan = false;    // its loop was closed while it was parked: nobody goes on with it
    Step* next_free = nullptr;

    /// Before the record may vanish with its pages.
    void forget_allocations() noexcept { std::vector<HeldRLock>().swap(rlocks_); }

    /// Gives `value` (owned) to asyncio as if the coroutine had awaited it, from the stack of `leaf`, which is this step or
    /// runs on top of it. kReady: asyncio has sent; kCancelled: it has thrown, see raise_cancellation(). kFailed: the error
    /// is set. Parks: yes. Thread: carrier. Python: attached.
    [[nodiscard]] sched::Wake give(Step& leaf, PyObject* value, const sched::WaitNote& note);

    /// In a forked child: nobody continues this step.
    void abandon() noexcept;

private:
    struct HeldRLock {
        cpython::Ref rlock;
        unsigned long* owner;
    };

    static void time_out(core::Timer& timer) noexcept;
    static void run_body(void* self);
    sched::Wake park_task(Step& leaf, const sched::WaitNote& note, core::Deadline deadline,
                          sched::Cancellable cancellable);
    void suspend(Step& leaf, PyObject* value) noexcept;
    PySendResult outcome(PyObject** result) noexcept;
    [[nodiscard]] bool give_future(PyObject** result) noexcept;
    PySendResult raise_late(PySendResult result, PyObject** value) noexcept;
    void hand_over_locks(Step& leaf, unsigned long from, unsigned long to) noexcept;
    void cut_owning_calls(sched::VirtualThread& thread) noexcept;
    void link_owning_calls(sched::VirtualThread& thread) noexcept;
    unsigned long parked_ident() const noexcept { return reinterpret_cast<unsigned long>(this) | 2; }

    Steps* const steps_;
    core::FiberContext context_;  // where the step continues once it parked
    core::FiberContext pivot_;    // where its caller, whoever started or resumed it, continues
    core::ExceptionGlobals exceptions_;
    core::ExceptionGlobals caller_exceptions_;
    Step* parent_ = nullptr;         // the step that it runs on top of
    Step* leaf_ = nullptr;           // the innermost step that parked with it
    PyObject* coroutine_ = nullptr;  // borrowed: a coroutine that dies while parked is closed first
    StepBody body_;
    PySendResult result_kind_ = PYGEN_RETURN;
    PyObject* result_ = nullptr;
    PyObject* exception_ = nullptr;  // owned: thrown in while it was parked and not yet raised
    sched::ThreadStatus status_ = sched::ThreadStatus::kRunning;
    bool is_timed_out_ = false;
    bool wants_future_ = false;  // it has parked, and asyncio has been given nothing yet
    bool was_woken_ = false;     // before it was parked: the next park returns at once
    sched::WaitNote wait_note_;
    core::Nanoseconds parked_at_{};
    sched::OwningCall* caller_owning_call_ = nullptr;
    sched::OwningCall* owning_call_ = nullptr;
    sched::OwningCall* outermost_owning_call_ = nullptr;
    std::vector<HeldRLock> rlocks_;
    core::Stack stack_;
    cpython::StepState state_;
};

/// Where the record of a step lies: at the end of the room above the stack, which it overlaps.
inline constexpr std::size_t kStepBytes = (sizeof(Step) + 63) & ~std::size_t{63};
inline Step* step_of(const core::Stack& stack) noexcept {
    return reinterpret_cast<Step*>(stack.record + core::StackPool::kRecordBytes - kStepBytes);
}
static_assert(core::StackPool::kRecordBytes % 64 == 0);

}  // namespace gossamer::loop
