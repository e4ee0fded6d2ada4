// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/handle.hpp"

#include <cstddef>
#include <new>
#include <span>
#include <utility>

#include "loop/event_loop.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::size_t kMostSpares = 1024;

// How many fields asyncio's classes have, which is checked when ours are made. What destroys a handle needs no more than
// that: one may die after its class has lost its module, when the interpreter ends.
constexpr std::size_t kFields = 7;
constexpr std::size_t kTimerFields = 2;  // more

std::span<PyObject*> fields_of(PyObject* self, std::size_t count) noexcept {
    // Safety: an instance is an object's head and these words.
    return {reinterpret_cast<PyObject**>(self + 1), count};
}

void clear_fields(PyObject* self, std::size_t count) {
    for (PyObject*& field : fields_of(self, count)) {
        Py_CLEAR(field);
    }
}

int handle_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    for (PyObject* field : fields_of(self, kFields)) {
        Py_VISIT(field);
    }
    return 0;
}

int handle_clear(PyObject* self) {
    clear_fields(self, kFields);
    return 0;
}

void clear_weak_references(PyObject* self) noexcept {
    const Py_ssize_t offset = Py_TYPE(self)->tp_weaklistoffset;
    if (offset != 0 && field_of(self, offset) != nullptr) {
        PyObject_ClearWeakRefs(self);
    }
}

/// Keeps the memory of a dead handle, whose fields are null, for the next one. Returns whether it did.
bool keep_spare([[maybe_unused]] PyObject* self) noexcept {
#ifndef Py_GIL_DISABLED
    PyTypeObject* type = Py_TYPE(self);
    if (reinterpret_cast<PyHeapTypeObject*>(type)->ht_module == nullptr) {
        return false;
    }
    Parts& parts = parts_of_type(type);
    if (parts.spare_handles.size() < parts.spare_handles.capacity()) {
        parts.spare_handles.push_back(self);
        return true;
    }
#endif
    return false;
}

void handle_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_weak_references(self);
    handle_clear(self);
    if (!keep_spare(self)) {
        PyObject_GC_Del(self);
        Py_DECREF(type);
    }
}

void timer_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_weak_references(self);
    clear_fields(self, kFields + kTimerFields);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyObject* handle_cancel(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [self] {
        cancel_handle(parts_of_type(Py_TYPE(self)), self);
        Py_RETURN_NONE;
    });
}

PyObject* handle_cancelled(PyObject* self, PyObject*) {
    return Py_NewRef(is_cancelled(parts_of_type(Py_TYPE(self)), self) ? Py_True : Py_False);
}

PyMethodDef methods[] = {
    {"cancel", handle_cancel, METH_NOARGS, PyDoc_STR("cancel($self, /)\n--\n\nThe callback is not called.")},
    {"cancelled", handle_cancelled, METH_NOARGS, PyDoc_STR("cancelled($self, /)\n--\n\nWhether it was cancelled.")},
    {}};

PyTypeObject* create_type(PyObject* module, PyObject* base, const char* name, std::size_t own_bytes,
                          destructor dealloc) {
    PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                           {Py_tp_traverse, reinterpret_cast<void*>(handle_traverse)},
                           {Py_tp_clear, reinterpret_cast<void*>(handle_clear)},
                           {Py_tp_methods, methods},
                           {0, nullptr}};
    // How instances keep their weak references is a flag, which a type made from a spec does not inherit.
    const unsigned long inherited = reinterpret_cast<PyTypeObject*>(base)->tp_flags & Py_TPFLAGS_MANAGED_WEAKREF;
    PyType_Spec spec = {
        name, -static_cast<int>(own_bytes), 0,
        static_cast<unsigned>(Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | inherited | Py_TPFLAGS_DISALLOW_INSTANTIATION),
        slots};
    return reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, base)).release());
}

