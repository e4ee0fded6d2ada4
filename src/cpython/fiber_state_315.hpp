// SPDX-License-Identifier: Apache-2.0
// CPython 3.15: as 3.14, but that every frame chain ends in the thread state's base frame, where profilers expect it.
#pragma once

#include "cpython/fiber_state_parts.hpp"

namespace gossamer::cpython {

class VersionState final : public BoundedStack {
public:
    void begin(PyThreadState& tstate, std::size_t) noexcept { BoundedStack::begin(tstate.base_frame); }
};

}  // namespace gossamer::cpython
