// SPDX-License-Identifier: Apache-2.0
// A listening socket of a server: accepts what the kernel has, up to the backlog and one a turn, and makes each connection's
// transport, without a task. TLS, and what else is not a plain stream, goes on in Python (EventLoop._accept_tls).
//
// Out of descriptors or memory it pauses for asyncio's ACCEPT_RETRY_DELAY, so that what is there can finish.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "cpython/socket_address.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/watch.hpp"

namespace gossamer::loop {

class Acceptor final : public LoopWatch, private Runnable {
public:
    /// `context`: of each connection, a copy of it each; None: copies of the current one, as asyncio's tasks have.
    /// `server` may be None. `accept_otherwise` is called with the socket and its peer's address instead of making a
    /// transport; None: not.
    Acceptor(EventLoop& loop, PyObject* self, PyObject* socket, PyObject* factory, PyObject* server, int backlog,
             PyObject* context, PyObject* accept_otherwise);
    ~Acceptor() { leave_loop(); }  // which loop_object_ keeps alive

    /// Throws ErrorSet.
    void start();
    void stop();
    /// After a pause.
    void resume();

    int traverse(visitproc visit, void* arg);
    void clear();

private:
    static void serve(LoopWatch& watch, std::uint32_t events);

    void run() override;
    void queue_if_useful();
    bool accept_one();
    void take(core::FileDescriptor fd, const cpython::SocketAddress& peer);
    void refuse(PyObject* socket, PyObject* protocol);
    void pause();
    void report(const char* message);

    cpython::Ref loop_object_;
    cpython::Ref socket_;
    cpython::Ref factory_;
    cpython::Ref server_;
    cpython::Ref context_;
    cpython::Ref accept_otherwise_;
    const int most_a_turn_;
    const bool has_given_context_;
    bool is_readable_ = false;
    bool is_queued_ = false;
    bool is_paused_ = false;
    bool is_stopped_ = false;
};

/// Creates the class. Throws ErrorSet.
PyTypeObject* create_acceptor_type(PyObject* module);

/// loop._accept_on(socket, protocol_factory, server, backlog, context, accept_otherwise): a new one, which has started.
PyObject* accept_on(PyObject* loop, PyObject* args);

}  // namespace gossamer::loop
