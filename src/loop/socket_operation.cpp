// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/socket_operation.hpp"

#include <cerrno>

#include "loop/future_wait.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;
using cpython::words_of_socket;

Ref SocketOperation::advance(Ref& waits_for) {
    stop_waiting();
    try {
        if (interest() == core::Interest::kWrite) {
            loop_.note_sent();
        }
        if (Ref result = attempt()) {
            end();
            return result;
        }
        waits_for = wait();
    } catch (...) {
        end();
        throw;
    }
    return Ref();
}

void SocketOperation::end() noexcept {
    stop_waiting();
    state_ = OperationState::kOver;
    if (view_.obj != nullptr) {
        PyBuffer_Release(&view_);
    }
}

int SocketOperation::traverse(visitproc visit, void* arg) {
    Py_VISIT(loop_object_.ptr());
    Py_VISIT(socket_.ptr());
    Py_VISIT(future_.ptr());
    Py_VISIT(view_.obj);
    return 0;
}

int SocketOperation::fd() const {
    const int fd = words_of_socket(socket_.ptr()).fd;
    if (fd < 0) {
        cpython::raise_os_error(EBADF);
    }
    return fd;
}

sched::Hub& SocketOperation::hub() const {
    sched::Hub* hub = loop_.hub();
    if (hub == nullptr || hub != sched::Hub::current()) {
        cpython::raise(PyExc_RuntimeError, "the event loop of the operation is not running here");
    }
    return *hub;
}

/// Queues for the next edge. Returns the future that tells of it.
Ref SocketOperation::wait() {
    core::EpollReactor& reactor = hub().reactor();
    loop_.check_no_transport(fd());
    const Parts& parts = loop_.parts();
    Ref future = loop_.create_future();
    mark_awaited(parts, future.ptr());
    waiter_.emplace(static_cast<core::Wakeable&>(*this), static_cast<std::uint32_t>(interest()));
    const int error = reactor.add_waiter(fd(), reactor.entry(fd(), socket_.ptr()), *waiter_);
    if (error != 0) {
        waiter_.reset();
        cpython::raise_os_error(error);
    }
    reactor_ = &reactor;
    loop_.add_operation(wait_);
    state_ = OperationState::kWaiting;
    future_ = cpython::borrow(future.ptr());
    return future;
}

void SocketOperation::leave_reactor() noexcept {
    if (waiter_) {
        reactor_->remove_waiter(*waiter_);
        waiter_.reset();
    }
    if (wait_.is_linked()) {
        wait_.unlink();
    }
}

void SocketOperation::stop_waiting() noexcept {
    leave_reactor();
    if (activity_.is_linked()) {
        activity_.unlink();
    }
    future_.reset();
}

/// The loop stops: what waits tries again when it runs the next time.
void SocketOperation::interrupt_wait(WaitingOperation& wait) noexcept {
    SocketOperation& self = *static_cast<OwnWait&>(wait).operation;
    self.leave_reactor();
    self.loop_.note_activity(self.activity_);
}

void SocketOperation::serve(Activity& activity) {
    SocketOperation& self = *static_cast<OwnActivity&>(activity).operation;
    const Ref future = std::move(self.future_);
    if (!future) {
        return;
    }
    const Parts& parts = self.loop_.parts();
    const Ref is_done = steal(PyObject_CallMethodNoArgs(future.ptr(), parts.done_name));
    if (is_done.ptr() != Py_True) {
        steal(PyObject_CallMethodOneArg(future.ptr(), parts.set_result_name, Py_None));
    }
}

PyTypeObject* create_socket_operation_type(PyObject* module) {
    return AwaitedSocketOperation::create_type(module, "gossamer._core.SocketOperation");
}

}  // namespace gossamer::loop
