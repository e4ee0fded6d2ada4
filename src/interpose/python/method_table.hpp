// SPDX-License-Identifier: Apache-2.0
// The swap itself: the C function behind a callable of the standard library is replaced in its PyMethodDef.
//
// Names bound earlier (`from time import sleep`), bound methods and call sites that the interpreter has specialised all
// call through that table, so they follow. The tables are static and serve every interpreter of the process: they are
// swapped once, for all, and each replacement asks first whether the calling code is on a carrier (Hub::current). The
// calling convention must stay the same, so a table whose flags are not understood is refused before anything is swapped.
#pragma once

#include "cpython/api.hpp"

#include <initializer_list>

#include "cpython/ref.hpp"

namespace gossamer::interpose {

// Casts between PyCFunction and the types of the other calling conventions; the flags say which one a table holds.
using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);
using FastKeywordFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
using MethodFunction = PyObject* (*)(PyObject*, PyTypeObject*, PyObject* const*, Py_ssize_t, PyObject*);
using KeywordFunction = PyObject* (*)(PyObject*, PyObject*, PyObject*);

template <typename Function>
PyCFunction as_c_function(Function function) noexcept {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

template <typename Function>
Function as(PyCFunction function) noexcept {
    return reinterpret_cast<Function>(reinterpret_cast<void (*)()>(function));
}

/// One calling convention of a function and our function for it.
struct Replacement {
    template <typename Function>
    Replacement(int its_flags, Function its_function) noexcept
        : flags(its_flags), function(as_c_function(its_function)) {}

    int flags;
    PyCFunction function;
};

/// The PyMethodDef of `name` in `owner`, a module or a type. Throws ErrorSet (AttributeError, SystemError).
PyMethodDef& method_of(PyObject* owner, const char* name);

/// Remembers to swap `name` of `owner`. Throws ErrorSet, ImportError, when no replacement has the method's flags.
/// `original` receives the function that is replaced; it must have static storage. A name that this version of Python does
/// not have is skipped if `optional`.
void plan_swap(PyObject* owner, const char* name, std::initializer_list<Replacement> replacements,
               PyCFunction& original, bool optional = false);

/// Arguments of a METH_FASTCALL | METH_KEYWORDS call as a tuple and, if there are any, a dictionary.
struct PackedArguments {
    PackedArguments(PyObject* const* given, Py_ssize_t count, PyObject* names);

    cpython::Ref args;
    cpython::Ref kwargs;
};

/// Carries out what was planned. Cannot fail. Python: attached.
void install_planned() noexcept;

/// Puts every original back. Python: attached.
void uninstall_planned() noexcept;

/// Whether the tables are swapped.
bool is_installed() noexcept;

}  // namespace gossamer::interpose
