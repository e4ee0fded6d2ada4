// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/hub.hpp"

#include <algorithm>
#include <csignal>
#include <mutex>
#include <new>
#include <pthread.h>
#include <unistd.h>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/runtime.hpp"
#include "sched/scope.hpp"

namespace gossamer::sched {

namespace {

// initial-exec: one load; the accessor is not inlined, because a compiler may keep the address of a thread-local variable
// over a call that comes back on another stack.
thread_local Hub* hub_of_this_os_thread [[gnu::tls_model("initial-exec")]] = nullptr;

/// Every hub of the process, so that identities of other carriers' virtual threads can be looked up.
struct HubList {
    struct Joiner {
        const PyThreadState* tstate;
        unsigned long joined;
    };

    std::mutex mutex;
    std::vector<Hub*> hubs;       // under mutex
    std::vector<Joiner> joiners;  // under mutex
};

HubList& hub_list() {
    static auto* list = new HubList;  // never destroyed: threads may outlive main()
    return *list;
}

void add_to_list(Hub& hub) {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    list.hubs.push_back(&hub);
}

void remove_from_list(Hub& hub) noexcept {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    std::erase(list.hubs, &hub);
}

const void* default_int_handler =
    nullptr;  // borrowed from the signal module of the main interpreter, which is for ever

void remember_default_int_handler() {
    if (default_int_handler == nullptr) {
        PyObject* module = PyImport_ImportModule("_signal");
        PyObject* handler = module == nullptr ? nullptr : PyObject_GetAttrString(module, "default_int_handler");
        default_int_handler = handler;
        Py_XDECREF(handler);
        Py_XDECREF(module);
        if (handler == nullptr) {
            throw cpython::ErrorSet{};
        }
    }
}

}  // namespace

void (*Hub::raise_deadlock)(Hub&) = nullptr;
const void* Hub::on_interrupt_of_runner = nullptr;
std::atomic<unsigned long> Hub::main_thread_ident_{0};
bool (*Hub::forbids_wait)(Hub&, const WaitNote&) = nullptr;

[[gnu::noinline]] Hub* Hub::of_this_os_thread() noexcept { return hub_of_this_os_thread; }

[[gnu::noinline]] void Hub::set_for_this_os_thread(Hub* hub) noexcept { hub_of_this_os_thread = hub; }

Hub::Hub(PyThreadState& tstate, VirtualThread& main)
    : tstate_(&tstate),
      os_thread_exceptions_(&core::exception_globals()),
      main_(&main),
      running_(&main),
      reactor_(std::make_unique<core::EpollReactor>()),
      preemption_(*this) {}

Hub::~Hub() = default;

Hub& Hub::enter() {
    if (of_this_os_thread() != nullptr) {
        cpython::raise(PyExc_RuntimeError, "this OS thread is a carrier already: gossamer.run() cannot be nested");
    }
    PyThreadState& tstate = *PyThreadState_Get();
    const bool is_main = cpython::is_main_os_thread() && tstate.interp == PyInterpreterState_Main();
    if (is_main) {
        remember_default_int_handler();
    }
    // Safety: the hub's address is stored in `main` before anyone sees either.
    auto main_storage = std::make_unique<std::byte[]>(sizeof(VirtualThread));
    auto* hub_memory = static_cast<Hub*>(::operator new(sizeof(Hub)));
    auto* main = new (main_storage.get()) VirtualThread(*hub_memory);
    Hub* hub = nullptr;
    try {
        hub = new (hub_memory) Hub(tstate, *main);
        add_to_list(*hub);
        hub->loop_thread_ = std::make_unique<VirtualThread>(*hub);
        VirtualThread& loop = *hub->loop_thread_;
        loop.stack = hub->stacks_.acquire();
        loop.state.begin(tstate, {loop.stack.limit, loop.stack.size_bytes()}, loop.stack.chunk, loop.stack.chunk_end);
        hub->preemption_.prepare();
        loop.context = core::make_context(loop.stack.limit, loop.stack.top, &Hub::run_loop, hub);
    } catch (...) {
        if (hub != nullptr) {
            remove_from_list(*hub);
            hub->~Hub();
        }
        ::operator delete(hub_memory);
        throw;
    }
    main_storage.release();
    main->status = ThreadStatus::kRunning;
    main->ident_ = PyThread_get_thread_ident();
    main->is_main_ = is_main;
    main->is_daemon = false;
    main->born = core::coarse_now();
    main->state.adopt_thread();
    hub->main_ident_ = is_main ? main->ident_ : 0;
    if (is_main) {
        main_thread_ident_.store(main->ident_);
    }
    hub->roster_.push_back(*main);
    hub->live_count_ = 1;
    set_for_this_os_thread(hub);
    return *hub;
}

void Hub::leave() noexcept {
    GS_ASSERT(running_ == main_ && of_this_os_thread() == this && main_->inner_waits == nullptr);
    if (extension_) {
        extension_->end();
    }
    preemption_.stop();
    reclaim_finished();
    orphan_scopes(*main_);
    loop_thread_->state.drop_trace_functions(*tstate_);
    remove_from_list(*this);
    set_for_this_os_thread(nullptr);
    if (main_ident_ != 0) {
        cpython::set_runs_main(true, main_ident_);
        main_thread_ident_.store(0);
    }
    if (live_count_ > 1) {
        return;  // abandoned virtual threads refer to the hub; their stacks stay, as a daemon thread's does
    }
    main_->unlink();
    auto* main_storage = reinterpret_cast<std::byte*>(main_);
    main_->~VirtualThread();
    this->~Hub();
    ::operator delete(this);
    delete[] main_storage;
}

std::vector<Hub*> Hub::of_interpreter(PyInterpreterState* interpreter) {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    std::vector<Hub*> found;
    std::copy_if(list.hubs.begin(), list.hubs.end(), std::back_inserter(found),
                 [interpreter](Hub* hub) { return hub->tstate_->interp == interpreter; });
    return found;
}

VirtualThread* Hub::find(unsigned long ident) noexcept {
    VirtualThread* thread = roster_.front();
    while (thread != nullptr && thread->ident_ != ident) {
        thread = roster_.next_of(*thread);
    }
    return thread;
}

core::StackPool& Hub::stack_pool(std::size_t stack_bytes) {
    if (stack_bytes == 0 || stack_bytes == stacks_.stack_bytes()) {
        return stacks_;
    }
    return odd_stacks_.try_emplace(stack_bytes, stack_bytes).first->second;
}

VirtualThread& Hub::spawn(const Entry& entry, std::size_t stack_bytes) {
    if (!preemption_.was_started()) {
        preemption_.start();
    }
    core::Stack stack;
    try {
        stack = stack_pool((stack_bytes + 4095) & ~std::size_t{4095}).acquire();
    } catch (...) {
        Py_XDECREF(entry.context);
        throw;
    }
    // Safety: `record` is StackPool::kRecordBytes long and 64-byte aligned.
    auto* thread = reinterpret_cast<VirtualThread*>(stack.record);
    if (stack.has_record) {
        thread->reset_for_next_tenant();
    } else {
        new (thread) VirtualThread(*this);
    }
    thread->stack = stack;
    thread->ident_ = reinterpret_cast<unsigned long>(thread);
    thread->entry = entry;
    thread->blocking_in_tasks = blocking_in_tasks;
    thread->born = core::coarse_now();
    thread->state.begin(*tstate_, {stack.limit, stack.size_bytes()}, stack.chunk, stack.chunk_end);
    thread->state.usual_origin_depth = usual_origin_depth_;
    thread->context = core::make_context(stack.limit, stack.top, &Hub::run_entry, thread);
    thread->status = ThreadStatus::kReady;
    roster_.push_back(*thread);
    ++live_count_;
    ++statistics_.spawned;
    ready_.push(*thread);
    ask_driver();
    return *thread;
}

void Hub::run_entry(void* argument) {
    auto& self = *static_cast<VirtualThread*>(argument);
    Hub& hub = self.hub();
    hub.reclaim_finished();
    PyObject* context = self.entry.context;
    if (context != nullptr && PyContext_Enter(context) < 0) {
        PyErr_WriteUnraisable(context);
    }
    self.entry.run(self, self.entry.argument);
    if (context != nullptr) {
        if (PyContext_Exit(context) < 0) {
            PyErr_WriteUnraisable(context);
        }
        Py_DECREF(context);
    }
    cpython::FiberState::clear_thread_data(*hub.tstate_);
    Py_CLEAR(hub.tstate_->context);  // of a thread that started with none and set a variable
    hub.tstate_->coroutine_origin_tracking_depth = hub.usual_origin_depth_;
    cpython::FiberState::free_pushed_chunks(*hub.tstate_);
    hub.finish_running();
}

void Hub::set_usual_origin_depth(int depth) noexcept {
    GS_ASSERT(live_count_ == 1);
    usual_origin_depth_ = depth;
    main_->state.usual_origin_depth = depth;
    loop_thread_->state.usual_origin_depth = depth;
    tstate_->coroutine_origin_tracking_depth = depth;
}

void Hub::finish_running() noexcept {
    VirtualThread& self = *running_;
    if (&self == main_) {
        ::_exit(0);  // a forked child whose only thread ended, as the last OS thread of a process does
    }
    orphan_scopes(self);
    self.status = ThreadStatus::kFinished;
    self.unlink();
    --live_count_;
    ++statistics_.finished;
    self.context.sanitizer.will_end();
    finished_ = &self;
    switch_away();
    GS_UNREACHABLE();
}

void Hub::reclaim_finished() noexcept {
    if (finished_ == nullptr) {
        return;
    }
    VirtualThread& thread = *std::exchange(finished_, nullptr);
    GS_ASSERT(core::StackPool::is_intact(thread.stack));
    const core::Stack stack = thread.stack;
    stack_pool(static_cast<std::size_t>(stack.chunk_end - stack.limit) - (16 * 1024))
        .release(stack, thread.is_posted.load());
}

Wake Hub::park_thread(const WaitNote& note, core::Deadline deadline, Cancellable cancellable) {
    VirtualThread& self = *running_;
    if (self.no_switch_depth > 0) {
        PyErr_Format(PyExc_RuntimeError, "waiting for %s inside gossamer.no_switch()", note.what);
        return Wake::kFailed;
    }
    if (self.blocking_in_tasks == BlockingInTasks::kError && forbids_wait != nullptr && forbids_wait(*this, note)) {
        return Wake::kFailed;
    }
    if (cancellable == Cancellable::kYes && self.must_cancel()) {
        return Wake::kCancelled;
    }
    if (!deadline.is_never()) {
        timers_.arm(self, deadline);
    }
    self.wait_note = note;
    self.status = ThreadStatus::kParked;
    self.is_uninterruptible = cancellable == Cancellable::kNothing;
    ++statistics_.parks;
    // Inside a pending call of others: they must not wait for us.
    const bool takes_mark_back = preemption_.pending_calls().give_up_mark_if_ours(*tstate_);
    switch_away();
    timers_.disarm(self);
    remind_driver();
    if (takes_mark_back) {
        preemption_.take_mark_back();
    }
    return wake_reason(self, cancellable);
}

Wake Hub::wake_reason(VirtualThread& self, Cancellable cancellable) {
    const bool timed_out = std::exchange(self.is_timed_out, false);
    if (cancellable != Cancellable::kNothing && self.is_main_ && cpython::is_signal_pending()) {
        ++handled_signals_;
        if (PyErr_CheckSignals() < 0) {
            return Wake::kFailed;
        }
    }
    // relaxed: who set it woke this thread afterwards.
    if (self.is_interrupted.load(std::memory_order_relaxed) && cancellable != Cancellable::kNothing) {
        self.is_interrupted.store(false);
        if (PyErr_CheckSignals() < 0) {
            return Wake::kFailed;
        }
    }
    if (std::exchange(self.is_deadlocked, false)) {
        ++statistics_.deadlocks;
        raise_deadlock(*this);
        return Wake::kFailed;
    }
    if (cancellable == Cancellable::kYes && self.must_cancel()) {
        return Wake::kCancelled;
    }
    return timed_out ? Wake::kTimedOut : Wake::kReady;
}

Wake Hub::yield_thread() {
    VirtualThread& self = *running_;
    if (self.must_cancel()) {
        return Wake::kCancelled;
    }
    if (self.no_switch_depth > 0) {
        return Wake::kReady;  // nothing else may run, and nothing is waited for
    }
    const bool takes_mark_back = preemption_.pending_calls().give_up_mark_if_ours(*tstate_);
    self.status = ThreadStatus::kReady;
    ready_.append(preempted_);  // these are runnable too
    ready_.push(self);
    switch_away();
    remind_driver();
    if (takes_mark_back) {
        preemption_.take_mark_back();
    }
    return self.must_cancel() ? Wake::kCancelled : Wake::kReady;
}

void Hub::preempt_running() noexcept {
    VirtualThread& self = *running_;
    ++statistics_.preemptions;
    self.status = ThreadStatus::kReady;
    preempted_.push(self);
    switch_to(*loop_thread_);
    remind_driver();
}

void Hub::let_others_run() noexcept {
    VirtualThread& self = *running_;
    self.status = ThreadStatus::kReady;
    ready_.push(self);
    switch_to(*loop_thread_);
    remind_driver();
}

void Hub::post_letter(Parkable& whom) noexcept {
    mailbox_.post(whom);
    attention_.store(true);
    // seq_cst on both sides: either we see the hub asleep, or it sees the letter before it falls asleep.
    if (is_asleep_.exchange(false)) {
        reactor_->wake_up();
    }
}

inline VirtualThread* Hub::next_ready() noexcept {
    // relaxed: a flag that is seen late is seen at the next switch.
    if (--turns_left_ <= 0 || attention_.load(std::memory_order_relaxed)) {
        return nullptr;
    }
    return ready_.pop();
}

void Hub::switch_away() noexcept {
    VirtualThread* next = next_ready();
    switch_to(next == nullptr ? *loop_thread_ : *next);
}

void Hub::switch_to(VirtualThread& next) noexcept {
    VirtualThread& self = *running_;
    next.status = ThreadStatus::kRunning;
    if (&next == &self) {
        return;
    }
    self.state.save(*tstate_);
    self.exceptions = *os_thread_exceptions_;
    running_ = &next;
    ++statistics_.switches;
    *os_thread_exceptions_ = next.exceptions;
    if (main_ident_ != 0) {
        cpython::set_runs_main(next.is_main_, main_ident_);
        if (next.is_main_) {
            if (cpython::is_signal_pending()) {
                cpython::look_for_signals_again(*tstate_);
            }
            preemption_.pending_calls().signal_calls_for_main(*tstate_);
        }
    }
    next.state.restore(*tstate_);
    core::switch_context(self.context, next.context);
    reclaim_finished();
}

void Hub::run_loop(void* hub) { static_cast<Hub*>(hub)->loop(); }

void Hub::loop() {
    for (;;) {
        reclaim_finished();
        turns_left_ = is_shuffled_ ? 0 : kTurns;
        if (ready_.is_empty() && preempted_.is_empty() && shuffled_.empty()) {
            wait_for_work();
        } else if (reactor_->waiter_count() > 0) {
            ++statistics_.polls;
            reactor_->poll();
        }
        look_after_events();
        ready_one_preempted();
        if (VirtualThread* next = is_shuffled_ ? shuffled_ready() : ready_.pop()) {
            switch_to(*next);
        }
    }
}

VirtualThread* Hub::shuffled_ready() noexcept {
    while (VirtualThread* thread = ready_.pop()) {
        shuffled_.push_back(thread);  // one that has just become ready may overtake all others
    }
    if (shuffled_.empty()) {
        return nullptr;
    }
    // splitmix64, by Sebastiano Vigna (public domain): any seed is good, 0 too.
    std::uint64_t bits = (shuffle_state_ += 0x9E3779B97F4A7C15u);
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
    std::swap(shuffled_[(bits ^ (bits >> 31)) % shuffled_.size()], shuffled_.back());
    VirtualThread* chosen = shuffled_.back();
    shuffled_.pop_back();
    return chosen;
}

/// Under a virtual clock nobody waits for time to pass: when the kernel has nothing either, the clock jumps to the next
/// deadline. Returns whether something may be ready now.
bool Hub::advance_virtual_clock() noexcept {
    core::VirtualClock& clock = *core::virtual_clock();
    if (!mailbox_.is_empty() || reactor_->poll() > 0) {
        return true;
    }
    if (external_wakes_expected_ > 0 || timers_.is_empty()) {
        return false;
    }
    clock.monotonic = std::max(clock.monotonic, timers_.next().time());
    return true;
}

void Hub::ready_one_preempted() noexcept {
    if (preempted_.is_empty()) {
        return;
    }
    const std::uint64_t ticks = preemption_.ticks();
    if (ready_.is_empty() || ticks - preempted_ran_at_ >= kPatience) {
        preempted_ran_at_ = ticks;
        ready_.push(*preempted_.pop());
    }
}

void Hub::look_around() noexcept {
    if (reactor_->waiter_count() > 0) {
        ++statistics_.polls;
        reactor_->poll();
    }
    drain_mailbox();
    expire_timers();
}

Wake Hub::drive() {
    is_asleep_.store(true);  // before looking: what is posted later makes the descriptor readable
    was_driver_asked_ = false;
    reactor_->poll();  // also where nobody waits: the descriptor is readable for a wake-up too
    look_around();
    return ready_.is_empty() && preempted_.is_empty() ? Wake::kReady : yield_thread();
}

void Hub::look_after_events() noexcept {
    attention_.store(false);
    const bool was_deadlocked = was_deadlocked_.exchange(false);
    drain_mailbox();
    expire_timers();
    if (was_deadlocked && ready_.is_empty() && preempted_.is_empty() && shuffled_.empty()) {
        main_->is_deadlocked = true;  // unless another carrier's error has freed one of ours meanwhile
        unpark(*main_);
    }
    if (must_interrupt_main()) {
        unpark(*main_);
    }
}

void Hub::drain_mailbox() noexcept {
    mailbox_.take([](core::Letter& letter) { static_cast<Parkable&>(letter).unpark(); });
}

void Hub::expire_timers() noexcept {
    if (timers_.is_empty()) {
        return;
    }
    const core::Nanoseconds time = now();
    while (core::Timer* timer = timers_.pop_expired(time)) {
        timer->fire(*timer);
    }
}

bool Hub::must_interrupt_main() const noexcept {
    return main_ident_ != 0 && !main_->is_uninterruptible && cpython::is_signal_pending() &&
           !(main_->wait_note.is_restarted && cpython::do_pending_signals_restart_calls());
}

void Hub::wait_for_work() {
    if (has_found_deadlock()) {
        return;
    }
    const bool is_time_virtual = core::virtual_clock() != nullptr;
    if (is_time_virtual && advance_virtual_clock()) {
        return;
    }
    is_asleep_.store(true);
    sigset_t previous;
    const void* mask = nullptr;
    if (main_ident_ != 0) {
        // A signal between the check below and the system call would be slept through: block them all, and let
        // epoll_pwait unblock them for as long as it sleeps.
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &previous);
        mask = &previous;
    }
    if (mailbox_.is_empty() && !must_interrupt_main()) {
        const core::Deadline deadline = is_time_virtual ? core::Deadline::never() : timers_.next();
        ++statistics_.waits;
        reactor_->wait(
            deadline, deadline.is_never() ? core::Nanoseconds{} : now(), mask,
            [this] {
                preemption_.rest();
                PyEval_SaveThread();
            },
            [this] {
                PyEval_RestoreThread(tstate_);
                preemption_.resume();
            });
    }
    if (main_ident_ != 0) {
        pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    }
    is_asleep_.store(is_driven_);  // a driven hub is woken by its descriptor at any time
    is_hopeless_.store(false);
}

