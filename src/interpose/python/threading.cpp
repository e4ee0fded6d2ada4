// SPDX-License-Identifier: Apache-2.0
// Notices the import of `threading`, so that no program has it before it asks for it.
//
// What Gossamer has in that module (python/gossamer/_thread_objects.py) must be there before the program's first use of it.
// A module written in Python has no C function at its end, but this one calls one: its last statement is
// `os.register_at_fork(...)`, on every version.
#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

PyCFunction original_register_at_fork = nullptr;

PyObject* register_at_fork(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    PyObject* result = as<FastKeywordFunction>(original_register_at_fork)(self, args, count, names);
    return result == nullptr ? nullptr : guarded<PyObject*>(nullptr, [&] {
        const Ref passed_on = steal(result);
        const Ref name = steal(PyUnicode_FromString("gossamer._core"));
        const Ref core = Ref::steal_or_null(PyImport_GetModule(name.ptr()));
        if (core) {  // else an interpreter without Gossamer
            steal(PyObject_CallMethod(core.ptr(), "adopt_threading", nullptr));
        } else if (PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        return Py_NewRef(passed_on.ptr());
    });
}

}  // namespace

void plan_threading() {
    const Ref module = steal(PyImport_ImportModule("posix"));
    plan_swap(module.ptr(), "register_at_fork", {{METH_FASTCALL | METH_KEYWORDS, register_at_fork}},
              original_register_at_fork);
}

}  // namespace gossamer::interpose
