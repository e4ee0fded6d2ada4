// SPDX-License-Identifier: Apache-2.0
// gossamer._core.EventLoopBase: the part of an asyncio event loop that decides its speed. The Python class
// (gossamer/_event_loop.py) stands on it and on asyncio.SelectorEventLoop, whose private methods it replaces:
//
//     call_soon, call_soon_threadsafe, call_later, call_at      handles and timers made and kept here
//     _add_reader, _remove_reader, _add_writer, _remove_writer  descriptors watched by the hub's reactor
//     _run_once                                                 turns, until the loop is stopped
//
// A turn: take what other threads have sent, what the hub was told of descriptors, and the timers that are due; then call
// what was ready when the turn began; then let the transports that have something to do it. (To call what each of these
// made ready before the next one reads was measured: an echo server of streams took 6 % more CPU a message.) With nothing
// ready the virtual thread that runs the loop parks until one of these comes. With something ready the kernel is not
// asked, but every kTurnsBetweenLooks turns, when something was sent (whoever gets it may be of this loop, and tests count
// turns), or when the hub wants attention, the loop lets the hub look and every other ready virtual thread run.
//
// A bare reader or writer is level-triggered, as asyncio's is, on a reactor that knows edges alone: one whose callback ran
// is asked for by poll(2) before the loop waits again.
#pragma once

#include "cpython/api.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "core/timer_heap.hpp"
#include "cpython/ref.hpp"
#include "loop/handle.hpp"
#include "loop/parts.hpp"
#include "loop/ready_queue.hpp"
#include "loop/watch.hpp"
#include "sched/hub.hpp"

namespace gossamer::loop {

class BareWatch;

class EventLoop final {
public:
    EventLoop(Parts& parts, PyObject* object) noexcept;
    EventLoop(const EventLoop&) = delete;
    EventLoop& operator=(const EventLoop&) = delete;
    ~EventLoop();

    /// The object that this is part of.
    PyObject* object() const noexcept { return object_; }
    Parts& parts() const noexcept { return parts_; }

    /// Runs turns until the loop is stopped. Throws ErrorSet: what ends a wait, and KeyboardInterrupt or SystemExit of a
    /// callback. Parks: yes. Thread: carrier. Python: attached.
    void run();

    /// Throws ErrorSet if it is closed.
    void check_open() const;

    /// Queues `handle` for the next turn; wakes the loop. Takes the reference over.
    void push_ready(cpython::Ref handle);
    void push_ready(Runnable& runnable);

    /// loop.call_soon(object.name, args..., context=context); `context` may be null.
    void call_method_soon(PyObject* object, PyObject* name, PyObject* const* args, Py_ssize_t count, PyObject* context);
    /// Reports the exception that is set as that of a callback `object.name(argument)`, unless it ends the program. Throws
    /// ErrorSet then. `argument` may be null.
    void report_failed_call(PyObject* object, PyObject* name, PyObject* argument);

    /// As push_ready, from any thread.
    void push_from_anywhere(cpython::Ref handle);

    void arm_timer(cpython::Ref timer_handle, double when);
    void disarm_timer(TimerNode& node) noexcept;

    /// Has it served at the next turn; wakes the loop. Parks: no. Thread: carrier. Python: attached, not run.
    void note_activity(Activity& activity) noexcept;

    /// Readers and writers. `add` replaces the handle that was there and cancels it.
    void add_bare(PyObject* file, core::Interest interest, cpython::Ref handle);
    bool remove_bare(int fd, core::Interest interest);

    /// The descriptor of `file`, or, if that was closed, the one under which it is watched, as selectors has it.
    int descriptor_of(PyObject* file) const;

    /// What is wanted of `fd`, as bits of core::Interest.
    std::uint32_t watched_events(int fd) const noexcept;

    /// Owns `object` for as long as `watch` is watched: nobody else may refer to it.
    void hold(LoopWatch& watch, PyObject* object) noexcept;
    void release(LoopWatch& watch);

    /// Keeps account of an operation that waits in the hub's reactor.
    void add_operation(WaitingOperation& operation) noexcept { operations_.push_back(operation); }

