// SPDX-License-Identifier: Apache-2.0
// What the Python classes of transports share. gossamer._core.TransportBase is a subclass of asyncio.BaseTransport whose
// instances end with a pointer to a Transport; each kind of transport is a subclass of it with methods of its own, and the
// classes that are used (gossamer/_transports.py) are subclasses of one of those and of asyncio's for that kind.
#pragma once

#include "cpython/api.hpp"

#include <memory>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/parts.hpp"
#include "loop/transport_base.hpp"
#include "loop/transport_object.hpp"

namespace gossamer::loop {

/// What is ours in an instance; empty until it is opened. The Python class says which transport it is.
using TransportStorage = std::unique_ptr<Transport>;

using BaseObject = TransportObject<TransportStorage, 1>;  // asyncio.BaseTransport's only field is _extra

/// Puts the transport that `make()` returns into `self`, then has `prepare(transport)` make it ready; takes it out again if
/// that throws.
template <typename Make, typename Prepare>
void open_transport(PyObject* self, Make make, Prepare prepare) {
    TransportStorage& storage = BaseObject::storage_of(self);
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

/// A subclass of TransportBase, put into the module.
PyTypeObject* create_transport_type(PyObject* module, const Parts& parts, const char* name, PyMethodDef* methods,
                                    PyGetSetDef* properties);

}  // namespace gossamer::loop
