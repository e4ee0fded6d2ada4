// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/datagram_transport.hpp"

#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <utility>

#include "cpython/error.hpp"
#include "cpython/socket_object.hpp"
#include "loop/transport_type.hpp"
#include "loop/unsent.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::SocketAddress;
using cpython::steal;
using cpython::words_of_socket;

namespace {

constexpr int kMostReads = 16;  // of one turn
constexpr bool kSendsEmptyDatagrams = cpython::kPython313;
constexpr std::size_t kHeaderBytes = cpython::kPython313 ? 8 : 0;  // that asyncio counts for each datagram that waits

}  // namespace

DatagramTransport::DatagramTransport(EventLoop& loop, PyObject* self, PyObject* socket, PyObject* address)
    : Transport(loop, self, socket, words_of_socket(socket).fd, nullptr),
      address_(cpython::borrow(address)),
      family_(words_of_socket(socket).family) {}

void DatagramTransport::take_turn() {
    for (int count = 0; count < kMostReads && can_read() && !loop().is_stopping; ++count) {
        if (!receive_one()) {
            break;
        }
    }
    if (has_to_flush()) {
        flush();
    }
}

// ---- receiving ----

/// Returns whether there may be more.
bool DatagramTransport::receive_one() {
    SocketAddress from;
    char* buffer = loop().datagram_buffer();
    const ssize_t size =
        ::recvfrom(socket_fd(), buffer, EventLoop::kDatagramBytes, MSG_DONTWAIT, from.ptr(), &from.size);
    if (size < 0 && errno == EAGAIN) {
        is_readable_ = false;
        return false;
    }
    if (size < 0 && errno == EINTR) {
        return true;
    }
    is_readable_ = size >= 0 || errno != EBADF;  // closed: it would never say anything else
    try {
        if (size < 0) {
            cpython::steal(PyErr_SetFromErrno(PyExc_OSError));
        }
        const Ref data = steal(PyBytes_FromStringAndSize(buffer, size));
        const Ref address = address_object(from);
        call_protocol(parts().transports.datagram_received, data.ptr(), address.ptr());
    } catch (const cpython::ErrorSet&) {
        if (size >= 0) {
            report("protocol.datagram_received() failed");
            return true;
        }
        receive_error();
    }
    return true;
}

/// Hands the OSError that is set to the protocol.
void DatagramTransport::receive_error() {
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    try {
        call_protocol(parts().transports.error_received, error.ptr());
    } catch (const cpython::ErrorSet&) {
        report("protocol.error_received() failed");
    }
}

/// The sender, as Python has it.
Ref DatagramTransport::address_object(const SocketAddress& address) {
    if (last_address_object_ && address.size == last_address_.size &&
        std::memcmp(&address.storage, &last_address_.storage, address.size) == 0) {
        return cpython::borrow(last_address_object_.ptr());
    }
    Ref object = cpython::address_object(address);
    if (PyTuple_CheckExact(object.ptr())) {  // which nobody changes
        last_address_ = address;
        Ref(cpython::borrow(object.ptr())).swap(last_address_object_);
    }
    return object;
}

// ---- sending ----

void DatagramTransport::send_to(PyObject* data, PyObject* to) {
    check_is_bytes_like(data);
    const Ref given = cpython::borrow(to);
    const View view(data, PyBUF_SIMPLE);
    if (view.size() == 0 && !kSendsEmptyDatagrams) {
        return;
    }
    const int has_address = PyObject_IsTrue(address_.ptr());
    cpython::check(has_address);
    if (has_address != 0) {
        if (to != Py_None) {
            const int is_same = PyObject_RichCompareBool(to, address_.ptr(), Py_EQ);
            cpython::check(is_same);
            if (is_same == 0) {
                cpython::raise(PyExc_ValueError, "Invalid address: must be None or %S", address_.ptr());
            }
        }
        to = address_.ptr();
    }
    if (lost_count > 0 && (has_address != 0 || file() == nullptr)) {
        warn_of_lost_write();
        return;
    }
    if (unsent_.empty()) {
        try {
            if (try_send(view.bytes(), view.size(), data, to)) {
                return;
            }
        } catch (const cpython::ErrorSet&) {
            if (!PyErr_ExceptionMatches(PyExc_OSError)) {
                fail("Fatal write error on datagram transport");
                return;
            }
            const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
            const Ref protocol = cpython::borrow(this->protocol());
            steal(PyObject_CallMethodOneArg(protocol.ptr(), parts().transports.error_received, error.ptr()));
            return;
        }
        if (lost_count > 0) {
            return;
        }
        wait_for_room();
    }
    unsent_.push_back({as_bytes(data, view.bytes(), view.size()), cpython::borrow(to)});
    unsent_bytes_ += view.size() + kHeaderBytes;
    want_to_write();
    pause_protocol();
}

