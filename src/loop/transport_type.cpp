// SPDX-License-Identifier: Apache-2.0
// The Python classes around transports.
#include "cpython/api.hpp"

#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <new>
#include <sys/socket.h>

#include "cpython/error.hpp"
#include "cpython/socket_address.hpp"
#include "cpython/socket_object.hpp"
#include "loop/transport.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using cpython::words_of_socket;

namespace {

constexpr bool kServersWantTransports = cpython::kPython313;  // Server._attach(transport)

/// What is ours in an instance; empty until it is opened. The Python class says which transport it is.
using Storage = std::unique_ptr<Transport>;

Parts& parts_of_instance(PyObject* self) noexcept {
    // Safety: our class is among the bases of the instance's, so the module is found.
    return *cpython::state_of_module(PyType_GetModuleByDef(Py_TYPE(self), &cpython::core_module)).loop_parts;
}

Storage& storage_of(const Parts& parts, PyObject* self) noexcept {
    // Safety: the offset is that of our part of an instance, where tp_new has put it.
    return *std::launder(reinterpret_cast<Storage*>(reinterpret_cast<char*>(self) + parts.transport_offset));
}

Storage& storage_of(PyObject* self) noexcept { return storage_of(parts_of_instance(self), self); }

/// The transport of an instance of the Python class that belongs to `T`. Throws ErrorSet.
template <typename T = Transport>
T& transport_of(const Parts& parts, PyObject* self) {
    Storage& storage = storage_of(parts, self);
    if (!storage) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return static_cast<T&>(*storage);
}

template <typename T = Transport>
T& transport_of(PyObject* self) {
    return transport_of<T>(parts_of_instance(self), self);
}

// ---- the beginning ----

/// An address of a socket, or None. `ask`: getsockname(2) or getpeername(2); `method` is Python's.
Ref address_of(const Parts& parts, PyObject* socket, int (*ask)(int, sockaddr*, socklen_t*), PyObject* method) {
    if (Py_TYPE(socket) == reinterpret_cast<PyTypeObject*>(parts.socket_type)) {
        cpython::SocketAddress address;
        if (ask(words_of_socket(socket).fd, address.ptr(), &address.size) != 0) {
            return cpython::borrow(Py_None);
        }
        if (Ref object = cpython::address_object(address)) {
            return object;
        }
    }
    PyObject* object = PyObject_CallMethodNoArgs(socket, method);
    if (object == nullptr && PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Clear();
        object = Py_NewRef(Py_None);
    }
    return steal(object);
}

int ask_sockname(int fd, sockaddr* address, socklen_t* size) { return ::getsockname(fd, address, size); }
int ask_peername(int fd, sockaddr* address, socklen_t* size) { return ::getpeername(fd, address, size); }

/// Fills in what get_extra_info() says of the socket.
void describe_socket(const Parts& parts, PyObject* self, const Connection& connection) {
    PyObject*& extra = field_of(self, parts.extra_offset);
    if (extra == nullptr) {
        extra = steal(PyDict_New()).release();
    }
    const Ref known = cpython::borrow(extra);
    const TransportParts& transports = parts.transports;
    const auto set = [&](PyObject* name, const Ref& value) {
        cpython::check(PyObject_SetItem(known.ptr(), name, value.ptr()));
    };
    set(transports.socket, steal(PyObject_CallOneArg(transports.transport_socket, connection.socket)));
    set(transports.sockname, address_of(parts, connection.socket, ask_sockname, transports.getsockname));
    if (connection.peername != nullptr) {
        set(transports.peername, cpython::borrow(connection.peername));
        return;
    }
    const int is_known = PySequence_Contains(known.ptr(), transports.peername);
    cpython::check(is_known);
    if (is_known == 0) {
        set(transports.peername, address_of(parts, connection.socket, ask_peername, transports.getpeername));
    }
}

void attach_to_server(const Parts& parts, PyObject* self, PyObject* server) {
    if (server != Py_None) {
        transport_of(parts, self).set_server(server);
        PyObject* args[] = {server, self};
        const std::size_t count = kServersWantTransports ? 2 : 1;
        steal(
            PyObject_VectorcallMethod(parts.transports.attach, args, count | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    }
}

void set_nodelay(const cpython::SocketWords& socket) {
    const int one = 1;
    if (socket.is_byte_stream() && socket.protocol == IPPROTO_TCP &&
        ::setsockopt(socket.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) {
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
    Storage& storage = storage_of(parts, self);
    if (storage) {
        cpython::raise(PyExc_RuntimeError, "the transport is open already");
    }
    storage =
        std::make_unique<SocketTransport>(loop, self, connection.socket, words.fd,
                                          words.family == AF_INET || words.family == AF_INET6, connection.context);
    try {
        storage->set_protocol(connection.protocol);
        describe_socket(parts, self, connection);
        attach_to_server(parts, self, connection.server);
        set_nodelay(words);
        loop.add_transport(storage->fd(), self);
        storage->begin(connection.waiter);
    } catch (...) {
        storage.reset();  // the socket is still its maker's
        throw;
    }
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

// ---- methods ----

void check_count(const char* name, Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted) {
        cpython::raise(PyExc_TypeError, "%s() takes %zd argument%s (%zd given)", name, wanted, wanted == 1 ? "" : "s",
                       given);
    }
}

PyObject* write(PyObject* self, PyTypeObject* defining_class, PyObject* const* args, Py_ssize_t count,
                PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (names != nullptr && count == 0 && PyTuple_GET_SIZE(names) == 1) {
            count = 1;  // write(data=...)
        }
        check_count("write", count, 1);
        transport_of<SocketTransport>(parts_of_type(defining_class), self).write(args[0]);
        Py_RETURN_NONE;
    });
}

PyObject* writelines(PyObject* self, PyObject* objects) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of<SocketTransport>(self).write_several(objects);
        Py_RETURN_NONE;
    });
}