/// Whether somebody waits for a descriptor that another than our own virtual threads can make ready.
bool Hub::is_event_expected() noexcept {
    const auto is_hopeless = [this](const OwnEvent* event) {
        return !event->is_signalled && reactor_->is_watched(event->fd);
    };
    return reactor_->waiter_count() > static_cast<std::size_t>(std::ranges::count_if(own_events_, is_hopeless));
}

/// Whether something else than a thread of the interpreter can wake one of ours.
bool Hub::has_hope() noexcept {
    return !timers_.is_empty() || is_event_expected() || external_wakes_expected_ > 0 || !mailbox_.is_empty() ||
           (main_ident_ != 0 &&
            (cpython::is_signal_pending() ||
             cpython::has_program_signal_handler(default_int_handler, own_signal_handler, on_interrupt_of_runner)));
}

/// Whether there is no need to stop the world to see that a thread of the interpreter may do what is waited for.
bool Hub::is_clearly_not_last() noexcept {
#ifdef Py_GIL_DISABLED
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    std::ptrdiff_t carriers = 0;
    for (const Hub* hub : list.hubs) {
        if (hub->tstate_->interp == tstate_->interp) {
            ++carriers;
            if (!hub->is_hopeless_.load()) {
                return true;
            }
        }
    }
    // Safety: of thread states only our own is read, beside the head of the list.
    return carriers == 1 && (tstate_->next != nullptr || tstate_->interp->threads.head != tstate_);
#else
    return false;
#endif
}

