// SPDX-License-Identifier: Apache-2.0
// What `async def` functions that are C++ return: an object with a coroutine's methods around a C++ `Operation`.
//
// An Operation has
//     Ref advance(Ref& waits_for)    the result, or null and the future to wait for; throws ErrorSet
//     void end() noexcept            nobody awaits any more; may be called again
//     OperationState state() const noexcept
//     const char* name() const noexcept    of the function, with its class's
//     int traverse(visitproc, void*)
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <cstdint>
#include <new>
#include <string_view>
#include <utility>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

enum class OperationState : std::uint8_t { kNew, kWaiting, kOver };

/// `kBytes`: of the largest Operation, where it is a base.
template <typename Operation, std::size_t kBytes = sizeof(Operation)>
class AwaitedOperation final {
public:
    /// Creates the class. Throws ErrorSet.
    static PyTypeObject* create_type(PyObject* module, const char* name) {
        static PyMethodDef methods[] = {{"send", send_method, METH_O, nullptr},
                                        {"throw", _PyCFunction_CAST(throw_method), METH_FASTCALL, nullptr},
                                        {"close", close_method, METH_NOARGS, nullptr},
                                        {}};
        static PyGetSetDef properties[] = {{"__name__", get_name, nullptr, nullptr, nullptr},
                                           {"__qualname__", get_qualified_name, nullptr, nullptr, nullptr},
                                           {}};
        PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                               {Py_tp_finalize, reinterpret_cast<void*>(finalize)},
                               {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                               {Py_tp_clear, reinterpret_cast<void*>(clear)},
                               {Py_tp_iter, reinterpret_cast<void*>(itself)},
                               {Py_tp_iternext, reinterpret_cast<void*>(next)},
                               {Py_am_await, reinterpret_cast<void*>(itself)},
                               {Py_am_send, reinterpret_cast<void*>(send)},
                               {Py_tp_methods, methods},
                               {Py_tp_getset, properties},
                               {0, nullptr}};
        PyType_Spec spec = {
            name, sizeof(Object), 0,
            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
            slots};
        return reinterpret_cast<PyTypeObject*>(
            cpython::steal(PyType_FromModuleAndSpec(module, &spec, nullptr)).release());
    }

    /// A new object around `T(args...)`, an Operation, whose constructor may throw ErrorSet.
    template <typename T = Operation, typename... Args>
    static PyObject* make(PyTypeObject* type, Args&&... args) {
        static_assert(sizeof(T) <= kBytes);
        auto* self = PyObject_GC_New(Object, type);
        if (self == nullptr) {
            throw cpython::ErrorSet{};
        }
        try {
            // Safety: operation_of() finds it by its base, which is at the same address.
            Operation* operation = new (self->memory) T(std::forward<Args>(args)...);
            GS_ASSERT(static_cast<void*>(operation) == self->memory);
        } catch (...) {
            PyObject_GC_Del(self);
            Py_DECREF(type);
            throw;
        }
        PyObject_GC_Track(&self->ob_base);
        return &self->ob_base;
    }

private:
    struct Object {
        PyObject ob_base;
        alignas(std::max_align_t) std::byte memory[kBytes];
    };

    static Operation& operation_of(PyObject* self) noexcept {
        // Safety: make() has put one there.
        return *std::launder(reinterpret_cast<Operation*>(reinterpret_cast<Object*>(self)->memory));
    }

    static PySendResult send(PyObject* self, PyObject*, PyObject** result) {
        *result = nullptr;
        return cpython::guarded(PYGEN_ERROR, [&] {
            Operation& operation = operation_of(self);
            if (operation.state() == OperationState::kOver) {
                cpython::raise(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
            }
            cpython::Ref waits_for;
            cpython::Ref value = operation.advance(waits_for);
            *result = value ? value.release() : waits_for.release();
            return operation.state() == OperationState::kWaiting ? PYGEN_NEXT : PYGEN_RETURN;
        });
    }

    /// As a generator ends: StopIteration(value), made without the calls that calling a class takes.
    static void set_stop_iteration(PyObject* value) {
        auto* type = reinterpret_cast<PyTypeObject*>(PyExc_StopIteration);
        const cpython::Ref args = cpython::Ref::steal_or_null(PyTuple_Pack(1, value));
        auto* error = args ? reinterpret_cast<PyStopIterationObject*>(type->tp_alloc(type, 0)) : nullptr;
        if (error != nullptr) {
            error->args = Py_NewRef(args.ptr());
            error->value = Py_NewRef(value);
            PyErr_SetRaisedException(reinterpret_cast<PyObject*>(error));
        }
    }

    /// tp_iternext: its end without an error set is that of an iteration whose value is None.
    static PyObject* next(PyObject* self) {
        PyObject* result = nullptr;
        if (send(self, nullptr, &result) == PYGEN_RETURN) {
            if (result != Py_None) {
                set_stop_iteration(result);
            }
            Py_CLEAR(result);
        }
        return result;
    }

    static PyObject* send_method(PyObject* self, PyObject*) {
        PyObject* result = next(self);
        if (result == nullptr && PyErr_Occurred() == nullptr) {
            PyErr_SetNone(PyExc_StopIteration);
        }
        return result;
    }

    /// throw(type_or_value, value=None, traceback=None)
    static PyObject* throw_method(PyObject* self, PyObject* const* args, Py_ssize_t count) {
        return cpython::guarded<PyObject*>(nullptr, [&]() -> PyObject* {
            if (count < 1 || count > 3) {
                cpython::raise(PyExc_TypeError, "throw() takes 1 to 3 arguments");
            }
            operation_of(self).end();
            if (PyExceptionInstance_Check(args[0])) {
                PyErr_SetRaisedException(Py_NewRef(args[0]));
            } else if (PyExceptionClass_Check(args[0])) {
                PyErr_SetObject(args[0], count > 1 ? args[1] : nullptr);
            } else {
                cpython::raise(PyExc_TypeError,
                               "exceptions must be classes or instances deriving from BaseException, not %s",
                               Py_TYPE(args[0])->tp_name);
            }
            throw cpython::ErrorSet{};
        });
    }

    static PyObject* close_method(PyObject* self, PyObject*) {
        operation_of(self).end();
        Py_RETURN_NONE;
    }

    static PyObject* get_name(PyObject* self, void*) {
        const std::string_view qualified = operation_of(self).name();
        return PyUnicode_FromString(qualified.data() + (qualified.rfind('.') + 1));
    }

    static PyObject* get_qualified_name(PyObject* self, void*) {
        return PyUnicode_FromString(operation_of(self).name());
    }

    static void finalize(PyObject* self) {
        if (operation_of(self).state() != OperationState::kNew) {
            return;
        }
        PyObject* pending = PyErr_GetRaisedException();
        if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%s' was never awaited", operation_of(self).name()) <
            0) {
            PyErr_WriteUnraisable(self);
        }
        PyErr_SetRaisedException(pending);
    }

    static void dealloc(PyObject* self) {
        PyTypeObject* type = Py_TYPE(self);
        if (PyObject_CallFinalizerFromDealloc(self) < 0) {
            return;
        }
        PyObject_GC_UnTrack(self);
        operation_of(self).~Operation();
        PyObject_GC_Del(self);
        Py_DECREF(type);
    }

    static int traverse(PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        return operation_of(self).traverse(visit, arg);
    }

    static int clear(PyObject* self) {
        operation_of(self).end();
        return 0;
    }

    static PyObject* itself(PyObject* self) { return Py_NewRef(self); }
};

}  // namespace gossamer::loop