PyObject* is_closing(PyObject* self, PyTypeObject* defining_class, PyObject* const*, Py_ssize_t, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        return Py_NewRef(transport_of(parts_of_type(defining_class), self).is_closing ? Py_True : Py_False);
    });
}

template <void (Transport::*call)()>
PyObject* simple(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        (transport_of(self).*call)();
        Py_RETURN_NONE;
    });
}

PyObject* is_reading(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(transport_of(self).is_reading() ? Py_True : Py_False); });
}

PyObject* set_protocol(PyObject* self, PyObject* protocol) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).set_protocol(protocol);
        Py_RETURN_NONE;
    });
}

PyObject* object_or_none(PyObject* object) noexcept { return Py_NewRef(object == nullptr ? Py_None : object); }

PyObject* get_protocol(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return object_or_none(transport_of(self).protocol()); });
}

PyObject* get_write_buffer_size(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return PyLong_FromSize_t(transport_of(self).unsent_bytes()); });
}

PyObject* get_write_buffer_limits(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        const Transport& transport = transport_of(self);
        return Py_BuildValue("(nn)", static_cast<Py_ssize_t>(transport.low_water),
                             static_cast<Py_ssize_t>(transport.high_water));
    });
}

/// _set_limits(high, low)
PyObject* set_limits(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        Py_ssize_t high = 0;
        Py_ssize_t low = 0;
        if (!PyArg_ParseTuple(args, "nn:_set_limits", &high, &low)) {
            throw cpython::ErrorSet{};
        }
        transport_of(self).set_limits(static_cast<std::size_t>(high), static_cast<std::size_t>(low));
        Py_RETURN_NONE;
    });
}

PyObject* force_close(PyObject* self, PyObject* error) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).force_close(error);
        Py_RETURN_NONE;
    });
}

template <PyObject* (Transport::*get)() const noexcept>
PyObject* get_object(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return object_or_none(storage ? ((*storage).*get)() : nullptr);
}

int set_protocol_field(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        if (value == nullptr) {
            cpython::raise(PyExc_AttributeError, "cannot delete _protocol");
        }
        transport_of(self).set_protocol(value);
        return 0;
    });
}

/// _read_ready_cb: what asyncio's own transports call when they can read; all that others ask is whether it is None.
PyObject* get_read_callback(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return object_or_none(storage && !storage->is_closing ? storage->protocol() : nullptr);
}

template <void (Transport::*set)(PyObject*)>
int set_object(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        (transport_of(self).*set)(value == nullptr ? Py_None : value);
        return 0;
    });
}

PyObject* get_empty_waiter(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return object_or_none(storage ? static_cast<SocketTransport&>(*storage).empty_waiter.ptr() : nullptr);
}

int set_empty_waiter(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        Ref waiter = cpython::borrow(value == Py_None ? nullptr : value);
        transport_of<SocketTransport>(self).empty_waiter.swap(waiter);
        return 0;
    });
}

template <typename T, bool T::* flag>
PyObject* get_flag(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(transport_of<T>(self).*flag ? Py_True : Py_False); });
}

template <typename T, bool T::* flag>
int set_flag(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
        cpython::check(is_true);
        transport_of<T>(self).*flag = is_true != 0;
        return 0;
    });
}

PyObject* get_fd(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return PyLong_FromLong(storage ? storage->fd() : -1);
}

PyObject* get_lost_count(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return PyLong_FromLong(storage ? storage->lost_count : 0);
}

PyObject* transport_new(PyTypeObject* type, PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref self = steal(type->tp_alloc(type, 0));
        const Parts& parts = parts_of_instance(self.ptr());
        new (reinterpret_cast<char*>(self.ptr()) + parts.transport_offset) Storage;
        return self.release();
    });
}

int transport_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const Parts& parts = parts_of_instance(self);
    Py_VISIT(field_of(self, parts.extra_offset));
    Storage& storage = storage_of(parts, self);
    return storage ? storage->traverse(visit, arg) : 0;
}

int transport_clear(PyObject* self) {
    const Parts& parts = parts_of_instance(self);
    Py_CLEAR(field_of(self, parts.extra_offset));
    if (Storage& storage = storage_of(parts, self)) {
        storage->clear();
    }
    return 0;
}

