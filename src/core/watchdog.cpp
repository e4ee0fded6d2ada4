// SPDX-License-Identifier: Apache-2.0
#include "core/watchdog.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <mutex>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>

#include "core/signals_blocked.hpp"

namespace gossamer::core {

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kRepeatDelay = 500'000;
constexpr std::size_t kStackBytes = 128 * 1024;

timespec as_timespec(std::int64_t nanoseconds) noexcept {
    return {.tv_sec = nanoseconds / kSecond, .tv_nsec = nanoseconds % kSecond};
}

std::int64_t wall_now() noexcept { return monotonic_now().count(); }

std::int64_t time_of(clockid_t clock) noexcept {
    timespec time{};
    clock_gettime(clock, &time);
    return time.tv_sec * kSecond + time.tv_nsec;
}

}  // namespace

struct Watchdog::State {
    std::mutex mutex;
    IntrusiveList<Watch> watches;        // under mutex
    std::vector<std::uint32_t> repeats;  // under mutex: numbers to tick again
    std::uint32_t last_number = 0;       // under mutex
    bool has_thread = false;             // under mutex
    std::atomic<pid_t> thread_id{0};
    std::atomic<bool> is_idle{false};  // its thread waits without a time-out
    std::atomic<std::uint64_t> wakes{0};

    void run() noexcept;
    int wait(siginfo_t& info) noexcept;
    void receive(const siginfo_t& info) noexcept;
    void tick_one(std::uint32_t number, TickKind kind) noexcept;
    void tick_repeats() noexcept;
    void tick_all_due() noexcept;
    void begin_ticking(std::uint32_t number) noexcept;
    static bool goes_on(Watch& watch) noexcept;
    static void arm(Watch& watch) noexcept;
    bool must_tick(const Watch& watch) const noexcept;
    std::int64_t next_wall_tick() noexcept;
    void wake_up() noexcept;
    void forget(Watch& watch) noexcept;
};

Watchdog::Watchdog() noexcept : state_(new State) {}

Watchdog& Watchdog::instance() noexcept {
    static auto* watchdog = new Watchdog;
    return *watchdog;
}

// Few programs use a real-time signal, and those count from SIGRTMIN; SIGRTMAX is taken by debuggers.
int Watchdog::signal_number() noexcept { return SIGRTMAX - 2; }

bool Watchdog::add(Watch& watch, Nanoseconds period, WatchStart start, const void* group) noexcept {
    const std::lock_guard lock(state_->mutex);
    if (!state_->has_thread && !start_thread()) {
        return false;
    }
    if (++state_->last_number > INT_MAX) {
        state_->last_number = 1;
    }
    const std::uint32_t number = state_->last_number;
    watch.watchdog_ = this;
    watch.period_ = std::max<std::int64_t>(period.count(), 1);
    watch.group_ = group;
    watch.start_ = WatchStart::kWallTime;
    watch.is_resting_.store(false);
    if (start == WatchStart::kCpuTime && pthread_getcpuclockid(pthread_self(), &watch.cpu_clock_) == 0) {
        sigevent event{};
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = signal_number();
        event.sigev_value.sival_int = static_cast<int>(number);
        event._sigev_un._tid = state_->thread_id.load();
        if (timer_create(watch.cpu_clock_, &event, &watch.timer_) == 0) {
            watch.start_ = WatchStart::kCpuTime;
        }
    }
    watch.is_ticking_ = watch.start_ == WatchStart::kWallTime;
    watch.next_tick_ = wall_now() + watch.period_;
    watch.number_.store(number);
    state_->watches.push_back(watch);
    if (watch.is_ticking_) {
        state_->wake_up();
    } else {
        State::arm(watch);
    }
    return true;
}

bool Watchdog::start_thread() noexcept {
    const SignalsBlocked blocked;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread{};
    state_->has_thread = pthread_create(&thread, &attributes, &Watchdog::serve, state_) == 0;
    pthread_attr_destroy(&attributes);
    if (state_->has_thread) {
        state_->thread_id.wait(0);
    }
    return state_->has_thread;
}

void* Watchdog::serve(void* state) {
    pthread_setname_np(pthread_self(), "gossamer-watch");
    auto& self = *static_cast<State*>(state);
    self.thread_id.store(static_cast<pid_t>(::syscall(SYS_gettid)));
    self.thread_id.notify_all();
    self.run();
    return nullptr;
}

void Watchdog::remove(Watch& watch) noexcept {
    const std::lock_guard lock(state_->mutex);
    if (watch.number_.load() != 0) {
        state_->forget(watch);
    }
}

void Watchdog::remove_group(const void* group) noexcept {
    const std::lock_guard lock(state_->mutex);
    for (Watch* watch = state_->watches.front(); watch != nullptr;) {
        Watch* next = state_->watches.next_of(*watch);
        if (watch->group_ == group) {
            state_->forget(*watch);
        }
        watch = next;
    }
}

void Watchdog::State::forget(Watch& watch) noexcept {
    if (watch.start_ == WatchStart::kCpuTime) {
        timer_delete(watch.timer_);
    }
    watch.unlink();
    watch.number_.store(0);
}

void Watchdog::tick_again_soon(std::uint32_t number) noexcept {
    const std::lock_guard lock(state_->mutex);
    if (number == 0 || !state_->has_thread) {
        return;
    }
    state_->repeats.push_back(number);
    state_->wake_up();
}

void Watchdog::reset_after_fork() noexcept {
    // The old state may be locked by a thread that is not here; leaking it is the only safe end. The kernel does not
    // pass timers on (timer_create(2)).
    state_ = new State;
}

