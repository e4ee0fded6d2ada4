// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/parts.hpp"

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

namespace {

void intern_names(TransportParts& parts) {
    const auto intern = [](const char* name) { return steal(PyUnicode_InternFromString(name)).release(); };
    parts.connection_made = intern("connection_made");
    parts.connection_lost = intern("connection_lost");
    parts.close = intern("close");
    parts.detach = intern("_detach");
    parts.datagram_received = intern("datagram_received");
    parts.error_received = intern("error_received");
    parts.finish_beginning = intern("_finish_beginning");
    parts.call_connection_lost = intern("_call_connection_lost");
    parts.socket = intern("socket");
    parts.sockname = intern("sockname");
    parts.peername = intern("peername");
    parts.getsockname = intern("getsockname");
    parts.getpeername = intern("getpeername");
    parts.attach = intern("_attach");
}

}  // namespace

void create_parts(PyObject* module) {
    auto* parts = new Parts;
    cpython::state_of_module(module).loop_parts = parts;
    parts->loop_name = steal(PyUnicode_InternFromString("loop")).release();
    parts->no_args = steal(PyTuple_New(0)).release();
    parts->minus_one = steal(PyLong_FromLong(-1)).release();
    parts->time_name = steal(PyUnicode_InternFromString("time")).release();
    parts->run_name = steal(PyUnicode_InternFromString("_run")).release();
    parts->data_received_name = steal(PyUnicode_InternFromString("data_received")).release();
    parts->get_buffer_name = steal(PyUnicode_InternFromString("get_buffer")).release();
    parts->buffer_updated_name = steal(PyUnicode_InternFromString("buffer_updated")).release();
    parts->eof_received_name = steal(PyUnicode_InternFromString("eof_received")).release();
    parts->future_blocking_name = steal(PyUnicode_InternFromString("_asyncio_future_blocking")).release();
    parts->done_name = steal(PyUnicode_InternFromString("done")).release();
    parts->set_result_name = steal(PyUnicode_InternFromString("set_result")).release();
    intern_names(parts->transports);
    parts->acceptor_type = create_acceptor_type(module);
    parts->cancelled_name = steal(PyUnicode_InternFromString("cancelled")).release();
    parts->result_name = steal(PyUnicode_InternFromString("result")).release();
    parts->streams.read_type = create_stream_read_type(module);
    parts->socket_operation_type = create_socket_operation_type(module);
    parts->event_loop_type = create_event_loop_type(module);
    cpython::check(PyModule_AddObjectRef(module, "EventLoopBase", reinterpret_cast<PyObject*>(parts->event_loop_type)));
}

int traverse_parts(Parts* parts, visitproc visit, void* arg) {
    if (parts != nullptr) {
        Py_VISIT(reinterpret_cast<PyObject*>(parts->event_loop_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->asyncio_handle));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->handle_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->timer_handle_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->transport_base_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->socket_transport_type));
        Py_VISIT(parts->streams.stream_type);
        Py_VISIT(parts->streams.protocol_type);
        Py_VISIT(parts->streams.reader_type);
        Py_VISIT(parts->streams.done);
        Py_VISIT(parts->streams.read);
        Py_VISIT(parts->streams.drain_helper);
        Py_VISIT(parts->streams.doubled);
        Py_VISIT(parts->transports.socket_transport);
        Py_VISIT(parts->transports.transport_socket);
        Py_VISIT(reinterpret_cast<PyObject*>(parts->acceptor_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->tls.transport_type));
        Py_VISIT(parts->tls.ssl_error);
        Py_VISIT(parts->tls.want_read_error);
        Py_VISIT(parts->tls.syscall_error);
        Py_VISIT(parts->thread_safe_handle);
        Py_VISIT(reinterpret_cast<PyObject*>(parts->socket_operation_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->streams.read_type));
        Py_VISIT(parts->socket_type);
        Py_VISIT(parts->selector_loop_type);
        Py_VISIT(reinterpret_cast<PyObject*>(parts->future_type));
        Py_VISIT(parts->buffered_protocol);
        return traverse_spare_handles(*parts, visit, arg);
    }
    return 0;
}

void clear_parts(Parts* parts) noexcept {
    if (parts != nullptr) {
        drop_spare_handles(*parts);
        Py_CLEAR(parts->event_loop_type);
        Py_CLEAR(parts->asyncio_handle);
        Py_CLEAR(parts->handle_type);
        Py_CLEAR(parts->timer_handle_type);
        Py_CLEAR(parts->transport_base_type);
        Py_CLEAR(parts->socket_transport_type);
        parts->streams.for_each([](PyObject*& place) { Py_CLEAR(place); });
        parts->transports.for_each([](PyObject*& place) { Py_CLEAR(place); });
        Py_CLEAR(parts->acceptor_type);
        parts->tls.for_each([](PyObject*& place) { Py_CLEAR(place); });
        Py_CLEAR(parts->thread_safe_handle);
        Py_CLEAR(parts->socket_operation_type);
        Py_CLEAR(parts->socket_type);
        Py_CLEAR(parts->selector_loop_type);
        Py_CLEAR(parts->future_type);
        Py_CLEAR(parts->buffered_protocol);
        Py_CLEAR(parts->loop_name);
        Py_CLEAR(parts->no_args);
        Py_CLEAR(parts->minus_one);
        Py_CLEAR(parts->time_name);
        Py_CLEAR(parts->run_name);
        Py_CLEAR(parts->data_received_name);
        Py_CLEAR(parts->get_buffer_name);
        Py_CLEAR(parts->buffer_updated_name);
        Py_CLEAR(parts->eof_received_name);
        Py_CLEAR(parts->future_blocking_name);
        Py_CLEAR(parts->done_name);
        Py_CLEAR(parts->set_result_name);
        Py_CLEAR(parts->result_name);
        Py_CLEAR(parts->cancelled_name);
        Py_CLEAR(parts->streams.read_type);
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
