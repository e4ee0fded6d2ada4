// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/event_loop.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cpython/error.hpp"
#include "cpython/runtime.hpp"
#include "loop/bare_watch.hpp"
#include "sched/wait.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::Wake;

namespace {

/// A time on the loop's clock as a deadline; rounded up, so that the clock has reached it when it has passed.
core::Deadline deadline_at(double when) noexcept {
    const double nanoseconds = std::ceil(when * 1e9);
    if (!(nanoseconds < static_cast<double>(std::numeric_limits<std::int64_t>::max()))) {
        return core::Deadline::never();
    }
    constexpr double kLongAgo = -9e18;
    return core::Deadline::at(core::Nanoseconds(static_cast<std::int64_t>(std::max(nanoseconds, kLongAgo))));
}

void raise_unless_ready(Hub& hub, Wake wake) {
    if (wake == Wake::kCancelled || wake == Wake::kFailed) {
        sched::raise_wake(hub, wake);
    }
}

}  // namespace

/// The watches are the reactor's only while the loop runs: it may run on another hub the next time.
class EventLoop::Attachment final {
public:
    Attachment(EventLoop& loop, Hub& hub) : loop_(loop) {
        if (loop.hub_ != nullptr) {
            cpython::raise(PyExc_RuntimeError, "This event loop is already running");
        }
        Ref keywords = loop.keywords_of_future();  // may throw, after which nothing would be taken back
        set(&hub, &hub.waiter());
        keywords.swap(loop.future_keywords_);
        for (LoopWatch::Membership* member = loop.watches_.front(); member != nullptr;
             member = loop.watches_.next_of(*member)) {
            // What cannot be watched any more was closed by its user, and never gets ready.
            (void)loop.arm_watch(*member->watch);
        }
    }
    Attachment(const Attachment&) = delete;
    Attachment& operator=(const Attachment&) = delete;
    ~Attachment() {
        for (LoopWatch::Membership* member = loop_.watches_.front(); member != nullptr;
             member = loop_.watches_.next_of(*member)) {
            disarm_watch(*member->watch);
        }
        while (WaitingOperation* operation = loop_.operations_.pop_front()) {
            operation->interrupt(*operation);
        }
        loop_.future_keywords_.reset();
        set(nullptr, nullptr);
    }

private:
    void set(Hub* hub, core::Wakeable* runner) {
        const std::lock_guard lock(loop_.mutex_);
        loop_.hub_ = hub;
        loop_.runner_ = runner;
    }

    EventLoop& loop_;
};

EventLoop::EventLoop(Parts& parts, PyObject* object) noexcept : parts_(parts), object_(object) {}

EventLoop::~EventLoop() = default;

void EventLoop::check_open() const {
    if (is_closed) {
        cpython::raise(PyExc_RuntimeError, "Event loop is closed");
    }
}

void EventLoop::add_transport(int fd, PyObject* transport) {
    const auto index = static_cast<std::size_t>(fd);
    if (index >= transports_.size()) {
        transports_.resize(std::max(index + 1, 2 * transports_.size()));
    }
    transports_[index] = transport;
}

void EventLoop::remove_transport(int fd, PyObject* transport) noexcept {
    if (transport_of(fd) == transport) {
        transports_[static_cast<std::size_t>(fd)] = nullptr;
    }
}

PyObject* EventLoop::transport_of(int fd) const noexcept {
    const auto index = static_cast<std::size_t>(fd);
    return fd >= 0 && index < transports_.size() ? transports_[index] : nullptr;
}

char* EventLoop::datagram_buffer() {
    if (!datagram_buffer_) {
        datagram_buffer_ = std::make_unique_for_overwrite<char[]>(kDatagramBytes);
    }
    return datagram_buffer_.get();
}

void EventLoop::check_no_transport(int fd) {
    if (!other_transports_) {
        const Ref mapping = steal(PyObject_GetAttrString(object_, "_transports"));
        other_transports_ = steal(PyObject_GetAttrString(mapping.ptr(), "data"));
    }
    if (transport_of(fd) == nullptr && PyDict_Check(other_transports_.ptr()) &&
        PyDict_GET_SIZE(other_transports_.ptr()) == 0) {
        return;
    }
    steal(PyObject_CallMethod(object_, "_ensure_fd_no_transport", "i", fd));
}

void EventLoop::wake_if_idle() noexcept {
    if (is_idle_) {
        runner_->wake();
    }
}

void EventLoop::push_ready(Ref handle) {
    take_incoming();  // what was sent before comes before
    ready_.push(handle.ptr());
    handle.release();
    wake_if_idle();
}

void EventLoop::push_ready(Runnable& runnable) {
    io_ready_.push(&runnable);
    Py_INCREF(runnable.owner());
    wake_if_idle();
}