std::uint64_t Watchdog::wake_count() const noexcept { return state_->wakes.load(); }

void Watch::abandon() noexcept {
    next = previous = nullptr;
    number_.store(0);
}

void Watch::resume_by_wall() noexcept {
    is_resting_.store(false);
    // seq_cst on both sides: either the watchdog sees that we run, or we see that it is idle.
    if (watchdog_ != nullptr && watchdog_->state_->is_idle.exchange(false)) {
        watchdog_->state_->wake_up();
    }
}

/// Sends its own thread the signal that it waits for.
void Watchdog::State::wake_up() noexcept {
    siginfo_t info{};
    info.si_signo = signal_number();
    info.si_code = SI_QUEUE;
    info.si_pid = ::getpid();
    info.si_uid = ::getuid();
    info.si_value.sival_ptr = this;
    // EAGAIN, too many signals are queued: then one of ours is among them, or a later tick looks again.
    ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), thread_id.load(), signal_number(), &info);
}

void Watchdog::State::run() noexcept {
    for (;;) {
        siginfo_t info{};
        const int number = wait(info);
        wakes.fetch_add(1);
        if (number == signal_number()) {
            receive(info);
        }
        tick_all_due();
    }
}

int Watchdog::State::wait(siginfo_t& info) noexcept {
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, signal_number());
    is_idle.store(true);
    const std::int64_t next = next_wall_tick();
    if (next < 0) {
        return sigwaitinfo(&ours, &info);
    }
    is_idle.store(false);
    const timespec timeout = as_timespec(std::max<std::int64_t>(next - wall_now(), 0));
    return sigtimedwait(&ours, &info, &timeout);
}

void Watchdog::State::receive(const siginfo_t& info) noexcept {
    if (info.si_code == SI_TIMER) {
        begin_ticking(static_cast<std::uint32_t>(info.si_value.sival_int));
    } else if (info.si_code == SI_QUEUE && info.si_value.sival_ptr == this) {
        tick_repeats();
    } else {
        siginfo_t copy = info;
        if (copy.si_code == SI_USER || copy.si_code == SI_TKILL) {
            copy.si_code = SI_QUEUE;  // the codes of kill(2) and tgkill(2) may only be given by the kernel
        }
        ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::getpid(), info.si_signo, &copy);
    }
}

void Watchdog::State::tick_one(std::uint32_t number, TickKind kind) noexcept {
    const std::lock_guard lock(mutex);
    for (Watch* watch = watches.front(); watch != nullptr; watch = watches.next_of(*watch)) {
        if (watch->number_.load() == number) {
            watch->tick_(*watch, kind);
            return;
        }
    }
}

void Watchdog::State::tick_repeats() noexcept {
    std::vector<std::uint32_t> numbers;
    {
        const std::lock_guard lock(mutex);
        numbers.swap(repeats);
    }
    if (numbers.empty()) {
        return;
    }
    const timespec delay = as_timespec(kRepeatDelay);
    ::nanosleep(&delay, nullptr);
    for (const std::uint32_t number : numbers) {
        tick_one(number, TickKind::kRepeat);
    }
}

/// A watched thread has used a period of CPU time.
void Watchdog::State::begin_ticking(std::uint32_t number) noexcept {
    const std::lock_guard lock(mutex);
    for (Watch* watch = watches.front(); watch != nullptr; watch = watches.next_of(*watch)) {
        if (watch->number_.load() == number) {
            watch->is_ticking_ = true;
            watch->next_tick_ = 0;
            watch->quiet_ticks_ = 0;
            watch->cpu_time_ = 0;
            return;
        }
    }
}

bool Watchdog::State::must_tick(const Watch& watch) const noexcept {
    // A watch with a timer is looked at once more when it rests, to arm the timer.
    return watch.is_ticking_ && (watch.start_ == WatchStart::kCpuTime || !watch.is_resting_.load());
}

void Watchdog::State::tick_all_due() noexcept {
    const std::lock_guard lock(mutex);
    const std::int64_t now = watches.is_empty() ? 0 : wall_now();
    for (Watch* watch = watches.front(); watch != nullptr; watch = watches.next_of(*watch)) {
        if (!must_tick(*watch) || watch->next_tick_ > now) {
            continue;
        }
        watch->next_tick_ = now + watch->period_;
        if (goes_on(*watch)) {
            watch->tick_(*watch, TickKind::kPeriod);
        } else {
            watch->is_ticking_ = false;
            arm(*watch);
        }
    }
}

bool Watchdog::State::goes_on(Watch& watch) noexcept {
    if (watch.start_ == WatchStart::kWallTime) {
        return true;
    }
    const std::int64_t cpu_time = time_of(watch.cpu_clock_);
    watch.quiet_ticks_ = cpu_time == watch.cpu_time_ ? watch.quiet_ticks_ + 1 : 0;
    watch.cpu_time_ = cpu_time;
    return !watch.is_resting_.load() && watch.quiet_ticks_ < kQuiet;
}

void Watchdog::State::arm(Watch& watch) noexcept {
    const itimerspec once{.it_interval = {}, .it_value = as_timespec(watch.period_)};
    timer_settime(watch.timer_, 0, &once, nullptr);
}

/// When the next watch is due by wall time; negative when none is.
std::int64_t Watchdog::State::next_wall_tick() noexcept {
    const std::lock_guard lock(mutex);
    std::int64_t next = -1;
    for (Watch* watch = watches.front(); watch != nullptr; watch = watches.next_of(*watch)) {
        if (must_tick(*watch)) {
            next = next < 0 ? watch->next_tick_ : std::min(next, watch->next_tick_);
        }
    }
    return next;
}

}  // namespace gossamer::core
