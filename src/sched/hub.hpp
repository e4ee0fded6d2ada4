// SPDX-License-Identifier: Apache-2.0
// The scheduler of one carrier: run queue, timers, reactor.
//
// A virtual thread that parks continues the next ready one itself. The hub's own stack is entered when none is ready, and
// every kTurns switches, or as soon as `attention_` is set, to look after wake-ups from other threads, timers and the
// kernel. Waiting for the kernel is the only time that the carrier is detached from the interpreter. A virtual thread that
// was preempted (sched/preemption.hpp) waits behind the ready ones, but not for ever.
//
// A hub belongs to one OS thread and one thread state. Code of another interpreter that runs on the same OS thread, or of
// an ordinary thread, sees no hub (`current` is null) and blocks as always.
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/deadline.hpp"
#include "core/epoll_reactor.hpp"
#include "core/mailbox.hpp"
#include "core/relaxed_counter.hpp"
#include "core/stack_pool.hpp"
#include "core/timer_heap.hpp"
#include "cpython/stopped_world.hpp"
#include "sched/preemption.hpp"
#include "sched/virtual_thread.hpp"

namespace gossamer::sched {

/// Counts for `gossamer doctor`, tests and benchmarks. Carrier only, but for `switches`.
struct HubStatistics {
    std::uint64_t spawned = 0;
    std::uint64_t finished = 0;
    std::uint64_t parks = 0;
    core::RelaxedCounter switches;
    std::uint64_t polls = 0;
    std::uint64_t waits = 0;  // polls that blocked
    std::uint64_t preemptions = 0;
    std::uint64_t deadlocks = 0;
};

/// First in, first out; links through VirtualThread::next_ready.
class ReadyQueue final {
public:
    bool is_empty() const noexcept { return head_ == nullptr; }
    void push(VirtualThread& thread) noexcept {
        thread.next_ready = nullptr;
        (head_ == nullptr ? head_ : tail_->next_ready) = &thread;
        tail_ = &thread;
    }
    VirtualThread* pop() noexcept {
        VirtualThread* first = head_;
        if (first != nullptr) {
            head_ = first->next_ready;
        }
        return first;
    }
    void append(ReadyQueue& other) noexcept {
        if (other.head_ == nullptr) {
            return;
        }
        (head_ == nullptr ? head_ : tail_->next_ready) = other.head_;
        tail_ = other.tail_;
        other.head_ = nullptr;
    }

private:
    VirtualThread* head_ = nullptr;
    VirtualThread* tail_ = nullptr;
};

/// Waits that begin on a virtual thread while it runs a step of an asyncio task: the step decides who parks, the task alone
/// or the whole virtual thread. Implemented in src/loop.
class InnerWaits {
public:
    /// Whom a wait that begins now must wake. Returns the same until the wait is over.
    virtual core::Wakeable& waiter() noexcept = 0;
    /// As Hub::park and Hub::yield.
    virtual Wake park(const WaitNote& note, core::Deadline deadline, Cancellable cancellable) = 0;
    virtual Wake yield() = 0;
    /// Sets the exception that ended a wait with kCancelled, if the wait was a task's.
    virtual bool raise_cancellation() noexcept = 0;
    /// The running code took an RLock, whose word `owner` says that this virtual thread has it; or gave it back. Tasks of
    /// one loop are one thread: while one is parked, its locks must not look like the others' own.
    virtual void hold_rlock(PyObject* rlock, unsigned long& owner) noexcept = 0;
    virtual void drop_rlock(PyObject* rlock) noexcept = 0;

protected:
    InnerWaits() noexcept = default;
    ~InnerWaits() = default;
};

/// What src/loop keeps for a hub.
class HubExtension {
public:
    HubExtension() noexcept = default;
    HubExtension(const HubExtension&) = delete;
    HubExtension& operator=(const HubExtension&) = delete;
    virtual ~HubExtension() = default;