/// Whether a thread of the interpreter can do what is waited for: an OS thread that is not ours, or a carrier that has
/// something to do. Inside while_others_stand().
bool Hub::is_someone_awake(PyInterpreterState& interpreter) noexcept {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    PyThreadState* tstate = nullptr;
    while ((tstate = cpython::next_thread_state(interpreter, tstate)) != nullptr) {
        const auto joiner = std::ranges::find(list.joiners, tstate, &HubList::Joiner::tstate);
        if (joiner != list.joiners.end() &&
            std::ranges::find(list.hubs, joiner->joined, &Hub::os_ident) != list.hubs.end()) {
            continue;
        }
        const auto carrier = std::ranges::find(list.hubs, tstate, &Hub::tstate_);
        // The mailbox first: whoever takes a letter has given up "hopeless" before.
        if (carrier == list.hubs.end() || !(*carrier)->mailbox_.is_empty() || !(*carrier)->is_hopeless_.load()) {
            return true;
        }
    }
    return false;
}

/// Has the main virtual thread of every carrier raise the error.
void Hub::tell_of_deadlock(const PyInterpreterState& interpreter) noexcept {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    for (Hub* hub : list.hubs) {
        if (hub->tstate_->interp == &interpreter) {
            hub->was_deadlocked_.store(true);
            hub->attention_.store(true);
            if (hub->is_asleep_.exchange(false)) {
                hub->reactor_->wake_up();
            }
        }
    }
}

