// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/socket_calls.hpp"

#include <cerrno>
#include <memory>
#include <poll.h>
#include <sys/socket.h>
#include <vector>

#include "core/file_descriptor.hpp"
#include "cpython/socket_address.hpp"
#include "loop/socket_operation.hpp"

namespace gossamer::loop {

using core::Interest;
using cpython::guarded;
using cpython::Ref;
using cpython::SocketAddress;
using cpython::steal;
using cpython::words_of_socket;

namespace {

constexpr std::size_t kBulk = 16 * 1024;

// ---- reading ----

class Reading : public SocketOperation {
protected:
    using SocketOperation::SocketOperation;

    Interest interest() const noexcept override { return Interest::kRead; }
    core::FdEntry& entry() { return hub().reactor().entry(fd(), socket()); }

    /// Calls `call(fd)`, a recv(2) of `wanted` bytes. -1: it would block.
    template <typename Call>
    ssize_t read_with(std::size_t wanted, Call call) {
        core::FdEntry& entry = this->entry();
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
        } else if (size > 0 && static_cast<std::size_t>(size) < wanted && words_of_socket(socket()).is_byte_stream() &&
                   entry.is_registered && !entry.is_hung_up && !entry.has_urgent_data) {
            entry.may_be_readable = false;
        }
        return size;
    }

    /// What `call(fd, buffer)` reads, at most `wanted` bytes; null: it would block.
    template <typename Call>
    Ref read_bytes(std::size_t wanted, Call call) {
        core::FdEntry& entry = this->entry();
        if (wanted <= sched::Hub::kReadBufferBytes && !entry.reads_in_bulk) {
            char* buffer = hub().read_buffer();
            const ssize_t size = read_with(wanted, [&](int fd) { return call(fd, buffer); });
            entry.reads_in_bulk = size >= static_cast<ssize_t>(kBulk);
            return size < 0 ? Ref() : steal(PyBytes_FromStringAndSize(buffer, size));
        }
        Ref bytes;
        const ssize_t size = read_with(wanted, [&](int fd) {
            bytes = steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(wanted)));
            return call(fd, PyBytes_AS_STRING(bytes.ptr()));
        });
        if (size < 0) {
            return Ref();
        }
        entry.reads_in_bulk = size >= static_cast<ssize_t>(kBulk);
        if (static_cast<std::size_t>(size) == wanted) {
            return bytes;
        }
        PyObject* shorter = bytes.release();
        cpython::check(_PyBytes_Resize(&shorter, size));
        return Ref::steal_or_null(shorter);
    }
};

class Receiving final : public Reading {
public:
    Receiving(PyObject* loop, PyObject* socket, std::size_t wanted) : Reading(loop, socket), wanted_(wanted) {}

    const char* name() const noexcept override { return "EventLoop.sock_recv"; }

private:
    Ref attempt() override {
        return read_bytes(wanted_, [&](int fd, char* buffer) { return ::recv(fd, buffer, wanted_, MSG_DONTWAIT); });
    }

    const std::size_t wanted_;
};

class ReceivingInto final : public Reading {
public:
    ReceivingInto(PyObject* loop, PyObject* socket, PyObject* buffer) : Reading(loop, socket) {
        set_buffer(buffer, PyBUF_WRITABLE);
    }

    const char* name() const noexcept override { return "EventLoop.sock_recv_into"; }

private:
    Ref attempt() override {
        const ssize_t size =
            read_with(buffer_size(), [&](int fd) { return ::recv(fd, buffer(), buffer_size(), MSG_DONTWAIT); });
        return size < 0 ? Ref() : steal(PyLong_FromSsize_t(size));
    }
};

/// recvfrom(2) into a buffer.
ssize_t receive_from(int fd, char* buffer, std::size_t wanted, SocketAddress& from) {
    from.size = sizeof from.storage;
    return ::recvfrom(fd, buffer, wanted, MSG_DONTWAIT, from.ptr(), &from.size);
}

Ref pair(Ref first, Ref second) { return steal(PyTuple_Pack(2, first.ptr(), second.ptr())); }

class ReceivingFrom final : public Reading {
public:
    ReceivingFrom(PyObject* loop, PyObject* socket, std::size_t wanted) : Reading(loop, socket), wanted_(wanted) {}

    const char* name() const noexcept override { return "EventLoop.sock_recvfrom"; }

private:
    Ref attempt() override {
        SocketAddress from;
        Ref data = read_bytes(wanted_, [&](int fd, char* buffer) { return receive_from(fd, buffer, wanted_, from); });
        return data ? pair(std::move(data), cpython::address_object(from)) : Ref();
    }

    const std::size_t wanted_;
};

class ReceivingFromInto final : public Reading {
public:
    ReceivingFromInto(PyObject* loop, PyObject* socket, PyObject* buffer, std::size_t wanted)
        : Reading(loop, socket), wanted_(wanted) {
        set_buffer(buffer, PyBUF_WRITABLE);
        if (wanted_ == 0) {
            wanted_ = buffer_size();
        }
        if (wanted_ > buffer_size()) {
            cpython::raise(PyExc_ValueError, "nbytes is greater than the length of the buffer");
        }
    }