/// Returns whether it was sent; false: it would block. Throws ErrorSet: OSError, and what the socket's own method raises.
bool DatagramTransport::try_send(const char* bytes, std::size_t size, PyObject* data, PyObject* to) {
    SocketAddress parsed;
    ssize_t sent = 0;
    note_sent();
    if (is_connected_) {
        sent = ::send(socket_fd(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else if (const SocketAddress* address = find_address(to, parsed)) {
        sent = ::sendto(socket_fd(), bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL, address->ptr(), address->size);
    } else {
        return send_by_method(data, to);
    }
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        cpython::raise_os_error(errno);
    }
    return sent >= 0;
}

/// For an address that is a name, or that is none.
bool DatagramTransport::send_by_method(PyObject* data, PyObject* to) {
    const Ref socket = cpython::borrow(file());
    PyObject* result = PyObject_CallMethod(socket.ptr(), "sendto", "OO", data, to);
    if (result == nullptr &&
        (PyErr_ExceptionMatches(PyExc_BlockingIOError) || PyErr_ExceptionMatches(PyExc_InterruptedError))) {
        PyErr_Clear();
        return false;
    }
    steal(result);
    return true;
}

const SocketAddress* DatagramTransport::find_address(PyObject* to, SocketAddress& parsed) const {
    if (to == last_address_object_.ptr() && to != nullptr) {
        return &last_address_;
    }
    return cpython::parse_address(to, family_, parsed) ? &parsed : nullptr;
}

/// The kernel did not take a datagram.
void DatagramTransport::wait_for_room() {
    is_writable_ = false;
    if (family_ == AF_UNIX && !is_connected_) {
        // What is full is the receiver's queue. The socket itself stays writable, and each attempt that fails is an edge.
        is_peer_full_ = true;
        steal(PyObject_CallMethod(owner(), "_retry_later", nullptr));
    }
}

void DatagramTransport::retry() {
    is_peer_full_ = false;
    is_writable_ = true;
    queue_if_useful();
}

void DatagramTransport::flush() {
    while (has_to_flush()) {
        Message message = std::move(unsent_.front());
        unsent_.pop_front();
        const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(message.data.ptr()));
        unsent_bytes_ -= size + kHeaderBytes;
        try {
            if (!try_send(PyBytes_AS_STRING(message.data.ptr()), size, message.data.ptr(), message.to.ptr())) {
                unsent_.push_front(std::move(message));
                unsent_bytes_ += size + kHeaderBytes;
                wait_for_room();
                break;
            }
        } catch (const cpython::ErrorSet&) {
            if (!PyErr_ExceptionMatches(PyExc_OSError)) {
                fail("Fatal write error on datagram transport");
            } else {
                receive_error();
            }
            break;
        }
    }
    resume_protocol();  // which may send
    if (!unsent_.empty() || lost_count > 0) {
        return;
    }
    if (is_closing) {
        schedule_connection_lost(Py_None);
    } else if (is_idle()) {
        const Ref kept = cpython::borrow(owner());
        loop().release(*this);
    }
}

void DatagramTransport::drop_unsent() {
    const std::deque<Message> dropped = std::exchange(unsent_, {});
    unsent_bytes_ = 0;
}

int DatagramTransport::traverse(visitproc visit, void* arg) {
    Py_VISIT(address_.ptr());
    return Transport::traverse(visit, arg);
}

void DatagramTransport::clear() {
    Transport::clear();
    drop_unsent();
    last_address_object_.reset();
}

// ---- the class ----

namespace {

/// _open(loop, socket, protocol, address, waiter)
PyObject* open(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        const Parts& parts = parts_of_instance(self);
        PyObject* loop_object = nullptr;
        PyObject* socket = nullptr;
        PyObject* protocol = nullptr;
        PyObject* address = nullptr;
        PyObject* waiter = nullptr;
        if (!PyArg_ParseTuple(args, "O!O!OOO:_open", parts.event_loop_type, &loop_object, parts.socket_type, &socket,
                              &protocol, &address, &waiter)) {
            throw cpython::ErrorSet{};
        }
        EventLoop& loop = loop_of(loop_object);
        if (words_of_socket(socket).fd < 0) {
            cpython::raise(PyExc_ValueError, "the socket is closed");
        }
        loop.check_open();
        const auto make = [&] { return std::make_unique<DatagramTransport>(loop, self, socket, address); };
        open_transport(self, make, [&](Transport& transport) {
            transport.set_protocol(protocol);
            describe_socket(parts, self, socket, nullptr);
            const Ref extra = extra_of(self);
            const Ref peer = steal(PyObject_GetItem(extra.ptr(), parts.transports.peername));
            static_cast<DatagramTransport&>(transport).set_connected(peer.ptr() != Py_None);
            loop.add_transport(transport.fd(), self);
            transport.begin(waiter);
        });
        Py_RETURN_NONE;
    });
}

