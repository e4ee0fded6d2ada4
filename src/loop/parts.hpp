// SPDX-License-Identifier: Apache-2.0
// What the loops of one interpreter share: our classes, and where asyncio's keep their fields.
//
// asyncio takes 90 ms to import, so Gossamer never does of its own: gossamer/_event_loop.py, imported with the first
// loop, hands in what is needed here (adopt_asyncio).
#pragma once

#include "cpython/api.hpp"

#include <vector>

#include "cpython/instance_field.hpp"
#include "cpython/interned.hpp"
#include "cpython/module_state.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

using cpython::Interned;

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
struct StreamObjects {
    PyObject* stream_type = nullptr;
    PyObject* protocol_type = nullptr;
    PyObject* reader_type = nullptr;
    PyObject* done = nullptr;  // an awaitable that is over
    PyObject* read = nullptr;  // of StreamReader
    PyObject* drain_helper = nullptr;
    PyObject* doubled = nullptr;        // ((class, name, function), ...): what must be as asyncio has it
    PyTypeObject* read_type = nullptr;  // of what read() returns
};

struct StreamParts : StreamObjects {
    const Interned reader_reference_name{"_stream_reader_wr"};
    const Interned read_name{"read"};
    const Interned create_future_name{"create_future"};
    const Interned drain_name{"_drain_helper"};
    const Interned buffer_name{"_buffer"};
    const Interned waiter_name{"_waiter"};
    const Interned transport_name{"_transport"};
    const Interned paused_name{"_paused"};
    const Interned limit_name{"_limit"};
    const Interned eof_name{"_eof"};
    const Interned exception_name{"_exception"};

    StreamFields fields;
};

/// What transports and servers are made of: our Python classes, and one of asyncio's. Owned.
struct TransportObjects {
    PyObject* socket_transport = nullptr;
    PyObject* transport_socket = nullptr;
};

/// The same, and what they call.
struct TransportParts : TransportObjects {
    const Interned connection_made{"connection_made"};
    const Interned connection_lost{"connection_lost"};
    const Interned close{"close"};
    const Interned datagram_received{"datagram_received"};
    const Interned error_received{"error_received"};
    const Interned finish_beginning{"_finish_beginning"};
    const Interned call_connection_lost{"_call_connection_lost"};
    const Interned socket{"socket"};
    const Interned sockname{"sockname"};
    const Interned peername{"peername"};
    const Interned getsockname{"getsockname"};
    const Interned getpeername{"getpeername"};
    const Interned attach{"_attach"};
    const Interned detach{"_detach"};
};

/// What TLS connections need (tls_transport.hpp). Owned; null until there is one.
struct TlsObjects {
    PyTypeObject* transport_type = nullptr;
    PyObject* ssl_error = nullptr;
    PyObject* want_read_error = nullptr;
    PyObject* syscall_error = nullptr;
    PyObject* no_bytes = nullptr;  // b""
};

struct TlsParts : TlsObjects {
    const Interned read_name{"read"};
    const Interned write_name{"write"};
    const Interned pending_name{"pending"};
    const Interned do_handshake_name{"do_handshake"};
    const Interned unwrap_name{"unwrap"};
    const Interned shutdown_name{"shutdown"};
    const Interned join_name{"join"};
};

/// What all of it needs. Owned; null until asyncio was adopted, but for what create_parts makes.
struct LoopObjects {
    PyTypeObject* event_loop_type = nullptr;
    PyTypeObject* asyncio_handle = nullptr;
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
    PyObject* buffered_protocol = nullptr;  // asyncio.BufferedProtocol
    PyObject* no_args = nullptr;            // ()
    PyObject* minus_one = nullptr;
};

struct Parts : LoopObjects {
    const Interned loop_name{"loop"};
    const Interned time_name{"time"};
    const Interned run_name{"_run"};
    const Interned data_received_name{"data_received"};
    const Interned get_buffer_name{"get_buffer"};
    const Interned buffer_updated_name{"buffer_updated"};
    const Interned eof_received_name{"eof_received"};
    const Interned future_blocking_name{"_asyncio_future_blocking"};
    const Interned done_name{"done"};
    const Interned set_result_name{"set_result"};
    const Interned result_name{"result"};
    const Interned cancelled_name{"cancelled"};
    PyGetSetDef* future_blocking = nullptr;  // of future_type's _asyncio_future_blocking
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
