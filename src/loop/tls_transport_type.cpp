// SPDX-License-Identifier: Apache-2.0
// The Python class around TlsTransport. Its base is asyncio's _FlowControlMixin, whose fields are not used, so that the
// Python half can be a subclass of asyncio's own TLS transport too.
#include "cpython/api.hpp"

#include "cpython/error.hpp"
#include "loop/tls_transport.hpp"
#include "loop/transport_object.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

using Storage = std::optional<TlsTransport>;
using TlsObject = TransportObject<Storage, 5>;

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
        Storage& storage = TlsObject::storage_of(self);
        if (storage) {
            cpython::raise(PyExc_RuntimeError, "the transport is open already");
        }
        storage.emplace(parts_of_instance(self), self, setup);
        Py_RETURN_NONE;
    });
}

PyObject* write(PyObject* self, PyTypeObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of<TlsTransport>(self).write(cpython::only_argument("write", "data", args, count, names));
        Py_RETURN_NONE;
    });
}

PyObject* end_handshake(PyObject* self, PyObject* was_good) {
    return guarded<PyObject*>(nullptr, [&] {
        transport_of<TlsTransport>(self).end_handshake(was_good == Py_True);
        Py_RETURN_NONE;
    });
}

// ---- the protocol of a transport below that is not ours, which has the bytes put into a buffer ----

