// SPDX-License-Identifier: Apache-2.0
// The transport of a connected stream socket: gossamer._core.SocketTransportBase, an asyncio.Transport. What happens once in
// a connection's life is Python (gossamer/_transports.py); reading, writing and flow control are here.
//
// Its descriptor is watched edge-triggered from connection_made to the end. An edge is remembered (is_readable_,
// is_writable_) until a call says that it is used up, and a transport that has something to do queues itself in its loop:
// one read, and so one call of the protocol, a turn, as asyncio has it. A write tries the system call first.
//
// The loop owns a reference to a transport that reads or has something to write, and to no other: one that its user forgot
// is collected, with a ResourceWarning, as asyncio's is.
#pragma once

#include "cpython/api.hpp"

#include <deque>
#include <optional>

#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/watch.hpp"

namespace gossamer::loop {

/// Bytes that wait to be written.
class Unsent final {
public:
    /// Keeps the object if its bytes cannot change, else copies them. Throws ErrorSet.
    Unsent(PyObject* object, const char* bytes, std::size_t size);
    Unsent(Unsent&&) noexcept = default;
    Unsent& operator=(Unsent&&) = delete;

    const char* bytes() const noexcept { return bytes_; }
    std::size_t size() const noexcept { return size_; }
    void drop_front(std::size_t count) noexcept {
        bytes_ += count;
        size_ -= count;
    }

private:
    cpython::Ref kept_;
    const char* bytes_;
    std::size_t size_;
};

class SocketTransport final : public LoopWatch, private Runnable {
public:
    SocketTransport(EventLoop& loop, PyObject* self, PyObject* socket, int fd, bool is_tcp, PyObject* context);
    ~SocketTransport() { leave_loop(); }  // which loop_object_ keeps alive

    void set_protocol(PyObject* protocol);
    void start_reading();
    void pause_reading() noexcept { is_paused = true; }
    void resume_reading();
    bool is_reading() const noexcept { return !is_closing && !is_paused; }

    /// Writes, or keeps for later, what has a buffer. Throws ErrorSet.
    void write(PyObject* object);
    void write_several(PyObject* objects);

    /// No more reading; connection_lost(None) once everything is written.
    void close();
    /// The same, without writing; `error` may be None.
    void force_close(PyObject* error);
    /// After connection_lost: lets everything go.
    void finish();

    std::size_t unsent_bytes() const noexcept { return unsent_bytes_; }
    void set_limits(std::size_t high, std::size_t low);

    int traverse(visitproc visit, void* arg);
    void clear();

    PyObject* loop_object() const noexcept { return loop_object_.ptr(); }
    PyObject* socket() const noexcept { return socket_.ptr(); }
    /// Replaces the object that is shut down and closed at the end; the descriptor stays.
    void set_socket(PyObject* socket) { cpython::borrow(socket == Py_None ? nullptr : socket).swap(socket_); }
    PyObject* protocol() const noexcept { return protocol_.ptr(); }

    // Read and written by the Python half.
    bool is_closing = false;
    bool is_paused = false;
    bool has_sent_eof = false;
    int lost_count = 0;  // connection_lost is on its way; counts writes since
    std::size_t high_water = 64 * 1024;
    std::size_t low_water = 16 * 1024;
    cpython::Ref empty_waiter;

private:
    static void serve(LoopWatch& watch, std::uint32_t events);

    void run() override;
    void queue_if_useful();
    void read();
    void read_bytes();
    bool feed(const char* bytes, std::size_t size);
    void read_into_protocol();
    bool take_read(ssize_t size, std::size_t wanted);
    void reach_eof();
    void flush();
    void keep(PyObject* object, const char* bytes, std::size_t size);
    ssize_t send_unsent() noexcept;
    void drop_sent(std::size_t count);
    bool check_can_write(const char* method);
    void want_to_write();
    void pause_protocol();
    void resume_protocol();
    void schedule_connection_lost(PyObject* error);
    void fail(const char* message);
    void fail_with_errno(int error, const char* message);
    void report(const char* message);
    template <typename Call>
    cpython::Ref in_context(Call call);

    // never changes
    const bool is_tcp_;

    cpython::Ref loop_object_;
    cpython::Ref socket_;
    cpython::Ref protocol_;
    cpython::Ref context_;
    bool is_buffered_protocol_ = false;
    bool is_stream_protocol_ = false;  // asyncio's streams', for which feed() may do
    bool is_queued_ = false;
    bool is_started_ = false;
    bool is_readable_ = false;
    bool is_writable_ = true;
    bool is_hung_up_ = false;  // or something else came that a short read says nothing about
    bool has_read_eof_ = false;
    bool is_protocol_paused_ = false;
    std::size_t last_read_ = 0;
    std::deque<Unsent> unsent_;
    std::size_t unsent_bytes_ = 0;
};

/// Creates the class, a subclass of asyncio.Transport. Throws ErrorSet.
void create_socket_transport_type(PyObject* module, Parts& parts, PyObject* transport);

}  // namespace gossamer::loop
