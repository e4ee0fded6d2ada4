// SPDX-License-Identifier: Apache-2.0
// How a Python object holds a transport, and how its methods and attributes become members of that: for the Python classes
// around Transport (transport_type.hpp) and around TlsTransport.
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <new>
#include <span>
#include <type_traits>

#include "cpython/args.hpp"
#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/parts.hpp"

namespace gossamer::loop {

using cpython::guarded;

class Transport;

/// An instance of a class of ours whose base, asyncio's, has kFields fields: after those comes a Storage, a pointer or an
/// optional, empty until the instance is opened. Where it is is not kept with the module: an instance may die after its
/// class has lost that, when the interpreter ends.
template <typename Storage, std::size_t kFields>
class TransportObject final {
public:
    static Storage& storage_of(PyObject* self) noexcept {
        // Safety: create() has put it there.
        return *std::launder(reinterpret_cast<Storage*>(reinterpret_cast<char*>(self) + kOffset));
    }

    static std::span<PyObject*, kFields> inherited_fields(PyObject* self) noexcept {
        // Safety: create_type() has checked that the base's instances are an object's head and these words.
        return std::span<PyObject*, kFields>(reinterpret_cast<PyObject**>(self + 1), kFields);
    }

    /// What tp_new does. Throws ErrorSet.
    static cpython::Ref create(PyTypeObject* type) {
        cpython::Ref self = cpython::steal(type->tp_alloc(type, 0));
        new (reinterpret_cast<char*>(self.ptr()) + kOffset) Storage;
        return self;
    }

    /// Creates the class and puts it into the module. Throws ErrorSet.
    static cpython::Ref create_type(PyObject* module, const char* name, PyObject* base, PyMethodDef* methods,
                                    PyGetSetDef* properties) {
        if (reinterpret_cast<PyTypeObject*>(base)->tp_basicsize != Py_ssize_t{kBaseSize}) {
            cpython::raise(PyExc_ImportError,
                           "gossamer does not know all fields of asyncio's transports in this Python");
        }
        PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(tp_new)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                               {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                               {Py_tp_clear, reinterpret_cast<void*>(clear)},
                               {Py_tp_methods, methods},
                               {Py_tp_getset, properties},
                               {0, nullptr}};
        PyType_Spec spec = {name, -static_cast<int>(sizeof(Storage)), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};
        cpython::Ref type = cpython::steal(PyType_FromModuleAndSpec(module, &spec, base));
        cpython::check(PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(type.ptr())));
        return type;
    }

private:
    static constexpr std::size_t kBaseSize = sizeof(PyObject) + kFields * sizeof(PyObject*);
    static constexpr std::size_t kAlignment = alignof(std::max_align_t);
    static constexpr std::size_t kOffset = (kBaseSize + kAlignment - 1) / kAlignment * kAlignment;

    static PyObject* tp_new(PyTypeObject* type, PyObject*, PyObject*) {
        return guarded<PyObject*>(nullptr, [&] { return create(type).release(); });
    }

    static int traverse(PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        for (PyObject* field : inherited_fields(self)) {
            Py_VISIT(field);
        }
        Storage& storage = storage_of(self);
        return storage ? storage->traverse(visit, arg) : 0;
    }

    static int clear(PyObject* self) {
        for (PyObject*& field : inherited_fields(self)) {
            Py_CLEAR(field);
        }
        if (Storage& storage = storage_of(self)) {
            storage->hide();
            storage->clear();
        }
        return 0;
    }

    static void dealloc(PyObject* self) {
        PyTypeObject* type = Py_TYPE(self);
        PyObject_GC_UnTrack(self);
        clear(self);
        storage_of(self).~Storage();
        type->tp_free(self);
        Py_DECREF(type);
    }
};

inline Parts& parts_of_instance(PyObject* self) noexcept {
    // Safety: our class is among the bases of the instance's, so the module is found.
    return *cpython::state_of_module(PyType_GetModuleByDef(Py_TYPE(self), &cpython::core_module)).loop_parts;
}

/// The transport of an instance of the Python class that belongs to `T`; null: it was not opened.
template <typename T = Transport>
T* find_transport(PyObject* self) noexcept {
    return static_cast<T*>(T::find(self));
}

