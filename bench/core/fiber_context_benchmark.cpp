// SPDX-License-Identifier: Apache-2.0
#include "core/fiber_context.hpp"

#include <benchmark/benchmark.h>
#include <cstddef>

#include "core/stack_pool.hpp"

namespace gossamer::core {
namespace {

struct PingPong {
    FiberContext outer;
    FiberContext inner;
};

void answer_for_ever(void* argument) {
    auto& contexts = *static_cast<PingPong*>(argument);
    for (;;) {
        switch_context(contexts.inner, contexts.outer);
    }
}

/// There and back: two switches.
void SwitchThereAndBack(benchmark::State& state) {
    StackPool pool;
    const Stack stack = pool.acquire();
    PingPong contexts;
    contexts.inner = make_context(stack.limit, stack.top, &answer_for_ever, &contexts);

    for ([[maybe_unused]] auto _ : state) {
        switch_context(contexts.outer, contexts.inner);
    }

    pool.release(stack, false);
}
BENCHMARK(SwitchThereAndBack);

/// The same with the exception globals, as the hub switches.
void SwitchThereAndBackWithExceptionGlobals(benchmark::State& state) {
    StackPool pool;
    const Stack stack = pool.acquire();
    PingPong contexts;
    contexts.inner = make_context(stack.limit, stack.top, &answer_for_ever, &contexts);
    ExceptionGlobals& running = exception_globals();
    ExceptionGlobals saved;

    for ([[maybe_unused]] auto _ : state) {
        saved = running;
        running = {};
        switch_context(contexts.outer, contexts.inner);
        running = saved;
        benchmark::ClobberMemory();
    }

    pool.release(stack, false);
}
BENCHMARK(SwitchThereAndBackWithExceptionGlobals);

void MakeContext(benchmark::State& state) {
    StackPool pool;
    const Stack stack = pool.acquire();
    PingPong contexts;

    for ([[maybe_unused]] auto _ : state) {
        contexts.inner = make_context(stack.limit, stack.top, &answer_for_ever, &contexts);
        benchmark::DoNotOptimize(contexts);
    }

    pool.release(stack, false);
}
BENCHMARK(MakeContext);

}  // namespace
}  // namespace gossamer::core