void EventLoop::call_method_soon(PyObject* object, PyObject* name, PyObject* const* args, Py_ssize_t count,
                                 PyObject* context) {
    check_open();
    const Ref method = steal(PyObject_GetAttr(object, name));
    push_ready(make_handle(parts_, object_, method.ptr(), args, count, context));
}

void EventLoop::report_failed_call(PyObject* object, PyObject* name, PyObject* argument) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) || PyErr_ExceptionMatches(PyExc_SystemExit)) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    const Ref method = steal(PyObject_GetAttr(object, name));
    const Ref handle = make_handle(parts_, object_, method.ptr(), &argument, argument == nullptr ? 0 : 1, nullptr);
    PyErr_SetRaisedException(Py_NewRef(error.ptr()));
    report_error(handle.ptr());
}

void EventLoop::push_from_anywhere(Ref handle) {
    Hub* hub = Hub::current();
    if (hub != nullptr && hub == hub_) {
        push_ready(std::move(handle));
        return;
    }
    const std::lock_guard lock(mutex_);
    incoming_.push_back(handle.ptr());
    handle.release();
    if (!has_incoming_.exchange(true) && runner_ != nullptr) {
        runner_->wake();
    }
}

void EventLoop::take_incoming() {
    if (!has_incoming_.load()) {
        return;
    }
    std::vector<PyObject*> taken;
    {
        const std::lock_guard lock(mutex_);
        has_incoming_.store(false);
        taken.swap(incoming_);
    }
    for (PyObject* handle : taken) {
        push_ready(Ref::steal_or_null(handle));
    }
}

void EventLoop::arm_timer(Ref timer_handle, double when) {
    timers_.arm(node_of(parts_, timer_handle.ptr()), deadline_at(when));
    PyObject* handle = timer_handle.release();  // the heap's
    Py_XSETREF(field_of(handle, parts_.fields.scheduled), Py_NewRef(Py_True));
    wake_if_idle();
}

void EventLoop::disarm_timer(TimerNode& node) noexcept {
    if (node.is_armed()) {
        timers_.disarm(node);
        Py_XSETREF(field_of(node.handle, parts_.fields.scheduled), Py_NewRef(Py_False));
        Py_DECREF(node.handle);
    }
}

void EventLoop::expire_timers() {
    if (timers_.is_empty()) {
        return;
    }
    const core::Nanoseconds now = core::monotonic_now();
    while (core::Timer* timer = timers_.pop_expired(now)) {
        PyObject* handle = static_cast<TimerNode*>(timer)->handle;
        Py_XSETREF(field_of(handle, parts_.fields.scheduled), Py_NewRef(Py_False));
        push_ready(Ref::steal_or_null(handle));
    }
}

void EventLoop::run() {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        cpython::raise(PyExc_RuntimeError, "this event loop runs in a virtual thread only");
    }
    const Attachment attachment(*this, *hub);
    turns_since_look_ = kTurnsBetweenLooks;  // the first turn asks the kernel, as asyncio's does
    last_look_ = core::Nanoseconds{};
    do {
        take_turn();
    } while (!is_stopping);
}

Ref EventLoop::keywords_of_future() const {
    Ref keywords = steal(PyDict_New());
    cpython::check(PyDict_SetItem(keywords.ptr(), parts_.loop_name, object_));
    return keywords;
}

Ref EventLoop::create_future() {
    // As calling the class does, which makes a tuple and a dictionary for each.
    PyTypeObject* type = parts_.future_type;
    const Ref keywords = future_keywords_ ? cpython::borrow(future_keywords_.ptr()) : keywords_of_future();
    Ref future = steal(type->tp_new(type, parts_.no_args, nullptr));
    cpython::check(type->tp_init(future.ptr(), parts_.no_args, keywords.ptr()));
    return future;
}

void EventLoop::take_turn() {
    ++turn_;
    take_incoming();
    if (ready_.is_empty() && io_ready_.is_empty() && !is_stopping) {
        wait_for_work();
    } else if (is_time_to_look()) {
        look();
    }
    take_incoming();
    serve_active();
    expire_timers();
    run_ready();
    run_io();
}

bool EventLoop::is_time_to_look() noexcept {
    if (has_sent_ || hub_->wants_attention()) {
        return true;
    }
    if (++turns_since_look_ < kTurnsBetweenLooks) {
        return false;
    }
    turns_since_look_ = 0;
    return core::monotonic_now() - last_look_ >= kLongestWithoutLook;
}

void EventLoop::look() {
    has_sent_ = false;
    recheck_bare_watches();
    raise_unless_ready(*hub_, hub_->yield_to_events());
    if (hub_->is_main_thread_hub() && hub_->running().is_main() && cpython::is_signal_pending()) {
        cpython::check(PyErr_CheckSignals());
    }
    turns_since_look_ = 0;
    last_look_ = core::monotonic_now();
}

