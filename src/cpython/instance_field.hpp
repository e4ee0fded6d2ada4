// SPDX-License-Identifier: Apache-2.0
// An attribute that instances of a class written in Python have in their dictionary, found as the interpreter's specialised
// instructions find it (LOAD_ATTR_INSTANCE_VALUE): by its place among the values that instances keep without a dictionary.
//
// The place follows from the class: its names are only ever added to. An instance that has a dictionary after all, or
// lost the attribute, is asked the usual way. Sources: Python/bytecodes.c, Include/internal/pycore_object.h and
// pycore_dict.h of each version.
#pragma once

#include "cpython/api.hpp"

#include <utility>

#include "cpython/ref.hpp"

namespace gossamer::cpython {

class InstanceField final {
public:
    InstanceField() = default;
    /// The attribute `name`, which is interned and outlives this, of instances of `type`.
    InstanceField(PyTypeObject* type, PyObject* name) noexcept;

    /// Whether the place is known, which it is once an instance was made; until then every one is asked the usual way.
    bool is_found() const noexcept { return index_ >= 0 || kFreeThreaded; }

    /// The attribute of an instance of exactly that class. Throws ErrorSet.
    Ref get(PyObject* instance) const;
    void set(PyObject* instance, PyObject* value) const;

private:
    /// Where the instance has it; null: ask the usual way.
    PyObject** place_in(PyObject* instance) const noexcept;

#ifdef Py_GIL_DISABLED
    static constexpr bool kFreeThreaded = true;  // where no place is looked at: another thread may be there
#else
    static constexpr bool kFreeThreaded = false;
#endif

    PyObject* name_ = nullptr;
    Py_ssize_t index_ = -1;
};

}  // namespace gossamer::cpython
