// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/socket_operation.hpp"

#include <cerrno>
#include <optional>
#include <sys/socket.h>
#include <utility>

#include "core/epoll_reactor.hpp"
#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "cpython/socket_object.hpp"
#include "loop/awaited_operation.hpp"
#include "loop/event_loop.hpp"
#include "loop/future_wait.hpp"

namespace gossamer::loop {

using core::Interest;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using cpython::words_of_socket;

namespace {

enum class Kind : std::uint8_t { kRecv, kRecvInto, kSendAll };
constexpr const char* kNames[] = {"EventLoop.sock_recv", "EventLoop.sock_recv_into", "EventLoop.sock_sendall"};

class SocketOperation final : private core::Wakeable {
public:
    SocketOperation(Kind kind, PyObject* loop, PyObject* socket)
        : kind_(kind), loop_(loop_of(loop)), loop_object_(cpython::borrow(loop)), socket_(cpython::borrow(socket)) {}
    SocketOperation(const SocketOperation&) = delete;
    SocketOperation& operator=(const SocketOperation&) = delete;
    ~SocketOperation() { end(); }

    void set_wanted(Py_ssize_t wanted) noexcept { size_ = static_cast<std::size_t>(wanted); }

    void set_buffer(PyObject* object, int flags) {
        cpython::check(PyObject_GetBuffer(object, &view_, flags));
        size_ = static_cast<std::size_t>(view_.len);
    }

    /// Goes on: the result, or null and what to wait for in `waits_for`. Throws ErrorSet.
    Ref advance(Ref& waits_for) {
        stop_waiting();
        try {
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

    /// The awaiting side gives up.
    void end() noexcept {
        stop_waiting();
        state_ = OperationState::kOver;
        if (view_.obj != nullptr) {
            PyBuffer_Release(&view_);
        }
    }

    OperationState state() const noexcept { return state_; }
    const char* name() const noexcept { return kNames[static_cast<std::size_t>(kind_)]; }

    int traverse(visitproc visit, void* arg) {
        Py_VISIT(loop_object_.ptr());
        Py_VISIT(socket_.ptr());
        Py_VISIT(future_.ptr());
        Py_VISIT(view_.obj);
        return 0;
    }

private:
    Interest interest() const noexcept { return kind_ == Kind::kSendAll ? Interest::kWrite : Interest::kRead; }

    int fd() const {
        const int fd = words_of_socket(socket_.ptr()).fd;
        if (fd < 0) {
            cpython::raise_os_error(EBADF);
        }
        return fd;
    }

    sched::Hub& hub() const {
        sched::Hub* hub = loop_.hub();
        if (hub == nullptr || hub != sched::Hub::current()) {
            cpython::raise(PyExc_RuntimeError, "the event loop of the operation is not running here");
        }
        return *hub;
    }

    Ref attempt() {
        switch (kind_) {
            case Kind::kRecv:
                return receive();
            case Kind::kRecvInto:
                return receive_into();
            case Kind::kSendAll:
                return send_all();
        }
        Py_UNREACHABLE();
    }

    /// Calls `call(fd)`, a recv(2) of `wanted` bytes. -1: it would block.
    template <typename Call>
    ssize_t read_with(std::size_t wanted, Call call) {
        core::FdEntry& entry = hub().reactor().entry(fd(), socket_.ptr());
        if (!entry.may_be_readable) {
            return -1;
        }
        ssize_t size = 0;
        do {
            size = call(fd());
        } while (size < 0 && errno == EINTR);
        if (size < 0 && errno != EAGAIN) {
            cpython::raise_os_error(errno);
        }
        // As interpose/python/socket.cpp has it: what a short read has drained is not read again before an edge.
        if (size < 0) {
            entry.may_be_readable = entry.is_hung_up;
        } else if (size > 0 && static_cast<std::size_t>(size) < wanted &&
                   words_of_socket(socket_.ptr()).is_byte_stream() && entry.is_registered && !entry.is_hung_up &&
                   !entry.has_urgent_data) {
            entry.may_be_readable = false;
        }
        return size;
    }

    Ref receive() {
        constexpr std::size_t kBulk = 16 * 1024;
        core::FdEntry& entry = hub().reactor().entry(fd(), socket_.ptr());
        if (size_ <= sched::Hub::kReadBufferBytes && !entry.reads_in_bulk) {
            char* buffer = hub().read_buffer();
            const ssize_t size = read_with(size_, [&](int fd) { return ::recv(fd, buffer, size_, MSG_DONTWAIT); });
            entry.reads_in_bulk = size >= static_cast<ssize_t>(kBulk);
            return size < 0 ? Ref() : steal(PyBytes_FromStringAndSize(buffer, size));
        }
        PyObject* bytes = nullptr;
        const ssize_t size = read_with(size_, [&](int fd) {
            Ref old = Ref::steal_or_null(std::exchange(bytes, nullptr));
            bytes = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size_))).release();
            return ::recv(fd, PyBytes_AS_STRING(bytes), size_, MSG_DONTWAIT);
        });
        if (size < 0) {
            Py_XDECREF(bytes);
            return Ref();
        }
        entry.reads_in_bulk = size >= static_cast<ssize_t>(kBulk);
        if (static_cast<std::size_t>(size) != size_) {
            cpython::check(_PyBytes_Resize(&bytes, size));
        }
        return Ref::steal_or_null(bytes);
    }