/// Looks for a deadlock of all carriers, which the last one to fall asleep finds, and tells of it.
bool Hub::has_found_deadlock() {
    if (has_hope()) {
        return false;
    }
    is_hopeless_.store(true);
    if (is_clearly_not_last()) {
        return false;
    }
    PyInterpreterState& interpreter = *tstate_->interp;
    bool is_found = false;
    cpython::while_others_stand([&interpreter, &is_found] {
        is_found = !is_someone_awake(interpreter);
        if (is_found) {
            tell_of_deadlock(interpreter);
        }
    });
    if (is_found) {
        is_hopeless_.store(false);
    }
    return is_found;
}

void Hub::add_joiner(const PyThreadState& joiner, unsigned long joined) {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    list.joiners.push_back({&joiner, joined});
}

void Hub::remove_joiner(const PyThreadState& joiner) noexcept {
    HubList& list = hub_list();
    const std::lock_guard lock(list.mutex);
    std::erase_if(list.joiners, [&joiner](const HubList::Joiner& each) { return each.tstate == &joiner; });
}

void Hub::forget_others_after_fork() {
    HubList& list = hub_list();
    new (&list.mutex) std::mutex;  // another thread may have held it at the fork
    list.hubs.clear();
    list.joiners.clear();
    if (Hub* own = of_this_os_thread()) {
        list.hubs.push_back(own);
    }
}

