// SPDX-License-Identifier: Apache-2.0
// asyncio's CancelledError, without importing asyncio (90 ms) before somebody cancels.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"

namespace gossamer::cpython {

/// Whether `exception` is a CancelledError; never imports asyncio, for who raised one has. Keeps the error indicator.
inline bool is_cancelled_error(PyObject* exception) noexcept {
    PyObject* module = PyDict_GetItemString(PyImport_GetModuleDict(), "asyncio.exceptions");
    if (module == nullptr) {
        return false;
    }
    PyObject* pending = PyErr_GetRaisedException();
    const Ref type = Ref::steal_or_null(PyObject_GetAttrString(module, "CancelledError"));
    // An error here: a module of that name that is not asyncio's.
    const bool matches = type && PyErr_GivenExceptionMatches(exception, type.ptr()) != 0;
    PyErr_SetRaisedException(pending);
    return matches;
}

/// Sets CancelledError in the error indicator, or what prevented it. Runs Python: on 3.12 as guarded().
inline void set_cancelled_error() noexcept(kPython313) {
    // Imported only now: asyncio takes 90 ms, and most programs never cancel.
    const Ref module = Ref::steal_or_null(PyImport_ImportModule("asyncio.exceptions"));
    const Ref type = module ? Ref::steal_or_null(PyObject_GetAttrString(module.ptr(), "CancelledError")) : Ref();
    if (type) {
        PyErr_SetNone(type.ptr());
    }
}

}  // namespace gossamer::cpython
