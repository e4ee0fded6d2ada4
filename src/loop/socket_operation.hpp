// SPDX-License-Identifier: Apache-2.0
// An operation of loop.sock_*: an awaitable that tries its system call, and waits for the next edge of the descriptor only
// when it would block. Which calls there are: socket_calls.hpp.
//
// It stands where asyncio has a coroutine, so it is one as far as anyone can ask (awaited_operation.hpp). What it yields to its task is an asyncio.Future, so cancelling is asyncio's.
#pragma once

#include "cpython/api.hpp"

#include <optional>
#include <utility>

#include "core/epoll_reactor.hpp"
#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "cpython/socket_object.hpp"
#include "loop/awaited_operation.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"

namespace gossamer::loop {

class SocketOperation : private core::Wakeable {
public:
    SocketOperation(PyObject* loop, PyObject* socket)
        : loop_(loop_of(loop)), loop_object_(cpython::borrow(loop)), socket_(cpython::borrow(socket)) {}
    SocketOperation(const SocketOperation&) = delete;
    SocketOperation& operator=(const SocketOperation&) = delete;
    virtual ~SocketOperation() { end(); }

    /// Goes on: the result, or null and what to wait for in `waits_for`. Throws ErrorSet.
    cpython::Ref advance(cpython::Ref& waits_for);

    /// The awaiting side gives up.
    void end() noexcept;

    OperationState state() const noexcept { return state_; }
    virtual const char* name() const noexcept = 0;

    int traverse(visitproc visit, void* arg);

protected:
    /// One system call, or as many as the kernel answers at once; null: it would block. Throws ErrorSet.
    virtual cpython::Ref attempt() = 0;
    /// What it waits for then.
    virtual core::Interest interest() const noexcept = 0;

    void set_buffer(PyObject* object, int flags) { cpython::check(PyObject_GetBuffer(object, &view_, flags)); }
    char* buffer() const noexcept { return static_cast<char*>(view_.buf); }
    std::size_t buffer_size() const noexcept { return static_cast<std::size_t>(view_.len); }

    PyObject* socket() const noexcept { return socket_.ptr(); }
    const EventLoop& loop() const noexcept { return loop_; }
    int fd() const;
    sched::Hub& hub() const;

private:
    struct OwnActivity final : Activity {
        explicit OwnActivity(SocketOperation& whose) noexcept : Activity(&SocketOperation::serve), operation(&whose) {}
        SocketOperation* const operation;
    };
    struct OwnWait final : WaitingOperation {
        explicit OwnWait(SocketOperation& whose) noexcept : WaitingOperation(&interrupt_wait), operation(&whose) {}
        SocketOperation* const operation;
    };

    cpython::Ref wait();
    void leave_reactor() noexcept;
    void stop_waiting() noexcept;
    void wake() noexcept override { loop_.note_activity(activity_); }
    static void interrupt_wait(WaitingOperation& wait) noexcept;
    static void serve(Activity& activity);

    OperationState state_ = OperationState::kNew;
    EventLoop& loop_;
    const cpython::Ref loop_object_;
    const cpython::Ref socket_;
    Py_buffer view_{};
    std::optional<core::FdWaiter> waiter_;
    core::EpollReactor* reactor_ = nullptr;  // that the waiter is queued in
    OwnActivity activity_{*this};
    OwnWait wait_{*this};
    cpython::Ref future_;
};

using AwaitedSocketOperation = AwaitedOperation<SocketOperation, sizeof(SocketOperation) + 32>;

/// A new operation `T(loop, socket, args...)`, whose constructor may throw ErrorSet.
template <typename T, typename... Args>
PyObject* make_operation(PyObject* loop, PyObject* socket, Args&&... args) {
    PyTypeObject* type = loop_of(loop).parts().socket_operation_type;
    return AwaitedSocketOperation::make<T>(type, loop, socket, std::forward<Args>(args)...);
}

/// Creates the class. Throws ErrorSet.
PyTypeObject* create_socket_operation_type(PyObject* module);

}  // namespace gossamer::loop