    /// The hub is left: nothing of ours may stay parked. Thread: carrier. Python: attached.
    virtual void end() noexcept = 0;
    /// In a forked child.
    virtual void reset_after_fork() noexcept = 0;
    /// How many steps are parked.
    virtual std::size_t parked_count() const noexcept = 0;
};

/// An eventfd that only virtual threads of one hub write.
struct OwnEvent {
    int fd = -1;
    bool is_signalled = false;  // written, and not read yet
};

class Hub final {
public:
    /// The hub that runs the calling code, or null: an ordinary thread, or another interpreter on this OS thread.
    /// Parks: no. Thread: any. Python: attached.
    static Hub* current() noexcept {
        Hub* hub = of_this_os_thread();
        return hub != nullptr && hub->tstate_ == cpython::attached_thread_state() ? hub : nullptr;
    }

    /// Whether the calling OS thread is a carrier. Thread: any. Python: not needed.
    static bool is_carrier() noexcept { return of_this_os_thread() != nullptr; }

    /// Makes the calling OS thread a carrier and the calling code its main virtual thread. Throws ErrorSet when it is one
    /// already. Python: attached.
    static Hub& enter();

    /// Ends the hub: the main virtual thread runs and every other has ended or is abandoned. The OS thread is ordinary
    /// again afterwards. Python: attached.
    void leave() noexcept;

    /// Creates a virtual thread that runs `entry`; ready, behind the others. Takes `entry.context` over, also when it
    /// throws std::bad_alloc or std::system_error. `stack_bytes` 0: the default.
    VirtualThread& spawn(const Entry& entry, std::size_t stack_bytes = 0);

    /// Parks the running virtual thread until it is unparked, `deadline` passes, it is cancelled (if `cancellable`) or,
    /// for the main one, a signal handler has run. kCancelled leaves the cancellation pending: who gives up takes it
    /// (raise_wake in sched/wait.hpp), who was served meanwhile leaves it for its next park. Parks: yes. Thread: carrier. Python: attached.
    [[nodiscard]] Wake park(const WaitNote& note, core::Deadline deadline, Cancellable cancellable) {
        if (running_->inner_waits != nullptr) [[unlikely]] {
            return running_->inner_waits->park(note, deadline, cancellable);
        }
        return park_thread(note, deadline, cancellable);
    }

    /// The same for the whole virtual thread, also when it runs a step of an asyncio task.
    [[nodiscard]] Wake park_thread(const WaitNote& note, core::Deadline deadline, Cancellable cancellable);

    /// Whom a wait that begins now must wake: the running virtual thread, or the step that it runs. Thread: carrier.
    core::Wakeable& waiter() noexcept {
        return running_->inner_waits == nullptr ? *running_ : running_->inner_waits->waiter();
    }

    /// Lets every ready virtual thread run once. Parks: yes. Thread: carrier. Python: attached.
    [[nodiscard]] Wake yield() {
        if (running_->inner_waits != nullptr) [[unlikely]] {
            return running_->inner_waits->yield();
        }
        return yield_thread();
    }
    /// The same for the whole virtual thread.
    [[nodiscard]] Wake yield_thread();

    /// The same, and the hub looks after the kernel's events, timers and wake-ups from outside before it returns.
    [[nodiscard]] Wake yield_to_events() {
        turns_left_ = 0;
        return yield();
    }

    /// Makes a parked virtual thread ready; nothing happens to one that is not parked. Thread: carrier.
    void unpark(VirtualThread& thread) noexcept {
        if (thread.status == ThreadStatus::kParked) {
            thread.status = ThreadStatus::kReady;
            ready_.push(thread);
            ask_driver();
        }
    }

    /// Parks the running virtual thread behind the ready ones; it stays runnable. Parks: yes. Thread: carrier.
    /// Python: attached.
    void preempt_running() noexcept;

    /// Queues the running virtual thread as a ready one and enters the hub. As preempt_running.
    void let_others_run() noexcept;

    /// Wakes from any thread. See VirtualThread::wake.
    template <typename T>
    void post(T& whom) noexcept {
        if (of_this_os_thread() == this) {
            whom.unpark();
        } else {
            post_letter(whom);
        }
    }

