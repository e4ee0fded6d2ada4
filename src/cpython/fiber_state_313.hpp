// SPDX-License-Identifier: Apache-2.0
// CPython 3.13: C recursion is counted; free-threaded builds have critical sections, which a fiber that is left gives up.
#pragma once

#include "cpython/fiber_state_parts.hpp"

#include <cstdint>

namespace gossamer::cpython {

class VersionState final : public FrameChain {
public:
    void begin(PyThreadState&, std::size_t stack_bytes) noexcept {
        FrameChain::begin(nullptr);
        critical_section_ = 0;
        recursion_.begin(stack_bytes);
    }
    void save(PyThreadState& tstate) noexcept {
        FrameChain::save(tstate);
        recursion_.save(tstate);
#ifdef Py_GIL_DISABLED
        if (tstate.critical_section != 0) {
            _PyCriticalSection_SuspendAll(&tstate);
        }
        critical_section_ = std::exchange(tstate.critical_section, 0);
#endif
    }
    void restore(PyThreadState& tstate, void*, std::size_t) noexcept {
        FrameChain::restore(tstate);
        recursion_.restore(tstate);
#ifdef Py_GIL_DISABLED
        tstate.critical_section = critical_section_;
        if (critical_section_ != 0) {
            _PyCriticalSection_Resume(&tstate);
        }
#endif
    }

private:
    std::uintptr_t critical_section_ = 0;
    CountedRecursion recursion_;
};

}  // namespace gossamer::cpython
