// SPDX-License-Identifier: Apache-2.0
// One virtual thread: a C stack, the interpreter state that belongs to it, and what the scheduler knows of it.
//
// The record lies in the page where the stack begins (core/stack_pool.hpp), or on the heap for the main virtual thread of
// a hub, which runs on its OS thread's own stack, and for the hub itself. Records are pooled: a late wake-up may reach the
// next tenant, to whom it is one of the spurious wake-ups that every wait allows for.
//
// States, changed by the carrier alone:
//
//     kReady  --resumed-->  kRunning  --park-->  kParked  --unpark-->  kReady
//                           kRunning  --entry returned-->  kFinished
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <cstdint>

#include "core/deadline.hpp"
#include "core/fiber_context.hpp"
#include "core/intrusive_list.hpp"
#include "core/mailbox.hpp"
#include "core/stack_pool.hpp"
#include "core/timer_heap.hpp"
#include "core/wakeable.hpp"
#include "cpython/fiber_state.hpp"

namespace gossamer::sched {

class Hub;
class InnerWaits;
class VirtualThread;

/// A call that a virtual thread is inside of, on its own stack: of a method whose object takes a lock that OS threads own.
struct OwningCall {
    const void* object;
    OwningCall* outer;
};

/// How a wait ended. kReady may be spurious: look again.
enum class Wake : std::uint8_t {
    kReady,
    kTimedOut,
    kCancelled,
    kFailed,  // the error indicator is set: a signal handler raised, a deadlock was found, switching is forbidden
};

/// What may end a wait before its time: cancellation and signal handlers, signal handlers alone, or nothing (a Condition
/// gets its lock back whatever happens).
enum class Cancellable : std::uint8_t { kNothing, kNo, kYes };

/// What a virtual thread waits for, for people: `gossamer.dump()` and DeadlockError. The text is a literal. And whether it
/// waits in place of a system call that the kernel restarts after a signal whose handler has SA_RESTART (signal(7)).
struct WaitNote {
    const char* what = "";
    const void* object = nullptr;
    int fd = -1;
    bool is_restarted = false;
};

/// What a virtual thread runs. `run` is called on its own stack, attached, and must leave no error indicator.
struct Entry {
    void (*run)(VirtualThread&, void* argument) = nullptr;
    void* argument = nullptr;
    PyObject* context = nullptr;  // owned; entered around run; null: starts with none, as an OS thread does
};

enum class ThreadStatus : std::uint8_t { kReady, kRunning, kParked, kFinished };

/// What a blocking call inside of an asyncio task does to the virtual thread that runs the task's loop.
enum class BlockingInTasks : std::uint8_t { kPark, kBlock, kError };

/// Whoever can be parked by a hub: a virtual thread, or a step of an asyncio task (src/loop).
class Parkable : public core::Wakeable, public core::Letter, public core::Timer {
public:
    /// Makes a parked one go on; nothing happens to one that is not parked. Thread: carrier.
    virtual void unpark() noexcept = 0;

protected:
    using Timer::Timer;
    ~Parkable() = default;
};

class VirtualThread final : public Parkable, public core::ListHook {
public:
    explicit VirtualThread(Hub& hub) noexcept : Parkable(&time_out), hub_(&hub) {}
    VirtualThread(const VirtualThread&) = delete;
    VirtualThread& operator=(const VirtualThread&) = delete;
    ~VirtualThread() = default;

    /// Thread: any. See core::Wakeable.
    void wake() noexcept override;
    void unpark() noexcept override;

    /// The identity that threading.get_ident() reports.
    unsigned long ident() const noexcept { return ident_; }

    /// Gives a thread that the program started an identity that no task's record ever has: 3.12 keeps what it knows of one
    /// that `threading` did not start, and the next tenant of the record must not be taken for it.
    void set_ident_apart_from_tasks() noexcept { ident_ |= 8; }

    bool is_main() const noexcept { return is_main_; }
    bool is_finished() const noexcept { return status == ThreadStatus::kFinished; }
    Hub& hub() const noexcept { return *hub_; }

    /// Does to its wait what a signal does to a system call: the wait looks for what came meanwhile, and goes on. From 3.15 on
    /// that raises an asynchronous exception. Not for the main one, whose waits signals end by themselves. Thread: any.
    void interrupt() noexcept;

    /// Asks for a cancellation from outside: raised once, at the park or at the next one. Thread: any.
    void request_cancellation() noexcept;
    /// The same on behalf of a scope that the thread is inside of, which withdraws it when it is left. Returns a stamp for
    /// that. Thread: any. Python: attached.
    [[nodiscard]] unsigned request_scope_cancellation() noexcept;
    /// Takes a scope's request back; if it was not raised yet, it never is.
    void withdraw_scope_cancellation(unsigned stamp) noexcept;
    /// The requests that nobody has withdrawn are raised once more: the exception that told of them was replaced.
    void raise_cancellation_again() noexcept { unraised_cancellations = cancel_requests > 0 ? 1 : 0; }
    /// Whether a park must end now: a cancellation waits and no shield is up.
    bool must_cancel() const noexcept {
        return shield_depth == 0 && (has_cancellation.load(std::memory_order_relaxed) || unraised_cancellations > 0);
    }
    /// Takes every request that waits: one exception is about to be raised for all.
    void take_cancellation() noexcept;

    // Carrier only. The hub's and its helpers' to touch.
    core::FiberContext context;
    core::ExceptionGlobals exceptions;
    cpython::FiberState state;
    VirtualThread* next_ready = nullptr;
    ThreadStatus status = ThreadStatus::kReady;
    bool is_timed_out = false;
    std::atomic<bool> has_cancellation{false};  // any thread
    std::atomic<bool> is_interrupted{false};    // any thread
    int cancel_requests = 0;                    // raised or not; a scope withdraws its own
    int unraised_cancellations = 0;             // of scopes
    unsigned cancellations_raised = 0;
    core::IntrusiveList<core::ListHook> open_scopes;  // outermost first (sched/scope.hpp)
    bool is_uninterruptible = false;                  // parked, and signal handlers must not run before it was served
    bool is_deadlocked = false;
    bool is_daemon = true;   // not waited for at the end of the program
    bool is_scoped = false;  // a scope waits for it
    int shield_depth = 0;
    int no_switch_depth = 0;
    BlockingInTasks blocking_in_tasks = BlockingInTasks::kPark;
    WaitNote wait_note;
    core::Nanoseconds born{};
    Entry entry;
    PyObject* object = nullptr;      // borrowed: the Task, or null
    PyObject* end_marker = nullptr;  // owned: what threading's joiners wait for (a lock in 3.12, a handle from 3.13 on)
    OwningCall* owning_call = nullptr;  // the innermost
    InnerWaits* inner_waits = nullptr;  // of the innermost step of an asyncio task that runs on this thread
    core::Stack stack;

private:
    friend class Hub;

    static void time_out(core::Timer& timer) noexcept;
    void reset_for_next_tenant() noexcept;

    Hub* hub_;
    unsigned long ident_ = 0;
    bool is_main_ = false;
};

static_assert(sizeof(VirtualThread) <= core::StackPool::kRecordBytes);

}  // namespace gossamer::sched