    VirtualThread& running() noexcept { return *running_; }
    VirtualThread& main() noexcept { return *main_; }
    /// The hub's own stack, which no virtual thread runs on.
    VirtualThread& loop_thread() noexcept { return *loop_thread_; }
    core::TimerHeap& timers() noexcept { return timers_; }
    core::EpollReactor& reactor() noexcept { return *reactor_; }
    /// kReadBufferBytes for one system call's result, until the caller parks or runs Python.
    char* read_buffer() noexcept { return read_buffer_.get(); }
    static constexpr std::size_t kReadBufferBytes = 64 * 1024;
    core::Nanoseconds now() const noexcept { return core::monotonic_now(); }
    core::Deadline deadline_after(core::Nanoseconds delay) const noexcept {
        return core::Deadline::after(now(), delay);
    }
    PyThreadState& tstate() const noexcept { return *tstate_; }
    bool is_main_thread_hub() const noexcept { return main_ident_ != 0; }
    const HubStatistics& statistics() const noexcept { return statistics_; }
    Preemption& preemption() noexcept { return preemption_; }
    bool is_on_virtual_thread() const noexcept { return running_ != loop_thread_.get(); }

    /// Thread: any.
    std::uint64_t switch_count() const noexcept { return statistics_.switches.load(); }

    /// Calls `visit` for every hub of `interpreter`, while none of the others runs: see cpython::while_others_stand() for
    /// what it may do. Throws ErrorSet. Parks: no. Thread: any. Python: attached.
    template <typename Visit>
    static void for_each(PyInterpreterState* interpreter, Visit visit) {
        if (!of_interpreter(interpreter).empty()) {
            cpython::while_others_stand([&] {
                for (Hub* hub : of_interpreter(interpreter)) {
                    visit(*hub);
                }
            });
        }
    }

    /// Calls `visit` for the live virtual thread of `interpreter` with this identity, as for_each; looks at each. Returns
    /// whether there is one.
    template <typename Visit>
    static bool visit_thread(PyInterpreterState* interpreter, unsigned long ident, Visit visit) {
        bool is_found = false;
        for_each(interpreter, [&](Hub& hub) {
            VirtualThread* thread = is_found ? nullptr : hub.find(ident);
            if (thread != nullptr) {
                is_found = true;
                visit(*thread);
            }
        });
        return is_found;
    }

    /// The live virtual thread of this hub with this identity, or null. Looks at each. Thread: carrier.
    VirtualThread* find(unsigned long ident) noexcept;

    /// What pthread_self() is on the carrier.
    unsigned long os_ident() const noexcept { return tstate_->thread_id; }

    /// The identity of the interpreter's main thread while its OS thread is a carrier, else 0: the interpreter's own word for it
    /// changes at each switch. Thread: any.
    static unsigned long main_thread_ident() noexcept { return main_thread_ident_.load(); }

    /// Virtual threads that have not finished, the main one included.
    std::size_t live_count() const noexcept { return live_count_; }
    core::IntrusiveList<VirtualThread>& roster() noexcept { return roster_; }

    /// How often signal handlers have run at a park of the main virtual thread. Carrier only.
    std::uint64_t handled_signals() const noexcept { return handled_signals_; }

    /// A job on the OS-thread pool will wake a virtual thread of this hub: not a deadlock. Thread: carrier.
    void expect_external_wake(int change) noexcept { external_wakes_expected_ += change; }

    /// An event of this hub's, which `event` outlives: a watch of it is no hope in a deadlock. Thread: carrier.
    void add_own_event(const OwnEvent& event) { own_events_.push_back(&event); }
    void remove_own_event(const OwnEvent& event) noexcept { std::erase(own_events_, &event); }

    /// A thread state that does nothing but wait for the end of the OS thread `joined`: where that is a carrier, it is as
    /// awake as the carrier. Thread: any. Python: attached.
    static void add_joiner(const PyThreadState& joiner, unsigned long joined);
    static void remove_joiner(const PyThreadState& joiner) noexcept;

    /// In a forked child: the hubs of other OS threads do not exist here.
    static void forget_others_after_fork();

    /// In a forked child: the running virtual thread is the only one left.
    void reset_after_fork();

