// SPDX-License-Identifier: Apache-2.0
#include "core/stack_pool.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <system_error>
#include <unistd.h>
#include <vector>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

constexpr std::size_t kPage = 4096;

/// Whether the kernel reads the byte for us: a guard gives EFAULT, without a signal.
bool is_readable(const std::byte* address) {
    int ends[2];
    if (::pipe(ends) != 0) {
        throw std::system_error(errno, std::generic_category(), "pipe");
    }
    const ssize_t count = ::write(ends[1], address, 1);
    const int error = errno;
    ::close(ends[0]);
    ::close(ends[1]);
    EXPECT_TRUE(count == 1 || error == EFAULT);
    return count == 1;
}

/// Sets the limits of guards for one test.
class StackPoolTest : public ::testing::Test {
protected:
    ~StackPoolTest() override { StackPool::limit_guards({}); }

    static bool has_guard_install() { return StackPool::available_guard() == Guard::kInstalled; }
};

TEST_F(StackPoolTest, StackHasTheSizeAndPlacesThatItsCommentPromises) {
    StackPool pool(100 * 1024);

    const Stack stack = pool.acquire();

    EXPECT_LE(stack.size_bytes(), 100u * 1024);  // its first page is shared with the record and the chunk
    EXPECT_GE(stack.size_bytes(), 100u * 1024 - kPage + 1280);
    EXPECT_EQ(stack.top, stack.record);
    EXPECT_EQ(stack.record + StackPool::kRecordBytes, stack.chunk);
    EXPECT_GE(stack.chunk_end - stack.chunk, 12 * 1024);
    EXPECT_EQ(0u, reinterpret_cast<std::uintptr_t>(stack.limit) % kPage);
    EXPECT_FALSE(stack.has_record);
}

TEST_F(StackPoolTest, TopRecordAndStartOfTheChunkShareOnePage) {
    StackPool pool;

    for (int count = 0; count < 12; ++count) {
        const Stack stack = pool.acquire();

        const auto page_of = [](const std::byte* address) { return reinterpret_cast<std::uintptr_t>(address) / kPage; };
        EXPECT_EQ(page_of(stack.top - 1280), page_of(stack.top));
        EXPECT_EQ(page_of(stack.top), page_of(stack.chunk + 512));
    }
}

TEST_F(StackPoolTest, EveryTopIsAligned) {
    StackPool pool;

    for (int count = 0; count < 6; ++count) {
        EXPECT_EQ(0u, reinterpret_cast<std::uintptr_t>(pool.acquire().top) % 64);
    }
}

TEST_F(StackPoolTest, SizesOfZeroAndBeyondTheAddressSpaceAreHandled) {
    StackPool smallest(0);
    StackPool largest(SIZE_MAX);

    EXPECT_EQ(kPage, smallest.stack_bytes());
    EXPECT_GE(smallest.acquire().size_bytes(), 1024u);
    EXPECT_THROW(largest.acquire(), std::system_error);
    EXPECT_EQ(0u, largest.stacks_in_use());
}

TEST_F(StackPoolTest, InstalledGuardLiesBelowTheStack) {
    if (!has_guard_install()) {
        GTEST_SKIP() << "this kernel has no MADV_GUARD_INSTALL";
    }
    StackPool pool;

    const Stack stack = pool.acquire();

    EXPECT_EQ(Guard::kInstalled, stack.guard);
    EXPECT_FALSE(is_readable(stack.limit - 1));
    EXPECT_TRUE(is_readable(stack.limit));
    EXPECT_TRUE(is_readable(stack.chunk_end - 1));
}

TEST_F(StackPoolTest, GuardSurvivesTheDroppingOfPages) {
    StackPool pool;
    std::vector<Stack> stacks;
    for (std::size_t count = 0; count < StackPool::kWarmStacks + 1; ++count) {
        stacks.push_back(pool.acquire());
    }

    for (const Stack& stack : stacks) {
        pool.release(stack, false);
    }

    EXPECT_FALSE(is_readable(stacks.back().limit - 1));
}

TEST_F(StackPoolTest, WithoutGuardInstallMprotectGuardsTheFirstStacksAndACanaryTheRest) {
    StackPool::limit_guards({.may_install = false, .protected_stacks = 2});
    StackPool pool;

    EXPECT_EQ(Guard::kProtected, StackPool::available_guard());
    const Stack first = pool.acquire();
    const Stack second = pool.acquire();
    EXPECT_EQ(Guard::kCanary, StackPool::available_guard());
    const Stack third = pool.acquire();

    EXPECT_EQ(Guard::kProtected, first.guard);
    EXPECT_FALSE(is_readable(first.limit - 1));
    EXPECT_TRUE(is_readable(first.limit));
    EXPECT_EQ(Guard::kProtected, second.guard);
    EXPECT_EQ(Guard::kCanary, third.guard);
    EXPECT_TRUE(is_readable(third.limit - 1));
}

