// SPDX-License-Identifier: Apache-2.0
// Fairness: a virtual thread that computes is parked at a bytecode boundary when its slice is over.
//
// Who does what:
//   - The watchdog (core/watchdog.hpp) ticks every half slice while the carrier computes, without attaching. Each tick
//     makes the hub look after its events. If no switch came between two ticks, the running virtual thread has overrun
//     its slice: the tick queues a pending call in the interpreter, its *request*.
//   - The request runs on the carrier between two bytecodes (cpython/pending_calls.hpp), gives up the mark of pending
//     calls, joins the hub's low-priority queue and switches to the hub. Continued, it takes the mark back and returns.
//   - Where parking would do harm it does nothing, and the next tick asks again: may_park() has the list.
//   - Where the mark is not known the request has an event call back, which parks (sched/monitoring_preemption.hpp).
//
// A request lies in the interpreter's queue for as long as it likes, and may be popped by another OS thread of the
// interpreter, so it names its carrier by a *ticket*: a slot of a static table and a generation. One that is stale, or that
// was meant for an earlier switch, does nothing. One that another thread popped is asked for again half a millisecond
// later, at most kMisses times a period.
//
// A carrier has one request in the queue at most. What is not at a bytecode boundary, one long C call, is not preempted.
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <cstdint>

#include "core/watchdog.hpp"
#include "cpython/pending_calls.hpp"
#include "cpython/ref.hpp"
#include "sched/monitoring_preemption.hpp"

namespace gossamer::sched {

class Hub;

class Preemption final : private core::Watch {
public:
    explicit Preemption(Hub& hub) noexcept;
    Preemption(const Preemption&) = delete;
    Preemption& operator=(const Preemption&) = delete;
    ~Preemption();

    /// Checks that this interpreter can do it. Throws ErrorSet (a pending call of others raised). Python: attached.
    void prepare();

    /// Has the watchdog watch the calling carrier, if the interpreter can; once.
    void start() noexcept;
    bool was_started() const noexcept { return was_started_; }

    /// From here on nothing of ours happens to this carrier. May run Python. Python: attached.
    void stop() noexcept;

    /// In a forked child: the watchdog's thread is gone; start() starts it anew.
    void reset_after_fork() noexcept;

    /// Around the wait for the kernel.
    void rest() noexcept { Watch::rest(); }
    void resume() noexcept { Watch::resume(); }

    /// Half slices of computing so far: a clock for whoever waits behind woken virtual threads.
    std::uint64_t ticks() const noexcept { return ticks_.load(std::memory_order_relaxed); }

    cpython::PendingCalls& pending_calls() noexcept { return pending_calls_; }

    /// After the mark of pending calls was given up around a switch. Parks: yes. Thread: carrier. Python: attached.
    void take_mark_back() noexcept;

    /// The length of a slice from the next start() on; 0 turns preemption off. For tests and `gossamer doctor`.
    static void set_slice(core::Nanoseconds slice) noexcept;

    /// Whether the tool of sys.monitoring with this identifier is this carrier's. Carrier only.
    bool has_tool(long id) const noexcept { return monitoring_.has_begun() && monitoring_.tool() == id; }

    /// One line for people: whether preemption works in the calling interpreter, and if not why. Throws ErrorSet.
    static const char* status();

private:
    static constexpr int kMisses = 8;
    static constexpr int kMarkTries = 100;

    static void tick(core::Watch& watch, core::TickKind kind) noexcept;
    static int run_request(void* ticket) noexcept;
    static PyObject* run_event(PyObject*, PyObject* const* args, Py_ssize_t count) noexcept;
    static PyMethodDef event_callback;
    void ask() noexcept;
    int serve_request() noexcept;
    void park() noexcept;
    bool may_park(int callbacks) noexcept;
    bool can_preempt() const noexcept;
    bool is_in_bad_place() noexcept;

    Hub& hub_;
    cpython::PendingCalls pending_calls_;
    cpython::PendingCalls::Check check_ = cpython::PendingCalls::Check::kBusy;
    bool was_started_ = false;
    MonitoringPreemption monitoring_;
    cpython::Ref raw_io_type_;       // _io._RawIOBase
    cpython::Ref import_lock_held_;  // _imp.lock_held

    // the watchdog's thread
    std::uint64_t seen_switches_ = ~std::uint64_t{0};

    // any thread, atomic
    std::atomic<std::uint64_t> ticks_{0};
    std::atomic<std::uint64_t> asked_at_switches_{0};
    int slot_ = -1;  // never changes while watched; -1: none was free
};

}  // namespace gossamer::sched
