// SPDX-License-Identifier: Apache-2.0
// The steps of one hub: their pool, what they ask of asyncio, and which of them a wait parks.
//
// Which step parks is decided when it parks, not when it starts: from the innermost running step down, the first whose
// coroutine is that of asyncio's current task. Where there is none (a callback, a coroutine driven by hand, another kind
// of loop) the call blocks the virtual thread, as everywhere else. "No step is running" would be the wrong test: an eager
// task's first step runs on top of another's.
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <cstddef>
#include <mutex>
#include <vector>

#include "core/stack_pool.hpp"
#include "cpython/ref.hpp"
#include "loop/step.hpp"
#include "sched/hub.hpp"

namespace gossamer::loop {

class Steps final : public sched::HubExtension {
public:
    /// Those of `hub`, made on the first call. Throws ErrorSet, std::bad_alloc. Python: attached.
    static Steps& of(sched::Hub& hub);
    static Steps* existing(sched::Hub& hub) noexcept { return static_cast<Steps*>(hub.extension()); }

    explicit Steps(sched::Hub& hub);
    ~Steps() override;

    // HubExtension
    void end() noexcept override;
    void reset_after_fork() noexcept override;
    std::size_t parked_count() const noexcept override { return parked_count_; }

    /// A step to start. Throws std::bad_alloc, std::system_error.
    Step& take();
    void give_back(Step& step) noexcept;
    /// Whether one is parked that somebody may go on with. Throws std::bad_alloc.
    bool is_one_to_go_on() const;
    /// Those that run or are parked.
    std::size_t in_use() const noexcept { return stacks_.stacks_in_use() - free_count_; }

    /// The step that a wait which begins now parks; null: the whole virtual thread. Keeps no error. Python: attached.
    Step* target(Step& innermost) noexcept;

    /// The step of the task that runs now, which can await for what runs on top of it; null: none. As target().
    Step* step_of_task(Step& innermost) noexcept;

    /// Whether asyncio runs a task of the calling virtual thread. Keeps no error. Python: attached.
    bool is_in_task() noexcept;

    /// Whether asyncio may continue the parked step by sending: its task is the current one.
    bool may_resume(const Step& step) noexcept;

    /// A new future of the running loop, marked as awaited. Throws ErrorSet.
    cpython::Ref pending_future();

    /// Marks `future` as awaited by asyncio's protocol. Throws ErrorSet.
    void set_result(PyObject* future);

    /// The loop with steps to complete at the end of a step; see StepLoop::signal.
    StepLoop* to_complete = nullptr;

    /// Calls `function` once, at the end of a step, when none runs or is parked. Throws ErrorSet: one waits already.
    void call_when_none_is_left(PyObject* function);
    void call_if_none_is_left() noexcept;
    bool is_someone_told_when_none_is_left() const noexcept { return static_cast<bool>(when_none_is_left_); }

    /// Closes coroutines that died on other threads while they were parked here.
    void close_condemned() noexcept;
    void condemn(PyObject* coroutine);
    bool has_condemned() const noexcept { return has_condemned_.load(std::memory_order_relaxed); }

    /// The calling virtual thread begins to run `loop`, which waits in C code. Throws ErrorSet, std::system_error.
    void let_drive(PyObject* loop);

    sched::Hub& hub() const noexcept { return hub_; }
    PyTypeObject* loop_type() const noexcept { return reinterpret_cast<PyTypeObject*>(loop_type_.ptr()); }
    std::vector<StepLoop*>& loops() noexcept { return loops_; }

    // carrier only
    std::uint64_t started = 0;
    std::uint64_t parks = 0;
    std::size_t parked_count_ = 0;

private:
    static constexpr std::size_t kFreeSteps =
        64;  // the rest goes back to the pool, which drops pages beyond its own limit

    cpython::Ref running_loop();
    cpython::Ref current_coroutine(PyObject* loop);
    Step* find_step_of_task(PyObject* loop, Step& innermost);
    StepLoop* loop_for(PyObject* loop);
    bool is_importing(const Step& step) noexcept;

    sched::Hub& hub_;
    core::StackPool stacks_;
    Step* free_ = nullptr;
    std::size_t free_count_ = 0;
    cpython::Ref when_none_is_left_;
    std::vector<StepLoop*> loops_;  // borrowed: each takes itself out
    cpython::Ref stub_code_;
    cpython::Ref loop_type_;
    cpython::Ref get_running_loop_;
    cpython::Ref current_task_;
    cpython::Ref import_code_;
    cpython::Ref get_coro_;
    cpython::Ref create_future_;
    cpython::Ref future_blocking_;
    cpython::Ref set_result_;
    cpython::Ref done_;

    // any thread
    std::mutex condemned_mutex_;
    std::vector<PyObject*> condemned_;  // owned, under the mutex
    std::atomic<bool> has_condemned_{false};
};

/// Whether tasks stay off fibers: the `greenlet` extension was loaded, which copies slices of the C stack.
bool are_steps_off() noexcept;

/// The real greenlet was loaded. Says once that tasks stay off fibers.
void stay_off_fibers(PyObject* greenlet_module);

/// The asyncio loop of a parked step; empty once it is gone.
cpython::Ref loop_of(const StepLoop& joined) noexcept;
cpython::Ref loop_of(const Step& step) noexcept;

/// As close() on the coroutine of a parked step. Returns a new reference, or null with the error set.
PyObject* close_parked(Step& step) noexcept;

/// Installed as Hub::forbids_wait.
bool forbid_wait(sched::Hub& hub, const sched::WaitNote& note);

}  // namespace gossamer::loop
