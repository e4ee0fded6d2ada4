// SPDX-License-Identifier: Apache-2.0
#include "core/watchdog.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <ctime>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace gossamer::core {
namespace {

using std::chrono::milliseconds;

class CountingWatch final : public Watch {
public:
    CountingWatch() noexcept : Watch(&count_tick) {}

    std::atomic<int> periods{0};
    std::atomic<int> repeats{0};

private:
    static void count_tick(Watch& watch, TickKind kind) noexcept {
        auto& self = static_cast<CountingWatch&>(watch);
        (kind == TickKind::kPeriod ? self.periods : self.repeats).fetch_add(1);
    }
};

/// Computes until `is_over()`; a test that never gets there is ended by its time limit.
template <typename IsOver>
void compute_until(IsOver is_over) {
    while (!is_over()) {
    }
}

/// Sleeps until `is_over()`, using next to no CPU time.
template <typename IsOver>
void sleep_until(IsOver is_over) {
    while (!is_over()) {
        std::this_thread::sleep_for(milliseconds(1));
    }
}

#ifdef __SANITIZE_THREAD__
constexpr bool kCanStartThreadsAfterFork = false;  // ThreadSanitizer ends a forked child that starts one
#else
constexpr bool kCanStartThreadsAfterFork = true;
#endif

/// Waits until the watchdog has not woken up for a while; a watchdog that does not fall asleep never lets it return.
void wait_until_asleep(const Watchdog& watchdog) {
    std::uint64_t wakes = watchdog.wake_count();
    for (int quiet = 0; quiet < 50;) {
        std::this_thread::sleep_for(milliseconds(2));
        quiet = watchdog.wake_count() == wakes ? quiet + 1 : 0;
        wakes = watchdog.wake_count();
    }
}

class WatchdogStarts : public ::testing::TestWithParam<WatchStart> {
protected:
    Watchdog& watchdog = Watchdog::instance();
    CountingWatch watch;
};

INSTANTIATE_TEST_SUITE_P(Both, WatchdogStarts, ::testing::Values(WatchStart::kCpuTime, WatchStart::kWallTime));

TEST_P(WatchdogStarts, TicksAThreadThatComputes) {
    ASSERT_TRUE(watchdog.add(watch, milliseconds(5), GetParam(), nullptr));

    compute_until([&] { return watch.periods.load() >= 10; });

    EXPECT_NE(0U, watch.number());
    watchdog.remove(watch);
    EXPECT_EQ(0U, watch.number());
}

TEST_P(WatchdogStarts, TicksAgainAfterARest) {
    ASSERT_TRUE(watchdog.add(watch, milliseconds(5), GetParam(), nullptr));
    compute_until([&] { return watch.periods.load() >= 2; });

    watch.rest();
    watch.resume();
    const int before = watch.periods.load();

    compute_until([&] { return watch.periods.load() >= before + 2; });
    watchdog.remove(watch);
}

TEST_P(WatchdogStarts, NeverTicksAWatchThatWasRemoved) {
    CountingWatch other;
    ASSERT_TRUE(watchdog.add(watch, milliseconds(5), GetParam(), nullptr));
    ASSERT_TRUE(watchdog.add(other, milliseconds(5), GetParam(), nullptr));
    compute_until([&] { return watch.periods.load() >= 1; });

    watchdog.remove(watch);
    const int at_removal = watch.periods.load();
    const int before = other.periods.load();
    compute_until([&] { return other.periods.load() >= before + 4; });

    EXPECT_EQ(at_removal, watch.periods.load());
    watchdog.remove(other);
}

TEST_P(WatchdogStarts, TakesOffAGroupAndNoOther) {
    const int group = 0;
    CountingWatch other;
    ASSERT_TRUE(watchdog.add(watch, milliseconds(5), GetParam(), &group));
    ASSERT_TRUE(watchdog.add(other, milliseconds(5), GetParam(), nullptr));

    watchdog.remove_group(&group);

    EXPECT_EQ(0U, watch.number());
    EXPECT_NE(0U, other.number());
    watchdog.remove(other);
}

TEST_P(WatchdogStarts, TicksOnceMoreWhenAskedTo) {
    ASSERT_TRUE(watchdog.add(watch, std::chrono::hours(1), GetParam(), nullptr));

    watchdog.tick_again_soon(watch.number());
    sleep_until([&] { return watch.repeats.load() == 1; });

    EXPECT_EQ(1, watch.repeats.load());
    EXPECT_EQ(0, watch.periods.load());
    watchdog.remove(watch);
}

TEST_P(WatchdogStarts, ReturnsToSleepWhenTheThreadRests) {
    ASSERT_TRUE(watchdog.add(watch, milliseconds(2), GetParam(), nullptr));
    compute_until([&] { return watch.periods.load() >= 3; });

    watch.rest();
    wait_until_asleep(watchdog);
    watchdog.remove(watch);
}

TEST(Watchdog, ReturnsToSleepWhenTheThreadBlocksWithoutARest) {
    Watchdog& watchdog = Watchdog::instance();
    CountingWatch watch;
    std::atomic<bool> is_blocked{false};
    std::atomic<bool> may_end{false};
    std::thread watched([&] {
        ASSERT_TRUE(watchdog.add(watch, milliseconds(2), WatchStart::kCpuTime, nullptr));
        compute_until([&] { return watch.periods.load() >= 3; });
        is_blocked = true;
        may_end.wait(false);
        watchdog.remove(watch);
    });

    sleep_until([&] { return is_blocked.load(); });
    wait_until_asleep(watchdog);

    may_end = true;
    may_end.notify_all();
    watched.join();
}

TEST(Watchdog, WatchesSeveralThreadsEachByItsOwnTime) {
    Watchdog& watchdog = Watchdog::instance();
    CountingWatch sleeping;
    std::atomic<bool> is_watched{false};
    std::atomic<bool> may_end{false};
    std::thread sleeper([&] {
        ASSERT_TRUE(watchdog.add(sleeping, std::chrono::seconds(5), WatchStart::kCpuTime, nullptr));
        is_watched = true;
        may_end.wait(false);
        watchdog.remove(sleeping);
    });
    sleep_until([&] { return is_watched.load(); });
    CountingWatch computing;
    ASSERT_TRUE(watchdog.add(computing, milliseconds(5), WatchStart::kCpuTime, nullptr));

    compute_until([&] { return computing.periods.load() >= 5; });

    EXPECT_EQ(0, sleeping.periods.load());
    watchdog.remove(computing);
    may_end = true;
    may_end.notify_all();
    sleeper.join();
}

TEST(Watchdog, HandsASignalOfTheProgramOnToTheMainThread) {
    if (!kCanStartThreadsAfterFork) {
        GTEST_SKIP() << "ThreadSanitizer cannot";
    }
    // In a child, whose main thread takes the signal only after the watchdog, the one that waits for it, has received it.
    const pid_t child = ::fork();
    if (child == 0) {
        sigset_t signals;
        sigemptyset(&signals);
        sigaddset(&signals, Watchdog::signal_number());
        pthread_sigmask(SIG_BLOCK, &signals, nullptr);
        Watchdog& watchdog = Watchdog::instance();
        watchdog.reset_after_fork();
        CountingWatch watch;
        if (!watchdog.add(watch, std::chrono::hours(1), WatchStart::kCpuTime, nullptr)) {
            ::_exit(2);
        }
        const std::uint64_t wakes = watchdog.wake_count();
        ::kill(::getpid(), Watchdog::signal_number());
        sleep_until([&] { return watchdog.wake_count() > wakes; });
        const timespec limit{.tv_sec = 60, .tv_nsec = 0};
        siginfo_t info{};
        ::_exit(sigtimedwait(&signals, &info, &limit) == Watchdog::signal_number() && info.si_pid == ::getpid() ? 0
                                                                                                                : 1);
    }
    int status = 0;
    ASSERT_EQ(child, ::waitpid(child, &status, 0));
    EXPECT_EQ(0, WEXITSTATUS(status));
}

TEST(Watchdog, WorksInAForkedChildAfterReset) {
    if (!kCanStartThreadsAfterFork) {
        GTEST_SKIP() << "ThreadSanitizer cannot";
    }
    Watchdog& watchdog = Watchdog::instance();
    CountingWatch watch;
    ASSERT_TRUE(watchdog.add(watch, milliseconds(5), WatchStart::kCpuTime, nullptr));

    const pid_t child = ::fork();
    if (child == 0) {
        watchdog.reset_after_fork();
        watch.abandon();
        const int before = watch.periods.load();
        if (watch.number() != 0 || !watchdog.add(watch, milliseconds(5), WatchStart::kCpuTime, nullptr)) {
            ::_exit(2);
        }
        compute_until([&] { return watch.periods.load() >= before + 2; });
        ::_exit(0);
    }

    int status = 0;
    ASSERT_EQ(child, ::waitpid(child, &status, 0));
    EXPECT_EQ(0, WEXITSTATUS(status));
    watchdog.remove(watch);
}

}  // namespace
}  // namespace gossamer::core
