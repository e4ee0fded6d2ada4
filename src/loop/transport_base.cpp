// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/transport_base.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/epoll.h>
#include <utility>

#include "cpython/error.hpp"
#include "cpython/socket_object.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

Transport::Transport(EventLoop& loop, PyObject* self, PyObject* file, int fd, PyObject* context)
    : LoopWatch(loop, fd, &serve),
      Runnable(self),
      loop_object_(cpython::borrow(loop.object())),
      file_(cpython::borrow(file)),
      context_(context == nullptr ? steal(PyContext_CopyCurrent()) : cpython::borrow(context)),
      has_given_context_(context != nullptr) {}

Transport::~Transport() {
    loop().remove_transport(fd(), owner());
    leave_loop();  // which loop_object_ keeps alive
}

void Transport::set_protocol(PyObject* protocol) { Ref(cpython::borrow(protocol)).swap(protocol_); }

// ---- the beginning ----

void Transport::begin(PyObject* waiter) {
    loop().check_open();
    waiter_ = cpython::borrow(waiter == Py_None ? nullptr : waiter);
    if (!loop().is_debugging) {
        queue();
        return;
    }
    // By handles: they are timed, and know who made them.
    stage_ = Stage::kOpen;
    PyObject* context = has_given_context_ ? context_.ptr() : nullptr;
    PyObject* self = owner();
    loop().call_method_soon(protocol_.ptr(), parts().transports.connection_made, &self, 1, context);
    loop().call_method_soon(self, parts().transports.finish_beginning, nullptr, 0, context);
}

void Transport::begin_here() {
    if (stage_ == Stage::kNew) {
        stage_ = Stage::kMade;
        try {
            call_connection_made();
        } catch (const cpython::ErrorSet&) {
            queue();  // the rest, should the program go on
            throw;
        }
    }
    stage_ = Stage::kOpen;
    finish_beginning();
    if (const Ref loss = std::move(loss_)) {
        push_connection_lost(loss.ptr());
    }
}

void Transport::call_connection_made() {
    // A context of its own, as every callback of asyncio's has that was not given one.
    const Ref context = has_given_context_ ? cpython::borrow(context_.ptr()) : steal(PyContext_Copy(context_.ptr()));
    const Ref protocol = cpython::borrow(protocol_.ptr());
    PyObject* name = parts().transports.connection_made;
    try {
        in(context.ptr(), [&] { return PyObject_CallMethodOneArg(protocol.ptr(), name, owner()); });
    } catch (const cpython::ErrorSet&) {
        loop().report_failed_call(protocol.ptr(), name, owner());
    }
}

void Transport::finish_beginning() {
    const Ref waiter = std::move(waiter_);
    try {
        start_reading();
    } catch (const cpython::ErrorSet&) {
        loop().report_failed_call(owner(), parts().transports.finish_beginning, nullptr);
    }
    if (waiter) {
        const Ref is_cancelled = steal(PyObject_CallMethodNoArgs(waiter.ptr(), parts().cancelled_name));
        if (is_cancelled.ptr() != Py_True) {
            steal(PyObject_CallMethodOneArg(waiter.ptr(), parts().set_result_name, Py_None));
        }
    }
}

void Transport::start_reading() {
    if (is_closing || is_started_) {
        return;
    }
    is_started_ = true;
    loop().watch(*this, kReadEvents | (unsent_bytes() == 0 ? 0 : kWriteEvents));
    if (!is_idle()) {
        loop().hold(*this, owner());
    }
}

// ---- turns ----

