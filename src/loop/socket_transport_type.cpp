// SPDX-License-Identifier: Apache-2.0
// gossamer._core.SocketTransportBase: see transport_type.hpp.
#include "cpython/api.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "cpython/socket_object.hpp"
#include "loop/transport.hpp"
#include "loop/transport_type.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using cpython::words_of_socket;

namespace {

void attach_to_server(const Parts& parts, PyObject* self, PyObject* server) {
    if (server != Py_None) {
        transport_of(self).set_server(server);
        PyObject* args[] = {server, self};
        const std::size_t count = kServersWantTransports ? 2 : 1;
        steal(
            PyObject_VectorcallMethod(parts.transports.attach, args, count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    }
}

/// As asyncio does, and also where nobody has named the protocol: socket.socket(), and what such a one accepts.
void set_nodelay(const cpython::SocketWords& socket) {
    const int one = 1;
    const bool is_tcp = socket.protocol == IPPROTO_TCP || socket.protocol == IPPROTO_IP;
    if (socket.is_byte_stream() && is_tcp && ::setsockopt(socket.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
        cpython::raise_os_error(errno);
    }
}

void open_socket(EventLoop& loop, PyObject* self, const Connection& connection) {
    const Parts& parts = loop.parts();
    const cpython::SocketWords& words = words_of_socket(connection.socket);
    if (words.fd < 0) {
        cpython::raise(PyExc_ValueError, "the socket is closed");
    }
    loop.check_open();
    const auto make = [&] {
        return std::make_unique<SocketTransport>(loop, self, connection.socket, words.fd,
                                                 words.family == AF_INET || words.family == AF_INET6,
                                                 connection.context);
    };
    open_transport(self, make, [&](Transport& transport) {
        transport.set_protocol(connection.protocol);
        describe_socket(parts, self, connection.socket, connection.peername);
        attach_to_server(parts, self, connection.server);
        set_nodelay(words);
        loop.add_transport(transport.fd(), self);
        transport.begin(connection.waiter);
    });
}

/// _open(loop, socket, protocol, waiter, server, context); `context` None: copies of the current one.
PyObject* open(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        const Parts& parts = parts_of_instance(self);
        PyObject* loop = nullptr;
        PyObject* context = nullptr;
        Connection connection{};
        if (!PyArg_ParseTuple(args, "O!O!OOOO:_open", parts.event_loop_type, &loop, parts.socket_type,
                              &connection.socket, &connection.protocol, &connection.waiter, &connection.server,
                              &context)) {
            throw cpython::ErrorSet{};
        }
        connection.context = context == Py_None ? nullptr : context;
        open_socket(loop_of(loop), self, connection);
        Py_RETURN_NONE;
    });
}

PyObject* write(PyObject* self, PyTypeObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of<SocketTransport>(self).write(cpython::only_argument("write", "data", args, count, names));
        Py_RETURN_NONE;
    });
}

/// _read_ready_cb: what asyncio's own transports call when they can read; all that others ask is whether it is None.
PyObject* get_read_callback(PyObject* self, void*) {
    const Transport* transport = Transport::find(self);
    return object_of(transport != nullptr && !transport->is_closing ? transport->protocol() : nullptr);
}

PyObject* get_empty_waiter(PyObject* self, void*) {
    const auto* transport = find_transport<SocketTransport>(self);
    return object_of(transport == nullptr ? nullptr : transport->empty_waiter.ptr());
}

int set_empty_waiter(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        Ref waiter = cpython::borrow(value == Py_None ? nullptr : value);
        transport_of<SocketTransport>(self).empty_waiter.swap(waiter);
        return 0;
    });
}

constexpr int kMethod = METH_METHOD | METH_FASTCALL | METH_KEYWORDS;

PyMethodDef methods[] = {
    {"write", _PyCFunction_CAST(write), kMethod,
     PyDoc_STR("write($self, /, data)\n--\n\nSend ``data``; what the kernel does not take now is kept.")},
    {"writelines", _PyCFunction_CAST((method_of_one<&SocketTransport::write_several, "writelines", "list_of_data">)),
     kMethodOfOne, PyDoc_STR("writelines($self, /, list_of_data)\n--\n\nSend several pieces of data in one go.")},
    {"pause_reading", method<&Transport::pause_reading>, METH_NOARGS,
     PyDoc_STR("pause_reading($self, /)\n--\n\nReceive nothing until `resume_reading`.")},
    {"resume_reading", method<&Transport::resume_reading>, METH_NOARGS,
     PyDoc_STR("resume_reading($self, /)\n--\n\nReceive again.")},
    {"_open", open, METH_VARARGS, nullptr},
    {"_note_sent", method<&Transport::note_sent>, METH_NOARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_read_ready_cb", get_read_callback, nullptr, nullptr, nullptr},
    {"_empty_waiter", get_empty_waiter, set_empty_waiter, nullptr, nullptr},
    {"_eof", get_flag<&SocketTransport::has_sent_eof>, set_flag<&SocketTransport::has_sent_eof>, nullptr, nullptr},
    {}};

}  // namespace

Ref make_socket_transport(EventLoop& loop, const Connection& connection) {
    auto* type = reinterpret_cast<PyTypeObject*>(loop.parts().transports.socket_transport);
    Ref self = BaseObject::create(type);
    open_socket(loop, self.ptr(), connection);
    return self;
}

void create_socket_transport_type(PyObject* module, Parts& parts) {
    parts.socket_transport_type =
        create_transport_type(module, parts, "gossamer._core.SocketTransportBase", methods, properties);
}

}  // namespace gossamer::loop
