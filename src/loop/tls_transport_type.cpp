// SPDX-License-Identifier: Apache-2.0
// The Python class around TlsTransport. Its base is asyncio's _FlowControlMixin, whose fields are not used, so that the
// Python half can be a subclass of asyncio's own TLS transport too.
#include "cpython/api.hpp"

#include <cstddef>
#include <new>
#include <span>

#include "cpython/error.hpp"
#include "loop/tls_transport.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

/// What is ours in an instance; empty until _open.
using Storage = std::optional<TlsTransport>;

constexpr std::size_t kInheritedFields = 5;  // slots of asyncio's classes

Parts& parts_of_instance(PyObject* self) noexcept {
    // Safety: our class is among the bases of the instance's, so the module is found.
    return *cpython::state_of_module(PyType_GetModuleByDef(Py_TYPE(self), &cpython::core_module)).loop_parts;
}

/// Where our part of an instance begins; see kTransportOffset.
constexpr std::size_t kTlsOffset =
    (sizeof(PyObject) + kInheritedFields * sizeof(PyObject*) + alignof(std::max_align_t) - 1) /
    alignof(std::max_align_t) * alignof(std::max_align_t);

Storage& storage_of(PyObject* self) noexcept {
    // Safety: our part of an instance is there, and tp_new has put it there.
    return *std::launder(reinterpret_cast<Storage*>(reinterpret_cast<char*>(self) + kTlsOffset));
}

std::span<PyObject*, kInheritedFields> inherited_fields(PyObject* self) noexcept {
    // Safety: adopt_tls has checked that the base's instances are an object's head and these words.
    return std::span<PyObject*, kInheritedFields>(reinterpret_cast<PyObject**>(self + 1), kInheritedFields);
}

TlsTransport& opened(Storage& storage) {
    if (!storage) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return *storage;
}

TlsTransport& transport_of(PyObject* self) { return opened(storage_of(self)); }

PyObject* object_or_none(PyObject* object) noexcept { return Py_NewRef(object == nullptr ? Py_None : object); }

/// _open(loop, protocol, ssl, is_inner, incoming, outgoing, has_protocol_begun)
PyObject* open(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        TlsSetup setup{};
        int is_inner = 0;
        int has_protocol_begun = 0;
        if (!PyArg_ParseTuple(args, "OOOpOOp:_open", &setup.loop, &setup.protocol, &setup.ssl, &is_inner,
                              &setup.incoming, &setup.outgoing, &has_protocol_begun)) {
            throw cpython::ErrorSet{};
        }
        setup.is_inner = is_inner != 0;
        setup.has_protocol_begun = has_protocol_begun != 0;
        Storage& storage = storage_of(self);
        if (storage) {
            cpython::raise(PyExc_RuntimeError, "the transport is open already");
        }
        storage.emplace(parts_of_instance(self), self, setup);
        Py_RETURN_NONE;
    });
}

PyObject* write(PyObject* self, PyTypeObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        // write(data) or write(data=...)
        if (count + (names == nullptr ? 0 : PyTuple_GET_SIZE(names)) != 1) {
            cpython::raise(PyExc_TypeError, "write() takes 1 argument");
        }
        transport_of(self).write(args[0]);
        Py_RETURN_NONE;
    });
}

template <void (TlsTransport::*call)()>
PyObject* simple(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        (transport_of(self).*call)();
        Py_RETURN_NONE;
    });
}

template <void (TlsTransport::*call)(PyObject*)>
PyObject* with_object(PyObject* self, PyObject* object) {
    return guarded<PyObject*>(nullptr, [&] {
        (transport_of(self).*call)(object);
        Py_RETURN_NONE;
    });
}

PyObject* pause_reading(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).pause_reading();
        Py_RETURN_NONE;
    });
}

PyObject* pause_writing(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).pause_writing();
        Py_RETURN_NONE;
    });
}

PyObject* is_reading(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return PyBool_FromLong(transport_of(self).is_reading()); });
}

PyObject* is_closing(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return PyBool_FromLong(transport_of(self).is_closing()); });
}

PyObject* get_protocol(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return object_or_none(transport_of(self).protocol()); });
}

template <std::size_t (TlsTransport::*count)()>
PyObject* get_size(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return PyLong_FromSize_t((transport_of(self).*count)()); });
}

template <std::size_t TlsTransport::* low, std::size_t TlsTransport::* high>
PyObject* get_limits(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        const TlsTransport& transport = transport_of(self);
        return Py_BuildValue("(nn)", static_cast<Py_ssize_t>(transport.*low), static_cast<Py_ssize_t>(transport.*high));
    });
}

