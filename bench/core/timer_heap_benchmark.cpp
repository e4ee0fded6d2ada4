// SPDX-License-Identifier: Apache-2.0
#include "core/timer_heap.hpp"

#include <benchmark/benchmark.h>
#include <memory>
#include <random>
#include <vector>

namespace gossamer::core {
namespace {

struct IdleTimer : Timer {
    IdleTimer() : Timer([](Timer&) noexcept {}) {}
};

/// Arms and disarms one timer among many that are armed, at a random place among their deadlines.
void ArmAndDisarm(benchmark::State& state) {
    std::mt19937_64 random(1);
    const auto random_deadline = [&random] { return Deadline::at(Nanoseconds(random() >> 2)); };
    TimerHeap heap;
    const auto live = static_cast<std::size_t>(state.range(0));
    const auto timers = std::make_unique<IdleTimer[]>(live);
    for (std::size_t index = 0; index < live; ++index) {
        heap.arm(timers[index], random_deadline());
    }
    std::vector<Deadline> deadlines;
    for (int count = 0; count < 1024; ++count) {
        deadlines.push_back(random_deadline());
    }
    IdleTimer timer;
    std::size_t next = 0;

    for ([[maybe_unused]] auto _ : state) {
        heap.arm(timer, deadlines[next++ % deadlines.size()]);
        benchmark::ClobberMemory();
        heap.disarm(timer);
    }
}
BENCHMARK(ArmAndDisarm)->Arg(0)->Arg(1000)->Arg(1'000'000);

/// The earliest fires and is armed again, last: a program of sleepers.
void PopAndArmAgain(benchmark::State& state) {
    TimerHeap heap;
    const auto live = static_cast<std::size_t>(state.range(0));
    const auto timers = std::make_unique<IdleTimer[]>(live);
    std::int64_t time = 0;
    for (std::size_t index = 0; index < live; ++index) {
        heap.arm(timers[index], Deadline::at(Nanoseconds(++time)));
    }

    for ([[maybe_unused]] auto _ : state) {
        Timer* due = heap.pop_expired(Nanoseconds(time));
        heap.arm(*due, Deadline::at(Nanoseconds(++time)));
    }
}
BENCHMARK(PopAndArmAgain)->Arg(1000)->Arg(1'000'000);

}  // namespace
}  // namespace gossamer::core
