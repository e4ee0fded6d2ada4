// SPDX-License-Identifier: Apache-2.0
#include "core/epoll_reactor.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <system_error>
#include <unistd.h>

#include "core/assert.hpp"

namespace gossamer::core {

static_assert(static_cast<std::uint32_t>(Interest::kRead) == EPOLLIN);
static_assert(static_cast<std::uint32_t>(Interest::kWrite) == EPOLLOUT);
static_assert(static_cast<std::uint32_t>(Interest::kException) == EPOLLPRI);
static_assert(static_cast<std::uint32_t>(Interest::kPeerClosed) == EPOLLRDHUP);

namespace {

constexpr std::uint32_t kHangUp = EPOLLHUP | EPOLLERR;
constexpr std::uint32_t kReadable = EPOLLIN | EPOLLRDHUP | kHangUp;
constexpr std::uint32_t kWritable = EPOLLOUT | kHangUp;
constexpr std::uint64_t kWakeEvent = UINT64_MAX;  // no descriptor is so high

/// What the kernel keeps with a registration: the number, and which registration of it this is.
std::uint64_t event_key(int fd, std::uint32_t generation) noexcept {
    return (std::uint64_t{generation} << 32) | static_cast<std::uint32_t>(fd);
}

/// What the waits and watches of an entry want.
std::uint32_t wanted_by_all(FdEntry& entry) noexcept {
    std::uint32_t events = 0;
    for (FdWaiter* waiter = entry.waiters.front(); waiter != nullptr; waiter = entry.waiters.next_of(*waiter)) {
        events |= waiter->wanted_events;
    }
    for (FdWatch* watch = entry.watches.front(); watch != nullptr; watch = entry.watches.next_of(*watch)) {
        events |= watch->watched_events;
    }
    return events;
}

constexpr long kPwait2 = 441;  // the system call's number; glibc has a function for it only from 2.35 on

std::atomic<bool> has_pwait2{true};

int checked(int result, const char* call) {
    if (result < 0) {
        throw std::system_error(errno, std::generic_category(), call);
    }
    return result;
}

}  // namespace

struct EpollReactor::EventBuffer {
    epoll_event events[kBatch];
};

EpollReactor::EpollReactor()
    : epoll_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_event_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      events_(new EventBuffer, [](EventBuffer* buffer) { delete buffer; }) {
    // Edge-triggered and never read: each write is an edge, and a counter that is full (after 2^64) needs no care.
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.u64 = kWakeEvent}};
    checked(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_event_.get(), &event), "epoll_ctl");
}

FdEntry& EpollReactor::entry(int fd, const void* owner) {
    const auto chunk = static_cast<std::size_t>(fd) / kChunkEntries;
    if (chunk >= entries_.size()) {
        entries_.resize(chunk + 1);
    }
    if (!entries_[chunk]) {
        entries_[chunk] = std::make_unique<FdEntry[]>(kChunkEntries);
    }
    FdEntry& entry = entries_[chunk][static_cast<std::size_t>(fd) % kChunkEntries];
    if (entry.owner != owner || owner == nullptr) {
        entry.owner = owner;
        entry.is_registered = false;
        entry.may_be_readable = entry.may_be_writable = true;
        entry.is_hung_up = entry.has_urgent_data = entry.reads_in_bulk = false;
    }
    return entry;
}

FdEntry* EpollReactor::find(int fd) noexcept {
    const auto chunk = static_cast<std::size_t>(fd) / kChunkEntries;
    if (chunk >= entries_.size() || !entries_[chunk]) {
        return nullptr;
    }
    return &entries_[chunk][static_cast<std::size_t>(fd) % kChunkEntries];
}

int EpollReactor::add_waiter(int fd, FdEntry& entry, FdWaiter& waiter) noexcept {
    const std::uint32_t events =
        waiter.wanted_events | (entry.is_registered ? entry.registered_events : wanted_by_all(entry));
    if (!entry.is_registered || events != entry.registered_events) {
        const int error = register_for(fd, entry, events);
        if (error != 0) {
            return error;
        }
    }
    entry.waiters.push_back(waiter);
    ++waiter_count_;
    return 0;
}

int EpollReactor::register_for(int fd, FdEntry& entry, std::uint32_t events) noexcept {
    // Both ADD and MOD report at once what is ready already, so nothing between the EAGAIN and here is missed.
    epoll_event event{.events = events | EPOLLRDHUP | EPOLLPRI | EPOLLET,
                      .data = {.u64 = event_key(fd, entry.generation + 1)}};
    const bool may_be_there = entry.registered_events != 0;
    if (::epoll_ctl(epoll_.get(), may_be_there ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) != 0) {
        if (errno != (may_be_there ? ENOENT : EEXIST)) {
            return errno;
        }
        if (::epoll_ctl(epoll_.get(), may_be_there ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) != 0) {
            return errno;
        }
        // Not the file that we knew: nothing is known of this one.
        entry.may_be_readable = entry.may_be_writable = true;
        entry.is_hung_up = entry.has_urgent_data = false;
    }
    ++entry.generation;
    entry.registered_events = events;
    entry.is_registered = true;
    return 0;
}

void EpollReactor::remove_waiter(FdWaiter& waiter) noexcept {
    if (waiter.is_linked()) {
        waiter.unlink();
        --waiter_count_;
    }
}

int EpollReactor::add_watch(int fd, FdWatch& watch, std::uint32_t events) {
    FdEntry& known = entry(fd, find(fd) == nullptr ? nullptr : find(fd)->owner);
    // Registered anew although it may be: the kernel then reports at once what is ready already.
    const int error = register_for(fd, known, events | wanted_by_all(known));
    if (error != 0) {
        return error;
    }
    watch.watched_events = events;
    if (!watch.is_linked()) {
        known.watches.push_back(watch);
        ++waiter_count_;
    }
    return 0;
}

