// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/wait.hpp"

#include <cerrno>
#include <new>

#include "cpython/exceptions.hpp"

namespace gossamer::sched {

void raise_wake(Hub& hub, Wake wake) {
    InnerWaits* inner = hub.running().inner_waits;
    if (wake == Wake::kCancelled && (inner == nullptr || !inner->raise_cancellation())) {
        hub.running().take_cancellation();
        cpython::set_cancelled_error();
    }
    throw cpython::ErrorSet{};
}

Wake try_wait_for_fd(Hub& hub, int fd, const void* owner, core::Interest interest, const char* what,
                     core::Deadline deadline) {
    core::EpollReactor& reactor = hub.reactor();
    core::FdEntry& entry = reactor.entry(fd, owner);
    core::FdWaiter waiter(hub.waiter(), static_cast<std::uint32_t>(interest));
    const int error = reactor.add_waiter(fd, entry, waiter);
    if (error == EPERM) {
        return Wake::kReady;
    }
    if (error != 0) {
        cpython::raise_os_error(error);
    }
    // Where there is a time limit plain Python waits in poll(2), which is never restarted.
    const WaitNote note{.what = what, .object = owner, .fd = fd, .is_restarted = deadline.is_never()};
    Wake wake = Wake::kReady;
    while (!waiter.is_ready && wake == Wake::kReady) {
        wake = hub.park(note, deadline, Cancellable::kYes);
    }
    reactor.remove_waiter(waiter);
    if (wake == Wake::kFailed) {
        return wake;
    }
    if (waiter.is_closed) {
        cpython::raise_os_error(EBADF);
    }
    return waiter.is_ready ? Wake::kReady : wake;
}

bool wait_for_fd(Hub& hub, int fd, const void* owner, core::Interest interest, const char* what,
                 core::Deadline deadline) {
    const Wake wake = try_wait_for_fd(hub, fd, owner, interest, what, deadline);
    if (wake == Wake::kFailed || wake == Wake::kCancelled) {
        raise_wake(hub, wake);
    }
    return wake == Wake::kReady;
}

AnyFdWait::AnyFdWait(Hub& hub, const WaitNote& note, std::span<const FdInterest> interests) : hub_(hub), note_(note) {
    std::byte* memory = few_;
    if (interests.size() > kFew) {
        many_ = std::make_unique<std::byte[]>(interests.size() * sizeof(Item));
        memory = many_.get();
    }
    items_ = reinterpret_cast<Item*>(memory);
    core::Wakeable& waiter = hub.waiter();
    for (const FdInterest& interest : interests) {
        // Safety: both memories are aligned for Item and hold that many. Nothing has a destructor that must run.
        new (items_ + count_) Item{.waiter = {waiter, interest.events},
                                   .entry = &hub.reactor().entry(interest.fd, nullptr),
                                   .fd = interest.fd};
        ++count_;
    }
}

AnyFdWait::~AnyFdWait() {
    for (Item& item : items()) {
        hub_.reactor().remove_waiter(item.waiter);
    }
}

bool AnyFdWait::take_edges() noexcept {
    bool found = false;
    for (Item& item : items()) {
        found = std::exchange(item.waiter.is_ready, false) || found;
    }
    return found;
}

bool AnyFdWait::wait(core::Deadline deadline) {
    if (take_edges()) {
        return true;  // they came while the caller looked, which may have parked
    }
    for (Item& item : items()) {
        if (item.waiter.is_linked()) {
            continue;
        }
        const int error = hub_.reactor().add_waiter(item.fd, *item.entry, item.waiter);
        if (error == EBADF) {
            return true;  // it was closed meanwhile: the caller's look says so
        }
        if (error != 0 && error != EPERM) {
            cpython::raise_os_error(error);
        }
    }
    const Wake wake = hub_.park(note_, deadline, Cancellable::kYes);
    const bool has_edge = take_edges();
    if (wake == Wake::kFailed || (wake == Wake::kCancelled && !has_edge)) {
        raise_wake(hub_, wake);
    }
    return wake != Wake::kTimedOut || has_edge;
}

void sleep_until(Hub& hub, core::Deadline deadline) {
    for (;;) {
        const Wake wake = hub.park({.what = "time.sleep"}, deadline, Cancellable::kYes);
        if (wake == Wake::kTimedOut) {
            return;
        }
        if (wake != Wake::kReady) {
            raise_wake(hub, wake);
        }
    }
}

void checkpoint(Hub& hub) {
    const Wake wake = hub.yield();
    if (wake != Wake::kReady) {
        raise_wake(hub, wake);
    }
}

}  // namespace gossamer::sched
