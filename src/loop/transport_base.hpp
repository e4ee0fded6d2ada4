// SPDX-License-Identifier: Apache-2.0
// What all transports of a loop are: a protocol and the file that it talks through, how they begin, flow control, and how
// they end.
//
//     kNew      connection_made is called at the transport's turn; whoever closes it meanwhile has to wait for that
//     kOpen     the descriptor is watched, edge-triggered, and the protocol is told of what comes
//     lost_count > 0: connection_lost is on its way; nothing is read or written any more
//
// An edge is remembered (is_readable_, is_writable_) until a call says that it is used up, and a transport that has
// something to do queues itself in its loop: it gets one turn (take_turn) each time.
//
// The loop owns a reference to a transport that reads or has something to write, and to no other: one that its user forgot
// is collected, with a ResourceWarning, as asyncio's is.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/watch.hpp"

namespace gossamer::loop {

constexpr bool kServersWantTransports = cpython::kPython313;  // Server._attach(transport) and _detach(transport)

class Transport : public LoopWatch, private Runnable {
public:
    /// `file`: what is closed at the end, a socket or a pipe. `context` null: the protocol's calls have copies of the
    /// current one, as asyncio's callbacks do.
    Transport(EventLoop& loop, PyObject* self, PyObject* file, int fd, PyObject* context);
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;
    virtual ~Transport();

    /// That of an instance of our Python class; null: it was not opened.
    static Transport* find(PyObject* self) noexcept;

    virtual void set_protocol(PyObject* protocol);

    /// Has connection_made called at the transport's next turn, then reading started and `waiter` (null: none) told.
    void begin(PyObject* waiter);
    /// What comes after connection_made.
    void finish_beginning();

    bool is_reading() const noexcept { return !is_closing && !is_paused; }
    void pause_reading();
    void resume_reading();

    /// No more reading; connection_lost(None) once everything is written.
    void close();
    /// The same, without writing; `error` may be None.
    void force_close(PyObject* error);
    /// Tells the protocol that the connection is lost, closes the file and lets everything go. Throws ErrorSet: what the
    /// protocol, or one of the others, has raised.
    void lose(PyObject* error);

    /// Tells the loop that it has sent something, or the end.
    void note_sent() { loop().note_sent(); }

    virtual std::size_t unsent_bytes() const noexcept { return 0; }
    void set_limits(std::size_t high, std::size_t low);

    /// It dies: nobody finds it in its loop any more.
    void hide() noexcept { loop().remove_transport(fd(), owner()); }

    virtual int traverse(visitproc visit, void* arg);
    virtual void clear();

    PyObject* loop_object() const noexcept { return loop_object_.ptr(); }
    PyObject* file() const noexcept { return file_.ptr(); }
    /// Replaces the object that is shut down and closed at the end; the descriptor stays.
    void set_file(PyObject* file) { cpython::borrow(file == Py_None ? nullptr : file).swap(file_); }
    PyObject* protocol() const noexcept { return protocol_.ptr(); }
    PyObject* server() const noexcept { return server_.ptr(); }
    bool is_protocol_paused() const noexcept { return is_protocol_paused_; }
    void set_server(PyObject* server) { cpython::borrow(server == Py_None ? nullptr : server).swap(server_); }

    // Read and written by the Python half.
    bool is_closing = false;
    bool is_paused = false;
    int lost_count = 0;  // connection_lost is on its way; counts writes since
    std::size_t high_water = 64 * 1024;
    std::size_t low_water = 16 * 1024;

protected:
    static constexpr std::uint32_t kReadEvents = static_cast<std::uint32_t>(core::Interest::kRead);
    static constexpr std::uint32_t kWriteEvents = static_cast<std::uint32_t>(core::Interest::kWrite);
    static constexpr int kLostWritesBeforeWarning = 5;

    using Runnable::owner;
    const Parts& parts() const noexcept { return loop().parts(); }