// A hub has a pool, and a program may have a hub after the other: what their stacks took of the limit comes back.
TEST_F(StackPoolTest, DestroyedPoolGivesItsProtectedStacksBack) {
    StackPool::limit_guards({.may_install = false, .protected_stacks = 3});

    for (int round = 0; round < 5; ++round) {
        StackPool pool;
        for (int count = 0; count < 3; ++count) {
            EXPECT_EQ(Guard::kProtected, pool.acquire().guard) << round;
        }
        for (int count = 0; count < 4; ++count) {
            EXPECT_EQ(Guard::kCanary, pool.acquire().guard) << round;
        }
    }

    EXPECT_EQ(Guard::kProtected, StackPool::available_guard());
}

TEST_F(StackPoolTest, CanaryTellsWhetherItWasOverwritten) {
    StackPool::limit_guards({.may_install = false, .protected_stacks = 0});
    StackPool pool;
    const Stack stack = pool.acquire();

    EXPECT_TRUE(StackPool::is_intact(stack));
    *stack.limit = std::byte{1};

    EXPECT_FALSE(StackPool::is_intact(stack));
}

TEST_F(StackPoolTest, CanarySurvivesTheDroppingOfPages) {
    StackPool::limit_guards({.may_install = false, .protected_stacks = 0});
    StackPool pool(64 * 1024);
    std::vector<Stack> stacks;
    for (std::size_t count = 0; count < StackPool::kWarmStacks + 10; ++count) {
        stacks.push_back(pool.acquire());
    }

    for (const Stack& stack : stacks) {
        pool.release(stack, false);
    }

    for (const Stack& stack : stacks) {
        EXPECT_TRUE(StackPool::is_intact(stack));
    }
}

TEST_F(StackPoolTest, LastReleasedIsTakenFirst) {
    StackPool pool;
    const Stack a = pool.acquire();
    const Stack b = pool.acquire();
    const Stack c = pool.acquire();

    pool.release(b, false);
    pool.release(c, false);
    pool.release(a, false);

    EXPECT_EQ(a.slot, pool.acquire().slot);
    EXPECT_EQ(c.slot, pool.acquire().slot);
    EXPECT_EQ(b.slot, pool.acquire().slot);
}

/// A pool with kWarmStacks + `extra` stacks, all in use.
std::vector<Stack> acquire_beyond_warm(StackPool& pool, std::size_t extra) {
    std::vector<Stack> stacks;
    while (stacks.size() < StackPool::kWarmStacks + extra) {
        stacks.push_back(pool.acquire());
    }
    return stacks;
}

// The order of the warm ones was disturbed by each stack that was dropped: the coldest of them came to be taken first.
TEST_F(StackPoolTest, LastReleasedIsTakenFirstAlsoWhenOthersWereDropped) {
    StackPool pool;
    const std::vector<Stack> stacks = acquire_beyond_warm(pool, 3);

    for (const Stack& stack : stacks) {
        pool.release(stack, false);
    }

    for (std::size_t index = StackPool::kWarmStacks; index-- > 0;) {
        ASSERT_EQ(stacks[index].slot, pool.acquire().slot);
    }
    for (int count = 0; count < 3; ++count) {
        EXPECT_GE(pool.acquire().slot, stacks[StackPool::kWarmStacks].slot);
    }
    EXPECT_EQ(stacks.size(), pool.stacks_in_use());
}

TEST_F(StackPoolTest, WarmStackKeepsItsRecordAndADroppedOneIsZeroAgain) {
    StackPool pool(64 * 1024);
    const std::vector<Stack> stacks = acquire_beyond_warm(pool, 5);
    for (const Stack& stack : stacks) {
        std::memset(stack.limit, 0xab, static_cast<std::size_t>(stack.chunk_end - stack.limit));
        pool.release(stack, false);
    }

    std::size_t with_record = 0;
    for (std::size_t count = 0; count < stacks.size(); ++count) {
        const Stack stack = pool.acquire();
        with_record += stack.has_record ? 1 : 0;
        const bool is_zero =
            std::all_of(stack.limit, stack.chunk_end, [](std::byte byte) { return byte == std::byte{}; });
        EXPECT_EQ(!stack.has_record, is_zero);
        EXPECT_TRUE(stack.has_record || is_zero);
    }

    EXPECT_EQ(StackPool::kWarmStacks, with_record);
}

TEST_F(StackPoolTest, RecordThatOthersMayReadIsNeverDropped) {
    StackPool pool(64 * 1024);
    const std::vector<Stack> stacks = acquire_beyond_warm(pool, 100);
    for (const Stack& stack : stacks) {
        std::memset(stack.record, 0xab, StackPool::kRecordBytes);
        pool.release(stack, true);
    }

    for (const Stack& stack : stacks) {
        EXPECT_EQ(std::byte{0xab}, stack.record[StackPool::kRecordBytes - 1]);
    }
    for (std::size_t count = 0; count < stacks.size(); ++count) {
        EXPECT_TRUE(pool.acquire().has_record);
    }
}

