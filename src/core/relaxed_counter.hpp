// SPDX-License-Identifier: Apache-2.0
// A number that one thread counts up and others may look at: for its owner no dearer than a plain integer.
#pragma once

#include <atomic>
#include <cstdint>

namespace gossamer::core {

class RelaxedCounter final {
public:
    /// Thread: the owner.
    void operator++() noexcept {
        // relaxed, and no read-modify-write: one thread writes, and readers compare two looks at the number alone.
        value_.store(value_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }

    /// Thread: any.
    std::uint64_t load() const noexcept { return value_.load(std::memory_order_relaxed); }

private:
    std::atomic<std::uint64_t> value_{0};
};

}  // namespace gossamer::core
