// SPDX-License-Identifier: Apache-2.0
// Keeps other OS threads away from an object where there is no GIL (PEP 703); nothing with one. May be left for a while by
// who waits inside of it, as every critical section of the interpreter.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::cpython {

/// Python: attached.
class CriticalSection final {
public:
    explicit CriticalSection([[maybe_unused]] PyObject* object) noexcept {
#ifdef Py_GIL_DISABLED
        PyCriticalSection_Begin(&section_, object);
#endif
    }
    CriticalSection(const CriticalSection&) = delete;
    CriticalSection& operator=(const CriticalSection&) = delete;
    ~CriticalSection() {
#ifdef Py_GIL_DISABLED
        PyCriticalSection_End(&section_);
#endif
    }

private:
#ifdef Py_GIL_DISABLED
    PyCriticalSection section_;
#endif
};

}  // namespace gossamer::cpython
