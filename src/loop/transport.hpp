// SPDX-License-Identifier: Apache-2.0
// The transport of a connected stream socket: gossamer._core.SocketTransportBase. What happens at
// the end of a connection's life is Python (gossamer/_transports.py); the rest is here.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/sending_transport.hpp"

namespace gossamer::loop {

class TlsTransport;

class SocketTransport final : public SendingTransport {
public:
    SocketTransport(EventLoop& loop, PyObject* self, PyObject* socket, int fd, bool is_tcp, PyObject* context);

    void set_protocol(PyObject* protocol) override;

    int traverse(visitproc visit, void* arg) override;
    void clear() override;

    // Read and written by the Python half.
    bool has_sent_eof = false;
    cpython::Ref empty_waiter;

private:
    void start_reading() override;
    void note_pause() noexcept override;
    cpython::Ref waiter_for_empty() override { return cpython::borrow(empty_waiter.ptr()); }
    void take_turn() override;
    bool has_work() const noexcept override { return (can_read() && !has_read_eof_) || has_to_flush(); }
    bool is_idle() const noexcept override { return (!is_reading() || has_read_eof_) && unsent_bytes() == 0; }

    ssize_t send(const char* bytes, std::size_t size) noexcept override;
    ssize_t send(iovec* pieces, std::size_t count) noexcept override;
    bool drops_writes(const char* method) override;
    void become_empty() override;
    const char* write_error() const noexcept override { return "Fatal write error on socket transport"; }

    void read();
    void read_bytes();
    void read_for_tls();
    bool feed(const char* bytes, std::size_t size);
    void end_stream() noexcept;
    void read_into_protocol();
    bool take_read(ssize_t size, std::size_t wanted);
    void reach_eof();

    // never changes
    const bool is_tcp_;

    cpython::Ref stream_;  // stream.hpp; null if the protocol is not that of asyncio's streams
    bool is_buffered_protocol_ = false;
    TlsTransport* tls_ = nullptr;  // the protocol, if it is a TLS connection of ours
    bool has_read_eof_ = false;
    std::size_t last_read_ = 0;
};

/// What a new transport is made of. Borrowed.
struct Connection {
    PyObject* socket;
    PyObject* protocol;
    PyObject* waiter = Py_None;
    PyObject* peername = nullptr;  // null: what the transport's extra information says, or the socket
    PyObject* server = Py_None;
    PyObject* context = nullptr;  // null: copies of the current one
};

/// A new gossamer._transports.SocketTransport. Throws ErrorSet.
cpython::Ref make_socket_transport(EventLoop& loop, const Connection& connection);

/// Creates the class. Throws ErrorSet.
void create_socket_transport_type(PyObject* module, Parts& parts);

}  // namespace gossamer::loop