/// _set_..._limits(high, low)
template <void (TlsTransport::*set)(std::size_t, std::size_t)>
PyObject* set_limits(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        Py_ssize_t high = 0;
        Py_ssize_t low = 0;
        if (!PyArg_ParseTuple(args, "nn", &high, &low)) {
            throw cpython::ErrorSet{};
        }
        (transport_of(self).*set)(static_cast<std::size_t>(high), static_cast<std::size_t>(low));
        Py_RETURN_NONE;
    });
}

PyObject* end_handshake(PyObject* self, PyObject* was_good) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of(self).end_handshake(was_good == Py_True);
        Py_RETURN_NONE;
    });
}

template <Ref (TlsTransport::*call)()>
PyObject* object_result(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return object_or_none((transport_of(self).*call)().ptr()); });
}

PyObject* reach_eof(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return PyBool_FromLong(transport_of(self).reach_eof()); });
}

// ---- the protocol of a transport below that is not ours, which has the bytes put into a buffer ----

PyObject* get_buffer(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return transport_of(self).get_buffer().release(); });
}

PyObject* buffer_updated(PyObject* self, PyObject* count) {
    return guarded<PyObject*>(nullptr, [&] {
        const Py_ssize_t size = PyLong_AsSsize_t(count);
        if (size == -1 && PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        transport_of(self).update_buffer(size);
        Py_RETURN_NONE;
    });
}

// ---- fields ----

template <PyObject* (TlsTransport::*get)() const noexcept>
PyObject* get_object(PyObject* self, void*) {
    const Storage& storage = storage_of(self);
    return object_or_none(storage ? ((*storage).*get)() : nullptr);
}

PyObject* get_protocol_paused(PyObject* self, void*) {
    const Storage& storage = storage_of(self);
    return PyBool_FromLong(storage && storage->is_protocol_paused());
}

PyObject* get_state(PyObject* self, void*) {
    constexpr const char* kNames[] = {"UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING", "SHUTDOWN"};
    const Storage& storage = storage_of(self);
    return PyUnicode_FromString(kNames[storage ? static_cast<int>(storage->state()) : 0]);
}

PyObject* get_closed(PyObject* self, void*) {
    const Storage& storage = storage_of(self);
    return PyBool_FromLong(!storage || storage->is_closed);
}

int set_closed(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
        cpython::check(is_true);
        transport_of(self).is_closed = is_true != 0;
        return 0;
    });
}

// ---- the life of an instance ----

PyObject* transport_new(PyTypeObject* type, PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref self = steal(type->tp_alloc(type, 0));
        new (&storage_of(self.ptr())) Storage;
        return self.release();
    });
}

int transport_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    for (PyObject* field : inherited_fields(self)) {
        Py_VISIT(field);
    }
    Storage& storage = storage_of(self);
    return storage ? storage->traverse(visit, arg) : 0;
}

