// SPDX-License-Identifier: Apache-2.0
// What the loops of one interpreter share: our classes, and where asyncio's keep their fields.
//
// asyncio takes 90 ms to import, so Gossamer never does of its own: gossamer/_event_loop.py, imported with the first
// loop, hands in what is needed here (adopt_asyncio).
#pragma once

#include "cpython/api.hpp"

#include <vector>

#include "cpython/instance_field.hpp"
#include "cpython/module_state.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

/// Where an asyncio.Handle keeps its fields: offsets of its __slots__.
struct HandleFields {
    Py_ssize_t callback = 0;
    Py_ssize_t args = 0;
    Py_ssize_t cancelled = 0;
    Py_ssize_t loop = 0;
    Py_ssize_t source_traceback = 0;
    Py_ssize_t repr = 0;
    Py_ssize_t context = 0;
    Py_ssize_t scheduled = 0;  // of a TimerHandle, as the next
    Py_ssize_t when = 0;
};

/// Of a StreamReader; known once there is one.
struct StreamFields {
    cpython::InstanceField buffer;
    cpython::InstanceField eof;
    cpython::InstanceField exception;
    cpython::InstanceField waiter;
    cpython::InstanceField transport;
    cpython::InstanceField paused;
};

/// asyncio's streams, whose hot functions have a double in C++ (stream.hpp). Owned.
struct StreamParts {
    PyObject* stream_type = nullptr;
    PyObject* protocol_type = nullptr;
    PyObject* reader_type = nullptr;
    PyObject* done = nullptr;  // an awaitable that is over
    PyObject* read = nullptr;  // of StreamReader
    PyObject* drain_helper = nullptr;
    PyObject* doubled = nullptr;  // ((class, name, function), ...): what must be as asyncio has it
    // interned names
    PyObject* reader_reference_name = nullptr;  // "_stream_reader_wr"
    PyObject* read_name = nullptr;
    PyObject* create_future_name = nullptr;
    PyObject* drain_name = nullptr;  // "_drain_helper"
    PyObject* buffer_name = nullptr;
    PyObject* waiter_name = nullptr;
    PyObject* transport_name = nullptr;
    PyObject* paused_name = nullptr;
    PyObject* limit_name = nullptr;
    PyObject* eof_name = nullptr;
    PyObject* exception_name = nullptr;

    PyTypeObject* read_type = nullptr;  // of what read() returns
    StreamFields fields;

    template <typename Visit>
    void for_each(Visit visit) {
        for (PyObject** place :
             {&stream_type, &protocol_type, &reader_type, &done, &read, &drain_helper, &doubled, &reader_reference_name,
              &read_name, &create_future_name, &drain_name, &buffer_name, &waiter_name, &transport_name, &paused_name,
              &limit_name, &eof_name, &exception_name}) {
            visit(*place);
        }
    }
};

/// What transports and servers call and are made of. Owned.
struct TransportParts {
    PyObject* socket_transport = nullptr;  // our Python classes, and one of asyncio's
    PyObject* transport_socket = nullptr;
    // interned names
    PyObject* connection_made = nullptr;
    PyObject* connection_lost = nullptr;
    PyObject* close = nullptr;
    PyObject* datagram_received = nullptr;
    PyObject* error_received = nullptr;
    PyObject* finish_beginning = nullptr;      // "_finish_beginning"
    PyObject* call_connection_lost = nullptr;  // "_call_connection_lost"
    PyObject* socket = nullptr;
    PyObject* sockname = nullptr;
    PyObject* peername = nullptr;
    PyObject* getsockname = nullptr;
    PyObject* getpeername = nullptr;
    PyObject* attach = nullptr;  // "_attach"
    PyObject* detach = nullptr;

    template <typename Visit>
    void for_each(Visit visit) {
        for (PyObject** place : {&socket_transport, &transport_socket, &connection_made, &connection_lost, &close,
                                 &detach, &datagram_received, &error_received, &finish_beginning, &call_connection_lost,
                                 &socket, &sockname, &peername, &getsockname, &getpeername, &attach}) {
            visit(*place);
        }
    }
};

