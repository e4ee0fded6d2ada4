// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "cpython/socket_object.hpp"

namespace gossamer::cpython {

Ref new_connected_socket(PyTypeObject* type, core::FileDescriptor fd, PyObject* listener, Py_ssize_t io_refs_offset,
                         Py_ssize_t closed_offset) {
    const Ref no_args = steal(PyTuple_New(0));
    Ref socket = steal(type->tp_new(type, no_args.ptr(), nullptr));
    const SocketWords& known = words_of_socket(listener);
    check(PySys_Audit("socket.__new__", "Oiii", socket.ptr(), known.family, known.type, known.protocol));
    // What socket.__init__ and setblocking(False) do, without asking the kernel for what the listener says already.
    SocketWords& words = words_of_socket(socket.ptr());
    words.family = known.family;
    words.type = known.type;
    words.protocol = known.protocol;
    words.error_handler = known.error_handler;
    words.timeout_nanoseconds = 0;
    words.module_state = known.module_state;
    words.fd = fd.release();
    const auto set_field = [&](Py_ssize_t offset, PyObject* value) {
        // Safety: the offsets are those of member descriptors of `type`, of which the new object is.
        *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(socket.ptr()) + offset) = value;
    };
    set_field(io_refs_offset, steal(PyLong_FromLong(0)).release());
    set_field(closed_offset, Py_NewRef(Py_False));
    return socket;
}

}  // namespace gossamer::cpython
