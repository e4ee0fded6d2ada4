// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/wait.hpp"

#include <cerrno>

#include "cpython/exceptions.hpp"

namespace gossamer::sched {

void raise_wake(Hub& hub, Wake wake) {
    if (wake == Wake::kCancelled) {
        hub.running().take_cancellation();
        cpython::set_cancelled_error();
    }
    throw cpython::ErrorSet{};
}

bool wait_for_fd(Hub& hub, int fd, const void* owner, core::Interest interest, const char* what,
                 core::Deadline deadline) {
    core::EpollReactor& reactor = hub.reactor();
    core::FdEntry& entry = reactor.entry(fd, owner);
    core::FdWaiter waiter(hub.running(), static_cast<std::uint32_t>(interest));
    const int error = reactor.add_waiter(fd, entry, waiter);
    if (error == EPERM) {
        return true;
    }
    if (error != 0) {
        cpython::raise_os_error(error);
    }
    Wake wake = Wake::kReady;
    while (!waiter.is_ready && wake == Wake::kReady) {
        wake = hub.park({.what = what, .object = owner, .fd = fd}, deadline, Cancellable::kYes);
    }
    reactor.remove_waiter(waiter);
    if (wake == Wake::kFailed || (wake == Wake::kCancelled && !waiter.is_ready)) {
        raise_wake(hub, wake);
    }
    return waiter.is_ready;
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