bool EpollReactor::is_watched(int fd) noexcept {
    const FdEntry* known = find(fd);
    return known != nullptr && !known->watches.is_empty();
}

void EpollReactor::remove_watch(FdWatch& watch) noexcept {
    if (watch.is_linked()) {
        watch.unlink();
        --waiter_count_;
    }
}

void EpollReactor::unregister(int fd, FdEntry& entry) noexcept {
    if (entry.registered_events != 0) {
        epoll_event unused{};
        // EBADF, ENOENT: it was closed or replaced behind our back, which is what we want to bring about.
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, &unused);
    }
    entry.registered_events = 0;
    entry.is_registered = false;
}

void EpollReactor::forget(int fd) noexcept {
    FdEntry* entry = find(fd);
    if (entry == nullptr) {
        return;
    }
    unregister(fd, *entry);
    entry->owner = nullptr;
    while (FdWatch* watch = entry->watches.pop_front()) {
        watch->watched_events = 0;
        --waiter_count_;
    }
    deliver(*entry, EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | kHangUp, true);
}

void EpollReactor::forget_range(int first, int end) noexcept {
    const auto known = static_cast<int>(entries_.size() * kChunkEntries);
    for (int fd = first; fd < end && fd < known; ++fd) {
        forget(fd);
    }
}

int EpollReactor::poll() noexcept { return dispatch(::epoll_wait(epoll_.get(), events_->events, kBatch, 0)); }

int EpollReactor::wait_for_events(Deadline deadline, Nanoseconds now, const void* mask) noexcept {
    timespec timeout{};
    if (!deadline.is_never() && !deadline.is_past(now)) {
        const Nanoseconds delay = deadline.time() - now;
        timeout.tv_sec = delay.count() / 1'000'000'000;
        timeout.tv_nsec = delay.count() % 1'000'000'000;
    }
    const auto* signals = static_cast<const sigset_t*>(mask);
    if (has_pwait2.load(std::memory_order_relaxed)) {
        const long count = ::syscall(kPwait2, epoll_.get(), events_->events, kBatch,
                                     deadline.is_never() ? nullptr : &timeout, signals, sizeof(std::uint64_t));
        // ENOSYS: Linux before 5.11; EPERM: a container's filter that does not know the call.
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) {
            return static_cast<int>(count);
        }
        has_pwait2 = false;
    }
    constexpr int kLongest = 24 * 3600 * 1000;  // then the caller looks at the deadline again
    const auto milliseconds = timeout.tv_sec >= kLongest / 1000
                                  ? kLongest
                                  : static_cast<int>(timeout.tv_sec * 1000 + (timeout.tv_nsec + 999'999) / 1'000'000);
    return ::epoll_pwait(epoll_.get(), events_->events, kBatch, deadline.is_never() ? -1 : milliseconds, signals);
}

void EpollReactor::forbid_pwait2(bool is_forbidden) noexcept { has_pwait2 = !is_forbidden; }

int EpollReactor::dispatch(int count) noexcept {
    for (int index = 0; index < count; ++index) {
        const epoll_event& event = events_->events[index];
        if (event.data.u64 == kWakeEvent) {
            continue;
        }
        FdEntry* entry = find(static_cast<int>(event.data.u64 & UINT32_MAX));
        GS_ASSERT(entry != nullptr);
        if (event.data.u64 >> 32 != entry->generation) {
            continue;
        }
        if (entry->owner == nullptr && entry->waiters.is_empty() && entry->watches.is_empty()) {
            unregister(static_cast<int>(event.data.u64 & UINT32_MAX), *entry);
        }
        deliver(*entry, event.events);
    }
    return count < 0 ? 0 : count;
}

void EpollReactor::deliver(FdEntry& entry, std::uint32_t events, bool is_closed) noexcept {
    entry.may_be_readable = entry.may_be_readable || (events & kReadable) != 0;
    entry.may_be_writable = entry.may_be_writable || (events & kWritable) != 0;
    entry.is_hung_up = entry.is_hung_up || (events & (kHangUp | EPOLLRDHUP)) != 0;
    entry.has_urgent_data = entry.has_urgent_data || (events & EPOLLPRI) != 0;
    std::uint32_t ready = events & (EPOLLPRI | EPOLLRDHUP);
    ready |= (events & kReadable) != 0 ? static_cast<std::uint32_t>(EPOLLIN) : 0;
    ready |= (events & kWritable) != 0 ? static_cast<std::uint32_t>(EPOLLOUT) : 0;
    // A hang-up ends every wait, also one for an exception or for the peer's end.
    ready |= (events & kHangUp) != 0 ? static_cast<std::uint32_t>(EPOLLPRI | EPOLLRDHUP) : 0;
    for (FdWatch* watch = entry.watches.front(); watch != nullptr; watch = entry.watches.next_of(*watch)) {
        watch->notify(*watch, events);
    }
    for (FdWaiter* waiter = entry.waiters.front(); waiter != nullptr;) {
        FdWaiter* next = entry.waiters.next_of(*waiter);
        if ((waiter->wanted_events & ready) != 0) {
            waiter->unlink();
            --waiter_count_;
            waiter->is_ready = true;
            waiter->is_closed = is_closed;
            waiter->target->wake();
        }
        waiter = next;
    }
}

void EpollReactor::wake_up() noexcept {
    const std::uint64_t one = 1;
    // EAGAIN: the counter is full, and whoever filled it made the edge.
    [[maybe_unused]] const ssize_t written = ::write(wake_event_.get(), &one, sizeof one);
}

}  // namespace gossamer::core
