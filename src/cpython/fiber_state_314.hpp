// SPDX-License-Identifier: Apache-2.0
// CPython 3.14 (from 3.14.1 on): the C stack is bounded by address; a new frame chain ends in null.
#pragma once

#include "cpython/fiber_state_parts.hpp"

namespace gossamer::cpython {

class VersionState final : public BoundedStack {
public:
    void begin(PyThreadState&, std::size_t) noexcept { BoundedStack::begin(nullptr); }
};

}  // namespace gossamer::cpython
