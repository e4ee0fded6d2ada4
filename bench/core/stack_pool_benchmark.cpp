// SPDX-License-Identifier: Apache-2.0
#include "core/stack_pool.hpp"

#include <benchmark/benchmark.h>
#include <cstddef>
#include <memory>
#include <sys/mman.h>
#include <vector>

namespace gossamer::core {
namespace {

constexpr std::size_t kPage = 4096;

/// Acquire, touch the page where a fiber begins, release: the pages are there.
void StackAcquireWarm(benchmark::State& state) {
    StackPool pool;
    pool.release(pool.acquire(), false);

    for ([[maybe_unused]] auto _ : state) {
        const Stack stack = pool.acquire();
        *(stack.top - 1) = std::byte{1};
        benchmark::ClobberMemory();
        pool.release(stack, false);
    }
}
BENCHMARK(StackAcquireWarm);

/// A stack that nobody had before: its guard is installed, and the page where a fiber begins is touched.
void StackAcquireCold(benchmark::State& state) {
    constexpr int kStacks = 20'000;
    auto pool = std::make_unique<StackPool>();
    int left = kStacks;

    for ([[maybe_unused]] auto _ : state) {
        if (left-- == 0) {
            state.PauseTiming();
            pool = std::make_unique<StackPool>();
            left = kStacks - 1;
            state.ResumeTiming();
        }
        const Stack stack = pool->acquire();
        *(stack.top - 1) = std::byte{1};
        benchmark::ClobberMemory();
    }
}
BENCHMARK(StackAcquireCold);

/// What the kernel takes in any case for a new stack: the same guard and touch, in slots of the same size.
void GuardAndTouchAPage(benchmark::State& state) {
    constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL
    constexpr std::size_t kSlotBytes = kPage + StackPool::kDefaultStackBytes + 16 * 1024;
    constexpr std::size_t kSlots = 20'000;
    const bool may_install = StackPool::available_guard() == Guard::kInstalled;
    std::byte* memory = nullptr;
    std::size_t next = kSlots;
    const auto unmap = [&] {
        if (memory != nullptr) {
            ::munmap(memory, kSlots * kSlotBytes);
        }
    };

    for ([[maybe_unused]] auto _ : state) {
        if (next == kSlots) {
            state.PauseTiming();
            unmap();
            void* mapping = ::mmap(nullptr, kSlots * kSlotBytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (mapping == MAP_FAILED) {
                state.SkipWithError("mmap failed");
                break;
            }
            ::madvise(mapping, kSlots * kSlotBytes, MADV_NOHUGEPAGE);
            memory = static_cast<std::byte*>(mapping);
            next = 0;
            state.ResumeTiming();
        }
        std::byte* slot = memory + next++ * kSlotBytes;
        if (may_install) {
            ::madvise(slot, kPage, kGuardInstall);
        } else {
            ::mprotect(slot, kPage, PROT_NONE);
        }
        slot[StackPool::kDefaultStackBytes + 1279] = std::byte{1};
        benchmark::ClobberMemory();
    }

    unmap();
}
BENCHMARK(GuardAndTouchAPage);

/// One stack beyond the warm ones: released, it loses its pages; acquired again, it gets one.
void StackDropAndAcquireAgain(benchmark::State& state) {
    StackPool pool;
    std::vector<Stack> stacks;
    for (std::size_t count = 0; count < StackPool::kWarmStacks + 1; ++count) {
        stacks.push_back(pool.acquire());
    }
    for (std::size_t count = 0; count < StackPool::kWarmStacks; ++count) {
        pool.release(stacks[count], false);
    }
    std::vector<Stack> wave;

    for ([[maybe_unused]] auto _ : state) {
        pool.release(stacks.back(), false);  // dropped: as many warm ones as there may be
        benchmark::ClobberMemory();
        state.PauseTiming();
        for (std::size_t count = 0; count < StackPool::kWarmStacks; ++count) {
            wave.push_back(pool.acquire());
        }
        state.ResumeTiming();
        stacks.back() = pool.acquire();
        *(stacks.back().top - 1) = std::byte{1};
        state.PauseTiming();
        while (!wave.empty()) {
            pool.release(wave.back(), false);
            wave.pop_back();
        }
        state.ResumeTiming();
    }
}
BENCHMARK(StackDropAndAcquireAgain)->Iterations(2000);

}  // namespace
}  // namespace gossamer::core