void transport_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    transport_clear(self);
    storage_of(self).~Storage();
    type->tp_free(self);
    Py_DECREF(type);
}

constexpr int kMethod = METH_METHOD | METH_FASTCALL | METH_KEYWORDS;

PyMethodDef methods[] = {
    {"write", _PyCFunction_CAST(write), kMethod,
     PyDoc_STR("write($self, data, /)\n--\n\nSend ``data``; what the kernel does not take now is kept.")},
    {"writelines", writelines, METH_O,
     PyDoc_STR("writelines($self, list_of_data, /)\n--\n\nSend several pieces of data in one go.")},
    {"is_closing", _PyCFunction_CAST(is_closing), kMethod,
     PyDoc_STR("is_closing($self, /)\n--\n\nWhether the transport is closing or closed.")},
    {"is_reading", is_reading, METH_NOARGS,
     PyDoc_STR("is_reading($self, /)\n--\n\nWhether the transport is receiving.")},
    {"pause_reading", simple<&Transport::pause_reading>, METH_NOARGS,
     PyDoc_STR("pause_reading($self, /)\n--\n\nReceive nothing until `resume_reading`.")},
    {"resume_reading", simple<&Transport::resume_reading>, METH_NOARGS,
     PyDoc_STR("resume_reading($self, /)\n--\n\nReceive again.")},
    {"set_protocol", set_protocol, METH_O, PyDoc_STR("set_protocol($self, protocol, /)\n--\n\nSet a new protocol.")},
    {"get_protocol", get_protocol, METH_NOARGS, PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", get_write_buffer_size, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be sent.")},
    {"get_write_buffer_limits", get_write_buffer_limits, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"close", simple<&Transport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nClose once everything is sent.")},
    {"_open", open, METH_VARARGS, nullptr},
    {"_finish_beginning", simple<&Transport::finish_beginning>, METH_NOARGS, nullptr},
    {"_force_close", force_close, METH_O, nullptr},
    {"_finish", simple<&Transport::finish>, METH_NOARGS, nullptr},
    {"_set_limits", set_limits, METH_VARARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_loop", get_object<&Transport::loop_object>, nullptr, nullptr, nullptr},
    {"_sock", get_object<&Transport::file>, set_object<&Transport::set_file>, nullptr, nullptr},
    {"_server", get_object<&Transport::server>, set_object<&Transport::set_server>, nullptr, nullptr},
    {"_read_ready_cb", get_read_callback, nullptr, nullptr, nullptr},
    {"_protocol", get_object<&Transport::protocol>, set_protocol_field, nullptr, nullptr},
    {"_empty_waiter", get_empty_waiter, set_empty_waiter, nullptr, nullptr},
    {"_sock_fd", get_fd, nullptr, nullptr, nullptr},
    {"_conn_lost", get_lost_count, nullptr, nullptr, nullptr},
    {"_closing", get_flag<Transport, &Transport::is_closing>, nullptr, nullptr, nullptr},
    {"_paused", get_flag<Transport, &Transport::is_paused>, nullptr, nullptr, nullptr},
    {"_eof", get_flag<SocketTransport, &SocketTransport::has_sent_eof>,
     set_flag<SocketTransport, &SocketTransport::has_sent_eof>, nullptr, nullptr},
    {}};

}  // namespace

Ref make_socket_transport(EventLoop& loop, const Connection& connection) {
    auto* type = reinterpret_cast<PyTypeObject*>(loop.parts().transports.socket_transport);
    Ref self = steal(transport_new(type, nullptr, nullptr));
    open_socket(loop, self.ptr(), connection);
    return self;
}

int fd_of_transport(const Parts& parts, PyObject* transport) noexcept {
    const Storage& storage = storage_of(parts, transport);
    return storage ? storage->fd() : -1;
}

void create_socket_transport_type(PyObject* module, Parts& parts, PyObject* transport) {
    PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(transport_new)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(transport_dealloc)},
                           {Py_tp_traverse, reinterpret_cast<void*>(transport_traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(transport_clear)},
                           {Py_tp_methods, methods},
                           {Py_tp_getset, properties},
                           {0, nullptr}};
    PyType_Spec spec = {"gossamer._core.SocketTransportBase", -static_cast<int>(sizeof(Storage)), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};
    const auto* base = reinterpret_cast<PyTypeObject*>(transport);
    if (base->tp_basicsize != Py_ssize_t{sizeof(PyObject) + sizeof(PyObject*)}) {
        cpython::raise(PyExc_ImportError, "gossamer does not know all fields of asyncio's transports in this Python");
    }
    parts.extra_offset = offset_of_slot(transport, "_extra");
    const auto alignment = Py_ssize_t{alignof(std::max_align_t)};
    parts.transport_offset = (base->tp_basicsize + alignment - 1) / alignment * alignment;
    parts.socket_transport_type =
        reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, transport)).release());
    cpython::check(
        PyModule_AddObjectRef(module, "SocketTransportBase", reinterpret_cast<PyObject*>(parts.socket_transport_type)));
}

}  // namespace gossamer::loop