    const char* name() const noexcept override { return "EventLoop.sock_recvfrom_into"; }

private:
    Ref attempt() override {
        SocketAddress from;
        const ssize_t size = read_with(wanted_, [&](int fd) { return receive_from(fd, buffer(), wanted_, from); });
        return size < 0 ? Ref() : pair(steal(PyLong_FromSsize_t(size)), cpython::address_object(from));
    }

    std::size_t wanted_;
};

class Accepting final : public Reading {
public:
    using Reading::Reading;

    const char* name() const noexcept override { return "EventLoop.sock_accept"; }

private:
    Ref attempt() override {
        core::FdEntry& entry = this->entry();
        if (!entry.may_be_readable) {
            return Ref();
        }
        SocketAddress peer;
        int accepted = -1;
        do {
            accepted = ::accept4(fd(), peer.ptr(), &peer.size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        } while (accepted < 0 && errno == EINTR);
        if (accepted < 0 && errno == EAGAIN) {
            entry.may_be_readable = entry.is_hung_up;
            return Ref();
        }
        if (accepted < 0) {
            cpython::raise_os_error(errno);
        }
        core::FileDescriptor owned(accepted);
        hub().reactor().forget(accepted);  // what is known of the number is of an earlier file
        const Parts& parts = loop().parts();
        Ref connection =
            cpython::new_connected_socket(reinterpret_cast<PyTypeObject*>(parts.socket_type), std::move(owned),
                                          socket(), parts.io_refs_offset, parts.closed_offset);
        return pair(std::move(connection), cpython::address_object(peer));
    }
};

// ---- writing ----

class Writing : public SocketOperation {
protected:
    using SocketOperation::SocketOperation;

    Interest interest() const noexcept override { return Interest::kWrite; }
};

class SendingAll final : public Writing {
public:
    SendingAll(PyObject* loop, PyObject* socket, PyObject* data) : Writing(loop, socket) {
        set_buffer(data, PyBUF_SIMPLE);
    }

    const char* name() const noexcept override { return "EventLoop.sock_sendall"; }

private:
    Ref attempt() override {
        while (sent_ < buffer_size()) {
            const ssize_t sent = ::send(fd(), buffer() + sent_, buffer_size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
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

    std::size_t sent_ = 0;
};

class SendingTo final : public Writing {
public:
    SendingTo(PyObject* loop, PyObject* socket, PyObject* data, std::unique_ptr<SocketAddress> to)
        : Writing(loop, socket), to_(std::move(to)) {
        set_buffer(data, PyBUF_SIMPLE);
    }

    const char* name() const noexcept override { return "EventLoop.sock_sendto"; }

private:
    Ref attempt() override {
        for (;;) {
            const ssize_t sent =
                ::sendto(fd(), buffer(), buffer_size(), MSG_DONTWAIT | MSG_NOSIGNAL, to_->ptr(), to_->size);
            if (sent >= 0) {
                return steal(PyLong_FromSsize_t(sent));
            }
            if (errno == EAGAIN) {
                return Ref();
            }
            if (errno != EINTR) {
                cpython::raise_os_error(errno);
            }
        }
    }

    const std::unique_ptr<SocketAddress> to_;
};

class Connecting final : public Writing {
public:
    Connecting(PyObject* loop, PyObject* socket, PyObject* address, std::unique_ptr<SocketAddress> to)
        : Writing(loop, socket), address_(cpython::borrow(address)), to_(std::move(to)) {}

    const char* name() const noexcept override { return "EventLoop.sock_connect"; }

private:
    Ref attempt() override {
        if (!is_under_way_) {
            if (::connect(fd(), to_->ptr(), to_->size) == 0) {
                return cpython::borrow(Py_None);
            }
            // Interrupted, it goes on nevertheless (connect(2)).
            if (errno != EINPROGRESS && errno != EALREADY && errno != EINTR) {
                cpython::raise_os_error(errno);
            }
            is_under_way_ = true;
            return Ref();
        }
        pollfd descriptor{.fd = fd(), .events = POLLOUT, .revents = 0};
        if (::poll(&descriptor, 1, 0) <= 0) {
            return Ref();  // not yet: the loop was stopped meanwhile
        }
        int error = 0;
        socklen_t size = sizeof error;
        if (::getsockopt(fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
            cpython::raise_os_error(errno);
        }
        if (error != 0) {
            raise_failed(error);
        }
        return cpython::borrow(Py_None);
    }

    [[noreturn]] void raise_failed(int error) const {
        const Ref text = steal(PyUnicode_FromFormat("Connect call failed %S", address_.ptr()));
        const Ref exception = steal(PyObject_CallFunction(PyExc_OSError, "iO", error, text.ptr()));
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
        throw cpython::ErrorSet{};
    }

    const Ref address_;
    const std::unique_ptr<SocketAddress> to_;
    bool is_under_way_ = false;
};

// ---- the methods ----

/// Whether the usual case: everything else is asyncio's own method's.
bool is_usual(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names, Py_ssize_t wanted) noexcept {
    const EventLoop& event_loop = loop_of(loop);
    return names == nullptr && count == wanted && !event_loop.is_debugging &&
           Py_TYPE(args[0]) == reinterpret_cast<PyTypeObject*>(event_loop.parts().socket_type);
}

/// Whether addresses of the socket's family are ours to make and to read.
bool has_usual_family(PyObject* socket) noexcept {
    const int family = words_of_socket(socket).family;
    return family == AF_INET || family == AF_INET6 || family == AF_UNIX;
}

PyObject* call_asyncio(const char* name, PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const Ref method = steal(PyObject_GetAttrString(loop_of(loop).parts().selector_loop_type, name));
    std::vector<PyObject*> all{loop};
    all.insert(all.end(), args, args + count + (names == nullptr ? 0 : PyTuple_GET_SIZE(names)));
    return PyObject_Vectorcall(method.ptr(), all.data(), static_cast<std::size_t>(count) + 1, names);
}

/// A size for a read; -1: asyncio's own method has to say what is wrong with it.
Py_ssize_t size_of(PyObject* object) noexcept {
    const Py_ssize_t size = PyLong_CheckExact(object) ? PyLong_AsSsize_t(object) : -1;
    if (size == -1) {
        PyErr_Clear();
    }
    return size;
}

/// The address, if it is one of the simple kind; `event` is audited as the socket's own method has it.
std::unique_ptr<SocketAddress> address_for(PyObject* socket, PyObject* object, const char* event) {
    auto address = std::make_unique<SocketAddress>();
    if (!cpython::parse_address(object, words_of_socket(socket).family, *address)) {
        return nullptr;
    }
    cpython::check(PySys_Audit(event, "OO", socket, object));
    return address;
}

}  // namespace

PyObject* sock_recv(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count, names, 2) || !PyLong_CheckExact(args[1])) {
            return call_asyncio("sock_recv", loop, args, count, names);
        }
        const Py_ssize_t wanted = PyLong_AsSsize_t(args[1]);
        if (wanted < 0) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "negative buffersize in recv");
            }
            throw cpython::ErrorSet{};
        }
        return make_operation<Receiving>(loop, args[0], static_cast<std::size_t>(wanted));
    });
}

