// SPDX-License-Identifier: Apache-2.0
#include "core/deadline.hpp"

namespace gossamer::core {

namespace {
thread_local VirtualClock* clock_of_this_os_thread [[gnu::tls_model("initial-exec")]] = nullptr;
}

// Not inlined: the address of a thread-local variable must not be kept over a park.
[[gnu::noinline]] VirtualClock* virtual_clock() noexcept { return clock_of_this_os_thread; }

[[gnu::noinline]] void set_virtual_clock(VirtualClock* clock) noexcept { clock_of_this_os_thread = clock; }

}  // namespace gossamer::core
