// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/transport.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "cpython/error.hpp"
#include "loop/stream_feed.hpp"

namespace gossamer::loop {

using core::Interest;
using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::uint32_t kReadEvents = static_cast<std::uint32_t>(Interest::kRead);
constexpr std::uint32_t kWriteEvents = static_cast<std::uint32_t>(Interest::kWrite);
constexpr std::size_t kBulk = 16 * 1024;  // from here on reads go straight into a bytes object
constexpr std::size_t kLargestRead = 256 * 1024;
constexpr int kMostPieces = 64;  // of one system call
constexpr int kMostFlushes = 8;  // of one turn
constexpr int kLostWritesBeforeWarning = 5;

bool is_exit() noexcept {
    return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0 || PyErr_ExceptionMatches(PyExc_SystemExit) != 0;
}

/// A buffer of a Python object.
class View final {
public:
    View(PyObject* object, int flags) { cpython::check(PyObject_GetBuffer(object, &view_, flags)); }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() { PyBuffer_Release(&view_); }

    char* bytes() const noexcept { return static_cast<char*>(view_.buf); }
    std::size_t size() const noexcept { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};

void check_is_bytes_like(PyObject* object) {
    if (!PyBytes_Check(object) && !PyByteArray_Check(object) && !PyMemoryView_Check(object)) {
        cpython::raise(PyExc_TypeError, "data argument must be a bytes-like object, not '%.200s'",
                       Py_TYPE(object)->tp_name);
    }
}

}  // namespace

Unsent::Unsent(PyObject* object, const char* bytes, std::size_t size) : bytes_(bytes), size_(size) {
    if (PyBytes_CheckExact(object)) {
        kept_ = cpython::borrow(object);
    } else {
        kept_ = steal(PyBytes_FromStringAndSize(bytes, static_cast<Py_ssize_t>(size)));
        bytes_ = PyBytes_AS_STRING(kept_.ptr());
    }
}

SocketTransport::SocketTransport(EventLoop& loop, PyObject* self, PyObject* socket, int fd, bool is_tcp,
                                 PyObject* context)
    : LoopWatch(loop, fd, &serve),
      Runnable(self),
      is_tcp_(is_tcp),
      loop_object_(cpython::borrow(loop.object())),
      socket_(cpython::borrow(socket)),
      context_(cpython::borrow(context)) {}

void SocketTransport::set_protocol(PyObject* protocol) {
    const int is_buffered = PyObject_IsInstance(protocol, loop().parts().buffered_protocol);
    cpython::check(is_buffered);
    is_buffered_protocol_ = is_buffered != 0;
    is_stream_protocol_ = is_stream_protocol(loop().parts(), protocol);
    Ref(cpython::borrow(protocol)).swap(protocol_);
}

void SocketTransport::start_reading() {
    if (is_closing || is_started_) {
        return;
    }
    is_started_ = true;
    loop().watch(*this, kReadEvents | (unsent_.empty() ? 0 : kWriteEvents));
    loop().hold(*this, owner());
}

void SocketTransport::resume_reading() {
    if (is_closing || !is_paused) {
        return;
    }
    is_paused = false;
    if (is_started_) {
        loop().hold(*this, owner());
    }
    queue_if_useful();
}

void SocketTransport::serve(LoopWatch& watch, std::uint32_t events) {
    auto& self = static_cast<SocketTransport&>(watch);
    self.is_readable_ = self.is_readable_ || (events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0;
    self.is_writable_ = self.is_writable_ || (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0;
    self.is_hung_up_ = self.is_hung_up_ || (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) != 0;
    self.queue_if_useful();
}

void SocketTransport::queue_if_useful() {
    const bool can_read = is_readable_ && is_reading() && is_started_ && !has_read_eof_;
    const bool can_write = is_writable_ && !unsent_.empty();
    if (!is_queued_ && lost_count == 0 && (can_read || can_write)) {
        loop().push_ready(*this);
        is_queued_ = true;
    }
}

void SocketTransport::run() {
    is_queued_ = false;
    if (lost_count > 0) {
        return;
    }
    if (is_readable_ && is_reading() && !has_read_eof_) {
        read();
    }
    if (is_writable_ && !unsent_.empty() && lost_count == 0) {
        flush();
    }
    queue_if_useful();
}

/// Calls what runs the protocol's code in the transport's context.
template <typename Call>
Ref SocketTransport::in_context(Call call) {
    const Ref context = cpython::borrow(context_.ptr());
    cpython::check(PyContext_Enter(context.ptr()));
    PyObject* result = call();
    PyObject* error = result == nullptr ? PyErr_GetRaisedException() : nullptr;
    cpython::check(PyContext_Exit(context.ptr()));
    if (result == nullptr) {
        PyErr_SetRaisedException(error);
    }
    return steal(result);
}

void SocketTransport::read() {
    if (is_buffered_protocol_) {
        read_into_protocol();
    } else {
        read_bytes();
    }
}

/// What a recv(2) that returned `size` says. Returns whether there are bytes for the protocol.
bool SocketTransport::take_read(ssize_t size, std::size_t wanted) {
    if (size > 0) {
        last_read_ = static_cast<std::size_t>(size);
        // A short read has drained a TCP socket: the next one would say EAGAIN.
        is_readable_ = last_read_ == wanted || is_hung_up_ || !is_tcp_;
        return true;
    }
    if (size == 0) {
        reach_eof();
    } else if (errno == EAGAIN) {
        is_readable_ = false;
    } else if (errno != EINTR) {
        fail_with_errno(errno, "Fatal read error on socket transport");
    }
    return false;
}

void SocketTransport::read_bytes() {
    Ref data;
    if (last_read_ < kBulk) {
        char* buffer = loop().hub()->read_buffer();
        const ssize_t size = ::recv(fd(), buffer, sched::Hub::kReadBufferBytes, MSG_DONTWAIT);
        if (!take_read(size, sched::Hub::kReadBufferBytes)) {
            return;
        }
        // No Python has run since the system call, so the buffer is still ours.
        if (is_stream_protocol_ && feed(buffer, static_cast<std::size_t>(size))) {
            return;
        }
        data = steal(PyBytes_FromStringAndSize(buffer, size));
    } else {
        const std::size_t wanted = std::clamp(last_read_ * 2, 4 * kBulk, kLargestRead);
        PyObject* bytes = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(wanted))).release();
        const ssize_t size = ::recv(fd(), PyBytes_AS_STRING(bytes), wanted, MSG_DONTWAIT);
        const int error = errno;
        if (size > 0 && size != static_cast<ssize_t>(wanted)) {
            cpython::check(_PyBytes_Resize(&bytes, size));
        }
        data = Ref::steal_or_null(bytes);
        errno = error;
        if (!take_read(size, wanted)) {
            return;
        }
    }
    try {
        in_context([&] {
            PyObject* args[] = {protocol_.ptr(), data.ptr()};
            return PyObject_VectorcallMethod(loop().parts().data_received_name, args,
                                             2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
        });
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.data_received() call failed.");
    }
}

/// Puts bytes straight into the reader of asyncio's streams. Returns whether it did.
bool SocketTransport::feed(const char* bytes, std::size_t size) {
    bool was_fed = false;
    try {
        // In the transport's context: whoever is woken is woken from there.
        in_context([&] {
            return cpython::guarded<PyObject*>(nullptr, [&] {
                was_fed = feed_stream(loop().parts(), protocol_.ptr(), bytes, size);
                return Py_NewRef(Py_None);
            });
        });
    } catch (const cpython::ErrorSet&) {
        was_fed = true;
        fail("Fatal error: protocol.data_received() call failed.");
    }
    return was_fed;
}

void SocketTransport::read_into_protocol() {
    const Parts& parts = loop().parts();
    const Ref protocol = cpython::borrow(protocol_.ptr());
    ssize_t size = 0;
    try {
        const Ref buffer = in_context([&] {
            PyObject* args[] = {protocol.ptr(), parts.minus_one};
            return PyObject_VectorcallMethod(parts.get_buffer_name, args, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
        });
        const View view(buffer.ptr(), PyBUF_WRITABLE);
        if (view.size() == 0) {
            cpython::raise(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        }
        if (lost_count > 0) {
            return;
        }
        size = ::recv(fd(), view.bytes(), view.size(), MSG_DONTWAIT);
        if (!take_read(size, view.size())) {
            return;
        }
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.get_buffer() call failed.");
        return;
    }
    try {
        const Ref count = steal(PyLong_FromSsize_t(size));
        in_context([&] {
            PyObject* args[] = {protocol.ptr(), count.ptr()};
            return PyObject_VectorcallMethod(parts.buffer_updated_name, args, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET,
                                             nullptr);
        });
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.buffer_updated() call failed.");
    }
}

void SocketTransport::reach_eof() {
    has_read_eof_ = true;
    is_readable_ = false;
    int keeps_open = 0;
    try {
        const Ref answer =
            in_context([&] { return PyObject_CallMethodNoArgs(protocol_.ptr(), loop().parts().eof_received_name); });
        keeps_open = PyObject_IsTrue(answer.ptr());
        cpython::check(keeps_open);
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.eof_received() call failed.");
        return;
    }
    if (keeps_open == 0) {
        close();
    } else if (unsent_.empty()) {
        loop().release(*this);
    }
}

// ---- writing ----

/// Returns whether what is written goes anywhere. Throws ErrorSet.
bool SocketTransport::check_can_write(const char* method) {
    if (has_sent_eof) {
        cpython::raise(PyExc_RuntimeError, "Cannot call %s() after write_eof()", method);
    }
    if (empty_waiter) {
        cpython::raise(PyExc_RuntimeError, "unable to %s; sendfile is in progress", method);
    }
    return true;
}

void SocketTransport::write(PyObject* object) {
    check_is_bytes_like(object);
    check_can_write("write");
    const bool is_bytes = PyBytes_CheckExact(object);
    std::optional<View> view;
    if (!is_bytes) {
        view.emplace(object, PyBUF_SIMPLE);
    }
    const char* bytes = is_bytes ? PyBytes_AS_STRING(object) : view->bytes();
    std::size_t size = is_bytes ? static_cast<std::size_t>(PyBytes_GET_SIZE(object)) : view->size();
    if (size == 0) {
        return;
    }
    if (lost_count > 0) {
        if (lost_count >= kLostWritesBeforeWarning) {
            steal(PyObject_CallMethod(owner(), "_warn_of_lost_write", nullptr));
        }
        ++lost_count;
        return;
    }
    if (unsent_.empty()) {
        const ssize_t sent = ::send(fd(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            fail_with_errno(errno, "Fatal write error on socket transport");
            return;
        }
        if (sent > 0) {
            bytes += sent;
            size -= static_cast<std::size_t>(sent);
        }
        if (size == 0) {
            return;
        }
        is_writable_ = sent < 0 && errno == EINTR;
    }
    keep(object, bytes, size);
    want_to_write();
    pause_protocol();
}

void SocketTransport::write_several(PyObject* objects) {
    check_can_write("writelines");
    const Ref sequence = steal(PySequence_Fast(objects, "writelines() takes an iterable of bytes-like objects"));
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
    if (count == 0) {
        return;
    }
    if (lost_count > 0) {
        ++lost_count;
        return;
    }
    const bool was_empty = unsent_.empty();
    for (Py_ssize_t index = 0; index < count; ++index) {
        PyObject* object = PySequence_Fast_GET_ITEM(sequence.ptr(), index);
        const View view(object, PyBUF_SIMPLE);
        if (view.size() > 0) {
            keep(object, view.bytes(), view.size());
        }
    }
    if (was_empty && !unsent_.empty()) {
        flush();
    }
    if (!unsent_.empty()) {
        want_to_write();
        pause_protocol();
    }
}

void SocketTransport::keep(PyObject* object, const char* bytes, std::size_t size) {
    unsent_.emplace_back(object, bytes, size);
    unsent_bytes_ += size;
}

/// Has the loop tell when the socket is writable.
void SocketTransport::want_to_write() {
    if ((wanted_events() & kWriteEvents) == 0) {
        loop().watch(*this, wanted_events() | kWriteEvents);
    }
    loop().hold(*this, owner());
    queue_if_useful();
}

/// One system call, as much as the kernel takes.
ssize_t SocketTransport::send_unsent() noexcept {
    iovec pieces[kMostPieces];
    msghdr message{};
    message.msg_iov = pieces;
    for (const Unsent& piece : unsent_) {
        if (message.msg_iovlen == kMostPieces) {
            break;
        }
        // Safety: sendmsg(2) only reads.
        pieces[message.msg_iovlen++] = {const_cast<char*>(piece.bytes()), piece.size()};
    }
    return ::sendmsg(fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void SocketTransport::drop_sent(std::size_t count) {
    unsent_bytes_ -= count;
    while (count > 0) {
        Unsent& first = unsent_.front();
        if (count < first.size()) {
            first.drop_front(count);
            return;
        }
        count -= first.size();
        const Unsent sent = std::move(first);  // what dies here dies after it has left the queue
        unsent_.pop_front();
    }
}

void SocketTransport::flush() {
    for (int round = 0; round < kMostFlushes && !unsent_.empty(); ++round) {
        const ssize_t sent = send_unsent();
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0 && errno == EAGAIN) {
            is_writable_ = false;
            break;
        }
        if (sent < 0) {
            const int error = errno;
            unsent_.clear();
            unsent_bytes_ = 0;
            fail_with_errno(error, "Fatal write error on socket transport");
            return;
        }
        drop_sent(static_cast<std::size_t>(sent));
    }
    resume_protocol();  // which may write
    if (!unsent_.empty()) {
        return;
    }
    if (!is_reading() || has_read_eof_) {
        const Ref kept = cpython::borrow(owner());
        loop().release(*this);
    }
    if (empty_waiter || is_closing || has_sent_eof) {
        steal(PyObject_CallMethod(owner(), "_become_empty", nullptr));
    }
}

void SocketTransport::set_limits(std::size_t high, std::size_t low) {
    high_water = high;
    low_water = low;
    pause_protocol();
}

void SocketTransport::pause_protocol() {
    if (unsent_bytes_ <= high_water || is_protocol_paused_) {
        return;
    }
    is_protocol_paused_ = true;
    PyObject* result = PyObject_CallMethod(protocol_.ptr(), "pause_writing", nullptr);
    if (result == nullptr) {
        report("protocol.pause_writing() failed");
    }
    Py_XDECREF(result);
}

void SocketTransport::resume_protocol() {
    if (!is_protocol_paused_ || unsent_bytes_ > low_water) {
        return;
    }
    is_protocol_paused_ = false;
    PyObject* result = PyObject_CallMethod(protocol_.ptr(), "resume_writing", nullptr);
    if (result == nullptr) {
        report("protocol.resume_writing() failed");
    }
    Py_XDECREF(result);
}

// ---- the end ----

void SocketTransport::close() {
    if (is_closing) {
        return;
    }
    is_closing = true;
    if (unsent_.empty()) {
        schedule_connection_lost(Py_None);
    }
}

void SocketTransport::force_close(PyObject* error) {
    if (lost_count > 0) {
        return;
    }
    const std::deque<Unsent> dropped = std::exchange(unsent_, {});
    unsent_bytes_ = 0;
    is_closing = true;
    schedule_connection_lost(error);
}

void SocketTransport::schedule_connection_lost(PyObject* error) {
    const Ref kept = cpython::borrow(owner());
    ++lost_count;
    steal(PyObject_CallMethod(owner(), "_schedule_connection_lost", "O", error));
    loop().release(*this);
    loop().unwatch(*this);
}

void SocketTransport::finish() {
    loop().release(*this);
    loop().unwatch(*this);
    is_closing = true;
    lost_count = std::max(lost_count, 1);
    clear();
}

/// What the protocol or the kernel did ends the connection, unless it ends the program. Throws ErrorSet then.
void SocketTransport::fail(const char* message) {
    if (is_exit()) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(owner(), "_fatal_error", "Os", error.ptr(), message));
}

void SocketTransport::fail_with_errno(int error, const char* message) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    fail(message);
}

/// The same, but the connection stays.
void SocketTransport::report(const char* message) {
    if (is_exit()) {
        throw cpython::ErrorSet{};
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(owner(), "_report", "Os", error.ptr(), message));
}

int SocketTransport::traverse(visitproc visit, void* arg) {
    for (const Ref* ref : {&loop_object_, &socket_, &protocol_, &context_, &empty_waiter}) {
        Py_VISIT(ref->ptr());
    }
    return 0;
}

void SocketTransport::clear() {
    // The loop stays: the watch refers to it for as long as it lives.
    const Ref socket = std::move(socket_);
    const Ref protocol = std::move(protocol_);
    const Ref waiter = std::move(empty_waiter);
    const std::deque<Unsent> dropped = std::exchange(unsent_, {});
    unsent_bytes_ = 0;
}

}  // namespace gossamer::loop