int transport_clear(PyObject* self) {
    for (PyObject*& field : inherited_fields(self)) {
        Py_CLEAR(field);
    }
    if (Storage& storage = storage_of(self)) {
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
    // the transport
    {"write", _PyCFunction_CAST(write), kMethod,
     PyDoc_STR("write($self, data, /)\n--\n\nEncrypt and send ``data``; what does not go now is kept.")},
    {"writelines", with_object<&TlsTransport::write_several>, METH_O,
     PyDoc_STR("writelines($self, list_of_data, /)\n--\n\nEncrypt and send several pieces of data.")},
    {"close", simple<&TlsTransport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nSend everything, then end TLS, then the connection.")},
    {"is_closing", is_closing, METH_NOARGS,
     PyDoc_STR("is_closing($self, /)\n--\n\nWhether the transport is closing or closed.")},
    {"is_reading", is_reading, METH_NOARGS,
     PyDoc_STR("is_reading($self, /)\n--\n\nWhether the protocol is given what comes.")},
    {"pause_reading", pause_reading, METH_NOARGS,
     PyDoc_STR("pause_reading($self, /)\n--\n\nGive the protocol nothing until `resume_reading`.")},
    {"resume_reading", simple<&TlsTransport::resume_reading>, METH_NOARGS,
     PyDoc_STR("resume_reading($self, /)\n--\n\nGive the protocol what comes, and what has come.")},
    {"set_protocol", with_object<&TlsTransport::set_protocol>, METH_O,
     PyDoc_STR("set_protocol($self, protocol, /)\n--\n\nSet a new protocol.")},
    {"get_protocol", get_protocol, METH_NOARGS, PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", get_size<&TlsTransport::unsent_bytes>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait for the transport below.")},
    {"get_write_buffer_limits", get_limits<&TlsTransport::write_low, &TlsTransport::write_high>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"get_read_buffer_size", get_size<&TlsTransport::unread_bytes>, METH_NOARGS,
     PyDoc_STR("get_read_buffer_size($self, /)\n--\n\nHow many encrypted bytes wait for the protocol.")},
    {"get_read_buffer_limits", get_limits<&TlsTransport::read_low, &TlsTransport::read_high>, METH_NOARGS,
     PyDoc_STR("get_read_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"_set_write_limits", set_limits<&TlsTransport::set_write_limits>, METH_VARARGS, nullptr},
    {"_set_read_limits", set_limits<&TlsTransport::set_read_limits>, METH_VARARGS, nullptr},
    {"_abort", with_object<&TlsTransport::abort>, METH_O, nullptr},
    // the protocol
    {"get_buffer", get_buffer, METH_O, nullptr},
    {"buffer_updated", buffer_updated, METH_O, nullptr},
    {"pause_writing", pause_writing, METH_NOARGS, nullptr},
    {"resume_writing", simple<&TlsTransport::resume_writing>, METH_NOARGS, nullptr},
    {"_reach_eof", reach_eof, METH_NOARGS, nullptr},
    {"_lose", object_result<&TlsTransport::lose>, METH_NOARGS, nullptr},
    // what happens once
    {"_open", open, METH_VARARGS, nullptr},
    {"_begin_handshake", with_object<&TlsTransport::begin_handshake>, METH_O, nullptr},
    {"_end_handshake", end_handshake, METH_O, nullptr},
    {"_note_made", object_result<&TlsTransport::note_made>, METH_NOARGS, nullptr},
    {"_do_read", simple<&TlsTransport::read>, METH_NOARGS, nullptr},
    {"_resume", simple<&TlsTransport::resume>, METH_NOARGS, nullptr},
    {"_test__append_write_backlog", with_object<&TlsTransport::keep_unsent>, METH_O, nullptr},
    {}};

PyGetSetDef properties[] = {{"_transport", get_object<&TlsTransport::below>, nullptr, nullptr, nullptr},
                            {"_app_protocol", get_object<&TlsTransport::protocol>, nullptr, nullptr, nullptr},
                            {"_incoming", get_object<&TlsTransport::incoming>, nullptr, nullptr, nullptr},
                            {"_outgoing", get_object<&TlsTransport::outgoing>, nullptr, nullptr, nullptr},
                            {"_protocol_paused", get_protocol_paused, nullptr, nullptr, nullptr},
                            {"_state", get_state, nullptr, nullptr, nullptr},
                            {"_closed", get_closed, set_closed, nullptr, nullptr},
                            {}};

}  // namespace

TlsTransport* find_tls_transport(const Parts& parts, PyObject* protocol) noexcept {
    if (parts.tls.transport_type == nullptr || !PyObject_TypeCheck(protocol, parts.tls.transport_type)) {
        return nullptr;
    }
    Storage& storage = storage_of(protocol);
    return storage ? &*storage : nullptr;
}

PyObject* adopt_tls(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (count != 4) {
            cpython::raise(PyExc_TypeError, "adopt_tls() takes four classes");
        }
        Parts& parts = *cpython::state_of_module(module).loop_parts;
        TlsParts& tls = parts.tls;
        if (tls.transport_type != nullptr) {
            Py_RETURN_NONE;
        }
        tls.ssl_error = Py_NewRef(args[1]);
        tls.want_read_error = Py_NewRef(args[2]);
        tls.syscall_error = Py_NewRef(args[3]);
        tls.no_bytes = steal(PyBytes_FromStringAndSize(nullptr, 0)).release();

        PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(transport_new)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(transport_dealloc)},
                               {Py_tp_traverse, reinterpret_cast<void*>(transport_traverse)},
                               {Py_tp_clear, reinterpret_cast<void*>(transport_clear)},
                               {Py_tp_methods, methods},
                               {Py_tp_getset, properties},
                               {0, nullptr}};
        PyType_Spec spec = {"gossamer._core.TlsTransportBase", -static_cast<int>(sizeof(Storage)), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};
        const auto* base = reinterpret_cast<PyTypeObject*>(args[0]);
        if (base->tp_basicsize != Py_ssize_t{sizeof(PyObject) + kInheritedFields * sizeof(PyObject*)}) {
            cpython::raise(PyExc_ImportError,
                           "gossamer does not know all fields of asyncio's transports in this Python");
        }
        const Ref type = steal(PyType_FromModuleAndSpec(module, &spec, args[0]));
        tls.transport_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(type.ptr()));
        cpython::check(PyModule_AddObjectRef(module, "TlsTransportBase", type.ptr()));
        Py_RETURN_NONE;
    });
}

}  // namespace gossamer::loop
