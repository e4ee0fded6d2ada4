// SPDX-License-Identifier: Apache-2.0
// What several tests of core need: a fiber with the hub's way of switching, a waiter that counts, figures of the process.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/fiber_context.hpp"
#include "core/stack_pool.hpp"
#include "core/wakeable.hpp"

namespace gossamer::core::testing {

/// Whether the build has a sanitizer, which has its own opinion of memory and time.
inline constexpr bool kIsSanitized = SanitizerFiber::kIsActive;

/// The seed of the random tests: GOSSAMER_SEED, or a fixed one. Printed.
std::uint64_t seed();

/// A figure of /proc/self/status in its own unit (KiB for sizes): "VmRSS", "VmSize", "Threads".
std::size_t status_figure(const std::string& name);

/// How many mappings the process has.
std::size_t mapping_count();

/// Runs `body` in a forked child. Returns what it returned; 128 + signal when it was killed.
int run_in_child(const std::function<int()>& body);

/// Limits the address space to what is used now, for its life.
class NoMoreMemory final {
public:
    NoMoreMemory();
    NoMoreMemory(const NoMoreMemory&) = delete;
    NoMoreMemory& operator=(const NoMoreMemory&) = delete;
    ~NoMoreMemory();

private:
    std::size_t previous_;
};

/// Counts its wake-ups.
class CountingWaiter final : public Wakeable {
public:
    void wake() noexcept override { count.fetch_add(1); }

    std::atomic<int> count{0};
};

/// A body on a stack of its own, resumed by whoever holds it. Exception globals are exchanged as the hub does.
class TestFiber final {
public:
    explicit TestFiber(StackPool& pool, std::function<void(TestFiber&)> body)
        : pool_(pool),
          stack_(pool.acquire()),
          body_(std::move(body)),
          context_(make_context(stack_.limit, stack_.top, &TestFiber::run, this)) {}
    TestFiber(const TestFiber&) = delete;
    TestFiber& operator=(const TestFiber&) = delete;
    ~TestFiber() {
        pool_.release(stack_, false);
    }  // a body that has not ended is left for good, as the hub does at exit

    void resume() noexcept { switch_over(resumer_, resumer_exceptions_, context_, exceptions_); }
    void suspend() noexcept { switch_over(context_, exceptions_, resumer_, resumer_exceptions_); }
    bool is_done() const noexcept { return is_done_; }
    const Stack& stack() const noexcept { return stack_; }

private:
    static void run(void* argument) {
        auto& self = *static_cast<TestFiber*>(argument);
        self.body_(self);
        self.is_done_ = true;
        self.context_.sanitizer.will_end();
        self.suspend();
    }

    static void switch_over(FiberContext& from, ExceptionGlobals& from_exceptions, FiberContext& to,
                            ExceptionGlobals& to_exceptions) noexcept {
        from_exceptions = exception_globals();
        exception_globals() = to_exceptions;
        switch_context(from, to);
    }

    StackPool& pool_;
    const Stack stack_;
    const std::function<void(TestFiber&)> body_;
    FiberContext context_;
    FiberContext resumer_;
    ExceptionGlobals exceptions_;
    ExceptionGlobals resumer_exceptions_;
    bool is_done_ = false;
};

}  // namespace gossamer::core::testing
