// SPDX-License-Identifier: Apache-2.0
// The Python class around SocketTransport.
#include "cpython/api.hpp"

#include <new>
#include <sys/socket.h>

#include "cpython/error.hpp"
#include "loop/transport.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

/// What is ours in an instance; empty until _open.
using Storage = std::optional<SocketTransport>;

Parts& parts_of_instance(PyObject* self) noexcept {
    // Safety: our class is among the bases of the instance's, so the module is found.
    return *cpython::state_of_module(PyType_GetModuleByDef(Py_TYPE(self), &cpython::core_module)).loop_parts;
}

Storage& storage_of(const Parts& parts, PyObject* self) noexcept {
    // Safety: the offset is that of our part of an instance, where tp_new has put it.
    return *std::launder(reinterpret_cast<Storage*>(reinterpret_cast<char*>(self) + parts.transport_offset));
}

Storage& storage_of(PyObject* self) noexcept { return storage_of(parts_of_instance(self), self); }

SocketTransport& transport_of(PyObject* self, PyTypeObject* defining_class) {
    Storage& storage = storage_of(parts_of_type(defining_class), self);
    if (!storage) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return *storage;
}

SocketTransport& transport_of(PyObject* self) {
    Storage& storage = storage_of(self);
    if (!storage) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return *storage;
}

/// _open(loop, socket, protocol, fd, family, context); `context` None: a copy of the current one.
PyObject* open(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* loop = nullptr;
        PyObject* socket = nullptr;
        PyObject* protocol = nullptr;
        int fd = -1;
        int family = 0;
        PyObject* context = nullptr;
        if (!PyArg_ParseTuple(args, "O!OOiiO:_open", parts_of_instance(self).event_loop_type, &loop, &socket, &protocol,
                              &fd, &family, &context)) {
            throw cpython::ErrorSet{};
        }
        Storage& storage = storage_of(self);
        if (storage) {
            cpython::raise(PyExc_RuntimeError, "the transport is open already");
        }
        const Ref own_context = context == Py_None ? steal(PyContext_CopyCurrent()) : cpython::borrow(context);
        storage.emplace(loop_of(loop), self, socket, fd, family == AF_INET || family == AF_INET6, own_context.ptr());
        storage->set_protocol(protocol);
        Py_RETURN_NONE;
    });
}

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
        transport_of(self, defining_class).write(args[0]);
        Py_RETURN_NONE;
    });
}

PyObject* writelines(PyObject* self, PyObject* objects) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).write_several(objects);
        Py_RETURN_NONE;
    });
}

PyObject* is_closing(PyObject* self, PyTypeObject* defining_class, PyObject* const*, Py_ssize_t, PyObject*) {
    return guarded<PyObject*>(
        nullptr, [&] { return Py_NewRef(transport_of(self, defining_class).is_closing ? Py_True : Py_False); });
}

template <void (SocketTransport::*call)()>
PyObject* simple(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        (transport_of(self).*call)();
        Py_RETURN_NONE;
    });
}

PyObject* pause_reading(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        SocketTransport& transport = transport_of(self);
        if (transport.is_reading()) {
            transport.pause_reading();
            if (transport.unsent_bytes() == 0) {
                const Ref kept = cpython::borrow(self);
                loop_of(transport.loop_object()).release(transport);
            }
        }
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
        const SocketTransport& transport = transport_of(self);
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

template <PyObject* (SocketTransport::*get)() const noexcept>
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

int set_socket(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        transport_of(self).set_socket(value);
        return 0;
    });
}

PyObject* get_empty_waiter(PyObject* self, void*) {
    Storage& storage = storage_of(self);
    return object_or_none(storage ? storage->empty_waiter.ptr() : nullptr);
}

int set_empty_waiter(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        Ref waiter = cpython::borrow(value == Py_None ? nullptr : value);
        transport_of(self).empty_waiter.swap(waiter);
        return 0;
    });
}

template <bool SocketTransport::* flag>
PyObject* get_flag(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(transport_of(self).*flag ? Py_True : Py_False); });
}

template <bool SocketTransport::* flag>
int set_flag(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
        cpython::check(is_true);
        transport_of(self).*flag = is_true != 0;
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
    {"pause_reading", pause_reading, METH_NOARGS,
     PyDoc_STR("pause_reading($self, /)\n--\n\nReceive nothing until `resume_reading`.")},
    {"resume_reading", simple<&SocketTransport::resume_reading>, METH_NOARGS,
     PyDoc_STR("resume_reading($self, /)\n--\n\nReceive again.")},
    {"set_protocol", set_protocol, METH_O, PyDoc_STR("set_protocol($self, protocol, /)\n--\n\nSet a new protocol.")},
    {"get_protocol", get_protocol, METH_NOARGS, PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", get_write_buffer_size, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait to be sent.")},
    {"get_write_buffer_limits", get_write_buffer_limits, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"close", simple<&SocketTransport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nClose once everything is sent.")},
    {"_open", open, METH_VARARGS, nullptr},
    {"_start_reading", simple<&SocketTransport::start_reading>, METH_NOARGS, nullptr},
    {"_force_close", force_close, METH_O, nullptr},
    {"_finish", simple<&SocketTransport::finish>, METH_NOARGS, nullptr},
    {"_set_limits", set_limits, METH_VARARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_loop", get_object<&SocketTransport::loop_object>, nullptr, nullptr, nullptr},
    {"_sock", get_object<&SocketTransport::socket>, set_socket, nullptr, nullptr},
    {"_read_ready_cb", get_read_callback, nullptr, nullptr, nullptr},
    {"_protocol", get_object<&SocketTransport::protocol>, set_protocol_field, nullptr, nullptr},
    {"_empty_waiter", get_empty_waiter, set_empty_waiter, nullptr, nullptr},
    {"_sock_fd", get_fd, nullptr, nullptr, nullptr},
    {"_conn_lost", get_lost_count, nullptr, nullptr, nullptr},
    {"_closing", get_flag<&SocketTransport::is_closing>, nullptr, nullptr, nullptr},
    {"_paused", get_flag<&SocketTransport::is_paused>, nullptr, nullptr, nullptr},
    {"_eof", get_flag<&SocketTransport::has_sent_eof>, set_flag<&SocketTransport::has_sent_eof>, nullptr, nullptr},
    {}};

}  // namespace

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
