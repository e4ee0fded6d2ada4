// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.hpp"

#include <atomic>
#include <csignal>
#include <functional>
#include <gtest/gtest.h>
#include <latch>
#include <memory>
#include <pthread.h>
#include <semaphore>
#include <string>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

class FunctionJob final : public Job {
public:
    explicit FunctionJob(std::function<void()> work) : work_(std::move(work)) {}
    void run() override { work_(); }

private:
    std::function<void()> work_;
};

void submit(std::function<void()> work) {
    ThreadPool::instance().submit(std::make_unique<FunctionJob>(std::move(work)));
}

void wait_until_idle() {
    while (ThreadPool::instance().pending() > 0) {
        std::this_thread::yield();
    }
}

TEST(ThreadPool, RunsEachJobOnceOnAnotherThread) {
    constexpr int kJobs = 10'000;
    std::vector<std::atomic<int>> runs(kJobs);
    std::atomic<int> on_this_thread{0};
    const pthread_t self = pthread_self();
    std::latch done(kJobs);

    for (int index = 0; index < kJobs; ++index) {
        submit([&, index] {
            runs[static_cast<std::size_t>(index)].fetch_add(1);
            on_this_thread.fetch_add(pthread_equal(self, pthread_self()) != 0 ? 1 : 0);
            done.count_down();
        });
    }
    done.wait();
    wait_until_idle();

    for (const auto& count : runs) {
        ASSERT_EQ(1, count.load());
    }
    EXPECT_EQ(0, on_this_thread.load());
}

TEST(ThreadPool, SixJobsRunAtOnceAndNoMore) {
    std::counting_semaphore<> may_end(0);
    std::latch six_run(ThreadPool::kMaxThreads);
    std::atomic<std::size_t> running{0};
    std::atomic<std::size_t> most{0};

    for (int count = 0; count < 50; ++count) {
        submit([&, count] {
            const std::size_t now = running.fetch_add(1) + 1;
            for (std::size_t seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
            }
            if (count < static_cast<int>(ThreadPool::kMaxThreads)) {
                six_run.count_down();
            }
            may_end.acquire();
            running.fetch_sub(1);
        });
    }
    six_run.wait();  // for ever, if a thread too few were started
    EXPECT_EQ(50u, ThreadPool::instance().pending());
    may_end.release(50);
    wait_until_idle();

    EXPECT_EQ(ThreadPool::kMaxThreads, most.load());
}

TEST(ThreadPool, ThreadIsStartedOnlyWhenNoneIsIdle) {
    std::size_t before = 0;
    for (int count = 0; count < 3; ++count) {  // the first may start one, and a thread is idle a moment after its job
        std::latch done(1);
        submit([&] { done.count_down(); });
        done.wait();
        wait_until_idle();
        before = testing::status_figure("Threads");
    }
    std::size_t most = before;

    for (int count = 0; count < 200; ++count) {
        std::latch done(1);
        submit([&] { done.count_down(); });
        done.wait();
        wait_until_idle();
        most = std::max(most, testing::status_figure("Threads"));
    }

    EXPECT_LE(most, before + 1);
}

TEST(ThreadPool, SignalsAreBlockedInItsThreadsButNotHere) {
    sigset_t before;
    pthread_sigmask(SIG_BLOCK, nullptr, &before);
    sigset_t inside;
    std::latch done(1);

    submit([&] {
        pthread_sigmask(SIG_BLOCK, nullptr, &inside);
        done.count_down();
    });
    done.wait();

    for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGCHLD, SIGALRM, SIGPROF, SIGUSR1, SIGPIPE, SIGWINCH}) {
        EXPECT_EQ(1, sigismember(&inside, number)) << number;
    }
    sigset_t after;
    pthread_sigmask(SIG_BLOCK, nullptr, &after);
    for (int number = 1; number < SIGRTMAX; ++number) {
        EXPECT_EQ(sigismember(&before, number), sigismember(&after, number)) << number;
    }
}

TEST(ThreadPool, JobThatRunsApartKeepsNoThreadOfThePool) {
    std::counting_semaphore<> may_end(0);
    std::latch all_run(20);
    std::latch ended(20);

    for (int count = 0; count < 20; ++count) {
        ThreadPool::instance().run_apart(std::make_unique<FunctionJob>([&] {
            all_run.count_down();
            may_end.acquire();
            ended.count_down();
        }));
    }
    all_run.wait();
    EXPECT_EQ(0u, ThreadPool::instance().pending());
    std::latch done(1);
    submit([&] { done.count_down(); });
    done.wait();

    may_end.release(20);
    ended.wait();
}

// The kernel kills a thread that faults with the signal blocked, and no handler gets to say where.
TEST(ThreadPoolDeathTest, FaultInAJobReachesItsHandler) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    EXPECT_EXIT(
        {
            std::signal(SIGFPE, [](int) { ::_exit(77); });
            submit([] { pthread_kill(pthread_self(), SIGFPE); });
            for (;;) {
                ::pause();
            }
        },
        ::testing::ExitedWithCode(77), "");
}

TEST(ThreadPool, ThreadsHaveAName) {
    char name[16] = "";
    std::latch done(1);

    submit([&] {
        pthread_getname_np(pthread_self(), name, sizeof name);
        done.count_down();
    });
    done.wait();

    EXPECT_STREQ("gossamer-pool", name);
}

TEST(ThreadPool, IsDestroyedJobBeforeItCountsAsDone) {
    auto witness = std::make_shared<int>(1);
    submit([witness] {});
    wait_until_idle();

    EXPECT_EQ(1, witness.use_count());
}

TEST(ThreadPool, ForkedChildStartsItsOwnThreads) {
    std::counting_semaphore<> may_end(0);
    std::latch is_running(1);
    submit([&] {
        is_running.count_down();
        may_end.acquire();
    });
    is_running.wait();

    const int code = testing::run_in_child([] {
        ThreadPool::instance().reset_after_fork();
        if (ThreadPool::instance().pending() != 0) {
            return 1;
        }
        std::latch done(1);
        submit([&] { done.count_down(); });
        done.wait();
        return 0;
    });
    may_end.release();
    wait_until_idle();

    EXPECT_EQ(0, code);
}

void* pause_for_ever(void*) {
    for (;;) {
        ::pause();
    }
}

TEST(ThreadPool, SubmitFailsWhenNoThreadCanBeStartedAndWorksLater) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "a sanitizer's own mapping for a new thread fails first, and fatally";
    }
    const int code = testing::run_in_child([] {
        ThreadPool::instance().reset_after_fork();
        auto job = std::make_unique<FunctionJob>([] {});
        bool has_failed = false;
        {
            const testing::NoMoreMemory limit;
            pthread_t thread{};
            while (pthread_create(&thread, nullptr, &pause_for_ever, nullptr) == 0) {  // uses up what glibc has cached
            }
            try {
                ThreadPool::instance().submit(std::move(job));
            } catch (const std::system_error& error) {
                has_failed = error.code().value() == EAGAIN;
            }
        }
        if (!has_failed || ThreadPool::instance().pending() != 0) {
            return 1;
        }
        std::latch done(1);
        submit([&] { done.count_down(); });
        done.wait();
        return 0;
    });

    EXPECT_EQ(0, code);
}

}  // namespace
}  // namespace gossamer::core
