// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/stream.hpp"

#include <cstddef>
#include <cstring>
#include <utility>

#include "cpython/error.hpp"
#include "loop/event_loop.hpp"
#include "loop/stream_read.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

/// Also what `reader.read` is: it looks like the bound method that it stands for.
struct StreamObject {
    PyObject ob_base;
    vectorcallfunc call;
    const Parts* parts;
    PyObject* loop;
    PyObject* reader;
    PyObject* protocol;
    Py_ssize_t limit;
    bool may_wait;  // who drains the writer: writing is paused, or the connection is over
};

StreamObject& stream_of(PyObject* self) noexcept { return *reinterpret_cast<StreamObject*>(self); }

Ref attribute(PyObject* object, PyObject* name) { return steal(PyObject_GetAttr(object, name)); }

/// The reader's `read` as asyncio has it.
Ref own_read(const StreamObject& stream) { return steal(PyMethod_New(stream.parts->streams.read, stream.reader)); }

/// FlowControlMixin._drain_helper
PyObject* drain_helper(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        const StreamObject& stream = stream_of(self);
        const StreamParts& streams = stream.parts->streams;
        return stream.may_wait ? PyObject_CallOneArg(streams.drain_helper, stream.protocol) : Py_NewRef(streams.done);
    });
}

PyMethodDef drain_method = {"_drain_helper", drain_helper, METH_NOARGS,
                            PyDoc_STR("_drain_helper($self, /)\n--\n\nWait until writing is not paused.")};

// ---- an awaitable that is over ----

PyObject* done_itself(PyObject* self) { return Py_NewRef(self); }

PyObject* done_next(PyObject*) { return nullptr; }

PySendResult done_send(PyObject*, PyObject*, PyObject** result) {
    *result = Py_NewRef(Py_None);
    return PYGEN_RETURN;
}

int done_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

PyType_Slot done_slots[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(done_traverse)}, {Py_tp_iter, reinterpret_cast<void*>(done_itself)},
    {Py_tp_iternext, reinterpret_cast<void*>(done_next)},     {Py_am_await, reinterpret_cast<void*>(done_itself)},
    {Py_am_send, reinterpret_cast<void*>(done_send)},         {0, nullptr}};

PyType_Spec done_spec = {
    "gossamer._core.Done", sizeof(PyObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, done_slots};

// ---- the object ----

/// read(n=-1)
PyObject* stream_call(PyObject* self, PyObject* const* args, std::size_t flagged_count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        const StreamObject& stream = stream_of(self);
        if (PyVectorcall_NARGS(flagged_count) == 1 && names == nullptr && PyLong_CheckExact(args[0])) {
            int overflow = 0;
            const Py_ssize_t size = PyLong_AsLongAndOverflow(args[0], &overflow);
            if (size > 0) {
                return read_stream(*stream.parts, stream.loop, stream.reader, size);
            }
        }
        const Ref read = own_read(stream);
        return PyObject_Vectorcall(read.ptr(), args, flagged_count, names);
    });
}

PyObject* stream_attribute(PyObject* self, PyObject* name) {
    return guarded<PyObject*>(nullptr, [&] { return attribute(own_read(stream_of(self)).ptr(), name).release(); });
}

PyObject* stream_repr(PyObject* self) {
    return guarded<PyObject*>(nullptr, [&] { return PyObject_Repr(own_read(stream_of(self)).ptr()); });
}

int stream_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(stream_of(self).loop);
    Py_VISIT(stream_of(self).reader);
    Py_VISIT(stream_of(self).protocol);
    return 0;
}

void stream_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    StreamObject& stream = stream_of(self);
    // No tp_clear: the dictionaries of the two break every cycle.
    Py_CLEAR(stream.loop);
    Py_CLEAR(stream.reader);
    Py_CLEAR(stream.protocol);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyMemberDef stream_members[] = {
    {"__vectorcalloffset__", Py_T_PYSSIZET, offsetof(StreamObject, call), Py_READONLY, nullptr}, {}};

PyType_Slot stream_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(stream_dealloc)},
                              {Py_tp_traverse, reinterpret_cast<void*>(stream_traverse)},
                              {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
                              {Py_tp_getattro, reinterpret_cast<void*>(stream_attribute)},
                              {Py_tp_repr, reinterpret_cast<void*>(stream_repr)},
                              {Py_tp_members, stream_members},
                              {0, nullptr}};