    /// Which transport of ours uses a descriptor. Borrowed: a transport takes itself off.
    void add_transport(int fd, PyObject* transport);
    void remove_transport(int fd, PyObject* transport) noexcept;
    PyObject* transport_of(int fd) const noexcept;

    /// Room for one datagram, until its caller runs Python.
    char* datagram_buffer();
    static constexpr std::size_t kDatagramBytes = 256 * 1024;

    /// Throws ErrorSet (RuntimeError) when a transport of the loop uses the descriptor.
    void check_no_transport(int fd);

    /// Has the next turn look whether somebody got what was sent.
    void note_sent() noexcept { has_sent_ = true; }

    /// The hub that runs the loop, or null.
    sched::Hub* hub() const noexcept { return hub_; }

    /// Wants `events` (bits of core::Interest) of the watch's descriptor from now on. Throws ErrorSet (OSError).
    void watch(LoopWatch& watch, std::uint32_t events);
    void unwatch(LoopWatch& watch) noexcept;

    /// A new asyncio.Future of the loop. Throws ErrorSet.
    cpython::Ref create_future();

    void close();

    int traverse(visitproc visit, void* arg);
    void clear() noexcept;

    bool is_stopping = false;
    bool is_closed = false;
    bool is_debugging = false;

private:
    friend class LoopWatch;
    friend class BareWatch;

    static constexpr int kTurnsBetweenLooks = 16;
    static constexpr core::Nanoseconds kLongestWithoutLook{50'000};

    /// Which hub runs the loop, for as long as it does.
    class Attachment;

    cpython::Ref keywords_of_future() const;
    void take_turn();
    void look();
    bool is_time_to_look() noexcept;
    void wait_for_work();
    void take_incoming();
    void serve_active();
    void expire_timers();
    void recheck_bare_watches();
    void run_ready();
    void run_io();
    void run_handle(PyObject* handle);
    void run_debugging(PyObject* handle);
    void report_error(PyObject* handle);
    void report_turn_error(PyObject* owner);
    void wake_if_idle() noexcept;
    int arm_watch(LoopWatch& watch) noexcept;
    static void disarm_watch(LoopWatch& watch) noexcept;
    static void serve_bare(LoopWatch& watch, std::uint32_t events);

    // never changes
    Parts& parts_;
    PyObject* const object_;

    // the loop's own thread
    HandleQueue ready_;
    RunnableQueue io_ready_;
    core::TimerHeap timers_;
    core::IntrusiveList<LoopWatch::Membership> watches_;
    core::IntrusiveList<Activity> active_;
    core::IntrusiveList<WaitingOperation> operations_;
    std::unordered_map<int, std::unique_ptr<BareWatch>> bare_watches_;
    cpython::Ref future_keywords_;             // {"loop": the loop}, while it runs
    std::vector<PyObject*> transports_;        // by descriptor; borrowed
    cpython::Ref other_transports_;            // the dictionary of asyncio's _transports, once it was needed
    std::vector<int> rechecks_;                // descriptors whose callback was queued since the last look
    std::unique_ptr<char[]> datagram_buffer_;  // once it was needed
    std::uint64_t turn_ = 0;
    int turns_since_look_ = 0;
    bool has_sent_ = false;  // since the last look
    core::Nanoseconds last_look_{};
    bool is_idle_ = false;

    // any thread, under mutex_; the thread that runs the loop alone changes the first two
    std::mutex mutex_;
    sched::Hub* hub_ = nullptr;
    core::Wakeable* runner_ = nullptr;  // a virtual thread, or the step of an outer loop's task that runs this loop
    std::vector<PyObject*> incoming_;   // owned

    // any thread, atomic
    std::atomic<bool> has_incoming_{false};
};

/// Creates the class. Throws ErrorSet.
PyTypeObject* create_event_loop_type(PyObject* module);

// Of a loop object, which is an instance of that class.
EventLoop& loop_of(PyObject* object) noexcept;
bool is_debugging(PyObject* loop) noexcept;
void disarm_timer(PyObject* loop, TimerNode& node) noexcept;
/// The stack of who made a handle, for debug mode. Throws ErrorSet.
cpython::Ref trace_of_caller(PyObject* loop);

}  // namespace gossamer::loop