Ref tuple_of(Parts& parts, PyObject* const* args, Py_ssize_t count) {
    if (count == 0) {
        return cpython::borrow(parts.no_args);
    }
    Ref tuple = steal(PyTuple_New(count));
    for (Py_ssize_t index = 0; index < count; ++index) {
        PyTuple_SET_ITEM(tuple.ptr(), index, Py_NewRef(args[index]));
    }
    return tuple;
}

/// An object whose fields are unset, not tracked yet.
PyObject* allocate(Parts& parts, PyTypeObject* type) {
#ifndef Py_GIL_DISABLED
    if (type == parts.handle_type && !parts.spare_handles.empty()) {
        PyObject* spare = parts.spare_handles.back();
        parts.spare_handles.pop_back();
        _Py_NewReference(spare);
        return spare;
    }
#endif
    PyObject* self = reinterpret_cast<PyObject*>(PyObject_GC_New(PyObject, type));
    if (self == nullptr) {
        throw cpython::ErrorSet{};
    }
    field_of(self, parts.fields.repr) = nullptr;
    return self;
}

PyObject* make(Parts& parts, PyTypeObject* type, PyObject* loop, PyObject* callback, PyObject* const* args,
               Py_ssize_t count, PyObject* context) {
    Ref context_of_call =
        context == nullptr || context == Py_None ? steal(PyContext_CopyCurrent()) : cpython::borrow(context);
    Ref arguments = tuple_of(parts, args, count);
    Ref trace = is_debugging(loop) ? trace_of_caller(loop) : cpython::borrow(Py_None);
    const HandleFields& fields = parts.fields;
    PyObject* self = allocate(parts, type);
    field_of(self, fields.callback) = Py_NewRef(callback);
    field_of(self, fields.args) = arguments.release();
    field_of(self, fields.cancelled) = Py_NewRef(Py_False);
    field_of(self, fields.loop) = Py_NewRef(loop);
    field_of(self, fields.source_traceback) = trace.release();
    field_of(self, fields.repr) = Py_NewRef(Py_None);
    field_of(self, fields.context) = context_of_call.release();
    return self;
}

}  // namespace

void create_handle_types(PyObject* module, Parts& parts, PyObject* handle, PyObject* timer_handle) {
    HandleFields& fields = parts.fields;
    fields.callback = offset_of_slot(handle, "_callback");
    fields.args = offset_of_slot(handle, "_args");
    fields.cancelled = offset_of_slot(handle, "_cancelled");
    fields.loop = offset_of_slot(handle, "_loop");
    fields.source_traceback = offset_of_slot(handle, "_source_traceback");
    fields.repr = offset_of_slot(handle, "_repr");
    fields.context = offset_of_slot(handle, "_context");
    fields.scheduled = offset_of_slot(timer_handle, "_scheduled");
    fields.when = offset_of_slot(timer_handle, "_when");
    const auto size_of = [](PyObject* type) { return reinterpret_cast<PyTypeObject*>(type)->tp_basicsize; };
    if (size_of(handle) != Py_ssize_t{sizeof(PyObject) + kFields * sizeof(PyObject*)} ||
        size_of(timer_handle) != size_of(handle) + Py_ssize_t{kTimerFields * sizeof(PyObject*)}) {
        cpython::raise(PyExc_ImportError, "gossamer does not know all fields of asyncio's handles in this Python");
    }
    parts.handle_type = create_type(module, handle, "gossamer._core.Handle", 0, handle_dealloc);
    parts.timer_handle_type =
        create_type(module, timer_handle, "gossamer._core.TimerHandle", sizeof(TimerNode), timer_dealloc);
    const auto alignment = Py_ssize_t{alignof(std::max_align_t)};
    parts.timer_offset = (size_of(timer_handle) + alignment - 1) / alignment * alignment;
#ifndef Py_GIL_DISABLED
    parts.spare_handles.reserve(kMostSpares);
#endif
    parts.asyncio_handle = reinterpret_cast<PyTypeObject*>(Py_NewRef(handle));
}

Ref make_handle(Parts& parts, PyObject* loop, PyObject* callback, PyObject* const* args, Py_ssize_t count,
                PyObject* context) {
    PyObject* self = make(parts, parts.handle_type, loop, callback, args, count, context);
    PyObject_GC_Track(self);
    return Ref::steal_or_null(self);
}