PyType_Spec stream_spec = {"gossamer._core.Stream", sizeof(StreamObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                               Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           stream_slots};

bool is_exactly(PyObject* object, PyObject* type) noexcept {
    return Py_IS_TYPE(object, reinterpret_cast<PyTypeObject*>(type));
}

StreamFields fields_of(const StreamParts& streams) noexcept {
    const auto field = [&streams](PyObject* name) {
        return cpython::InstanceField(reinterpret_cast<PyTypeObject*>(streams.reader_type), name);
    };
    return {.buffer = field(streams.buffer_name),
            .eof = field(streams.eof_name),
            .exception = field(streams.exception_name),
            .waiter = field(streams.waiter_name),
            .transport = field(streams.transport_name),
            .paused = field(streams.paused_name)};
}

/// Whether the loop makes futures as its class does.
bool makes_own_futures(const StreamParts& streams, PyObject* loop) {
    const Ref create_future = attribute(loop, streams.create_future_name);
    return PyCFunction_Check(create_future.ptr()) && PyCFunction_GET_SELF(create_future.ptr()) == loop;
}

/// Whether the classes are as asyncio has them.
bool are_unpatched(const StreamParts& streams) noexcept {
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(streams.doubled); ++index) {
        PyObject* entry = PyTuple_GET_ITEM(streams.doubled, index);
        auto* type = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(entry, 0));
        if (_PyType_Lookup(type, PyTuple_GET_ITEM(entry, 1)) != PyTuple_GET_ITEM(entry, 2)) {
            return false;
        }
    }
    return true;
}

/// Sets what asyncio's objects have from their classes, as attributes of their own.
void bind(const StreamParts& streams, PyObject* stream) {
    const StreamObject& self = stream_of(stream);
    const Ref drain = steal(PyCFunction_New(&drain_method, stream));
    cpython::check(PyObject_SetAttr(self.reader, streams.read_name, stream));
    cpython::check(PyObject_SetAttr(self.protocol, streams.drain_name, drain.ptr()));
}

/// Takes them away again, if they are still ours.
void unbind(const StreamParts& streams, PyObject* stream) {
    const StreamObject& self = stream_of(stream);
    const Ref read = attribute(self.reader, streams.read_name);
    if (read.ptr() == stream) {
        cpython::check(PyObject_DelAttr(self.reader, streams.read_name));
    }
    const Ref drain = attribute(self.protocol, streams.drain_name);
    if (PyCFunction_Check(drain.ptr()) && PyCFunction_GET_SELF(drain.ptr()) == stream) {
        cpython::check(PyObject_DelAttr(self.protocol, streams.drain_name));
    }
}

/// StreamReader._wakeup_waiter
void wake_waiter(const Parts& parts, PyObject* reader) {
    const StreamFields& fields = parts.streams.fields;
    const Ref waiter = fields.waiter.get(reader);
    if (waiter.ptr() == Py_None) {
        return;
    }
    fields.waiter.set(reader, Py_None);
    if (Ref::steal_or_null(PyObject_CallMethodOneArg(waiter.ptr(), parts.set_result_name, Py_None))) {
        return;
    }
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    const Ref is_done = steal(PyObject_CallMethodNoArgs(waiter.ptr(), parts.done_name));
    if (is_done.ptr() != Py_True) {  // else it was cancelled, say, and nobody is to be told
        PyErr_SetRaisedException(Py_NewRef(error.ptr()));
        throw cpython::ErrorSet{};
    }
}

/// The end of StreamReader.feed_data: a reader that has twice its limit has its transport pause.
void pause_if_full(const StreamFields& fields, PyObject* reader) {
    const Ref transport = fields.transport.get(reader);
    if (transport.ptr() != Py_None && fields.paused.get(reader).ptr() == Py_False) {
        steal(PyObject_CallMethod(transport.ptr(), "pause_reading", nullptr));
        fields.paused.set(reader, Py_True);
    }
}

}  // namespace

