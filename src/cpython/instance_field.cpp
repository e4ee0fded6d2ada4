// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "cpython/instance_field.hpp"

#include <cstdint>

namespace gossamer::cpython {

namespace {

#ifndef Py_GIL_DISABLED
/// The values of an instance that has no dictionary, or null.
PyDictValues* values_of(PyObject* instance) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    if ((Py_TYPE(instance)->tp_flags & Py_TPFLAGS_INLINE_VALUES) == 0 ||
        _PyObject_GetManagedDict(instance) != nullptr) {
        return nullptr;
    }
    PyDictValues* values = _PyObject_InlineValues(instance);
    return values->valid ? values : nullptr;
#else
    if ((Py_TYPE(instance)->tp_flags & Py_TPFLAGS_MANAGED_DICT) == 0) {
        return nullptr;
    }
    // A word in front of the object (PyDictOrValues): the address of its dictionary, or one less than that of its values.
    const std::uintptr_t word = reinterpret_cast<std::uintptr_t*>(instance)[-3];
    return (word & 1) != 0 ? reinterpret_cast<PyDictValues*>(word + 1) : nullptr;
#endif
}
#endif

Py_ssize_t index_of([[maybe_unused]] PyTypeObject* type, [[maybe_unused]] PyObject* name) noexcept {
#ifndef Py_GIL_DISABLED
    if ((type->tp_flags & Py_TPFLAGS_HEAPTYPE) == 0) {
        return -1;
    }
    PyDictKeysObject* keys = reinterpret_cast<PyHeapTypeObject*>(type)->ht_cached_keys;
    for (Py_ssize_t index = 0; keys != nullptr && index < keys->dk_nentries; ++index) {
        if (DK_UNICODE_ENTRIES(keys)[index].me_key == name) {
            return index;
        }
    }
#endif
    return -1;
}

}  // namespace

InstanceField::InstanceField(PyTypeObject* type, PyObject* name) noexcept : name_(name), index_(index_of(type, name)) {}

PyObject** InstanceField::place_in([[maybe_unused]] PyObject* instance) const noexcept {
#ifndef Py_GIL_DISABLED
    if (index_ >= 0) {
        if (PyDictValues* values = values_of(instance); values != nullptr && values->values[index_] != nullptr) {
            return &values->values[index_];
        }
    }
#endif
    return nullptr;
}

Ref InstanceField::get(PyObject* instance) const {
    PyObject** place = place_in(instance);
    return place != nullptr ? borrow(*place) : steal(PyObject_GetAttr(instance, name_));
}

void InstanceField::set(PyObject* instance, PyObject* value) const {
    if (PyObject** place = place_in(instance)) {
        const Ref old = Ref::steal_or_null(std::exchange(*place, Py_NewRef(value)));
        return;
    }
    check(PyObject_SetAttr(instance, name_, value));
}

}  // namespace gossamer::cpython
