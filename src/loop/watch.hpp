// SPDX-License-Identifier: Apache-2.0
// A descriptor that a loop watches: the hub tells it of edges, the loop serves it at its next turn.
//
// The two steps are apart because edges are collected on the hub's own stack, by whichever virtual thread made the hub
// look, where no Python may run.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>
#include <utility>

#include "core/epoll_reactor.hpp"
#include "core/intrusive_list.hpp"

namespace gossamer::loop {

class EventLoop;

/// Something that the hub has told the loop of and that the loop serves at its next turn. Its owner unlinks it.
struct Activity : core::ListHook {
    /// Called by the loop, in its virtual thread.
    using Serve = void (*)(Activity&);

    explicit Activity(Serve how) noexcept : serve(how) {}

    const Serve serve;
};

/// A wait in the hub's reactor that the loop ends when it stops: the next time it may run on another hub. Whoever waits
/// then tries again. Its owner unlinks it.
struct WaitingOperation : core::ListHook {
    using Interrupt = void (*)(WaitingOperation&) noexcept;

    explicit WaitingOperation(Interrupt how) noexcept : interrupt(how) {}

    const Interrupt interrupt;
};

class LoopWatch : public core::FdWatch {
public:
    LoopWatch(const LoopWatch&) = delete;
    LoopWatch& operator=(const LoopWatch&) = delete;

    int fd() const noexcept { return fd_; }
    std::uint32_t wanted_events() const noexcept { return wanted_events_; }

    /// In the list of all watches of the loop.
    struct Membership final : core::ListHook {
        explicit Membership(LoopWatch& whose) noexcept : watch(&whose) {}
        LoopWatch* const watch;
    };

protected:
    /// `serve` is called by the loop, in its virtual thread, with the events since the last time; it only queues.
    using Serve = void (*)(LoopWatch&, std::uint32_t events);

    LoopWatch(EventLoop& loop, int fd, Serve serve) noexcept;
    ~LoopWatch() { leave_loop(); }

    EventLoop& loop() const noexcept { return *loop_; }

    /// For an owner that lets go of the loop before this part of it is destroyed.
    void leave_loop() noexcept;

private:
    friend class EventLoop;

    struct OwnActivity final : Activity {
        explicit OwnActivity(LoopWatch& whose) noexcept : Activity(&serve_watch), watch(&whose) {}
        LoopWatch* const watch;
    };

    static void note_events(core::FdWatch& watch, std::uint32_t events) noexcept;
    static void serve_watch(Activity& activity);

    EventLoop* loop_;                        // null: left
    core::EpollReactor* reactor_ = nullptr;  // that it was last armed in
    const int fd_;
    const Serve serve_;
    std::uint32_t wanted_events_ = 0;
    std::uint32_t pending_events_ = 0;
    PyObject* held_ = nullptr;  // owned by the loop
    OwnActivity activity_{*this};
    Membership membership_{*this};
};

}  // namespace gossamer::loop