PyObject* sendto(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* given[] = {nullptr, Py_None};  // data, addr
        for (Py_ssize_t index = 0; index < count && index < 2; ++index) {
            given[index] = args[index];
        }
        for (Py_ssize_t index = 0; names != nullptr && index < PyTuple_GET_SIZE(names); ++index) {
            PyObject* name = PyTuple_GET_ITEM(names, index);
            const bool is_data = PyUnicode_CompareWithASCIIString(name, "data") == 0;
            if (!is_data && PyUnicode_CompareWithASCIIString(name, "addr") != 0) {
                cpython::raise(PyExc_TypeError, "sendto() got an unexpected keyword argument '%U'", name);
            }
            given[is_data ? 0 : 1] = args[count + index];
        }
        if (count > 2 || given[0] == nullptr) {
            cpython::raise(PyExc_TypeError, "sendto() takes data, and an address or None");
        }
        transport_of<DatagramTransport>(self).send_to(given[0], given[1]);
        Py_RETURN_NONE;
    });
}

PyMethodDef methods[] = {{"sendto", _PyCFunction_CAST(sendto), METH_FASTCALL | METH_KEYWORDS,
                          PyDoc_STR("sendto($self, /, data, addr=None)\n--\n\n"
                                    "Send a datagram; when the kernel does not take it now, it is kept.")},
                         {"pause_reading", method<&Transport::pause_reading>, METH_NOARGS,
                          PyDoc_STR("pause_reading($self, /)\n--\n\nReceive nothing until `resume_reading`.")},
                         {"resume_reading", method<&Transport::resume_reading>, METH_NOARGS,
                          PyDoc_STR("resume_reading($self, /)\n--\n\nReceive again.")},
                         {"_open", open, METH_VARARGS, nullptr},
                         {"_retry", method<&DatagramTransport::retry>, METH_NOARGS, nullptr},
                         {}};

PyGetSetDef properties[] = {{}};

}  // namespace

void create_datagram_transport_type(PyObject* module, const Parts& parts) {
    const Ref type = Ref::steal_or_null(reinterpret_cast<PyObject*>(
        create_transport_type(module, parts, "gossamer._core.DatagramTransportBase", methods, properties)));
}

}  // namespace gossamer::loop
