// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/watch.hpp"

#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "cpython/error.hpp"
#include "loop/bare_watch.hpp"
#include "loop/event_loop.hpp"

namespace gossamer::loop {

using core::Interest;
using cpython::Ref;

namespace {

/// What epoll_ctl(2) would say of watching `fd`, for a loop that has no reactor at the moment.
int error_of_watching(int fd) noexcept {
    struct stat status{};
    if (::fstat(fd, &status) != 0) {
        return errno;
    }
    return S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) ? EPERM : 0;
}

}  // namespace

LoopWatch::LoopWatch(EventLoop& loop, int fd, Serve serve) noexcept
    : FdWatch(&note_events), loop_(&loop), fd_(fd), serve_(serve) {}

void LoopWatch::leave_loop() noexcept {
    if (EventLoop* loop = std::exchange(loop_, nullptr)) {
        loop->unwatch(*this);
    }
}

void LoopWatch::note_events(core::FdWatch& watch, std::uint32_t events) noexcept {
    auto& self = static_cast<LoopWatch&>(watch);
    self.pending_events_ |= events;
    self.loop_->note_activity(self.activity_);
}

void LoopWatch::serve_watch(Activity& activity) {
    LoopWatch& self = *static_cast<OwnActivity&>(activity).watch;
    self.serve_(self, std::exchange(self.pending_events_, 0));
}

void EventLoop::note_activity(Activity& activity) noexcept {
    if (!activity.is_linked()) {
        active_.push_back(activity);
    }
    wake_if_idle();
}

void EventLoop::disarm_watch(LoopWatch& watch) noexcept {
    // Not by hub_: in a forked child the hub has another reactor.
    if (core::EpollReactor* reactor = std::exchange(watch.reactor_, nullptr)) {
        reactor->remove_watch(watch);
    }
}

int EventLoop::arm_watch(LoopWatch& watch) noexcept {
    try {
        watch.reactor_ = &hub_->reactor();
        return hub_->reactor().add_watch(watch.fd_, watch, watch.wanted_events_);
    } catch (const std::bad_alloc&) {
        return ENOMEM;
    }
}

void EventLoop::watch(LoopWatch& watch, std::uint32_t events) {
    const std::uint32_t before = std::exchange(watch.wanted_events_, events);
    const int error = hub_ == nullptr ? error_of_watching(watch.fd_) : arm_watch(watch);
    if (error != 0) {
        watch.wanted_events_ = before;
        cpython::raise_os_error(error);
    }
    if (!watch.membership_.is_linked()) {
        watches_.push_back(watch.membership_);
    }
}

int EventLoop::descriptor_of(PyObject* file) const {
    const int fd = PyObject_AsFileDescriptor(file);
    if (fd >= 0) {
        return fd;
    }
    if (PyErr_ExceptionMatches(PyExc_ValueError) != 0) {
        for (const auto& [watched, watch] : bare_watches_) {
            if (watch->file.ptr() == file) {
                PyErr_Clear();
                return watched;
            }
        }
    }
    throw cpython::ErrorSet{};
}

std::uint32_t EventLoop::watched_events(int fd) const noexcept {
    const auto found = bare_watches_.find(fd);
    return found == bare_watches_.end() ? 0 : found->second->wanted_events();
}

void EventLoop::unwatch(LoopWatch& watch) noexcept {
    if (watch.membership_.is_linked()) {
        watch.membership_.unlink();
    }
    if (watch.activity_.is_linked()) {
        watch.activity_.unlink();
    }
    disarm_watch(watch);
    watch.wanted_events_ = watch.pending_events_ = 0;
}

void EventLoop::hold(LoopWatch& watch, PyObject* object) noexcept {
    if (watch.held_ == nullptr) {
        watch.held_ = Py_NewRef(object);
    }
}

void EventLoop::release(LoopWatch& watch) { Py_CLEAR(watch.held_); }

void EventLoop::serve_active() {
    while (Activity* activity = active_.pop_front()) {
        activity->serve(*activity);
    }
}