    /// Whether threads that the program starts become virtual (`gossamer run`). Carrier only.
    bool makes_threads_virtual = false;
    /// threading.stack_size() for virtual threads; 0: the default. Carrier only.
    std::size_t thread_stack_bytes = 0;
    /// The program is at its end: no new threads. Carrier only.
    bool is_closing = false;

    /// Sets the coroutine origin tracking depth that every virtual thread of the hub starts with. Only the main one exists.
    void set_usual_origin_depth(int depth) noexcept;

    /// Runs ready virtual threads in an order that `seed` decides, for tests. What checkpoint() promises does not hold then.
    void shuffle(std::uint64_t seed) noexcept {
        is_shuffled_ = true;
        shuffle_state_ = seed;
        turns_left_ = 0;
    }

    /// Collects the kernel's events, wake-ups and timers without a switch: for a loop that is never idle.
    /// Parks: no. Thread: carrier.
    void look_around() noexcept;

    /// From now on somebody else's loop waits for the kernel on this OS thread, without the hub: reactor().fd() becomes
    /// readable when there is something to do, and the loop then calls drive(). The running virtual thread runs the loop.
    /// Thread: carrier.
    void begin_to_be_driven() noexcept {
        is_driven_ = true;
        driver_ = running_;
        is_asleep_.store(true);
        ask_driver();  // virtual threads may be ready already
    }
    void end_to_be_driven() noexcept {
        is_driven_ = false;
        is_asleep_.store(false);
    }
    /// Looks around and lets every ready virtual thread run once. Parks: yes. Thread: carrier. Python: attached.
    [[nodiscard]] Wake drive();

    /// What src/loop keeps for this hub; made when first needed.
    HubExtension* extension() const noexcept { return extension_.get(); }
    void set_extension(std::unique_ptr<HubExtension> extension) noexcept { extension_ = std::move(extension); }
    std::size_t parked_steps() const noexcept { return extension_ ? extension_->parked_count() : 0; }

    core::ExceptionGlobals& os_thread_exceptions() const noexcept { return *os_thread_exceptions_; }
    void count_park() noexcept { ++statistics_.parks; }

    /// What a spawned virtual thread starts with. Carrier only.
    BlockingInTasks blocking_in_tasks = BlockingInTasks::kPark;

    /// Sets the error of a blocking call in a task where such calls are errors. Returns whether it did; installed by
    /// src/loop.
    static bool (*forbids_wait)(Hub&, const WaitNote&);
    /// Whether somebody asked for that. Thread: carrier.
    bool wants_attention() const noexcept { return attention_.load(std::memory_order_relaxed); }

    /// Back to the usual order.
    void stop_shuffling() noexcept {
        is_shuffled_ = false;
        for (VirtualThread* thread : shuffled_) {
            ready_.push(*thread);
        }
        shuffled_.clear();
    }

    /// Makes the next switch look after signals and wake-ups. Thread: any.
    void look_soon() noexcept { attention_.store(true); }

    /// Sets DeadlockError in the error indicator; installed by the module, which knows the class.
    static void (*raise_deadlock)(Hub&);

    /// The function with which asyncio.Runner handles Ctrl-C, which is no hope in a deadlock either. Borrowed from a class
    /// of the main interpreter, or null.
    static const void* on_interrupt_of_runner;

    /// A Python signal handler that is no hope in a deadlock, because it is ours. Borrowed, kept for ever. Main hub only.
    const void* own_signal_handler = nullptr;

private:
    static constexpr int kTurns = 61;
    static constexpr std::uint64_t kPatience = 4;  // periods of the watchdog that a preempted one waits at most

    Hub(PyThreadState& tstate, VirtualThread& main);
    ~Hub();

    static std::vector<Hub*> of_interpreter(PyInterpreterState* interpreter);

    static Hub* of_this_os_thread() noexcept;
    static void set_for_this_os_thread(Hub* hub) noexcept;