    Ref receive_into() {
        const ssize_t size = read_with(size_, [&](int fd) { return ::recv(fd, view_.buf, size_, MSG_DONTWAIT); });
        return size < 0 ? Ref() : steal(PyLong_FromSsize_t(size));
    }

    Ref send_all() {
        while (sent_ < size_) {
            const ssize_t sent =
                ::send(fd(), static_cast<const char*>(view_.buf) + sent_, size_ - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent >= 0) {
                sent_ += static_cast<std::size_t>(sent);
            } else if (errno == EAGAIN) {
                return Ref();
            } else if (errno != EINTR) {
                cpython::raise_os_error(errno);
            }
        }
        return cpython::borrow(Py_None);
    }

    /// Queues for the next edge. Returns the future that tells of it.
    Ref wait() {
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

    struct OwnActivity final : Activity {
        explicit OwnActivity(SocketOperation& whose) noexcept : Activity(&SocketOperation::serve), operation(&whose) {}
        SocketOperation* const operation;
    };
    struct OwnWait final : WaitingOperation {
        explicit OwnWait(SocketOperation& whose) noexcept : WaitingOperation(&interrupt_wait), operation(&whose) {}
        SocketOperation* const operation;
    };

    void leave_reactor() noexcept {
        if (waiter_) {
            reactor_->remove_waiter(*waiter_);
            waiter_.reset();
        }
        if (wait_.is_linked()) {
            wait_.unlink();
        }
    }

    void stop_waiting() noexcept {
        leave_reactor();
        if (activity_.is_linked()) {
            activity_.unlink();
        }
        future_.reset();
    }

    void wake() noexcept override { loop_.note_activity(activity_); }

    /// The loop stops: what waits tries again when it runs the next time.
    static void interrupt_wait(WaitingOperation& wait) noexcept {
        SocketOperation& self = *static_cast<OwnWait&>(wait).operation;
        self.leave_reactor();
        self.loop_.note_activity(self.activity_);
    }

    static void serve(Activity& activity) {
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

    const Kind kind_;
    OperationState state_ = OperationState::kNew;
    EventLoop& loop_;
    const Ref loop_object_;
    const Ref socket_;
    std::size_t size_ = 0;  // wanted, or of the buffer
    std::size_t sent_ = 0;
    Py_buffer view_{};
    std::optional<core::FdWaiter> waiter_;
    core::EpollReactor* reactor_ = nullptr;  // that the waiter is queued in
    OwnActivity activity_{*this};
    OwnWait wait_{*this};
    Ref future_;
};

using Operation = AwaitedOperation<SocketOperation>;

/// A new operation; `prepare(operation)` checks and keeps its arguments. Throws ErrorSet.
template <typename Prepare>
PyObject* make(Kind kind, PyObject* loop, PyObject* socket, Prepare prepare) {
    return Operation::make(loop_of(loop).parts().socket_operation_type, prepare, kind, loop, socket);
}

/// Whether the usual case: everything else is asyncio's own method's.
bool is_usual(PyObject* loop, PyObject* const* args, Py_ssize_t count) noexcept {
    const EventLoop& event_loop = loop_of(loop);
    return count == 2 && !event_loop.is_debugging &&
           Py_TYPE(args[0]) == reinterpret_cast<PyTypeObject*>(event_loop.parts().socket_type);
}

PyObject* call_asyncio(const char* name, PyObject* loop, PyObject* const* args, Py_ssize_t count) {
    const Ref method = steal(PyObject_GetAttrString(loop_of(loop).parts().selector_loop_type, name));
    const Ref arguments = steal(PyTuple_New(count + 1));
    PyTuple_SET_ITEM(arguments.ptr(), 0, Py_NewRef(loop));
    for (Py_ssize_t index = 0; index < count; ++index) {
        PyTuple_SET_ITEM(arguments.ptr(), index + 1, Py_NewRef(args[index]));
    }
    return PyObject_CallObject(method.ptr(), arguments.ptr());
}

}  // namespace

PyTypeObject* create_socket_operation_type(PyObject* module) {
    return Operation::create_type(module, "gossamer._core.SocketOperation");
}

PyObject* sock_recv(PyObject* loop, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count) || !PyLong_CheckExact(args[1])) {
            return call_asyncio("sock_recv", loop, args, count);
        }
        return make(Kind::kRecv, loop, args[0], [&](SocketOperation& operation) {
            const Py_ssize_t wanted = PyLong_AsSsize_t(args[1]);
            if (wanted < 0) {
                if (!PyErr_Occurred()) {
                    PyErr_SetString(PyExc_ValueError, "negative buffersize in recv");
                }
                throw cpython::ErrorSet{};
            }
            operation.set_wanted(wanted);
        });
    });
}

PyObject* sock_recv_into(PyObject* loop, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count)) {
            return call_asyncio("sock_recv_into", loop, args, count);
        }
        return make(Kind::kRecvInto, loop, args[0],
                    [&](SocketOperation& operation) { operation.set_buffer(args[1], PyBUF_WRITABLE); });
    });
}

PyObject* sock_sendall(PyObject* loop, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count)) {
            return call_asyncio("sock_sendall", loop, args, count);
        }
        return make(Kind::kSendAll, loop, args[0],
                    [&](SocketOperation& operation) { operation.set_buffer(args[1], PyBUF_SIMPLE); });
    });
}

}  // namespace gossamer::loop