void BareWatch::serve(LoopWatch& watch, std::uint32_t events) { EventLoop::serve_bare(watch, events); }

void EventLoop::serve_bare(LoopWatch& watch, std::uint32_t events) {
    auto& self = static_cast<BareWatch&>(watch);
    EventLoop& loop = self.loop();
    // As selectors.EpollSelector has it: an error or a hang-up is for both.
    if (self.reader && (events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0 &&
        std::exchange(self.reader_turn, loop.turn_) != loop.turn_) {
        loop.push_ready(cpython::borrow(self.reader.ptr()));
    }
    if (self.writer && (events & ~static_cast<std::uint32_t>(EPOLLIN)) != 0 &&
        std::exchange(self.writer_turn, loop.turn_) != loop.turn_) {
        loop.push_ready(cpython::borrow(self.writer.ptr()));
    }
    if (!self.is_to_recheck) {
        loop.rechecks_.push_back(self.fd());
        self.is_to_recheck = true;
    }
}

void EventLoop::recheck_bare_watches() {
    if (rechecks_.empty()) {
        return;
    }
    std::vector<pollfd> descriptors;
    descriptors.reserve(rechecks_.size());
    for (const int fd : rechecks_) {
        const auto found = bare_watches_.find(fd);
        if (found != bare_watches_.end()) {
            BareWatch& watch = *found->second;
            watch.is_to_recheck = false;
            const int wanted = (watch.reader ? POLLIN : 0) | (watch.writer ? POLLOUT : 0);
            descriptors.push_back({.fd = fd, .events = static_cast<short>(wanted), .revents = 0});
        }
    }
    rechecks_.clear();
    if (descriptors.empty() || ::poll(descriptors.data(), descriptors.size(), 0) <= 0) {
        return;
    }
    for (const pollfd& descriptor : descriptors) {
        // POLLNVAL: it was closed, and epoll says nothing of it either.
        if (descriptor.revents != 0 && (descriptor.revents & POLLNVAL) == 0) {
            const auto found = bare_watches_.find(descriptor.fd);
            // poll's bits are epoll's (poll(2), epoll_ctl(2)).
            serve_bare(*found->second, static_cast<std::uint32_t>(descriptor.revents));
        }
    }
}

void EventLoop::add_bare(PyObject* file, Interest interest, Ref handle) {
    const int fd = PyObject_AsFileDescriptor(file);
    cpython::check(fd);
    std::unique_ptr<BareWatch>& place = bare_watches_[fd];
    if (!place) {
        try {
            place = std::make_unique<BareWatch>(*this, fd);
        } catch (...) {
            bare_watches_.erase(fd);
            throw;
        }
    }
    BareWatch& watch = *place;
    try {
        this->watch(watch, watch.wanted_events() | static_cast<std::uint32_t>(interest));
    } catch (...) {
        if (!watch.reader && !watch.writer) {
            bare_watches_.erase(fd);
        }
        throw;
    }
    Ref latest = cpython::borrow(file);
    watch.file.swap(latest);
    Ref& mine = interest == Interest::kRead ? watch.reader : watch.writer;
    mine.swap(handle);
    if (handle) {
        cancel_handle(parts_, handle.ptr());
    }
}

bool EventLoop::remove_bare(int fd, Interest interest) {
    const auto found = bare_watches_.find(fd);
    if (found == bare_watches_.end()) {
        return false;
    }
    BareWatch& watch = *found->second;
    Ref& mine = interest == Interest::kRead ? watch.reader : watch.writer;
    const Ref handle = std::move(mine);
    if (!handle) {
        return false;
    }
    Ref file;  // dies last
    if (!watch.reader && !watch.writer) {
        file.swap(watch.file);
        bare_watches_.erase(found);
    } else {
        watch.watched_events = watch.wanted_events_ =
            static_cast<std::uint32_t>(interest == Interest::kRead ? Interest::kWrite : Interest::kRead);
    }
    cancel_handle(parts_, handle.ptr());
    return true;
}

}  // namespace gossamer::loop