/// The same. Throws ErrorSet instead.
template <typename T = Transport>
T& transport_of(PyObject* self) {
    T* transport = find_transport<T>(self);
    if (transport == nullptr) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return *transport;
}

// ---- what a member gives, as an object; null is None ----

inline PyObject* object_of(bool value) noexcept { return Py_NewRef(value ? Py_True : Py_False); }
inline PyObject* object_of(int value) noexcept { return PyLong_FromLong(value); }
inline PyObject* object_of(std::size_t value) noexcept { return PyLong_FromSize_t(value); }
inline PyObject* object_of(PyObject* object) noexcept { return Py_NewRef(object == nullptr ? Py_None : object); }
inline PyObject* object_of(cpython::Ref object) noexcept { return object ? object.release() : Py_NewRef(Py_None); }

// ---- methods ----

template <typename Member, typename T>
std::type_identity<T> class_of(Member T::*);

/// Calls a member function, with an argument if it takes one, or reads a field.
template <auto kMember>
PyObject* method(PyObject* self, [[maybe_unused]] PyObject* argument) {
    using T = typename decltype(class_of(kMember))::type;
    return guarded<PyObject*>(nullptr, [&] {
        const auto call = [&, &transport = transport_of<T>(self)] {
            if constexpr (std::is_invocable_v<decltype(kMember), T&, PyObject*>) {
                return std::invoke(kMember, transport, argument);
            } else {
                return std::invoke(kMember, transport);
            }
        };
        if constexpr (std::is_void_v<decltype(call())>) {
            call();
            return Py_NewRef(Py_None);
        } else {
            return object_of(call());
        }
    });
}

/// A text at compile time.
template <std::size_t kSize>
struct Text final {
    constexpr Text(const char (&text)[kSize]) { std::copy_n(text, kSize, characters); }  // implicit: it is one
    char characters[kSize];
};

/// Calls a member function with the only argument of the method kName, which may be given by its name, kParameter.
template <auto kMember, Text kName, Text kParameter>
PyObject* method_of_one(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        return method<kMember>(self,
                               cpython::only_argument(kName.characters, kParameter.characters, args, count, names));
    });
}
inline constexpr int kMethodOfOne = METH_FASTCALL | METH_KEYWORDS;

/// (low, high)
template <auto kLow, auto kHigh>
PyObject* get_limits(PyObject* self, PyObject*) {
    using T = typename decltype(class_of(kLow))::type;
    return guarded<PyObject*>(nullptr, [&] {
        const T& transport = transport_of<T>(self);
        return Py_BuildValue("(nn)", static_cast<Py_ssize_t>(transport.*kLow),
                             static_cast<Py_ssize_t>(transport.*kHigh));
    });
}

/// (high, low)
template <auto kSet>
PyObject* set_limits(PyObject* self, PyObject* args) {
    using T = typename decltype(class_of(kSet))::type;
    return guarded<PyObject*>(nullptr, [&] {
        Py_ssize_t high = 0;
        Py_ssize_t low = 0;
        if (!PyArg_ParseTuple(args, "nn", &high, &low)) {
            throw cpython::ErrorSet{};
        }
        (transport_of<T>(self).*kSet)(static_cast<std::size_t>(high), static_cast<std::size_t>(low));
        Py_RETURN_NONE;
    });
}

// ---- attributes ----

/// What a member gives; before the instance is opened nothing, as None, False or 0.
template <auto kMember>
PyObject* attribute(PyObject* self, void*) {
    using T = typename decltype(class_of(kMember))::type;
    using Value = std::remove_cvref_t<std::invoke_result_t<decltype(kMember), T&>>;
    T* transport = find_transport<T>(self);
    return object_of(transport == nullptr ? Value{} : std::invoke(kMember, *transport));
}

template <auto kFlag>
PyObject* get_flag(PyObject* self, void*) {
    return method<kFlag>(self, nullptr);
}

template <auto kFlag>
int set_flag(PyObject* self, PyObject* value, void*) {
    using T = typename decltype(class_of(kFlag))::type;
    return guarded(-1, [&] {
        const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
        cpython::check(is_true);
        transport_of<T>(self).*kFlag = is_true != 0;
        return 0;
    });
}

}  // namespace gossamer::loop
