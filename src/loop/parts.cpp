// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/parts.hpp"

#include "cpython/ref.hpp"
#include "loop/event_loop.hpp"
#include "loop/handle.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

void create_parts(PyObject* module) {
    auto* parts = new Parts;
    cpython::state_of_module(module).loop_parts = parts;
    const Ref name = steal(PyUnicode_InternFromString("loop"));
    parts->loop_keyword = steal(PyTuple_Pack(1, name.ptr())).release();
    parts->no_args = steal(PyTuple_New(0)).release();
    parts->time_name = steal(PyUnicode_InternFromString("time")).release();
    parts->event_loop_type = create_event_loop_type(module);
    cpython::check(PyModule_AddObjectRef(module, "EventLoopBase", reinterpret_cast<PyObject*>(parts->event_loop_type)));
}

int traverse_parts(Parts* parts, visitproc visit, void* arg) {
    if (parts != nullptr) {
        Py_VISIT(reinterpret_cast<PyObject*>(parts->event_loop_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->asyncio_handle));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->handle_type));
        Py_VISIT(reinterpret_cast<PyObject*>(parts->timer_handle_type));
        Py_VISIT(parts->future_type);
        return traverse_spare_handles(*parts, visit, arg);
    }
    return 0;
}

void clear_parts(Parts* parts) noexcept {
    if (parts != nullptr) {
        drop_spare_handles(*parts);
        Py_CLEAR(parts->event_loop_type);
        Py_CLEAR(parts->asyncio_handle);
        Py_CLEAR(parts->handle_type);
        Py_CLEAR(parts->timer_handle_type);
        Py_CLEAR(parts->future_type);
        Py_CLEAR(parts->loop_keyword);
        Py_CLEAR(parts->no_args);
        Py_CLEAR(parts->time_name);
    }
}

void free_parts(Parts* parts) noexcept { delete parts; }

PyObject* adopt_asyncio(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        if (count != 3) {
            cpython::raise(PyExc_TypeError, "adopt_asyncio() takes Handle, TimerHandle and Future");
        }
        Parts& parts = *cpython::state_of_module(module).loop_parts;
        if (parts.asyncio_handle == nullptr) {
            create_handle_types(module, parts, args[0], args[1]);
            parts.future_type = Py_NewRef(args[2]);
        }
        Py_RETURN_NONE;
    });
}

}  // namespace gossamer::loop
