// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/transport.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/socket.h>
#include <sys/uio.h>

#include "cpython/error.hpp"
#include "loop/stream.hpp"
#include "loop/tls_transport.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::size_t kBulk = 16 * 1024;  // from here on reads go straight into a bytes object
constexpr std::size_t kLargestRead = 256 * 1024;

}  // namespace

SocketTransport::SocketTransport(EventLoop& loop, PyObject* self, PyObject* socket, int fd, bool is_tcp,
                                 PyObject* context)
    : SendingTransport(loop, self, socket, fd, context), is_tcp_(is_tcp) {}

void SocketTransport::set_protocol(PyObject* protocol) {
    is_buffered_protocol_ = is_buffered_protocol(parts(), protocol);
    end_stream();
    tls_ = find_tls_transport(parts(), protocol);
    Transport::set_protocol(protocol);
}

void SocketTransport::take_turn() {
    if (can_read() && !has_read_eof_) {
        read();
    }
    if (has_to_flush()) {
        flush();
    }
}

void SocketTransport::read() {
    if (tls_ != nullptr) {
        read_for_tls();
    } else if (is_buffered_protocol_) {
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
        const ssize_t size = ::recv(socket_fd(), buffer, sched::Hub::kReadBufferBytes, MSG_DONTWAIT);
        if (!take_read(size, sched::Hub::kReadBufferBytes)) {
            return;
        }
        // No Python has run since the system call, so the buffer is still ours.
        if (stream_ && feed(buffer, static_cast<std::size_t>(size))) {
            return;
        }
        data = steal(PyBytes_FromStringAndSize(buffer, size));
    } else {
        const std::size_t wanted = std::clamp(last_read_ * 2, 4 * kBulk, kLargestRead);
        PyObject* bytes = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(wanted))).release();
        const ssize_t size = ::recv(socket_fd(), PyBytes_AS_STRING(bytes), wanted, MSG_DONTWAIT);
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
        call_protocol(parts().data_received_name, data.ptr());
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.data_received() call failed.");
    }
}

/// Puts bytes straight into the reader of asyncio's streams. Returns whether it did.
bool SocketTransport::feed(const char* bytes, std::size_t size) {
    try {
        const Ref kept = cpython::borrow(stream_.ptr());
        return feed_stream(kept.ptr(), bytes, size);
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.data_received() call failed.");
        return true;
    }
}

void SocketTransport::start_reading() {
    if (!is_closing && !is_started() && !loop().is_debugging) {
        stream_ = open_stream(loop_object(), protocol());
        note_pause();
    }
    SendingTransport::start_reading();
}

void SocketTransport::note_pause() noexcept {
    if (stream_) {
        set_writing_paused(stream_.ptr(), is_protocol_paused());
    }
}

void SocketTransport::end_stream() noexcept {
    if (const Ref stream = std::move(stream_)) {
        close_stream(stream.ptr());
    }
}

/// What get_buffer() and buffer_updated() of a TLS connection would do.
void SocketTransport::read_for_tls() {
    char* buffer = loop().hub()->read_buffer();
    const ssize_t size = ::recv(socket_fd(), buffer, sched::Hub::kReadBufferBytes, MSG_DONTWAIT);
    if (!take_read(size, sched::Hub::kReadBufferBytes)) {
        return;
    }
    const Ref kept = cpython::borrow(protocol());
    TlsTransport& tls = *tls_;
    try {
        tls.take(buffer, static_cast<std::size_t>(size));  // at once: the buffer is ours until Python runs
        tls.proceed();
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.buffer_updated() call failed.");
    }
}

void SocketTransport::read_into_protocol() {
    const Ref protocol = cpython::borrow(this->protocol());
    ssize_t size = 0;
    try {
        const Ref buffer = call_protocol(parts().get_buffer_name, parts().minus_one);
        const View view(buffer.ptr(), PyBUF_WRITABLE);
        if (view.size() == 0) {
            cpython::raise(PyExc_RuntimeError, "get_buffer() returned an empty buffer");
        }
        if (lost_count > 0) {
            return;
        }
        size = ::recv(socket_fd(), view.bytes(), view.size(), MSG_DONTWAIT);
        if (!take_read(size, view.size())) {
            return;
        }
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.get_buffer() call failed.");
        return;
    }
    try {
        const Ref count = steal(PyLong_FromSsize_t(size));
        steal(PyObject_CallMethodOneArg(protocol.ptr(), parts().buffer_updated_name, count.ptr()));
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.buffer_updated() call failed.");
    }
}

void SocketTransport::reach_eof() {
    has_read_eof_ = true;
    is_readable_ = false;
    int keeps_open = 0;
    try {
        const Ref answer = call_protocol(parts().eof_received_name);
        keeps_open = PyObject_IsTrue(answer.ptr());
        cpython::check(keeps_open);
    } catch (const cpython::ErrorSet&) {
        fail("Fatal error: protocol.eof_received() call failed.");
        return;
    }
    if (keeps_open == 0) {
        close();
    } else if (is_idle()) {
        loop().release(*this);
    }
}

// ---- writing ----

ssize_t SocketTransport::send(const char* bytes, std::size_t size) noexcept {
    note_sent();
    return ::send(socket_fd(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ssize_t SocketTransport::send(iovec* pieces, std::size_t count) noexcept {
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count;
    note_sent();
    return ::sendmsg(socket_fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool SocketTransport::drops_writes(const char* method) {
    if (has_sent_eof) {
        cpython::raise(PyExc_RuntimeError, "Cannot call %s() after write_eof()", method);
    }
    if (empty_waiter) {
        cpython::raise(PyExc_RuntimeError, "unable to %s; sendfile is in progress", method);
    }
    return lost_count > 0;
}

void SocketTransport::become_empty() {
    if (empty_waiter || is_closing || has_sent_eof) {
        steal(PyObject_CallMethod(owner(), "_become_empty", nullptr));
    }
}

int SocketTransport::traverse(visitproc visit, void* arg) {
    Py_VISIT(empty_waiter.ptr());
    Py_VISIT(stream_.ptr());
    return Transport::traverse(visit, arg);
}

void SocketTransport::clear() {
    end_stream();
    tls_ = nullptr;
    SendingTransport::clear();
    const Ref waiter = std::move(empty_waiter);
}

}  // namespace gossamer::loop