PyObject* sock_recv_into(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count, names, 2)) {
            return call_asyncio("sock_recv_into", loop, args, count, names);
        }
        return make_operation<ReceivingInto>(loop, args[0], args[1]);
    });
}

PyObject* sock_recvfrom(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const bool is_ours = is_usual(loop, args, count, names, 2) && has_usual_family(args[0]);
        const Py_ssize_t wanted = is_ours ? size_of(args[1]) : -1;
        if (wanted < 0) {
            return call_asyncio("sock_recvfrom", loop, args, count, names);
        }
        return make_operation<ReceivingFrom>(loop, args[0], static_cast<std::size_t>(wanted));
    });
}

PyObject* sock_recvfrom_into(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const bool is_ours = (is_usual(loop, args, count, names, 2) || is_usual(loop, args, count, names, 3)) &&
                             has_usual_family(args[0]);
        const Py_ssize_t wanted = !is_ours ? -1 : count == 3 ? size_of(args[2]) : 0;
        if (wanted < 0) {
            return call_asyncio("sock_recvfrom_into", loop, args, count, names);
        }
        return make_operation<ReceivingFromInto>(loop, args[0], args[1], static_cast<std::size_t>(wanted));
    });
}

PyObject* sock_sendall(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count, names, 2)) {
            return call_asyncio("sock_sendall", loop, args, count, names);
        }
        return make_operation<SendingAll>(loop, args[0], args[1]);
    });
}

PyObject* sock_sendto(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        auto to = is_usual(loop, args, count, names, 3) ? address_for(args[0], args[2], "socket.sendto") : nullptr;
        if (!to) {
            return call_asyncio("sock_sendto", loop, args, count, names);
        }
        return make_operation<SendingTo>(loop, args[0], args[1], std::move(to));
    });
}

PyObject* sock_connect(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const bool is_ours = is_usual(loop, args, count, names, 2) && !words_of_socket(args[0]).waits();
        auto to = is_ours ? address_for(args[0], args[1], "socket.connect") : nullptr;
        if (!to) {
            return call_asyncio("sock_connect", loop, args, count, names);
        }
        return make_operation<Connecting>(loop, args[0], args[1], std::move(to));
    });
}

PyObject* sock_accept(PyObject* loop, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (!is_usual(loop, args, count, names, 1) || !has_usual_family(args[0]) || words_of_socket(args[0]).waits()) {
            return call_asyncio("sock_accept", loop, args, count, names);
        }
        return make_operation<Accepting>(loop, args[0]);
    });
}

}  // namespace gossamer::loop
