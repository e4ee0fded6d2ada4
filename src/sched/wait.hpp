// SPDX-License-Identifier: Apache-2.0
// Waiting as one call: for a condition of an object (wait_until), for a descriptor (wait_for_fd), for a time.
//
// The condition is tried before the thread queues, after it has queued and after each wake-up, so a wake-up is never lost
// and may always be spurious. Whoever is served keeps what it got, also when it was cancelled meanwhile: the cancellation
// comes at its next park.
#pragma once

#include "cpython/api.hpp"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "core/epoll_reactor.hpp"
#include "core/os_thread_waiter.hpp"
#include "core/parking_lot.hpp"
#include "cpython/error.hpp"
#include "sched/hub.hpp"

namespace gossamer::sched {

/// Raises what ended a wait: CancelledError for kCancelled, the error already set for kFailed.
[[noreturn]] void raise_wake(Hub& hub, Wake wake);

/// A place in the parking lot's queue of one key; given up at the latest when it goes, also by a C++ exception.
class QueuePlace final {
public:
    QueuePlace(const void* key, core::Wakeable& whom) noexcept : key_(key), waiter_(whom) {}
    QueuePlace(const QueuePlace&) = delete;
    QueuePlace& operator=(const QueuePlace&) = delete;
    ~QueuePlace() {
        if (leave()) {
            core::ParkingLot::instance().unpark_one(key_);
        }
    }

    void take() noexcept {
        core::ParkingLot::instance().enqueue(key_, waiter_);
        is_taken_ = true;
    }

    /// Gives the place up. Returns whether a waker had chosen it.
    bool leave() noexcept { return std::exchange(is_taken_, false) && !core::ParkingLot::instance().cancel(waiter_); }

private:
    const void* const key_;
    core::ParkedWaiter waiter_;
    bool is_taken_ = false;
};

/// Parks the running virtual thread until `is_over()`, which may have side effects and is called until it returns true.
/// Returns false when `deadline` passed first. Throws ErrorSet (a cancellation, a signal handler that raised).
template <typename IsOver>
[[nodiscard]] bool wait_until(Hub& hub, const void* key, const WaitNote& note, core::Deadline deadline, IsOver is_over,
                              Cancellable cancellable = Cancellable::kYes) {
    QueuePlace place(key, hub.waiter());
    for (;;) {
        place.take();
        if (is_over()) {
            return true;  // had a waker chosen this place meanwhile, leaving it passes the wake-up on
        }
        const Wake wake = hub.park(note, deadline, cancellable);
        if (wake == Wake::kFailed) {
            raise_wake(hub, wake);  // had a waker chosen this place, it passes the wake-up on when it goes
        }
        place.leave();
        if (is_over()) {
            return true;
        }
        if (wake == Wake::kTimedOut) {
            return false;
        }
        if (wake == Wake::kCancelled) {
            raise_wake(hub, wake);
        }
    }
}

/// The same on an ordinary OS thread: detached while it sleeps, signal handlers run.
template <typename IsOver>
[[nodiscard]] bool wait_until_on_os_thread(const void* key, core::Deadline deadline, IsOver is_over) {
    core::OsThreadWaiter sleeper;
    QueuePlace place(key, sleeper);
    for (;;) {
        place.take();
        if (is_over()) {
            return true;
        }
        PyThreadState* tstate = PyEval_SaveThread();
        const int result = sleeper.wait(deadline);
        PyEval_RestoreThread(tstate);
        const bool was_chosen = place.leave();
        if (result == EINTR && PyErr_CheckSignals() < 0) {
            if (was_chosen) {
                core::ParkingLot::instance().unpark_one(key);
            }
            throw cpython::ErrorSet{};
        }
        if (is_over()) {
            return true;
        }
        if (result == ETIMEDOUT) {
            return false;
        }
    }
}

/// Waits for readiness of `fd`, or for an edge of it. Returns kReady, kTimedOut, kFailed, or kCancelled with the
/// cancellation still pending: a caller that has done a part of its work may leave it so. What epoll cannot wait for
/// (EPERM: a regular file) is always ready. It stands for read(2) and its kin, which the kernel restarts after some signals.
/// Throws ErrorSet: OSError, with EBADF also when the descriptor was closed.
[[nodiscard]] Wake try_wait_for_fd(Hub& hub, int fd, const void* owner, core::Interest interest, const char* what,
                                   core::Deadline deadline);

/// The same, but raises. Returns false when `deadline` passed.
[[nodiscard]] bool wait_for_fd(Hub& hub, int fd, const void* owner, core::Interest interest, const char* what,
                               core::Deadline deadline);

/// One descriptor of a wait for several; `events` are bits of core::Interest.
struct FdInterest {
    int fd;
    std::uint32_t events;
};

/// A wait for any of several descriptors, as poll(2) and its kin wait (every signal interrupts it), in turns: look whether the wait is over, wait(), look again. What is ready when
/// the wait begins ends the first turn; later turns end by a change alone, so a descriptor that is ready in a way which the
/// caller does not count does not make it spin. What epoll cannot wait for (EPERM) never changes.
class AnyFdWait final {
public:
    /// Throws std::bad_alloc. `interests` is read here only.
    AnyFdWait(Hub& hub, const WaitNote& note, std::span<const FdInterest> interests);
    AnyFdWait(const AnyFdWait&) = delete;
    AnyFdWait& operator=(const AnyFdWait&) = delete;
    ~AnyFdWait();

    /// Returns false when `deadline` passed. Throws ErrorSet. Parks: yes. Thread: carrier. Python: attached.
    [[nodiscard]] bool wait(core::Deadline deadline);

private:
    struct Item {
        core::FdWaiter waiter;
        core::FdEntry* entry;
        int fd;
    };
    static constexpr std::size_t kFew = 8;

    std::span<Item> items() noexcept { return {items_, count_}; }
    bool take_edges() noexcept;

    Hub& hub_;
    const WaitNote note_;
    alignas(Item) std::byte few_[kFew * sizeof(Item)];
    std::unique_ptr<std::byte[]> many_;
    Item* items_;
    std::size_t count_ = 0;
};

/// Parks until `deadline`. Throws ErrorSet.
void sleep_until(Hub& hub, core::Deadline deadline);

/// Lets every ready virtual thread run once. Throws ErrorSet.
void checkpoint(Hub& hub);

}  // namespace gossamer::sched
