// SPDX-License-Identifier: Apache-2.0
// A point on the monotonic clock, in nanoseconds, after which a wait gives up; `never()` waits for ever.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <limits>
#include <time.h>

namespace gossamer::core {

using Nanoseconds = std::chrono::nanoseconds;

/// A clock for tests that stands still until somebody moves it. `monotonic` is what monotonic_now() then returns on the OS
/// thread that it was set for, `wall_offset` what the time of day is ahead of it.
struct VirtualClock {
    Nanoseconds monotonic{};
    Nanoseconds wall_offset{};
};

/// The virtual clock of the calling OS thread, or null. Parks: no. Thread: any. Python: not needed.
VirtualClock* virtual_clock() noexcept;
void set_virtual_clock(VirtualClock* clock) noexcept;

/// Returns the monotonic clock (clock_gettime(2), CLOCK_MONOTONIC), or the virtual one.
/// Parks: no. Thread: any. Python: not needed.
inline Nanoseconds monotonic_now() noexcept {
    if (const VirtualClock* clock = virtual_clock(); clock != nullptr) [[unlikely]] {
        return clock->monotonic;
    }
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return std::chrono::seconds(now.tv_sec) + Nanoseconds(now.tv_nsec);
}

/// The same, up to 4 ms old and a fifth of the price (CLOCK_MONOTONIC_COARSE).
/// Parks: no. Thread: any. Python: not needed.
inline Nanoseconds coarse_now() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return std::chrono::seconds(now.tv_sec) + Nanoseconds(now.tv_nsec);
}

class Deadline final {
public:
    static constexpr Deadline never() noexcept { return Deadline(kNever); }
    static constexpr Deadline at(Nanoseconds when) noexcept { return Deadline(when.count()); }

    /// The deadline `delay` after `now`, which is not negative; saturates at `never()`, so a huge delay cannot wrap
    /// around.
    static constexpr Deadline after(Nanoseconds now, Nanoseconds delay) noexcept {
        const std::int64_t room = kNever - now.count();
        return delay.count() >= room ? never() : Deadline(now.count() + delay.count());
    }

    constexpr bool is_never() const noexcept { return nanoseconds_ == kNever; }
    constexpr bool is_past(Nanoseconds now) const noexcept { return nanoseconds_ <= now.count(); }
    constexpr Nanoseconds time() const noexcept { return Nanoseconds(nanoseconds_); }
    constexpr auto operator<=>(const Deadline&) const noexcept = default;

private:
    static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
    explicit constexpr Deadline(std::int64_t nanoseconds) noexcept : nanoseconds_(nanoseconds) {}

    std::int64_t nanoseconds_;
};

}  // namespace gossamer::core
