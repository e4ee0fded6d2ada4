// SPDX-License-Identifier: Apache-2.0
#include "core/deadline.hpp"

#include <gtest/gtest.h>

namespace gossamer::core {
namespace {

constexpr Nanoseconds kLongest = Nanoseconds::max();

TEST(Deadline, HugeDelaySaturatesAtNever) {
    EXPECT_TRUE(Deadline::after(Nanoseconds(1), kLongest).is_never());
    EXPECT_TRUE(Deadline::after(kLongest, kLongest).is_never());
    EXPECT_TRUE(Deadline::after(kLongest - Nanoseconds(5), Nanoseconds(5)).is_never());
    EXPECT_TRUE(Deadline::after(Nanoseconds(0), kLongest).is_never());
}

TEST(Deadline, LargestDelayThatFitsIsNotNever) {
    const Deadline deadline = Deadline::after(Nanoseconds(5), kLongest - Nanoseconds(6));

    EXPECT_FALSE(deadline.is_never());
    EXPECT_EQ(kLongest - Nanoseconds(1), deadline.time());
}

TEST(Deadline, NegativeDelayIsPast) {
    EXPECT_TRUE(Deadline::after(Nanoseconds(10), Nanoseconds(-1)).is_past(Nanoseconds(10)));
    EXPECT_TRUE(Deadline::after(Nanoseconds(10), Nanoseconds::min()).is_past(Nanoseconds(0)));
}

TEST(Deadline, IsPastFromItsOwnTimeOn) {
    const Deadline deadline = Deadline::at(Nanoseconds(100));

    EXPECT_FALSE(deadline.is_past(Nanoseconds(99)));
    EXPECT_TRUE(deadline.is_past(Nanoseconds(100)));
}

TEST(Deadline, NeverIsTheLatest) {
    EXPECT_LT(Deadline::at(kLongest - Nanoseconds(1)), Deadline::never());
    EXPECT_EQ(Deadline::never(), Deadline::at(kLongest));
    EXPECT_FALSE(Deadline::never().is_past(kLongest - Nanoseconds(1)));
}

TEST(Deadline, TheClockDoesNotGoBack) {
    Nanoseconds last = monotonic_now();
    for (int count = 0; count < 10'000; ++count) {
        const Nanoseconds now = monotonic_now();
        ASSERT_GE(now, last);
        last = now;
    }
}

}  // namespace
}  // namespace gossamer::core
