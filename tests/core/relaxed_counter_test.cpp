// SPDX-License-Identifier: Apache-2.0
#include "core/relaxed_counter.hpp"

#include <atomic>
#include <gtest/gtest.h>
#include <thread>

namespace gossamer::core {
namespace {

TEST(RelaxedCounter, ReaderOnAnotherThreadSeesItGrowOnly) {
    constexpr std::uint64_t kCounts = 1'000'000;
    RelaxedCounter counter;
    bool has_shrunk = false;
    std::thread reader([&] {
        for (std::uint64_t last = 0; last < kCounts;) {
            const std::uint64_t now = counter.load();
            has_shrunk = has_shrunk || now < last;
            last = now;
        }
    });

    for (std::uint64_t count = 0; count < kCounts; ++count) {
        ++counter;
    }
    reader.join();

    EXPECT_FALSE(has_shrunk);
    EXPECT_EQ(kCounts, counter.load());
}

}  // namespace
}  // namespace gossamer::core
