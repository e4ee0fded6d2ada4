// SPDX-License-Identifier: Apache-2.0
// Waits for descriptors with epoll(7), edge-triggered, each registered once.
//
// An edge says that the state changed, so a wait is: try the call; on EAGAIN wait for the next edge; try again. Readiness
// is remembered per descriptor: after a read that drained a TCP socket (it returned less than was asked for) the next
// read need not be tried before an edge came, which saves one system call a message.
//
// A number may be closed and used again behind our back. An entry therefore belongs to an `owner`, the object that holds
// the descriptor, whose close() tells us (`forget`). A wait for a bare number (owner null) registers anew each time. The
// kernel keys a registration on the open file and the number (epoll(7), Q6), so one of a file that lives on under another
// number keeps reporting; each registration carries its own generation, and a report of an earlier one is dropped.
//
// An event loop wants more than one wait: it is told of every edge of a descriptor by a watch, until it takes that back. A
// registration that nobody wants any more stays until it reports something, so that watching the same descriptor again
// costs little.
//
// One reactor a hub; every method runs on the hub's thread, but for wake_up().
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/deadline.hpp"
#include "core/file_descriptor.hpp"
#include "core/intrusive_list.hpp"
#include "core/wakeable.hpp"

namespace gossamer::core {

// EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
enum class Interest : std::uint32_t { kRead = 1, kWrite = 4, kException = 2, kPeerClosed = 0x2000 };

/// One wait for one descriptor; lives on the waiter's stack.
struct FdWaiter final : ListHook {
    FdWaiter(Wakeable& whom, std::uint32_t wanted) noexcept : target(&whom), wanted_events(wanted) {}

    Wakeable* target;
    std::uint32_t wanted_events;  // bits of Interest
    bool is_ready = false;        // an edge came, or the descriptor was closed
    bool is_closed = false;       // forget() ended the wait: the number is no longer the file that was waited for
};

/// A lasting interest in one descriptor. Its owner must remove it before it goes.
struct FdWatch : ListHook {
    /// Told of an edge with epoll's bits; in the middle of a collection, so it only records. Thread: the hub's.
    using Notify = void (*)(FdWatch&, std::uint32_t events) noexcept;

    explicit FdWatch(Notify when_ready) noexcept : notify(when_ready) {}

    const Notify notify;
    std::uint32_t watched_events = 0;  // bits of Interest
};

/// What is known of one descriptor number.
struct FdEntry {
    const void* owner = nullptr;
    std::uint32_t registered_events = 0;  // last asked of the kernel for the number; 0: nothing
    std::uint32_t generation = 0;         // of the last registration
    bool is_registered = false;           // for this owner; the number may have been closed and used again otherwise
    bool may_be_readable = true;          // false: drained, wait for an edge before the next read
    bool may_be_writable = true;
    bool is_hung_up = false;       // the flags above stay true
    bool has_urgent_data = false;  // a short read does not mean drained
    bool reads_in_bulk = false;    // the last read was a big one; for who reads to choose a buffer by
    IntrusiveList<FdWaiter> waiters;
    IntrusiveList<FdWatch> watches;
};

class EpollReactor final {
public:
    /// Throws std::system_error.
    EpollReactor();
    EpollReactor(const EpollReactor&) = delete;
    EpollReactor& operator=(const EpollReactor&) = delete;
    ~EpollReactor() = default;

    /// The entry of `fd` for `owner`, reset when it belonged to another. `fd` is not negative.
    FdEntry& entry(int fd, const void* owner);

    /// Queues `waiter` for `fd` and makes sure that the kernel reports it. Returns 0, or errno with nothing queued:
    /// EPERM for what is always ready (a regular file), EBADF, ENOMEM, ENOSPC (epoll_ctl(2)).
    [[nodiscard]] int add_waiter(int fd, FdEntry& entry, FdWaiter& waiter) noexcept;

    /// Takes the waiter off, if an edge did not.
    void remove_waiter(FdWaiter& waiter) noexcept;

    /// Tells `watch` of every edge of `fd` from now on, the state that it has now included; `events` are bits of Interest.
    /// Changes the events of one that is queued. Returns as add_waiter does.
    [[nodiscard]] int add_watch(int fd, FdWatch& watch, std::uint32_t events);

    /// Takes the watch off; nothing happens if it is off.
    void remove_watch(FdWatch& watch) noexcept;

    /// Before `fd` is closed: wakes its waiters, drops its watches and unregisters it.
    void forget(int fd) noexcept;

    /// The same for every number from `first` to below `end`.
    void forget_range(int first, int end) noexcept;

    /// Collects events and wakes their waiters. Does not block. Returns the number of events.
    int poll() noexcept;

    /// Blocks until an event, wake_up() or `deadline`, then collects. The signal mask is `mask` while it blocks, if not
    /// null (epoll_pwait2(2)). Returns the number of events; 0 also when a signal came.
    /// `before_block` and `after_block` run around the system call alone.
    template <typename Before, typename After>
    int wait(Deadline deadline, Nanoseconds now, const void* mask, Before before_block, After after_block) {
        before_block();
        const int count = wait_for_events(deadline, now, mask);
        after_block();
        return dispatch(count);
    }

    /// Forbids epoll_pwait2(2), as an old kernel or a container would, so that tests can run the other way.
    static void forbid_pwait2(bool is_forbidden) noexcept;

    /// In a forked child: closes the descriptors, which are the parent's. Waits and watches may still be taken off.
    void abandon() noexcept {
        epoll_ = FileDescriptor();
        wake_event_ = FileDescriptor();
    }

    /// Makes wait() return. Thread: any.
    void wake_up() noexcept;

    /// The epoll descriptor: readable when there are events.
    int fd() const noexcept { return epoll_.get(); }

    /// How many waits and watches are queued.
    std::size_t waiter_count() const noexcept { return waiter_count_; }

    /// Whether a watch is on the descriptor.
    bool is_watched(int fd) noexcept;

private:
    static constexpr int kBatch = 256;
    static constexpr std::size_t kChunkEntries = 256;

    int wait_for_events(Deadline deadline, Nanoseconds now, const void* mask) noexcept;
    int register_for(int fd, FdEntry& entry, std::uint32_t events) noexcept;
    void unregister(int fd, FdEntry& entry) noexcept;
    int dispatch(int count) noexcept;
    void deliver(FdEntry& entry, std::uint32_t events, bool is_closed = false) noexcept;
    FdEntry* find(int fd) noexcept;

    FileDescriptor epoll_;
    FileDescriptor wake_event_;
    std::vector<std::unique_ptr<FdEntry[]>> entries_;  // chunks, so that entries never move
    std::size_t waiter_count_ = 0;
    struct EventBuffer;
    std::unique_ptr<EventBuffer, void (*)(EventBuffer*)> events_;
};

}  // namespace gossamer::core
