// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/stream_feed.hpp"

#include <cstring>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

namespace {

Ref attribute(PyObject* object, PyObject* name) { return steal(PyObject_GetAttr(object, name)); }

/// Whether an instance of the class, which has nothing of that name itself, has the function `expected` as a method.
bool has_method(PyTypeObject* type, PyObject* name, PyObject* expected) noexcept {
    return _PyType_Lookup(type, name) == expected;
}

PyTypeObject* as_type(PyObject* type) noexcept { return reinterpret_cast<PyTypeObject*>(type); }

/// StreamReader._wakeup_waiter
void wake_waiter(const Parts& parts, PyObject* reader) {
    const StreamParts& streams = parts.streams;
    const Ref waiter = attribute(reader, streams.waiter_name);
    if (waiter.ptr() == Py_None) {
        return;
    }
    cpython::check(PyObject_SetAttr(reader, streams.waiter_name, Py_None));
    const Ref is_cancelled = steal(PyObject_CallMethodNoArgs(waiter.ptr(), streams.cancelled_name));
    if (is_cancelled.ptr() != Py_True) {
        steal(PyObject_CallMethodOneArg(waiter.ptr(), parts.set_result_name, Py_None));
    }
}

/// The end of StreamReader.feed_data: a reader that has twice its limit has its transport pause.
void pause_if_full(const StreamParts& streams, PyObject* reader, Py_ssize_t buffered) {
    const Ref limit = attribute(reader, streams.limit_name);
    const Py_ssize_t bytes = PyLong_AsSsize_t(limit.ptr());
    if (bytes == -1 && PyErr_Occurred()) {
        throw cpython::ErrorSet{};
    }
    if (buffered / 2 <= bytes) {
        return;
    }
    const Ref transport = attribute(reader, streams.transport_name);
    const Ref is_paused = attribute(reader, streams.paused_name);
    if (transport.ptr() != Py_None && is_paused.ptr() == Py_False) {
        steal(PyObject_CallMethod(transport.ptr(), "pause_reading", nullptr));
        cpython::check(PyObject_SetAttr(reader, streams.paused_name, Py_True));
    }
}

}  // namespace

void adopt_streams(Parts& parts, PyObject* protocol_type, PyObject* reader_type) {
    StreamParts& streams = parts.streams;
    const auto intern = [](const char* name) { return steal(PyUnicode_InternFromString(name)).release(); };
    streams.protocol_type = Py_NewRef(protocol_type);
    streams.reader_type = Py_NewRef(reader_type);
    streams.reader_reference_name = intern("_stream_reader_wr");
    streams.feed_data_name = intern("feed_data");
    streams.wakeup_waiter_name = intern("_wakeup_waiter");
    streams.eof_name = intern("_eof");
    streams.buffer_name = intern("_buffer");
    streams.waiter_name = intern("_waiter");
    streams.transport_name = intern("_transport");
    streams.paused_name = intern("_paused");
    streams.limit_name = intern("_limit");
    streams.cancelled_name = intern("cancelled");
    streams.data_received = attribute(protocol_type, parts.data_received_name).release();
    streams.feed_data = attribute(reader_type, streams.feed_data_name).release();
    streams.wakeup_waiter = attribute(reader_type, streams.wakeup_waiter_name).release();
}

bool is_stream_protocol(const Parts& parts, PyObject* protocol) {
    return Py_TYPE(protocol) == as_type(parts.streams.protocol_type);
}

bool feed_stream(const Parts& parts, PyObject* protocol, const char* bytes, std::size_t size) {
    const StreamParts& streams = parts.streams;
    PyTypeObject* reader_type = as_type(streams.reader_type);
    if (!has_method(Py_TYPE(protocol), parts.data_received_name, streams.data_received)) {
        return false;
    }
    const Ref reference = attribute(protocol, streams.reader_reference_name);
    if (!PyWeakref_CheckRef(reference.ptr())) {
        return false;
    }
    const Ref reader = steal(PyObject_CallNoArgs(reference.ptr()));
    if (Py_TYPE(reader.ptr()) != reader_type || !has_method(reader_type, streams.feed_data_name, streams.feed_data) ||
        !has_method(reader_type, streams.wakeup_waiter_name, streams.wakeup_waiter)) {
        return false;
    }
    const Ref eof = attribute(reader.ptr(), streams.eof_name);
    const Ref buffer = attribute(reader.ptr(), streams.buffer_name);
    if (eof.ptr() != Py_False || !PyByteArray_CheckExact(buffer.ptr())) {
        return false;
    }
    const Py_ssize_t before = PyByteArray_GET_SIZE(buffer.ptr());
    cpython::check(PyByteArray_Resize(buffer.ptr(), before + static_cast<Py_ssize_t>(size)));
    std::memcpy(PyByteArray_AS_STRING(buffer.ptr()) + before, bytes, size);
    wake_waiter(parts, reader.ptr());
    pause_if_full(streams, reader.ptr(), before + static_cast<Py_ssize_t>(size));
    return true;
}

}  // namespace gossamer::loop
