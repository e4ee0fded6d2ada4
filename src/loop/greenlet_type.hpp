// SPDX-License-Identifier: Apache-2.0
// The names of a module `greenlet` whose greenlets are fibers (python/gossamer/_greenlet.py puts it in place).
//
// The same to a program as the extension of that name, as far as its documentation goes; it has no C interface. Source of
// what it does: https://greenlet.readthedocs.io (3.2).
#pragma once

#include "cpython/api.hpp"

namespace gossamer::loop {

/// A new dictionary of the names; makes the types on the first call. Throws ErrorSet.
PyObject* create_greenlet_names(PyObject* core_module);

}  // namespace gossamer::loop