void EventLoop::wait_for_work() {
    has_sent_ = false;
    recheck_bare_watches();
    while (ready_.is_empty() && io_ready_.is_empty() && active_.is_empty() && !has_incoming_.load() && !is_stopping) {
        is_idle_ = true;
        const Wake wake = hub_->park({.what = "something for its event loop to do", .object = object_}, timers_.next(),
                                     sched::Cancellable::kYes);
        is_idle_ = false;
        raise_unless_ready(*hub_, wake);
        if (wake == Wake::kTimedOut) {
            break;
        }
    }
    last_look_ = core::Nanoseconds{};
}

void EventLoop::run_ready() {
    for (std::size_t count = ready_.size(); count > 0; --count) {
        const Ref handle = Ref::steal_or_null(ready_.pop());
        run_handle(handle.ptr());
    }
}

void EventLoop::run_io() {
    for (std::size_t count = io_ready_.size(); count > 0; --count) {
        Runnable& runnable = *io_ready_.pop();
        const Ref owner = Ref::steal_or_null(runnable.owner());
        try {
            runnable.run();
        } catch (const cpython::ErrorSet&) {
            report_turn_error(owner.ptr());
        }
    }
}

void EventLoop::run_handle(PyObject* handle) {
    if (is_cancelled(parts_, handle)) {
        return;
    }
    try {
        if (is_debugging) [[unlikely]] {
            run_debugging(handle);
        } else if (Py_TYPE(handle) == reinterpret_cast<PyTypeObject*>(parts_.thread_safe_handle)) {
            steal(PyObject_CallMethodNoArgs(handle, parts_.run_name));  // which takes its lock
        } else {
            call_handle(parts_, handle);
        }
    } catch (const cpython::ErrorSet&) {
        report_error(handle);
    }
}

/// Calls it, and has it reported if it took long.
void EventLoop::run_debugging(PyObject* handle) { steal(PyObject_CallMethod(object_, "_run_debugging", "O", handle)); }

/// Has the loop report what a callback raised, unless it ends the program. Throws ErrorSet then.
void EventLoop::report_error(PyObject* handle) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) || PyErr_ExceptionMatches(PyExc_SystemExit)) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(object_, "_report_callback_error", "OO", handle, error.ptr()));
}

/// The same for what a transport or a server's socket raised at its turn.
void EventLoop::report_turn_error(PyObject* owner) {
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) || PyErr_ExceptionMatches(PyExc_SystemExit)) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(object_, "_report_turn_error", "OO", owner, error.ptr()));
}

void EventLoop::close() {
    // Moved out first: what dies may run Python, which may look at the loop.
    const HandleQueue ready = std::exchange(ready_, HandleQueue{});
    const RunnableQueue io_ready = std::exchange(io_ready_, RunnableQueue{});
    std::vector<PyObject*> dead;
    ready.for_each([&](PyObject* handle) { dead.push_back(handle); });
    io_ready.for_each([&](Runnable* runnable) { dead.push_back(runnable->owner()); });
    while (!timers_.is_empty()) {
        core::Timer* timer = timers_.pop_expired(core::Deadline::never().time());
        dead.push_back(static_cast<TimerNode*>(timer)->handle);
    }
    {
        const std::lock_guard lock(mutex_);
        dead.insert(dead.end(), incoming_.begin(), incoming_.end());
        incoming_.clear();
        has_incoming_.store(false);
    }
    const auto bare_watches = std::exchange(bare_watches_, {});
    const Ref transports = std::move(other_transports_);
    for (LoopWatch::Membership* member = watches_.front(); member != nullptr; member = watches_.next_of(*member)) {
        if (PyObject* held = std::exchange(member->watch->held_, nullptr)) {
            dead.push_back(held);
        }
    }
    for (PyObject* object : dead) {
        Py_DECREF(object);
    }
}

int EventLoop::traverse(visitproc visit, void* arg) {
    int result = 0;
    const auto visit_one = [&](PyObject* object) {
        if (result == 0 && object != nullptr) {
            result = visit(object, arg);
        }
    };
    ready_.for_each([&](PyObject* handle) { visit_one(handle); });
    io_ready_.for_each([&](Runnable* runnable) { visit_one(runnable->owner()); });
    timers_.for_each([&](core::Timer& timer) { visit_one(static_cast<TimerNode&>(timer).handle); });
    for (PyObject* handle : incoming_) {
        visit_one(handle);
    }
    visit_one(other_transports_.ptr());
    visit_one(future_keywords_.ptr());
    for (LoopWatch::Membership* member = watches_.front(); member != nullptr; member = watches_.next_of(*member)) {
        visit_one(member->watch->held_);
    }
    for (const auto& [fd, watch] : bare_watches_) {
        visit_one(watch->file.ptr());
        visit_one(watch->reader.ptr());
        visit_one(watch->writer.ptr());
    }
    return result;
}

}  // namespace gossamer::loop
