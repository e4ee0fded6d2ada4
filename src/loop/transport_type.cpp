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
    PyObject*& extra = BaseObject::inherited_fields(self)[0];
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

PyObject* get_fd(PyObject* self, void*) { return PyLong_FromLong(fd_of_transport(self)); }

PyMethodDef methods[] = {
    {"is_closing", method<&Transport::is_closing>, METH_NOARGS,
     PyDoc_STR("is_closing($self, /)\n--\n\nWhether the transport is closing or closed.")},
    {"is_reading", method<&Transport::is_reading>, METH_NOARGS,
     PyDoc_STR("is_reading($self, /)\n--\n\nWhether the transport is receiving.")},
    {"set_protocol", _PyCFunction_CAST((method_of_one<&Transport::set_protocol, "set_protocol", "protocol">)),
     kMethodOfOne, PyDoc_STR("set_protocol($self, /, protocol)\n--\n\nSet a new protocol.")},
    {"get_protocol", method<&Transport::protocol>, METH_NOARGS,
     PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", method<&Transport::unsent_bytes>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be sent.")},
    {"get_write_buffer_limits", get_limits<&Transport::low_water, &Transport::high_water>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"close", method<&Transport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nClose once everything is sent.")},
    {"_finish_beginning", method<&Transport::finish_beginning>, METH_NOARGS, nullptr},
    {"_force_close", method<&Transport::force_close>, METH_O, nullptr},
    {"_call_connection_lost", method<&Transport::lose>, METH_O, nullptr},
    {"_set_limits", set_limits<&Transport::set_limits>, METH_VARARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_loop", attribute<&Transport::loop_object>, nullptr, nullptr, nullptr},
    {"_file", attribute<&Transport::file>, set_object<&Transport::set_file>, nullptr, nullptr},
    {"_fileno", get_fd, nullptr, nullptr, nullptr},
    {"_server", attribute<&Transport::server>, set_object<&Transport::set_server>, nullptr, nullptr},
    {"_protocol", attribute<&Transport::protocol>, set_protocol_field, nullptr, nullptr},
    {"_conn_lost", attribute<&Transport::lost_count>, nullptr, nullptr, nullptr},
    {"_closing", get_flag<&Transport::is_closing>, nullptr, nullptr, nullptr},
    {"_protocol_paused", attribute<&Transport::is_protocol_paused>, nullptr, nullptr, nullptr},
    {"_paused", get_flag<&Transport::is_paused>, nullptr, nullptr, nullptr},
    // What asyncio's own transports of sockets call the two.
    {"_sock", attribute<&Transport::file>, set_object<&Transport::set_file>, nullptr, nullptr},
    {"_sock_fd", get_fd, nullptr, nullptr, nullptr},
    {}};

}  // namespace

Transport* Transport::find(PyObject* self) noexcept { return BaseObject::storage_of(self).get(); }

int fd_of_transport(PyObject* transport) noexcept {
    const Transport* found = Transport::find(transport);
    return found == nullptr ? -1 : found->fd();
}

void create_transport_base_type(PyObject* module, Parts& parts, PyObject* base_transport) {
    Ref type = BaseObject::create_type(module, "gossamer._core.TransportBase", base_transport, methods, properties);
    parts.transport_base_type = reinterpret_cast<PyTypeObject*>(type.release());
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
