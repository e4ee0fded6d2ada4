// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/stream_read.hpp"

#include <algorithm>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/awaited_operation.hpp"
#include "loop/event_loop.hpp"
#include "loop/future_wait.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

namespace {

/// Line by line StreamReader.read and _wait_for_data, so that all its methods agree on the reader's fields.
class StreamRead final {
public:
    StreamRead(const Parts& parts, PyObject* loop, PyObject* reader, Py_ssize_t size)
        : parts_(parts), loop_(cpython::borrow(loop)), reader_(cpython::borrow(reader)), size_(size) {}
    StreamRead(const StreamRead&) = delete;
    StreamRead& operator=(const StreamRead&) = delete;
    ~StreamRead() { end(); }

    Ref advance(Ref& waits_for) {
        if (state_ == OperationState::kNew) {
            state_ = OperationState::kOver;  // unless it comes to wait
            raise_exception();
            if (!has_data() && !is_true(fields().eof)) {
                waits_for = wait();
                return Ref();
            }
        } else {
            state_ = OperationState::kOver;
            fields().waiter.set(reader(), Py_None);
            steal(PyObject_CallMethodNoArgs(future_.ptr(), parts_.result_name));
        }
        return take();
    }

    void end() noexcept {
        if (std::exchange(state_, OperationState::kOver) != OperationState::kWaiting) {
            return;
        }
        PyObject* pending = PyErr_GetRaisedException();
        const bool is_done = cpython::guarded(false, [this] {
            fields().waiter.set(reader(), Py_None);
            return true;
        });
        if (!is_done) {
            PyErr_WriteUnraisable(reader());
        }
        PyErr_SetRaisedException(pending);
    }

    OperationState state() const noexcept { return state_; }
    const char* name() const noexcept { return "StreamReader.read"; }

    int traverse(visitproc visit, void* arg) {
        Py_VISIT(loop_.ptr());
        Py_VISIT(reader_.ptr());
        Py_VISIT(future_.ptr());
        return 0;
    }

private:
    PyObject* reader() const noexcept { return reader_.ptr(); }
    const StreamFields& fields() const noexcept { return parts_.streams.fields; }

    bool is_true(const cpython::InstanceField& field) const {
        const Ref value = field.get(reader());
        const int is_true = PyObject_IsTrue(value.ptr());
        cpython::check(is_true);
        return is_true != 0;
    }

    Ref buffer() const {
        Ref buffer = fields().buffer.get(reader());
        if (!PyByteArray_Check(buffer.ptr())) {
            cpython::raise(PyExc_TypeError, "the buffer of a StreamReader is a bytearray");
        }
        return buffer;
    }

    bool has_data() const { return PyByteArray_GET_SIZE(buffer().ptr()) > 0; }

    void raise_exception() const {
        const Ref error = fields().exception.get(reader());
        if (error.ptr() == Py_None) {
            return;
        }
        if (PyExceptionInstance_Check(error.ptr())) {
            PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
        } else {
            PyErr_SetNone(error.ptr());
        }
        throw cpython::ErrorSet{};
    }

    Ref wait() {
        if (fields().waiter.get(reader()).ptr() != Py_None) {
            cpython::raise(PyExc_RuntimeError,
                           "read() called while another coroutine is already waiting for incoming data");
        }
        if (is_true(fields().paused)) {  // or nothing would ever come
            fields().paused.set(reader(), Py_False);
            const Ref transport = fields().transport.get(reader());
            steal(PyObject_CallMethod(transport.ptr(), "resume_reading", nullptr));
        }
        future_ = loop_of(loop_.ptr()).create_future();
        fields().waiter.set(reader(), future_.ptr());
        state_ = OperationState::kWaiting;
        mark_awaited(parts_, future_.ptr());
        return cpython::borrow(future_.ptr());
    }

    Ref take() const {
        const Ref buffer = this->buffer();
        const Py_ssize_t size = PyByteArray_GET_SIZE(buffer.ptr());
        Ref bytes = steal(PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer.ptr()), std::min(size, size_)));
        cpython::check(size_ < size ? PySequence_DelSlice(buffer.ptr(), 0, size_)
                                    : PyByteArray_Resize(buffer.ptr(), 0));
        if (is_true(fields().paused)) {
            steal(PyObject_CallMethod(reader(), "_maybe_resume_transport", nullptr));
        }
        return bytes;
    }

    const Parts& parts_;
    OperationState state_ = OperationState::kNew;
    const Ref loop_;
    const Ref reader_;
    const Py_ssize_t size_;
    Ref future_;
};

using Operation = AwaitedOperation<StreamRead>;

}  // namespace

PyTypeObject* create_stream_read_type(PyObject* module) {
    return Operation::create_type(module, "gossamer._core.StreamRead");
}

PyObject* read_stream(const Parts& parts, PyObject* loop, PyObject* reader, Py_ssize_t size) {
    return Operation::make(parts.streams.read_type, parts, loop, reader, size);
}

}  // namespace gossamer::loop
