// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/method_table.hpp"

#include <atomic>
#include <mutex>
#include <vector>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"

namespace gossamer::interpose {

namespace {

struct Swap {
    PyMethodDef* definition;
    PyCFunction original;
    PyCFunction replacement;
};

// Process-wide on purpose, as the tables are. Any interpreter may plan at any time; no Python runs under the mutex.
std::mutex swaps_mutex;
std::vector<Swap>& swaps() {
    static auto* list = new std::vector<Swap>;
    return *list;
}

bool installed = false;

void store(PyMethodDef& definition, PyCFunction function) noexcept {
    std::atomic_ref<PyCFunction>(definition.ml_meth).store(function, std::memory_order_release);
}

}  // namespace

PyMethodDef& method_of(PyObject* owner, const char* name) {
    cpython::Ref callable;
    if (PyType_Check(owner)) {
        PyObject* dict = PyType_GetDict(reinterpret_cast<PyTypeObject*>(owner));
        callable = cpython::borrow(PyDict_GetItemString(dict, name));
        Py_DECREF(dict);
    } else {
        callable = cpython::Ref::steal_or_null(PyObject_GetAttrString(owner, name));
    }
    if (!callable) {
        PyErr_Clear();
        cpython::raise(PyExc_AttributeError, "%R has no %s", owner, name);
    }
    if (PyCFunction_Check(callable.ptr())) {
        return *reinterpret_cast<PyCFunctionObject*>(callable.ptr())->m_ml;
    }
    if (Py_IS_TYPE(callable.ptr(), &PyMethodDescr_Type)) {
        return *reinterpret_cast<PyMethodDescrObject*>(callable.ptr())->d_method;
    }
    cpython::raise(PyExc_ImportError,
                   "gossamer cannot take over %R: it is not a C function here (it was replaced, or this Python is new)",
                   callable.ptr());
}

void plan_swap(PyObject* owner, const char* name, std::initializer_list<Replacement> replacements,
               PyCFunction& original, bool optional) {
    if (optional && !PyObject_HasAttrString(owner, name)) {
        return;
    }
    PyMethodDef& definition = method_of(owner, name);
    for (const Replacement& candidate : replacements) {
        if (candidate.flags == definition.ml_flags) {
            const std::lock_guard lock(swaps_mutex);
            original = definition.ml_meth;
            swaps().push_back({&definition, definition.ml_meth, candidate.function});
            return;
        }
    }
    cpython::raise(PyExc_ImportError, "gossamer does not know the calling convention (%d) of %R.%s in this Python",
                   definition.ml_flags, owner, name);
}

PackedArguments::PackedArguments(PyObject* const* given, Py_ssize_t count, PyObject* names)
    : args(cpython::steal(PyTuple_New(count))) {
    for (Py_ssize_t index = 0; index < count; ++index) {
        PyTuple_SET_ITEM(args.ptr(), index, Py_NewRef(given[index]));
    }
    const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    if (keywords > 0) {
        kwargs = cpython::steal(PyDict_New());
    }
    for (Py_ssize_t index = 0; index < keywords; ++index) {
        cpython::check(PyDict_SetItem(kwargs.ptr(), PyTuple_GET_ITEM(names, index), given[count + index]));
    }
}

void install_planned() noexcept {
    const std::lock_guard lock(swaps_mutex);
    installed = true;
    for (const Swap& swap : swaps()) {
        store(*swap.definition, swap.replacement);
    }
}

void uninstall_planned() noexcept {
    const std::lock_guard lock(swaps_mutex);
    installed = false;
    for (const Swap& swap : swaps()) {
        store(*swap.definition, swap.original);
    }
}

bool is_installed() noexcept { return installed; }

}  // namespace gossamer::interpose