// Kept records are warm beyond the limit; the accounting of both kinds must not mix.
TEST_F(StackPoolTest, StackIsHandedOutToOneTenantAtATimeUnderRandomUse) {
    std::uint64_t state = testing::seed();
    const auto random = [&state] { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33; };
    StackPool pool(16 * 1024);
    std::vector<Stack> live;
    std::vector<bool> is_live;
    std::vector<bool> has_record;

    for (int step = 0; step < 300'000; ++step) {
        const bool grows = (step / 5000) % 2 == 0;
        if (live.empty() || random() % 8 < (grows ? 6 : 2)) {
            const Stack stack = pool.acquire();
            if (stack.slot >= is_live.size()) {
                is_live.resize(stack.slot + 1);
                has_record.resize(stack.slot + 1);
            }
            ASSERT_FALSE(is_live[stack.slot]);
            ASSERT_EQ(has_record[stack.slot], stack.has_record);
            is_live[stack.slot] = true;
            live.push_back(stack);
            *stack.record = std::byte{1};
        } else {
            std::swap(live[random() % live.size()], live.back());
            const Stack stack = live.back();
            live.pop_back();
            is_live[stack.slot] = false;
            const bool keep = random() % 4 == 0;
            pool.release(stack, keep);
            has_record[stack.slot] = *stack.record == std::byte{1};
            ASSERT_TRUE(!keep || has_record[stack.slot]);
        }
        ASSERT_EQ(live.size(), pool.stacks_in_use());
    }
}

TEST_F(StackPoolTest, AMillionAcquisitionsLeaveMemoryAndMappingsFlat) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "the sanitizer's own mappings count too, and its own allocations fail first";
    }
    StackPool pool;
    std::vector<Stack> wave;
    const auto run_waves = [&](int count) {
        for (int round = 0; round < count; ++round) {
            for (int index = 0; index < 2500; ++index) {
                wave.push_back(pool.acquire());
                *(wave.back().top - 1) = *wave.back().chunk = std::byte{1};
            }
            for (const Stack& stack : wave) {
                pool.release(stack, false);
            }
            wave.clear();
        }
    };
    run_waves(20);
    const std::size_t rss = testing::status_figure("VmRSS");
    const std::size_t mappings = testing::mapping_count();

    run_waves(400);

    EXPECT_LE(testing::status_figure("VmRSS"), rss + 1024);
    EXPECT_LE(testing::mapping_count(), mappings + 2);
}

void hold_100_000_stacks() {
    const std::size_t before = testing::mapping_count();
    StackPool pool;
    for (int count = 0; count < 100'000; ++count) {
        ASSERT_NO_THROW(pool.acquire());
    }
    EXPECT_EQ(100'000u, pool.stacks_in_use());
    EXPECT_LE(testing::mapping_count(), before + 2 * StackPool::kProtectedStacks + 1000);
    void* page = ::mmap(nullptr, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(MAP_FAILED, page);  // the rest of the program can still map
    ::munmap(page, kPage);
}

TEST_F(StackPoolTest, AHundredThousandLiveStacksFitTheStockMapLimit) { hold_100_000_stacks(); }

TEST_F(StackPoolTest, AHundredThousandLiveStacksFitTheStockMapLimitWithoutGuardInstall) {
    StackPool::limit_guards({.may_install = false});
    hold_100_000_stacks();
}

TEST_F(StackPoolTest, GuardInstallCostsNoMappings) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "the sanitizer's own mappings count too, and its own allocations fail first";
    }
    if (!has_guard_install()) {
        GTEST_SKIP() << "this kernel has no MADV_GUARD_INSTALL";
    }
    const std::size_t before = testing::mapping_count();
    StackPool pool;

    for (int count = 0; count < 10'000; ++count) {
        EXPECT_EQ(Guard::kInstalled, pool.acquire().guard);
    }

    EXPECT_LE(testing::mapping_count(), before + 100);
}

TEST_F(StackPoolTest, FailureOfMmapLeavesThePoolUsable) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "the sanitizer's own mappings count too, and its own allocations fail first";
    }
    const int code = testing::run_in_child([] {
        StackPool pool;
        std::vector<Stack> stacks;
        int error = 0;
        stacks.reserve(4096);
        stacks.push_back(pool.acquire());
        {
            const testing::NoMoreMemory limit;
            try {
                while (stacks.size() < 4096) {
                    stacks.push_back(pool.acquire());
                }
            } catch (const std::system_error& failure) {
                error = failure.code().value();
            } catch (const std::bad_alloc&) {
                error = ENOMEM;
            }
            const std::size_t in_use = pool.stacks_in_use();
            pool.release(stacks.back(), false);
            if (error != ENOMEM || in_use != stacks.size() || pool.acquire().slot != stacks.back().slot) {
                return 1;
            }
        }
        const Stack next = pool.acquire();
        std::memset(next.limit, 1, static_cast<std::size_t>(next.chunk_end - next.limit));
        return next.slot == stacks.size() && pool.stacks_in_use() == stacks.size() + 1 ? 0 : 2;
    });

    EXPECT_EQ(0, code);
}

}  // namespace
}  // namespace gossamer::core
