// SPDX-License-Identifier: Apache-2.0
// An OS thread as a waiter: sleeps on a semaphore until it is woken, a deadline passes or a signal comes.
#pragma once

#include <algorithm>
#include <cerrno>
#include <semaphore.h>

#include "core/deadline.hpp"
#include "core/wakeable.hpp"

namespace gossamer::core {

class OsThreadWaiter final : public Wakeable {
public:
    OsThreadWaiter() noexcept { sem_init(&semaphore_, 0, 0); }
    OsThreadWaiter(const OsThreadWaiter&) = delete;
    OsThreadWaiter& operator=(const OsThreadWaiter&) = delete;
    ~OsThreadWaiter() { sem_destroy(&semaphore_); }

    void wake() noexcept override { sem_post(&semaphore_); }

    /// Returns 0 when woken, else ETIMEDOUT or EINTR.
    int wait(Deadline deadline) noexcept {
        if (deadline.is_never()) {
            return sem_wait(&semaphore_) == 0 ? 0 : errno;
        }
        // A time before the clock's start is past, but sem_clockwait(3) would call it EINVAL.
        const Nanoseconds time = std::max(deadline.time(), Nanoseconds{});
        const timespec until{.tv_sec = time.count() / 1'000'000'000, .tv_nsec = time.count() % 1'000'000'000};
        return sem_clockwait(&semaphore_, CLOCK_MONOTONIC, &until) == 0 ? 0 : errno;
    }

private:
    sem_t semaphore_{};
};

}  // namespace gossamer::core
