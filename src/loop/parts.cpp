// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/parts.hpp"

#include <array>
#include <span>

#include "cpython/ref.hpp"
#include "loop/acceptor.hpp"
#include "loop/datagram_transport.hpp"
#include "loop/event_loop.hpp"
#include "loop/future_wait.hpp"
#include "loop/handle.hpp"
#include "loop/pipe_transport.hpp"
#include "loop/socket_operation.hpp"
#include "loop/stream.hpp"
#include "loop/stream_read.hpp"
#include "loop/transport.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

bool is_buffered_protocol(const Parts& parts, PyObject* protocol) {
    const int is_instance = PyObject_IsInstance(protocol, parts.buffered_protocol);
    cpython::check(is_instance);
    PyTypeObject* type = Py_TYPE(protocol);
    return is_instance != 0 || (_PyType_Lookup(type, parts.get_buffer_name) != nullptr &&
                                _PyType_Lookup(type, parts.data_received_name) == nullptr);
}

Py_ssize_t offset_of_slot(PyObject* type, const char* name) {
    const Ref descriptor = steal(PyObject_GetAttrString(type, name));
    if (!Py_IS_TYPE(descriptor.ptr(), &PyMemberDescr_Type)) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of asyncio's classes in this Python");
    }
    const PyMemberDef& member = *reinterpret_cast<PyMemberDescrObject*>(descriptor.ptr())->d_member;
    return member.offset;
}

void create_parts(PyObject* module) {
    auto* parts = new Parts;
    cpython::state_of_module(module).loop_parts = parts;
    parts->no_args = steal(PyTuple_New(0)).release();
    parts->minus_one = steal(PyLong_FromLong(-1)).release();
    parts->acceptor_type = create_acceptor_type(module);
    parts->streams.read_type = create_stream_read_type(module);
    parts->socket_operation_type = create_socket_operation_type(module);
    parts->event_loop_type = create_event_loop_type(module);
    cpython::check(PyModule_AddObjectRef(module, "EventLoopBase", reinterpret_cast<PyObject*>(parts->event_loop_type)));
}

namespace {

std::array<std::span<PyObject*>, 4> objects_of(Parts& parts) noexcept {
    return {cpython::references_in<LoopObjects>(parts), cpython::references_in<StreamObjects>(parts.streams),
            cpython::references_in<TransportObjects>(parts.transports), cpython::references_in<TlsObjects>(parts.tls)};
}

}  // namespace

int traverse_parts(Parts* parts, visitproc visit, void* arg) {
    if (parts == nullptr) {
        return 0;
    }
    for (const std::span<PyObject*> objects : objects_of(*parts)) {
        for (PyObject* object : objects) {
            Py_VISIT(object);
        }
    }
    return traverse_spare_handles(*parts, visit, arg);
}

void clear_parts(Parts* parts) noexcept {
    if (parts != nullptr) {
        drop_spare_handles(*parts);
        for (const std::span<PyObject*> objects : objects_of(*parts)) {
            for (PyObject*& object : objects) {
                Py_CLEAR(object);
            }
        }
    }
}

void free_parts(Parts* parts) noexcept { delete parts; }

PyObject* adopt_asyncio(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (count != 10) {
            cpython::raise(PyExc_TypeError, "adopt_asyncio() takes ten classes");
        }
        Parts& parts = *cpython::state_of_module(module).loop_parts;
        if (parts.asyncio_handle == nullptr) {
            create_transport_base_type(module, parts, args[3]);
            create_socket_transport_type(module, parts);
            create_datagram_transport_type(module, parts);
            create_pipe_transport_types(module, parts);
            create_handle_types(module, parts, args[0], args[1]);
            parts.future_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(args[2]));
            parts.future_blocking = future_blocking_of(parts);
            parts.buffered_protocol = Py_NewRef(args[4]);
            adopt_streams(module, parts, args[8], args[9]);
            parts.selector_loop_type = Py_NewRef(args[6]);
            parts.socket_type = Py_NewRef(args[7]);
            parts.io_refs_offset = offset_of_slot(args[7], "_io_refs");
            parts.closed_offset = offset_of_slot(args[7], "_closed");
            parts.thread_safe_handle = args[5] == Py_None ? nullptr : Py_NewRef(args[5]);
        }
        Py_RETURN_NONE;
    });
}

PyObject* adopt_transports(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (count != 2) {
            cpython::raise(PyExc_TypeError, "adopt_transports() takes two classes");
        }
        TransportParts& parts = cpython::state_of_module(module).loop_parts->transports;
        if (parts.socket_transport == nullptr) {
            parts.socket_transport = Py_NewRef(args[0]);
            parts.transport_socket = Py_NewRef(args[1]);
        }
        Py_RETURN_NONE;
    });
}

}  // namespace gossamer::loop