    /// Does what there is to do: at most one read. In the transport's context, so what follows from it, as its end, is
    /// called in there too.
    virtual void take_turn() = 0;
    /// Whether it would do something.
    virtual bool has_work() const noexcept = 0;
    /// What is lost when the transport is aborted.
    virtual void drop_unsent() {}
    virtual void start_reading();
    /// Whom to tell that no more will be written; null: nobody.
    virtual cpython::Ref waiter_for_empty() { return cpython::Ref(); }

    /// The descriptor of a socket; -1 once its user has closed it: the number may be another's by now.
    int socket_fd() const noexcept;

    bool can_read() const noexcept { return is_readable_ && is_started_ && is_reading() && lost_count == 0; }
    bool can_write() const noexcept { return is_writable_ && lost_count == 0; }
    bool is_started() const noexcept { return is_started_; }

    void queue_if_useful();
    /// Whether there is nothing that the loop has to keep the transport for.
    virtual bool is_idle() const noexcept { return !is_reading() && unsent_bytes() == 0; }
    /// Has the loop tell when the descriptor is writable.
    void want_to_write();

    /// Counts a write after the end.
    void warn_of_lost_write();

    void pause_protocol();
    void resume_protocol();
    /// is_protocol_paused() has changed; the protocol is told next.
    virtual void note_pause() noexcept {}

    /// Calls a method of the protocol. Throws ErrorSet.
    template <typename... Args>
    cpython::Ref call_protocol(PyObject* name, Args... args) {
        const cpython::Ref protocol = cpython::borrow(protocol_.ptr());  // the call may replace it
        PyObject* all[] = {protocol.ptr(), args...};
        return cpython::steal(
            PyObject_VectorcallMethod(name, all, (1 + sizeof...(args)) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    }

    /// What the protocol or the kernel did ends the connection, unless it ends the program. Throws ErrorSet then.
    void fail(const char* message);
    void fail_with_errno(int error, const char* message);
    /// The same, but the connection stays.
    void report(const char* message);

    void schedule_connection_lost(PyObject* error);

    bool is_readable_ = false;
    bool is_writable_ = true;
    bool is_hung_up_ = false;  // or something else came that a short read says nothing about

private:
    enum class Stage : std::uint8_t { kNew, kMade, kOpen };

    static void serve(LoopWatch& watch, std::uint32_t events);

    void run() override;
    void queue();
    void begin_here();
    void call_connection_made();
    void push_connection_lost(PyObject* error);
    void finish();
    template <typename Call>
    cpython::Ref in(PyObject* context, Call call);

    cpython::Ref loop_object_;
    cpython::Ref file_;
    cpython::Ref protocol_;
    cpython::Ref server_;
    cpython::Ref context_;
    cpython::Ref waiter_;
    cpython::Ref loss_;  // what connection_lost will be told once connection_made was called
    const bool has_given_context_;
    Stage stage_ = Stage::kNew;
    bool is_queued_ = false;
    bool is_started_ = false;
    bool is_protocol_paused_ = false;
};

template <typename Call>
cpython::Ref Transport::in(PyObject* borrowed, Call call) {
    const cpython::Ref context = cpython::borrow(borrowed);
    cpython::check(PyContext_Enter(context.ptr()));
    PyObject* result = call();
    PyObject* error = result == nullptr ? PyErr_GetRaisedException() : nullptr;
    if (PyContext_Exit(context.ptr()) < 0) {
        Py_XDECREF(result);
        Py_XDECREF(error);
        throw cpython::ErrorSet{};
    }
    if (result == nullptr) {
        PyErr_SetRaisedException(error);
    }
    return cpython::steal(result);
}

/// Creates TransportBase, a subclass of asyncio.BaseTransport. Throws ErrorSet.
void create_transport_base_type(PyObject* module, Parts& parts, PyObject* base_transport);

/// The descriptor of an instance of it; -1: it was not opened.
int fd_of_transport(PyObject* transport) noexcept;

/// Whether the exception that is set ends the program.
inline bool is_exit() noexcept {
    return PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) != 0 || PyErr_ExceptionMatches(PyExc_SystemExit) != 0;
}

}  // namespace gossamer::loop
