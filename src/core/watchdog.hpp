// SPDX-License-Identifier: Apache-2.0
// One OS thread that ticks for every watched thread that computes, and sleeps while none does.
//
//     kArmed    --the thread used a period of CPU time-->          kTicking: ticks at once, then every period of wall time
//     kTicking  --it rests, or used no CPU time for kQuiet ticks-->  kArmed
//
// Armed is a timer on the watched thread's CPU clock (timer_create(2), pthread_getcpuclockid(3)) that sends a signal to the
// watchdog's thread alone (SIGEV_THREAD_ID), which has every signal blocked and waits for that one in sigtimedwait(2). A
// thread that sleeps uses no CPU time, so an idle process has no wake-ups. Ticking goes by wall time, because a thread that
// must share its core, or the GIL, would have slices of twice the length by its CPU clock, which the kernel moreover reads
// at its own tick only (1 to 10 ms). Where such timers are refused a watch is always ticking but for its rests.
//
// Who calls: carriers add and remove their own watch; ticks run on the watchdog's thread, under its mutex, so a watch that
// has been removed ticks no more. Signals name a watch by number, never by address.
//
// The signal's number is shared with the program: one that is not ours is handed on to the main thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <ctime>

#include "core/deadline.hpp"
#include "core/intrusive_list.hpp"

namespace gossamer::core {

enum class TickKind : bool {
    kPeriod,  // the thread used another period
    kRepeat,  // asked for by tick_again_soon()
};

/// What starts a watch's ticking. kCpuTime falls back to kWallTime where the kernel refuses such timers.
enum class WatchStart : std::uint8_t { kCpuTime, kWallTime };

/// One watched thread. Must be removed before it goes.
class Watch : public ListHook {
public:
    /// Called on the watchdog's thread under its mutex: must not call the watchdog, nor wait for anything.
    using Tick = void (*)(Watch&, TickKind) noexcept;

    explicit Watch(Tick tick) noexcept : tick_(tick) {}
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

    /// The number that names it for tick_again_soon(); 0 while it is not watched. Thread: any.
    std::uint32_t number() const noexcept { return number_.load(); }
    WatchStart start() const noexcept { return start_; }

    /// The watched thread is about to sleep: no ticks until resume(). Thread: the watched one.
    void rest() noexcept {
        // relaxed: seen late it costs one tick.
        is_resting_.store(true, std::memory_order_relaxed);
    }
    /// Thread: the watched one.
    void resume() noexcept {
        if (start_ == WatchStart::kCpuTime) {
            is_resting_.store(false, std::memory_order_relaxed);
        } else {
            resume_by_wall();
        }
    }

    /// In a forked child: not watched; the list that it was on does not exist.
    void abandon() noexcept;

protected:
    ~Watch() = default;

private:
    friend class Watchdog;
    void resume_by_wall() noexcept;

    const Tick tick_;
    // never changes while watched
    WatchStart start_ = WatchStart::kCpuTime;
    class Watchdog* watchdog_ = nullptr;
    std::int64_t period_ = 0;  // nanoseconds
    const void* group_ = nullptr;
    timer_t timer_{};
    clockid_t cpu_clock_{};
    // under the watchdog's mutex
    bool is_ticking_ = false;
    int quiet_ticks_ = 0;
    std::int64_t next_tick_ = 0;
    std::int64_t cpu_time_ = 0;  // at the last tick
    // any thread, atomic
    std::atomic<std::uint32_t> number_{0};
    std::atomic<bool> is_resting_{false};
};

class Watchdog final {
public:
    /// The one of the process.
    static Watchdog& instance() noexcept;

    Watchdog() noexcept;
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;
    ~Watchdog() = delete;  // its thread never ends

    /// Watches the calling thread. `group` names what remove_group() takes off together. Returns false, with nothing
    /// watched, when no OS thread could be started.
    [[nodiscard]] bool add(Watch& watch, Nanoseconds period, WatchStart start, const void* group) noexcept;

    /// Takes it off, if it is on: no tick runs or will run. Thread: any.
    void remove(Watch& watch) noexcept;

    /// Takes off every watch of `group`. Thread: any.
    void remove_group(const void* group) noexcept;

    /// Ticks the watch once more, half a millisecond from now, if it is still on. Thread: any but the watchdog's.
    void tick_again_soon(std::uint32_t number) noexcept;

    /// In a forked child, before anything else is called: no thread, no watches.
    void reset_after_fork() noexcept;

    /// How often its thread woke up; for tests.
    std::uint64_t wake_count() const noexcept;

    /// The number of the signal that it waits for.
    static int signal_number() noexcept;

private:
    friend class Watch;
    struct State;

    static constexpr int kQuiet = 4;

    static void* serve(void* state);
    bool start_thread() noexcept;

    State* state_;
};

}  // namespace gossamer::core