    void post_letter(Parkable& whom) noexcept;
    /// A virtual thread is ready, and who drives the hub may be about to sleep.
    void ask_driver() noexcept {
        if (is_driven_ && !was_driver_asked_) [[unlikely]] {
            was_driver_asked_ = true;
            reactor_->wake_up();
        }
    }
    /// Back in the virtual thread whose loop drives the hub, after others ran: some may be runnable still, deadlines may
    /// be new, and the hub itself may have taken the wake-up that told the loop.
    void remind_driver() noexcept {
        if (is_driven_ && running_ == driver_ &&
            !(ready_.is_empty() && preempted_.is_empty() && shuffled_.empty() && timers_.is_empty())) [[unlikely]] {
            was_driver_asked_ = true;
            reactor_->wake_up();
        }
    }
    void switch_away() noexcept;
    void switch_to(VirtualThread& next) noexcept;
    void finish_running() noexcept;
    void reclaim_finished() noexcept;
    static void run_entry(void* thread);
    static void run_loop(void* hub);
    void loop();
    void look_after_events() noexcept;
    void drain_mailbox() noexcept;
    void expire_timers() noexcept;
    // Not noexcept, like all that attaches: when the process ends, 3.12 ends a daemon OS thread that wants to attach by
    // pthread_exit(3), which unwinds its stack.
    void wait_for_work();
    bool must_interrupt_main() const noexcept;
    VirtualThread* next_ready() noexcept;
    VirtualThread* shuffled_ready() noexcept;
    bool advance_virtual_clock() noexcept;
    void ready_one_preempted() noexcept;
    bool is_event_expected() noexcept;
    bool has_hope() noexcept;
    bool is_clearly_not_last() noexcept;
    static bool is_someone_awake(PyInterpreterState& interpreter) noexcept;
    static void tell_of_deadlock(const PyInterpreterState& interpreter) noexcept;
    bool has_found_deadlock();
    Wake wake_reason(VirtualThread& self, Cancellable cancellable);  // runs Python: see wait_for_work

    static std::atomic<unsigned long> main_thread_ident_;

    PyThreadState* const tstate_;
    core::ExceptionGlobals* const os_thread_exceptions_;
    unsigned long main_ident_ = 0;                // of the interpreter's main thread if this is its hub, else 0
    VirtualThread* main_;                         // on the heap, owned; in a forked child the one that forked
    std::unique_ptr<VirtualThread> loop_thread_;  // the hub's own stack
    VirtualThread* running_;
    VirtualThread* finished_ = nullptr;  // left its stack for good at the last switch

    // carrier only
    ReadyQueue ready_;
    ReadyQueue preempted_;
    std::uint64_t preempted_ran_at_ = 0;  // on the clock of Preemption::ticks()
    int turns_left_ = kTurns;
    core::TimerHeap timers_;
    std::unique_ptr<core::EpollReactor> reactor_;
    const std::unique_ptr<char[]> read_buffer_ = std::make_unique_for_overwrite<char[]>(kReadBufferBytes);
    core::StackPool stacks_;
    std::map<std::size_t, core::StackPool> odd_stacks_;  // of other sizes than the default, by size
    core::StackPool& stack_pool(std::size_t stack_bytes);
    core::IntrusiveList<VirtualThread> roster_;
    std::size_t live_count_ = 0;
    int external_wakes_expected_ = 0;
    std::vector<const OwnEvent*> own_events_;
    std::uint64_t handled_signals_ = 0;
    int usual_origin_depth_ = 0;
    bool is_driven_ = false;
    const VirtualThread* driver_ = nullptr;  // runs the loop that drives; may be gone, is compared only
    bool was_driver_asked_ = false;
    bool is_shuffled_ = false;
    std::uint64_t shuffle_state_ = 0;
    std::vector<VirtualThread*> shuffled_;  // ready, taken off ready_
    HubStatistics statistics_;
    std::unique_ptr<HubExtension> extension_;
    Preemption preemption_;

    // any thread, atomic
    core::Mailbox mailbox_;
    std::atomic<bool> attention_{false};
    std::atomic<bool> is_asleep_{false};
    std::atomic<bool> is_hopeless_{false};     // asleep, and only another carrier can wake a virtual thread of it
    std::atomic<bool> was_deadlocked_{false};  // another carrier found that none can
};

}  // namespace gossamer::sched