void Hub::reset_after_fork() {
    // The parent's other virtual threads do not exist here: their stacks are never continued, and what they refer to is
    // leaked, as with OS threads.
    VirtualThread& self = *running_;
    ready_ = ReadyQueue{};
    shuffled_.clear();
    preempted_ = ReadyQueue{};
    preemption_.reset_after_fork();
    timers_ = core::TimerHeap{};
    if (extension_) {
        extension_->reset_after_fork();
    }
    self.index = core::Timer::kIdle;
    forget_tasks_of_scopes(self);
    for (VirtualThread* thread = roster_.front(); thread != nullptr; thread = roster_.next_of(*thread)) {
        if (thread != &self) {
            thread->status = ThreadStatus::kFinished;  // nothing that still refers to it can make it ready
        }
    }
    // Leaked, for watches of it may be taken off yet.
    reactor_.release()->abandon();
    reactor_ = std::make_unique<core::EpollReactor>();
    new (&roster_) core::IntrusiveList<VirtualThread>;
    static_cast<core::ListHook&>(self).next = static_cast<core::ListHook&>(self).previous = nullptr;
    roster_.push_back(self);
    live_count_ = 1;
    finished_ = nullptr;
    external_wakes_expected_ = 0;
    new (&mailbox_) core::Mailbox;
    attention_.store(false);
    is_asleep_.store(false);
    is_hopeless_.store(false);
    was_deadlocked_.store(false);
    main_ = &self;
    self.is_daemon = false;
    if (main_ident_ != 0) {
        self.is_main_ = true;
        cpython::set_runs_main(true, main_ident_);
        main_thread_ident_.store(self.ident_);
    }
}

}  // namespace gossamer::sched