Ref make_timer_handle(Parts& parts, PyObject* loop, PyObject* when, PyObject* callback, PyObject* const* args,
                      Py_ssize_t count, PyObject* context) {
    PyObject* self = make(parts, parts.timer_handle_type, loop, callback, args, count, context);
    field_of(self, parts.fields.when) = Py_NewRef(when);
    field_of(self, parts.fields.scheduled) = Py_NewRef(Py_False);
    new (&node_of(parts, self)) TimerNode(self);
    PyObject_GC_Track(self);
    return Ref::steal_or_null(self);
}

void cancel_handle(Parts& parts, PyObject* handle) {
    if (is_cancelled(parts, handle)) {
        return;
    }
    const HandleFields& fields = parts.fields;
    PyObject* loop = field_of(handle, fields.loop);
    const bool is_ours = loop != nullptr && PyObject_TypeCheck(loop, parts.event_loop_type);
    const Ref kept = cpython::borrow(handle);
    Py_XSETREF(field_of(handle, fields.cancelled), Py_NewRef(Py_True));
    if (is_ours && Py_IS_TYPE(handle, parts.timer_handle_type)) {
        disarm_timer(loop, node_of(parts, handle));
    }
    if (is_ours && is_debugging(loop)) {
        Ref text = steal(PyObject_Repr(handle));  // of the callback, for what the loop logs later
        Py_XSETREF(field_of(handle, fields.repr), text.release());
    }
    // Last, for what dies here may run Python.
    const Ref callback = Ref::steal_or_null(std::exchange(field_of(handle, fields.callback), Py_NewRef(Py_None)));
    const Ref args = Ref::steal_or_null(std::exchange(field_of(handle, fields.args), Py_NewRef(Py_None)));
}

void call_handle(const Parts& parts, PyObject* handle) {
    const HandleFields& fields = parts.fields;
    // Ours for the length of the call: it may cancel the handle.
    const Ref callback = cpython::borrow(field_of(handle, fields.callback));
    Ref args = cpython::borrow(field_of(handle, fields.args));
    const Ref context = cpython::borrow(field_of(handle, fields.context));
    if (!args || !PyTuple_CheckExact(args.ptr())) {
        args = steal(PySequence_Tuple(args ? args.ptr() : Py_None));
    }
    if (!callback || !context) {
        cpython::raise(PyExc_AttributeError, "a handle without a callback");
    }
    cpython::check(PyContext_Enter(context.ptr()));
    PyObject* result = PyObject_Vectorcall(callback.ptr(), &PyTuple_GET_ITEM(args.ptr(), 0),
                                           static_cast<std::size_t>(PyTuple_GET_SIZE(args.ptr())), nullptr);
    Py_XDECREF(result);
    PyObject* error = result == nullptr ? PyErr_GetRaisedException() : nullptr;
    if (PyContext_Exit(context.ptr()) < 0) {
        Py_XDECREF(error);
        throw cpython::ErrorSet{};
    }
    if (result == nullptr) {
        PyErr_SetRaisedException(error);
        throw cpython::ErrorSet{};
    }
}

int traverse_spare_handles([[maybe_unused]] Parts& parts, [[maybe_unused]] visitproc visit,
                           [[maybe_unused]] void* arg) {
#ifndef Py_GIL_DISABLED
    for (PyObject* spare : parts.spare_handles) {
        Py_VISIT(Py_TYPE(spare));
    }
#endif
    return 0;
}

void drop_spare_handles([[maybe_unused]] Parts& parts) noexcept {
#ifndef Py_GIL_DISABLED
    std::vector<PyObject*> spares = std::exchange(parts.spare_handles, {});
    for (PyObject* spare : spares) {
        PyTypeObject* type = Py_TYPE(spare);
        PyObject_GC_Del(spare);
        Py_DECREF(type);
    }
#endif
}

}  // namespace gossamer::loop