void Transport::serve(LoopWatch& watch, std::uint32_t events) {
    auto& self = static_cast<Transport&>(watch);
    self.is_readable_ = self.is_readable_ || (events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0;
    self.is_writable_ = self.is_writable_ || (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0;
    self.is_hung_up_ = self.is_hung_up_ || (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) != 0;
    self.queue_if_useful();
}

void Transport::queue() {
    loop().push_ready(*this);
    is_queued_ = true;
}

void Transport::queue_if_useful() {
    if (!is_queued_ && stage_ == Stage::kOpen && lost_count == 0 && has_work()) {
        queue();
    }
}

void Transport::run() {
    is_queued_ = false;
    try {
        if (stage_ != Stage::kOpen) {
            begin_here();
        } else if (lost_count == 0) {
            in(context_.ptr(), [&] {
                return cpython::guarded<PyObject*>(nullptr, [&] {
                    take_turn();
                    return Py_NewRef(Py_None);
                });
            });
        }
    } catch (const cpython::ErrorSet&) {
        queue_if_useful();  // the rest, should the program go on
        throw;
    }
    queue_if_useful();
}

void Transport::pause_reading() {
    if (!is_reading()) {
        return;
    }
    is_paused = true;
    if (is_idle()) {
        const Ref kept = cpython::borrow(owner());
        loop().release(*this);
    }
}

void Transport::resume_reading() {
    if (is_closing || !is_paused) {
        return;
    }
    is_paused = false;
    if (is_started_) {
        loop().hold(*this, owner());
    }
    queue_if_useful();
}

void Transport::want_to_write() {
    if ((wanted_events() & kWriteEvents) == 0) {
        loop().watch(*this, wanted_events() | kWriteEvents);
    }
    loop().hold(*this, owner());
    queue_if_useful();
}

void Transport::warn_of_lost_write() {
    if (lost_count >= kLostWritesBeforeWarning) {
        steal(PyObject_CallMethod(owner(), "_warn_of_lost_write", nullptr));
    }
    lost_count += lost_count > 0 ? 1 : 0;  // it also says that connection_lost is on its way
}

int Transport::socket_fd() const noexcept {
    PyObject* socket = file_.ptr();
    if (socket == nullptr) {
        return -1;
    }
    const bool is_socket = PyObject_TypeCheck(socket, reinterpret_cast<PyTypeObject*>(parts().socket_type));
    return !is_socket || cpython::words_of_socket(socket).fd == fd() ? fd() : -1;
}

// ---- flow control ----

void Transport::set_limits(std::size_t high, std::size_t low) {
    high_water = high;
    low_water = low;
    pause_protocol();
}

void Transport::pause_protocol() {
    if (unsent_bytes() <= high_water || is_protocol_paused_) {
        return;
    }
    is_protocol_paused_ = true;
    note_pause();
    PyObject* result = PyObject_CallMethod(protocol_.ptr(), "pause_writing", nullptr);
    if (result == nullptr) {
        report("protocol.pause_writing() failed");
    }
    Py_XDECREF(result);
}

void Transport::resume_protocol() {
    if (!is_protocol_paused_ || unsent_bytes() > low_water) {
        return;
    }
    is_protocol_paused_ = false;
    note_pause();
    PyObject* result = PyObject_CallMethod(protocol_.ptr(), "resume_writing", nullptr);
    if (result == nullptr) {
        report("protocol.resume_writing() failed");
    }
    Py_XDECREF(result);
}

// ---- the end ----

void Transport::close() {
    if (is_closing) {
        return;
    }
    is_closing = true;
    if (unsent_bytes() == 0) {
        schedule_connection_lost(Py_None);
    }
}

void Transport::force_close(PyObject* error) {
    if (lost_count > 0) {
        return;
    }
    drop_unsent();
    if (lost_count > 0) {  // what was dropped has closed it
        return;
    }
    is_closing = true;
    schedule_connection_lost(error);
}

void Transport::schedule_connection_lost(PyObject* error) {
    const Ref kept = cpython::borrow(owner());
    ++lost_count;
    if (stage_ == Stage::kOpen) {
        push_connection_lost(error);
    } else {
        loss_ = cpython::borrow(error);
    }
    loop().release(*this);
    loop().unwatch(*this);
}

void Transport::push_connection_lost(PyObject* error) {
    loop().call_method_soon(owner(), parts().transports.call_connection_lost, &error, 1,
                            has_given_context_ ? context_.ptr() : nullptr);
}

namespace {

/// Does `step`, whatever an earlier one has raised, of which `raised` is the last.
template <typename Step>
void do_anyway(Ref& raised, Step step) {
    if (cpython::guarded(false, [&] {
            step();
            return true;
        })) {
        return;
    }
    Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    if (raised && error.ptr() != raised.ptr()) {
        PyException_SetContext(error.ptr(), raised.release());
    }
    raised = std::move(error);
}

void leave_server(const Parts& parts, PyObject* server, PyObject* transport) {
    PyObject* args[] = {server, transport};
    const std::size_t count = kServersWantTransports ? 2 : 1;
    steal(PyObject_VectorcallMethod(parts.transports.detach, args, count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

void fail_waiter(const Parts& parts, PyObject* waiter) {
    const Ref is_done = steal(PyObject_CallMethodNoArgs(waiter, parts.done_name));
    if (is_done.ptr() != Py_True) {
        const Ref error = steal(PyObject_CallFunction(PyExc_ConnectionError, "s", "Connection is closed by peer"));
        steal(PyObject_CallMethod(waiter, "set_exception", "O", error.ptr()));
    }
}

}  // namespace

void Transport::lose(PyObject* error) {
    if (!file_) {
        return;
    }
    const Ref kept = cpython::borrow(owner());
    const Ref file = cpython::borrow(file_.ptr());
    const Ref protocol = cpython::borrow(protocol_.ptr());
    const Ref server = cpython::borrow(server_.ptr());
    const Ref waiter = waiter_for_empty();
    Ref raised;
    do_anyway(raised,
              [&] { steal(PyObject_CallMethodOneArg(protocol.ptr(), parts().transports.connection_lost, error)); });
    finish();
    do_anyway(raised, [&] { steal(PyObject_CallMethodNoArgs(file.ptr(), parts().transports.close)); });
    if (server) {
        do_anyway(raised, [&] { leave_server(parts(), server.ptr(), kept.ptr()); });
    }
    if (waiter) {
        do_anyway(raised, [&] { fail_waiter(parts(), waiter.ptr()); });
    }
    if (raised) {
        PyErr_SetRaisedException(raised.release());
        throw cpython::ErrorSet{};
    }
}

/// After connection_lost.
void Transport::finish() {
    loop().remove_transport(fd(), owner());
    note_sent();  // the end is: the file is closed next
    loop().release(*this);
    loop().unwatch(*this);
    is_closing = true;
    lost_count = std::max(lost_count, 1);
    clear();
}

void Transport::fail(const char* message) {
    if (is_exit()) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(owner(), "_fatal_error", "Os", error.ptr(), message));
}

void Transport::fail_with_errno(int error, const char* message) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    fail(message);
}

void Transport::report(const char* message) {
    if (is_exit()) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(owner(), "_report", "Os", error.ptr(), message));
}

int Transport::traverse(visitproc visit, void* arg) {
    for (const Ref* ref : {&loop_object_, &file_, &protocol_, &server_, &context_, &waiter_, &loss_}) {
        Py_VISIT(ref->ptr());
    }
    return 0;
}

void Transport::clear() {
    // The loop stays: the watch refers to it for as long as it lives.
    const Ref file = std::move(file_);
    const Ref protocol = std::move(protocol_);
    const Ref server = std::move(server_);
    const Ref waiter = std::move(waiter_);
    const Ref loss = std::move(loss_);
}

}  // namespace gossamer::loop
