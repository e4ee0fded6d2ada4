// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/offload.hpp"

#include <atomic>
#include <memory>

#include "core/assert.hpp"
#include "core/parking_lot.hpp"
#include "core/thread_pool.hpp"
#include "sched/wait.hpp"

namespace gossamer::sched {

namespace {

using cpython::Ref;

/// Shared by the job and the waiter; references in it are touched attached only.
struct Call {
    PyInterpreterState* interpreter;
    PyObject* (*function)(PyObject*, PyObject*, PyObject*);
    Ref module;
    Ref args;
    Ref kwargs;
    Ref result;
    Ref exception;
    std::atomic<bool> is_done{false};
};

class CallJob final : public core::Job {
public:
    explicit CallJob(std::shared_ptr<Call> call) noexcept : call_(std::move(call)) {}

    // Not noexcept beyond the base's promise: at the end of the process the interpreter may end this OS thread when it
    // attaches, by pthread_exit(3) on 3.12.
    void run() override {
        PyThreadState* tstate = PyThreadState_New(call_->interpreter);
        PyEval_RestoreThread(tstate);
        call_->result =
            Ref::steal_or_null(call_->function(call_->module.ptr(), call_->args.ptr(), call_->kwargs.ptr()));
        if (!call_->result) {
            call_->exception = Ref::steal_or_null(PyErr_GetRaisedException());
        }
        const void* key = call_.get();
        call_->is_done.store(true);
        core::ParkingLot::instance().unpark_all(key);
        call_.reset();  // attached: the waiter may have left its share to us
        PyThreadState_Clear(tstate);
        PyThreadState_DeleteCurrent();
    }

private:
    std::shared_ptr<Call> call_;
};

Ref call_elsewhere(Hub& hub, const char* what, void (*submit)(std::unique_ptr<core::Job>),
                   PyObject* (*function)(PyObject*, PyObject*, PyObject*), PyObject* module, PyObject* args,
                   PyObject* kwargs) {
    auto call = std::make_shared<Call>();
    call->interpreter = hub.tstate().interp;
    call->function = function;
    call->module = cpython::borrow(module);
    call->args = cpython::borrow(args);
    call->kwargs = cpython::borrow(kwargs);
    const ExternalWakeExpected expected(hub);
    submit(std::make_unique<CallJob>(call));
    if (!wait_until(hub, call.get(), {.what = what}, core::Deadline::never(), [&] { return call->is_done.load(); })) {
        GS_UNREACHABLE();
    }
    // Dropped here, not on the other thread: where there is no GIL a reference dropped elsewhere is counted later.
    call->module.reset();
    call->args.reset();
    call->kwargs.reset();
    if (call->exception) {
        PyErr_SetRaisedException(call->exception.release());
        throw cpython::ErrorSet{};
    }
    return std::move(call->result);
}

}  // namespace

Ref call_on_pool(Hub& hub, const char* what, PyObject* (*function)(PyObject*, PyObject*, PyObject*), PyObject* module,
                 PyObject* args, PyObject* kwargs) {
    const auto submit = [](std::unique_ptr<core::Job> job) { core::ThreadPool::instance().submit(std::move(job)); };
    return call_elsewhere(hub, what, submit, function, module, args, kwargs);
}

Ref call_on_own_thread(Hub& hub, const char* what, PyObject* (*function)(PyObject*, PyObject*, PyObject*),
                       PyObject* module, PyObject* args, PyObject* kwargs) {
    return call_elsewhere(hub, what, &core::ThreadPool::run_apart, function, module, args, kwargs);
}

}  // namespace gossamer::sched