void adopt_streams(PyObject* module, Parts& parts, PyObject* protocol_type, PyObject* reader_type) {
    StreamParts& streams = parts.streams;
    streams.protocol_type = Py_NewRef(protocol_type);
    streams.reader_type = Py_NewRef(reader_type);
    streams.fields = fields_of(streams);
    streams.read = attribute(reader_type, streams.read_name).release();
    streams.drain_helper = attribute(protocol_type, streams.drain_name).release();
    const Ref doubled = steal(PyList_New(0));
    const auto remember = [&](PyObject* type, const char* name) {
        const Ref function = steal(PyObject_GetAttrString(type, name));
        const Ref entry = steal(Py_BuildValue("(OsO)", type, name, function.ptr()));
        PyUnicode_InternInPlace(&PyTuple_GET_ITEM(entry.ptr(), 1));
        cpython::check(PyList_Append(doubled.ptr(), entry.ptr()));
    };
    remember(protocol_type, "data_received");
    remember(protocol_type, "_drain_helper");
    remember(reader_type, "feed_data");
    remember(reader_type, "_wakeup_waiter");
    remember(reader_type, "read");
    streams.doubled = steal(PyList_AsTuple(doubled.ptr())).release();
    streams.stream_type = steal(PyType_FromModuleAndSpec(module, &stream_spec, nullptr)).release();
    const Ref done_type = steal(PyType_FromModuleAndSpec(module, &done_spec, nullptr));
    auto* type = reinterpret_cast<PyTypeObject*>(done_type.ptr());
    streams.done = steal(type->tp_alloc(type, 0)).release();
}

Ref open_stream(PyObject* loop, PyObject* protocol) {
    Parts& parts = loop_of(loop).parts();
    StreamParts& streams = parts.streams;
    if (!is_exactly(protocol, streams.protocol_type) || !are_unpatched(streams) || !makes_own_futures(streams, loop)) {
        return Ref();
    }
    const Ref reference = attribute(protocol, streams.reader_reference_name);
    if (!PyWeakref_CheckRef(reference.ptr())) {
        return Ref();
    }
    const Ref reader = steal(PyObject_CallNoArgs(reference.ptr()));
    if (!is_exactly(reader.ptr(), streams.reader_type)) {
        return Ref();
    }
    const Py_ssize_t limit = PyLong_AsSsize_t(attribute(reader.ptr(), streams.limit_name).ptr());
    if (limit == -1 && PyErr_Occurred()) {
        throw cpython::ErrorSet{};
    }
    if (!streams.fields.buffer.is_found()) {
        streams.fields = fields_of(streams);
    }
    auto* stream = PyObject_GC_New(StreamObject, reinterpret_cast<PyTypeObject*>(streams.stream_type));
    if (stream == nullptr) {
        throw cpython::ErrorSet{};
    }
    stream->call = stream_call;
    stream->parts = &parts;
    stream->loop = Py_NewRef(loop);
    stream->reader = Py_NewRef(reader.ptr());
    stream->protocol = Py_NewRef(protocol);
    stream->limit = limit;
    stream->may_wait = false;
    Ref object = Ref::steal_or_null(&stream->ob_base);
    PyObject_GC_Track(object.ptr());
    bind(streams, object.ptr());
    return object;
}

bool feed_stream(PyObject* stream, const char* bytes, std::size_t size) {
    const StreamObject& self = stream_of(stream);
    const StreamFields& fields = self.parts->streams.fields;
    const Ref buffer = fields.buffer.get(self.reader);
    if (!PyByteArray_CheckExact(buffer.ptr())) {
        return false;
    }
    const Py_ssize_t before = PyByteArray_GET_SIZE(buffer.ptr());
    const Py_ssize_t after = before + static_cast<Py_ssize_t>(size);
    cpython::check(PyByteArray_Resize(buffer.ptr(), after));
    std::memcpy(PyByteArray_AS_STRING(buffer.ptr()) + before, bytes, size);
    wake_waiter(*self.parts, self.reader);
    if (after - self.limit > self.limit) {
        pause_if_full(fields, self.reader);
    }
    return true;
}

void set_writing_paused(PyObject* stream, bool is_paused) noexcept { stream_of(stream).may_wait = is_paused; }

void close_stream(PyObject* stream) noexcept {
    stream_of(stream).may_wait = true;
    const bool is_done = guarded(false, [&] {
        unbind(stream_of(stream).parts->streams, stream);
        return true;
    });
    if (!is_done) {
        PyErr_WriteUnraisable(stream);
    }
}

}  // namespace gossamer::loop