/// What TLS connections need (tls_transport.hpp). Owned; null until there is one.
struct TlsParts {
    PyTypeObject* transport_type = nullptr;
    PyObject* ssl_error = nullptr;
    PyObject* want_read_error = nullptr;
    PyObject* syscall_error = nullptr;
    PyObject* no_bytes = nullptr;  // b""
    // interned names
    PyObject* read_name = nullptr;
    PyObject* write_name = nullptr;
    PyObject* pending_name = nullptr;
    PyObject* do_handshake_name = nullptr;
    PyObject* unwrap_name = nullptr;
    PyObject* shutdown_name = nullptr;
    PyObject* join_name = nullptr;

    template <typename Visit>
    void for_each(Visit visit) {
        visit(reinterpret_cast<PyObject*&>(transport_type));
        for (PyObject** place : {&ssl_error, &want_read_error, &syscall_error, &no_bytes, &read_name, &write_name,
                                 &pending_name, &do_handshake_name, &unwrap_name, &shutdown_name, &join_name}) {
            visit(*place);
        }
    }
};

struct Parts {
    PyTypeObject* event_loop_type = nullptr;
    PyTypeObject* asyncio_handle = nullptr;  // null until asyncio was adopted
    PyObject* thread_safe_handle = nullptr;  // asyncio's class for call_soon_threadsafe from 3.14 on, else null
    PyTypeObject* handle_type = nullptr;
    PyTypeObject* timer_handle_type = nullptr;
    PyTypeObject* transport_base_type = nullptr;
    PyTypeObject* socket_transport_type = nullptr;
    PyTypeObject* socket_operation_type = nullptr;
    PyTypeObject* acceptor_type = nullptr;
    PyObject* socket_type = nullptr;         // socket.socket
    PyObject* selector_loop_type = nullptr;  // asyncio.SelectorEventLoop
    PyTypeObject* future_type = nullptr;
    PyGetSetDef* future_blocking = nullptr;  // of its _asyncio_future_blocking
    PyObject* buffered_protocol = nullptr;   // asyncio.BufferedProtocol
    PyObject* no_args = nullptr;             // ()
    PyObject* minus_one = nullptr;
    // interned names
    PyObject* loop_name = nullptr;
    PyObject* time_name = nullptr;
    PyObject* run_name = nullptr;  // "_run"
    PyObject* data_received_name = nullptr;
    PyObject* get_buffer_name = nullptr;
    PyObject* buffer_updated_name = nullptr;
    PyObject* eof_received_name = nullptr;
    PyObject* future_blocking_name = nullptr;  // "_asyncio_future_blocking"
    PyObject* done_name = nullptr;
    PyObject* set_result_name = nullptr;
    PyObject* result_name = nullptr;
    PyObject* cancelled_name = nullptr;
    HandleFields fields;
    StreamParts streams;
    TransportParts transports;
    TlsParts tls;
    Py_ssize_t timer_offset = 0;    // of what is ours in a TimerHandle
    Py_ssize_t io_refs_offset = 0;  // of fields of a socket.socket
    Py_ssize_t closed_offset = 0;
#ifndef Py_GIL_DISABLED
    std::vector<PyObject*> spare_handles;  // dead, of handle_type
#endif
};

/// Creates what needs no asyncio. Throws ErrorSet.
void create_parts(PyObject* module);
int traverse_parts(Parts* parts, visitproc visit, void* arg);
void clear_parts(Parts* parts) noexcept;
void free_parts(Parts* parts) noexcept;

/// adopt_asyncio(Handle, TimerHandle, Future, BaseTransport, BufferedProtocol, _ThreadSafeHandle or None, SelectorEventLoop,
/// socket.socket, StreamReaderProtocol, StreamReader, their read())
PyObject* adopt_asyncio(PyObject* module, PyObject* const* args, Py_ssize_t count);

/// adopt_transports(SocketTransport, asyncio.trsock.TransportSocket)
PyObject* adopt_transports(PyObject* module, PyObject* const* args, Py_ssize_t count);

/// Whether data is read into buffers of the protocol: asyncio.BufferedProtocol, or what has nothing but its methods.
/// Throws ErrorSet.
bool is_buffered_protocol(const Parts& parts, PyObject* protocol);

/// Where the slot `name` of a Python class is. Throws ErrorSet: ImportError when it is not one.
Py_ssize_t offset_of_slot(PyObject* type, const char* name);

inline Parts& parts_of_type(PyTypeObject* type) noexcept { return *cpython::state_of_defining_class(type).loop_parts; }

}  // namespace gossamer::loop
