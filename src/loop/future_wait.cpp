// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/future_wait.hpp"

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/awaited_operation.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

class FutureWait final {
public:
    FutureWait(const Parts& parts, PyObject* future) : parts_(parts), future_(cpython::borrow(future)) {}
    FutureWait(const FutureWait&) = delete;
    FutureWait& operator=(const FutureWait&) = delete;
    ~FutureWait() = default;

    Ref advance(Ref& waits_for) {
        if (state_ == OperationState::kNew) {
            mark_awaited(parts_, future_.ptr());
            waits_for = cpython::borrow(future_.ptr());
            state_ = OperationState::kWaiting;
            return Ref();
        }
        state_ = OperationState::kOver;
        return steal(PyObject_CallMethodNoArgs(future_.ptr(), parts_.result_name));
    }

    void end() noexcept { state_ = OperationState::kOver; }
    OperationState state() const noexcept { return state_; }
    const char* name() const noexcept { return "wait_until_done"; }

    int traverse(visitproc visit, void* arg) {
        Py_VISIT(future_.ptr());
        return 0;
    }

private:
    const Parts& parts_;
    OperationState state_ = OperationState::kNew;
    const Ref future_;
};

using Operation = AwaitedOperation<FutureWait>;

}  // namespace

PyTypeObject* create_future_wait_type(PyObject* module) {
    return Operation::create_type(module, "gossamer._core.FutureWait");
}

PyGetSetDef* future_blocking_of(const Parts& parts) {
    const Ref descriptor =
        steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(parts.future_type), parts.future_blocking_name));
    if (!Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the fields of asyncio.Future in this Python");
    }
    return reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
}

void mark_awaited(const Parts& parts, PyObject* future) {
    cpython::check(parts.future_blocking->set(future, Py_True, parts.future_blocking->closure));
}

PyObject* wait_until_done(PyObject* module, PyObject* future) {
    return guarded<PyObject*>(nullptr, [&] {
        const Parts& parts = *cpython::state_of_module(module).loop_parts;
        if (!PyObject_TypeCheck(future, parts.future_type)) {
            return Py_NewRef(future);  // of a loop with futures of its own, which can be awaited as well
        }
        return Operation::make(parts.future_wait_type, parts, future);
    });
}

}  // namespace gossamer::loop