PyObject* buffer_updated(PyObject* self, PyObject* count) {
    return guarded<PyObject*>(nullptr, [&] {
        const Py_ssize_t size = PyLong_AsSsize_t(count);
        if (size == -1 && PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        transport_of<TlsTransport>(self).update_buffer(size);
        Py_RETURN_NONE;
    });
}

// ---- fields ----

PyObject* get_state(PyObject* self, void*) {
    constexpr const char* kNames[] = {"UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING", "SHUTDOWN"};
    const TlsTransport* transport = TlsTransport::find(self);
    return PyUnicode_FromString(kNames[transport == nullptr ? 0 : static_cast<int>(transport->state())]);
}

PyObject* get_closed(PyObject* self, void*) {
    const TlsTransport* transport = TlsTransport::find(self);
    return object_of(transport == nullptr || transport->is_closed);
}

constexpr int kMethod = METH_METHOD | METH_FASTCALL | METH_KEYWORDS;

PyMethodDef methods[] = {
    // the transport
    {"write", _PyCFunction_CAST(write), kMethod,
     PyDoc_STR("write($self, /, data)\n--\n\nEncrypt and send ``data``; what does not go now is kept.")},
    {"writelines", _PyCFunction_CAST((method_of_one<&TlsTransport::write_several, "writelines", "list_of_data">)),
     kMethodOfOne, PyDoc_STR("writelines($self, /, list_of_data)\n--\n\nEncrypt and send several pieces of data.")},
    {"close", method<&TlsTransport::close>, METH_NOARGS,
     PyDoc_STR("close($self, /)\n--\n\nSend everything, then end TLS, then the connection.")},
    {"is_closing", method<&TlsTransport::is_closing>, METH_NOARGS,
     PyDoc_STR("is_closing($self, /)\n--\n\nWhether the transport is closing or closed.")},
    {"is_reading", method<&TlsTransport::is_reading>, METH_NOARGS,
     PyDoc_STR("is_reading($self, /)\n--\n\nWhether the protocol is given what comes.")},
    {"pause_reading", method<&TlsTransport::pause_reading>, METH_NOARGS,
     PyDoc_STR("pause_reading($self, /)\n--\n\nGive the protocol nothing until `resume_reading`.")},
    {"resume_reading", method<&TlsTransport::resume_reading>, METH_NOARGS,
     PyDoc_STR("resume_reading($self, /)\n--\n\nGive the protocol what comes, and what has come.")},
    {"set_protocol", _PyCFunction_CAST((method_of_one<&TlsTransport::set_protocol, "set_protocol", "protocol">)),
     kMethodOfOne, PyDoc_STR("set_protocol($self, /, protocol)\n--\n\nSet a new protocol.")},
    {"get_protocol", method<&TlsTransport::protocol>, METH_NOARGS,
     PyDoc_STR("get_protocol($self, /)\n--\n\nReturn the protocol.")},
    {"get_write_buffer_size", method<&TlsTransport::unsent_bytes>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_size($self, /)\n--\n\nHow many bytes wait for the transport below.")},
    {"get_write_buffer_limits", get_limits<&TlsTransport::write_low, &TlsTransport::write_high>, METH_NOARGS,
     PyDoc_STR("get_write_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"get_read_buffer_size", method<&TlsTransport::unread_bytes>, METH_NOARGS,
     PyDoc_STR("get_read_buffer_size($self, /)\n--\n\nHow many encrypted bytes wait for the protocol.")},
    {"get_read_buffer_limits", get_limits<&TlsTransport::read_low, &TlsTransport::read_high>, METH_NOARGS,
     PyDoc_STR("get_read_buffer_limits($self, /)\n--\n\nThe marks of flow control: (low, high).")},
    {"_set_write_limits", set_limits<&TlsTransport::set_write_limits>, METH_VARARGS, nullptr},
    {"_set_read_limits", set_limits<&TlsTransport::set_read_limits>, METH_VARARGS, nullptr},
    {"_abort", method<&TlsTransport::abort>, METH_O, nullptr},
    // the protocol
    {"get_buffer", method<&TlsTransport::get_buffer>, METH_O, nullptr},
    {"buffer_updated", buffer_updated, METH_O, nullptr},
    {"pause_writing", method<&TlsTransport::pause_writing>, METH_NOARGS, nullptr},
    {"resume_writing", method<&TlsTransport::resume_writing>, METH_NOARGS, nullptr},
    {"_reach_eof", method<&TlsTransport::reach_eof>, METH_NOARGS, nullptr},
    {"_lose", method<&TlsTransport::lose>, METH_NOARGS, nullptr},
    // what happens once
    {"_open", open, METH_VARARGS, nullptr},
    {"_begin_handshake", method<&TlsTransport::begin_handshake>, METH_O, nullptr},
    {"_end_handshake", end_handshake, METH_O, nullptr},
    {"_note_made", method<&TlsTransport::note_made>, METH_NOARGS, nullptr},
    {"_do_read", method<&TlsTransport::read>, METH_NOARGS, nullptr},
    {"_resume", method<&TlsTransport::resume>, METH_NOARGS, nullptr},
    {"_test__append_write_backlog", method<&TlsTransport::keep_unsent>, METH_O, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_transport", attribute<&TlsTransport::below>, nullptr, nullptr, nullptr},
    {"_app_protocol", attribute<&TlsTransport::protocol>, nullptr, nullptr, nullptr},
    {"_incoming", attribute<&TlsTransport::incoming>, nullptr, nullptr, nullptr},
    {"_outgoing", attribute<&TlsTransport::outgoing>, nullptr, nullptr, nullptr},
    {"_protocol_paused", attribute<&TlsTransport::is_protocol_paused>, nullptr, nullptr, nullptr},
    {"_state", get_state, nullptr, nullptr, nullptr},
    {"_closed", get_closed, set_flag<&TlsTransport::is_closed>, nullptr, nullptr},
    {}};

}  // namespace

TlsTransport* find_tls_transport(const Parts& parts, PyObject* protocol) noexcept {
    if (parts.tls.transport_type == nullptr || !PyObject_TypeCheck(protocol, parts.tls.transport_type)) {
        return nullptr;
    }
    return TlsTransport::find(protocol);
}

TlsTransport* TlsTransport::find(PyObject* self) noexcept {
    Storage& storage = TlsObject::storage_of(self);
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

        Ref type = TlsObject::create_type(module, "gossamer._core.TlsTransportBase", args[0], methods, properties);
        tls.transport_type = reinterpret_cast<PyTypeObject*>(type.release());
        Py_RETURN_NONE;
    });
}

}  // namespace gossamer::loop
