// SPDX-License-Identifier: Apache-2.0
#include "core/parking_lot.hpp"

#include <atomic>
#include <benchmark/benchmark.h>
#include <memory>
#include <thread>
#include <vector>

#include "core/os_thread_waiter.hpp"

namespace gossamer::core {
namespace {

class NobodyWaiter final : public Wakeable {
public:
    void wake() noexcept override {}
};

/// What a release, put or set costs when nobody waits.
void MayHaveWaiters(benchmark::State& state) {
    const ParkingLot& lot = ParkingLot::instance();
    const int key = 0;

    for ([[maybe_unused]] auto _ : state) {
        benchmark::DoNotOptimize(lot.may_have_waiters(&key));
    }
}
BENCHMARK(MayHaveWaiters);

void EnqueueAndCancel(benchmark::State& state) {
    ParkingLot& lot = ParkingLot::instance();
    const int key = 0;
    NobodyWaiter target;
    ParkedWaiter waiter(target);

    for ([[maybe_unused]] auto _ : state) {
        lot.enqueue(&key, waiter);
        benchmark::DoNotOptimize(lot.cancel(waiter));
    }
}
BENCHMARK(EnqueueAndCancel);

/// One waiter of a key of its own is woken, among as many waiters of other keys.
void EnqueueAndUnparkAmongOthers(benchmark::State& state) {
    struct alignas(64) Key {
        char unused;
    };
    ParkingLot& lot = ParkingLot::instance();
    NobodyWaiter target;
    const auto others = static_cast<std::size_t>(state.range(0));
    const auto keys = std::make_unique<Key[]>(others + 1);
    std::vector<std::unique_ptr<ParkedWaiter>> waiters;
    for (std::size_t index = 0; index < others; ++index) {
        waiters.push_back(std::make_unique<ParkedWaiter>(target));
        lot.enqueue(&keys[index], *waiters.back());
    }
    ParkedWaiter waiter(target);

    for ([[maybe_unused]] auto _ : state) {
        lot.enqueue(&keys[others], waiter);
        benchmark::DoNotOptimize(lot.unpark_one(&keys[others]));
    }

    for (const auto& other : waiters) {
        if (!lot.cancel(*other)) {
            state.SkipWithError("woken by another key");
        }
    }
}
BENCHMARK(EnqueueAndUnparkAmongOthers)->Arg(0)->Arg(10'000)->Arg(100'000);

/// A word goes to another OS thread and back, each side asleep meanwhile.
void HandOffBetweenOsThreads(benchmark::State& state) {
    ParkingLot& lot = ParkingLot::instance();
    std::atomic<int> turn{0};
    const auto wait_for = [&](OsThreadWaiter& sleeper, ParkedWaiter& waiter, int wanted) {
        for (;;) {
            lot.enqueue(&turn, waiter);
            const int now = turn.load();
            if (now == wanted || now < 0) {
                static_cast<void>(lot.cancel(waiter));
                return now;
            }
            sleeper.wait(Deadline::never());
            static_cast<void>(lot.cancel(waiter));
        }
    };
    const auto give = [&](int to) {
        turn.exchange(to);
        lot.unpark_all(&turn);
    };
    std::thread partner([&] {
        OsThreadWaiter sleeper;
        ParkedWaiter waiter(sleeper);
        while (wait_for(sleeper, waiter, 1) == 1) {
            give(0);
        }
    });
    OsThreadWaiter sleeper;
    ParkedWaiter waiter(sleeper);

    for ([[maybe_unused]] auto _ : state) {
        give(1);
        wait_for(sleeper, waiter, 0);
    }

    give(-1);
    partner.join();
}
BENCHMARK(HandOffBetweenOsThreads)->UseRealTime();

}  // namespace
}  // namespace gossamer::core
