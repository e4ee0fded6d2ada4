// SPDX-License-Identifier: Apache-2.0
// gossamer._core.TransportBase: see transport_type.hpp.
#include "cpython/api.hpp"

#include "loop/transport_type.hpp"

#include <sys/socket.h>

#include "cpython/socket_address.hpp"
#include "cpython/socket_object.hpp"
#include "loop/handle.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using cpython::words_of_socket;

// ---- what get_extra_info() says ----

namespace {

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

}  // namespace

Ref extra_of(PyObject* self) {
    PyObject*& extra = extra_field(self);
    if (extra == nullptr) {
        extra = steal(PyDict_New()).release();
    }
    return cpython::borrow(extra);
}

void describe_socket(const Parts& parts, PyObject* self, PyObject* socket, PyObject* peername) {
    const Ref known = extra_of(self);
    const TransportParts& transports = parts.transports;
    const auto set = [&](PyObject* name, const Ref& value) {
        cpython::check(PyObject_SetItem(known.ptr(), name, value.ptr()));
    };
    set(transports.socket, steal(PyObject_CallOneArg(transports.transport_socket, socket)));
    set(transports.sockname, address_of(parts, socket, ask_sockname, transports.getsockname));
    if (peername != nullptr) {
        set(transports.peername, cpython::borrow(peername));
        return;
    }
    const int is_known = PySequence_Contains(known.ptr(), transports.peername);
    cpython::check(is_known);
    if (is_known == 0) {
        set(transports.peername, address_of(parts, socket, ask_peername, transports.getpeername));
    }
}

// ---- the class ----

namespace {

PyObject* is_closing(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(transport_of(self).is_closing ? Py_True : Py_False); });
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

PyObject* call_connection_lost(PyObject* self, PyObject* error) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).lose(error);
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
    TransportStorage& storage = storage_of(self);
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

template <void (Transport::*set)(PyObject*)>
int set_object(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        (transport_of(self).*set)(value == nullptr ? Py_None : value);
        return 0;
    });
}

PyObject* get_fd(PyObject* self, void*) {
    TransportStorage& storage = storage_of(self);
    return PyLong_FromLong(storage ? storage->fd() : -1);
}

PyObject* get_lost_count(PyObject* self, void*) {
    TransportStorage& storage = storage_of(self);
    return PyLong_FromLong(storage ? storage->lost_count : 0);
}

PyObject* transport_new(PyTypeObject* type, PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return new_transport_object(type).release(); });
}

int transport_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(extra_field(self));
    TransportStorage& storage = storage_of(self);
    return storage ? storage->traverse(visit, arg) : 0;
}

int transport_clear(PyObject* self) {
    Py_CLEAR(extra_field(self));
    if (TransportStorage& storage = storage_of(self)) {
        storage->hide();
        storage->clear();
    }
    return 0;
}

void transport_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    transport_clear(self);
    storage_of(self).~TransportStorage();
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"is_closing", is_closing, METH_NOARGS,
     PyDoc_STR("is_closing($self, /)\n--\n\nWhether the transport is closing or closed.")},
    {"is_reading", is_reading, METH_NOARGS,
     PyDoc_STR("is_reading($self, /)\n--\n\nWhether the transport is receiving.")},
    {"set_protocol", set_protocol, METH_O, PyDoc_STR("set_protocol($self, protocol, /)\n--\n\nSet a new protocol.")},
    {"get_protocol", get_protocol, METH_NOARGS, PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", get_write_buffer_size, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be sent.")},
    {"get_write_buffer_limits", get_write_buffer_limits, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"close", simple_method<Transport, &Transport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nClose once everything is sent.")},
    {"_finish_beginning", simple_method<Transport, &Transport::finish_beginning>, METH_NOARGS, nullptr},
    {"_force_close", force_close, METH_O, nullptr},
    {"_call_connection_lost", call_connection_lost, METH_O, nullptr},
    {"_set_limits", set_limits, METH_VARARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_loop", get_object<&Transport::loop_object>, nullptr, nullptr, nullptr},
    {"_file", get_object<&Transport::file>, set_object<&Transport::set_file>, nullptr, nullptr},
    {"_fileno", get_fd, nullptr, nullptr, nullptr},
    {"_server", get_object<&Transport::server>, set_object<&Transport::set_server>, nullptr, nullptr},
    {"_protocol", get_object<&Transport::protocol>, set_protocol_field, nullptr, nullptr},
    {"_conn_lost", get_lost_count, nullptr, nullptr, nullptr},
    {"_closing", get_flag<Transport, &Transport::is_closing>, nullptr, nullptr, nullptr},
    {"_paused", get_flag<Transport, &Transport::is_paused>, nullptr, nullptr, nullptr},
    // What asyncio's own transports of sockets call the two.
    {"_sock", get_object<&Transport::file>, set_object<&Transport::set_file>, nullptr, nullptr},
    {"_sock_fd", get_fd, nullptr, nullptr, nullptr},
    {}};

}  // namespace

Ref new_transport_object(PyTypeObject* type) {
    Ref self = steal(type->tp_alloc(type, 0));
    new (reinterpret_cast<char*>(self.ptr()) + kTransportOffset) TransportStorage;
    return self;
}

int fd_of_transport(PyObject* transport) noexcept {
    const TransportStorage& storage = storage_of(transport);
    return storage ? storage->fd() : -1;
}

void create_transport_base_type(PyObject* module, Parts& parts, PyObject* base_transport) {
    PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(transport_new)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(transport_dealloc)},
                           {Py_tp_traverse, reinterpret_cast<void*>(transport_traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(transport_clear)},
                           {Py_tp_methods, methods},
                           {Py_tp_getset, properties},
                           {0, nullptr}};
    PyType_Spec spec = {"gossamer._core.TransportBase", -static_cast<int>(sizeof(TransportStorage)), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};
    const auto* base = reinterpret_cast<PyTypeObject*>(base_transport);
    if (base->tp_basicsize != Py_ssize_t{sizeof(PyObject) + sizeof(PyObject*)}) {
        cpython::raise(PyExc_ImportError, "gossamer does not know all fields of asyncio's transports in this Python");
    }
    parts.transport_base_type =
        reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, base_transport)).release());
    cpython::check(
        PyModule_AddObjectRef(module, "TransportBase", reinterpret_cast<PyObject*>(parts.transport_base_type)));
}

PyTypeObject* create_transport_type(PyObject* module, const Parts& parts, const char* name, PyMethodDef* methods,
                                    PyGetSetDef* properties) {
    PyType_Slot slots[] = {{Py_tp_methods, methods}, {Py_tp_getset, properties}, {0, nullptr}};
    // Without a flag for it the garbage collector is the base class's business.
    PyType_Spec spec = {name, 0, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
    Ref type = steal(PyType_FromModuleAndSpec(module, &spec, reinterpret_cast<PyObject*>(parts.transport_base_type)));
    cpython::check(PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(type.ptr())));
    return reinterpret_cast<PyTypeObject*>(type.release());
}

}  // namespace gossamer::loop
