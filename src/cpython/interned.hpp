// SPDX-License-Identifier: Apache-2.0
// A name that is looked up again and again.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"

namespace gossamer::cpython {

/// An interned string, owned. Goes where the C API takes one.
class Interned final {
public:
    /// Throws ErrorSet.
    explicit Interned(const char* text) : string_(steal(PyUnicode_InternFromString(text))) {}

    operator PyObject*() const noexcept { return string_.ptr(); }

private:
    Ref string_;
};

}  // namespace gossamer::cpython
