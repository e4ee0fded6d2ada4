// SPDX-License-Identifier: Apache-2.0
// What the Python classes of transports share. gossamer._core.TransportBase is a subclass of asyncio.BaseTransport whose
// instances end with a pointer to a Transport; each kind of transport is a subclass of it with methods of its own, and the
// classes that are used (gossamer/_transports.py) are subclasses of one of those and of asyncio's for that kind.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <memory>
#include <new>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/transport_base.hpp"

namespace gossamer::loop {

/// What is ours in an instance; empty until it is opened. The Python class says which transport it is.
using TransportStorage = std::unique_ptr<Transport>;

inline Parts& parts_of_instance(PyObject* self) noexcept {
    // Safety: our class is among the bases of the instance's, so the module is found.
    return *cpython::state_of_module(PyType_GetModuleByDef(Py_TYPE(self), &cpython::core_module)).loop_parts;
}

/// Where our part of an instance begins: after the fields of asyncio.BaseTransport, whose size is checked when the class is
/// made. Not kept with the module: an instance may die after its class has lost that, when the interpreter ends.
constexpr std::size_t kTransportOffset = (sizeof(PyObject) + sizeof(PyObject*) + alignof(std::max_align_t) - 1) /
                                         alignof(std::max_align_t) * alignof(std::max_align_t);

inline TransportStorage& storage_of(PyObject* self) noexcept {
    // Safety: our part of an instance is there, and tp_new has put it there.
    return *std::launder(reinterpret_cast<TransportStorage*>(reinterpret_cast<char*>(self) + kTransportOffset));
}

/// asyncio.BaseTransport's only field.
inline PyObject*& extra_field(PyObject* self) noexcept { return *reinterpret_cast<PyObject**>(self + 1); }

/// The transport of an instance of the Python class that belongs to `T`. Throws ErrorSet.
template <typename T = Transport>
T& transport_of(PyObject* self) {
    TransportStorage& storage = storage_of(self);
    if (!storage) {
        cpython::raise(PyExc_RuntimeError, "the transport was not opened");
    }
    return static_cast<T&>(*storage);
}

/// Puts the transport that `make()` returns into `self`, then has `prepare(transport)` make it ready; takes it out again if
/// that throws.
template <typename Make, typename Prepare>
void open_transport(PyObject* self, Make make, Prepare prepare) {
    TransportStorage& storage = storage_of(self);
    if (storage) {
        cpython::raise(PyExc_RuntimeError, "the transport is open already");
    }
    storage = make();
    try {
        prepare(*storage);
    } catch (...) {
        storage.reset();  // its file is still its maker's
        throw;
    }
}

/// The dictionary behind get_extra_info().
cpython::Ref extra_of(PyObject* self);
/// Fills in what it says of a socket; `peername` null: what it says already, or the socket.
void describe_socket(const Parts& parts, PyObject* self, PyObject* socket, PyObject* peername);

/// What tp_new does for an instance of `type`. Throws ErrorSet.
cpython::Ref new_transport_object(PyTypeObject* type);

/// A subclass of TransportBase, put into the module.
PyTypeObject* create_transport_type(PyObject* module, const Parts& parts, const char* name, PyMethodDef* methods,
                                    PyGetSetDef* properties);

inline PyObject* object_or_none(PyObject* object) noexcept { return Py_NewRef(object == nullptr ? Py_None : object); }

template <typename T, void (T::*call)()>
PyObject* simple_method(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        (transport_of<T>(self).*call)();
        Py_RETURN_NONE;
    });
}

template <typename T, bool T::* flag>
PyObject* get_flag(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(transport_of<T>(self).*flag ? Py_True : Py_False); });
}

template <typename T, bool T::* flag>
int set_flag(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
        cpython::check(is_true);
        transport_of<T>(self).*flag = is_true != 0;
        return 0;
    });
}

}  // namespace gossamer::loop
