// SPDX-License-Identifier: Apache-2.0
#include "core/mailbox.hpp"

#include <atomic>
#include <benchmark/benchmark.h>
#include <memory>
#include <thread>

namespace gossamer::core {
namespace {

void PostAndTake(benchmark::State& state) {
    Mailbox box;
    Letter letter;

    for ([[maybe_unused]] auto _ : state) {
        box.post(letter);
        box.take([](Letter& taken) { benchmark::DoNotOptimize(&taken); });
    }
}
BENCHMARK(PostAndTake);

void IsEmpty(benchmark::State& state) {
    Mailbox box;

    for ([[maybe_unused]] auto _ : state) {
        benchmark::DoNotOptimize(box.is_empty());
    }
}
BENCHMARK(IsEmpty);

/// Posts while another thread empties the box.
void PostToAnotherThread(benchmark::State& state) {
    Mailbox box;
    const auto letters = std::make_unique<Letter[]>(64);
    std::atomic<bool> is_over{false};
    std::thread receiver([&] {
        while (!is_over.load(std::memory_order_relaxed)) {
            if (!box.is_empty()) {
                box.take([](Letter& taken) { benchmark::DoNotOptimize(&taken); });
            }
        }
    });
    std::size_t next = 0;

    for ([[maybe_unused]] auto _ : state) {
        box.post(letters[next++ % 64]);
    }

    is_over = true;
    receiver.join();
}
BENCHMARK(PostToAnotherThread)->UseRealTime();

}  // namespace
}  // namespace gossamer::core
