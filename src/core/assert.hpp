// SPDX-License-Identifier: Apache-2.0
// GS_ASSERT: checks an invariant of ours in every build; a failure prints what and where, and aborts.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace gossamer::core {

[[noreturn]] inline void invariant_failed(const char* condition, const char* file, int line) noexcept {
    std::fprintf(stderr, "gossamer: internal error: %s does not hold (%s:%d)\n", condition, file, line);
    std::abort();
}

}  // namespace gossamer::core

#define GS_ASSERT(condition) \
    ((condition) ? static_cast<void>(0) : ::gossamer::core::invariant_failed(#condition, __FILE__, __LINE__))
#define GS_UNREACHABLE() ::gossamer::core::invariant_failed("unreachable", __FILE__, __LINE__)
