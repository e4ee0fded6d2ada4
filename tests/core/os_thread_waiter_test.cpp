// SPDX-License-Identifier: Apache-2.0
#include "core/os_thread_waiter.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <gtest/gtest.h>
#include <pthread.h>
#include <thread>

namespace gossamer::core {
namespace {

TEST(OsThreadWaiter, WakeBeforeTheWaitIsKept) {
    OsThreadWaiter waiter;

    waiter.wake();

    EXPECT_EQ(0, waiter.wait(Deadline::never()));
}

TEST(OsThreadWaiter, DeadlineThatPassedIsATimeOut) {
    OsThreadWaiter waiter;

    EXPECT_EQ(ETIMEDOUT, waiter.wait(Deadline::at(monotonic_now())));
    EXPECT_EQ(ETIMEDOUT, waiter.wait(Deadline::at(Nanoseconds(0))));
}

// sem_clockwait(3) calls a negative time EINVAL, which no caller expects: it waited again, for ever, at full speed.
TEST(OsThreadWaiter, DeadlineBeforeTheClockBeganIsATimeOut) {
    OsThreadWaiter waiter;

    EXPECT_EQ(ETIMEDOUT, waiter.wait(Deadline::at(Nanoseconds(-1))));
    EXPECT_EQ(ETIMEDOUT, waiter.wait(Deadline::at(Nanoseconds::min())));
}

TEST(OsThreadWaiter, WakeBeatsADeadlineThatPassed) {
    OsThreadWaiter waiter;

    waiter.wake();

    EXPECT_EQ(0, waiter.wait(Deadline::at(Nanoseconds(0))));
}

TEST(OsThreadWaiter, TimesOutNotBeforeItsDeadline) {
    OsThreadWaiter waiter;
    const Deadline deadline = Deadline::after(monotonic_now(), std::chrono::milliseconds(5));

    EXPECT_EQ(ETIMEDOUT, waiter.wait(deadline));

    EXPECT_TRUE(deadline.is_past(monotonic_now()));
}

TEST(OsThreadWaiter, IsWokenByAnotherThread) {
    OsThreadWaiter waiter;
    std::thread waker([&] { waiter.wake(); });

    EXPECT_EQ(0, waiter.wait(Deadline::never()));

    waker.join();
}

void do_nothing(int) {}

class OsThreadWaiterSignal : public ::testing::TestWithParam<bool> {};

TEST_P(OsThreadWaiterSignal, EndsTheWaitWithEintr) {
    struct sigaction action{};
    struct sigaction previous{};
    action.sa_handler = &do_nothing;  // without SA_RESTART, as Python installs its own
    sigaction(SIGUSR1, &action, &previous);
    OsThreadWaiter waiter;
    std::atomic<bool> is_over{false};
    const pthread_t self = pthread_self();
    std::thread sender([&] {
        while (!is_over.load()) {
            pthread_kill(self, SIGUSR1);
            std::this_thread::yield();
        }
    });
    const Deadline deadline = GetParam() ? Deadline::after(monotonic_now(), std::chrono::hours(1)) : Deadline::never();

    const int result = waiter.wait(deadline);

    is_over = true;
    sender.join();
    sigaction(SIGUSR1, &previous, nullptr);
    EXPECT_EQ(EINTR, result);
}

INSTANTIATE_TEST_SUITE_P(Kinds, OsThreadWaiterSignal, ::testing::Bool(),
                         [](const auto& kind) { return kind.param ? "WithDeadline" : "Endless"; });

}  // namespace
}  // namespace gossamer::core
