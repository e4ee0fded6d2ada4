// SPDX-License-Identifier: Apache-2.0
#include "core/fiber_context.hpp"

#include <cfenv>
#include <exception>
#include <functional>
#include <gtest/gtest.h>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <unwind.h>
#include <utility>
#include <vector>
#include <xmmintrin.h>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

using testing::TestFiber;

static_assert(testing::kIsSanitized || sizeof(FiberContext) == sizeof(void*),
              "sanitizer support costs nothing elsewhere");

class FiberContextTest : public ::testing::Test {
protected:
    StackPool pool;
};

TEST_F(FiberContextTest, RunsOnTheGivenStackAndComesBack) {
    bool is_inside = false;
    TestFiber fiber(pool, [&](TestFiber& self) {
        std::byte here{};
        std::byte* address = &here;
        asm volatile("" : "+r"(address));
        // ASan may keep the variable elsewhere: the frame itself is what counts.
        auto* frame = static_cast<std::byte*>(__builtin_frame_address(0));
        is_inside = self.stack().limit <= frame && frame < self.stack().top;
    });

    fiber.resume();

    EXPECT_TRUE(fiber.is_done());
    EXPECT_TRUE(is_inside);
}

// Loads rbx, rbp, r12 to r15 with pattern + 1 to pattern + 6, switches, and returns 0 if they are the same afterwards.
asm(R"(
.pushsection .text
.globl gossamer_test_switch_with_registers
.type gossamer_test_switch_with_registers, @function
gossamer_test_switch_with_registers:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushq %rdx
    leaq 1(%rdx), %rbx
    leaq 2(%rdx), %rbp
    leaq 3(%rdx), %r12
    leaq 4(%rdx), %r13
    leaq 5(%rdx), %r14
    leaq 6(%rdx), %r15
    call gossamer_switch_context
    popq %rdx
    subq %rdx, %rbx
    subq %rdx, %rbp
    subq %rdx, %r12
    subq %rdx, %r13
    subq %rdx, %r14
    subq %rdx, %r15
    xorq $1, %rbx
    xorq $2, %rbp
    xorq $3, %r12
    xorq $4, %r13
    xorq $5, %r14
    xorq $6, %r15
    movq %rbx, %rax
    orq %rbp, %rax
    orq %r12, %rax
    orq %r13, %rax
    orq %r14, %rax
    orq %r15, %rax
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size gossamer_test_switch_with_registers, .-gossamer_test_switch_with_registers

.globl gossamer_test_record_stack_pointer
.type gossamer_test_record_stack_pointer, @function
gossamer_test_record_stack_pointer:
    movq %rsp, (%rdi)
    jmp gossamer_test_after_record
.size gossamer_test_record_stack_pointer, .-gossamer_test_record_stack_pointer
.popsection
)");

extern "C" std::uintptr_t gossamer_test_switch_with_registers(void** from, void* to, std::uintptr_t pattern);
extern "C" void gossamer_test_record_stack_pointer(void* argument);

struct TwoContexts {
    FiberContext outer;
    FiberContext inner;
    std::uintptr_t inner_difference = 0;
};

TEST_F(FiberContextTest, KeepsTheRegistersThatTheCalleeMustKeep) {
    const Stack stack = pool.acquire();
    TwoContexts both;
    both.inner = make_context(
        stack.limit, stack.top,
        [](void* argument) {
            auto& contexts = *static_cast<TwoContexts*>(argument);
            for (;;) {
                contexts.inner.sanitizer.leave_for(contexts.outer.sanitizer);
                contexts.inner_difference |= gossamer_test_switch_with_registers(
                    &contexts.inner.stack_pointer, contexts.outer.stack_pointer, 0x1111'2222'3333'0000);
                contexts.inner.sanitizer.arrive();
            }
        },
        &both);

    std::uintptr_t difference = 0;
    for (int round = 0; round < 3; ++round) {
        both.outer.sanitizer.leave_for(both.inner.sanitizer);
        difference |= gossamer_test_switch_with_registers(&both.outer.stack_pointer, both.inner.stack_pointer,
                                                          0x7777'8888'9999'0000);
        both.outer.sanitizer.arrive();
    }

    EXPECT_EQ(0u, difference);
    EXPECT_EQ(0u, both.inner_difference);
}

struct StackPointerAtEntry {
    std::uintptr_t value = 0;  // first: what the assembly writes to
    TwoContexts contexts;
};

extern "C" [[gnu::used]] void gossamer_test_after_record(StackPointerAtEntry* record) {
    record->contexts.inner.sanitizer.will_end();
    switch_context(record->contexts.inner, record->contexts.outer);
}

TEST_F(FiberContextTest, StackIsAlignedAtTheEntryWhereverItBegins) {
    const Stack stack = pool.acquire();

    for (const std::size_t offset : std::initializer_list<std::size_t>{0, 1, 8, 15, 16, 24, 64}) {
        StackPointerAtEntry record;
        record.contexts.inner =
            make_context(stack.limit, stack.top - offset, &gossamer_test_record_stack_pointer, &record);

        switch_context(record.contexts.outer, record.contexts.inner);

        EXPECT_EQ(8u, record.value % 16) << offset;  // System V ABI, 3.2.2: rsp + 8 is a multiple of 16 at entry
    }
}

std::uint16_t x87_control_word() {
    std::uint16_t word = 0;
    asm volatile("fnstcw %0" : "=m"(word));
    return word;
}

/// Restores the floating-point environment, whatever a test does to it.
class FloatingPointGuard final {
public:
    FloatingPointGuard() { std::fegetenv(&environment_); }
    FloatingPointGuard(const FloatingPointGuard&) = delete;
    FloatingPointGuard& operator=(const FloatingPointGuard&) = delete;
    ~FloatingPointGuard() { std::fesetenv(&environment_); }

private:
    std::fenv_t environment_{};
};

TEST_F(FiberContextTest, ControlWordsBelongToOneStack) {
    const FloatingPointGuard guard;
    const unsigned mxcsr = _mm_getcsr();
    const std::uint16_t x87 = x87_control_word();
    unsigned inner_mxcsr = 0;
    std::uint16_t inner_x87 = 0;
    TestFiber fiber(pool, [&](TestFiber& self) {
        std::fesetround(FE_UPWARD);  // both words
        self.suspend();
        inner_mxcsr = _mm_getcsr();
        inner_x87 = x87_control_word();
    });

    fiber.resume();
    EXPECT_EQ(mxcsr & ~0x3fu, _mm_getcsr() & ~0x3fu);
    EXPECT_EQ(x87, x87_control_word());
    fiber.resume();

    EXPECT_EQ(static_cast<unsigned>(_MM_ROUND_UP), inner_mxcsr & _MM_ROUND_MASK);
    EXPECT_EQ(FE_UPWARD, inner_x87 & FE_TOWARDZERO);
    EXPECT_EQ(mxcsr & ~0x3fu, _mm_getcsr() & ~0x3fu);
    EXPECT_EQ(x87, x87_control_word());
}

// pthread_create(3): the new thread inherits the creator's floating-point environment. A library that sets flush to zero
// does so for all threads that are started later.
TEST_F(FiberContextTest, NewStackInheritsTheControlWordsOfItsCreator) {
    const FloatingPointGuard guard;
    int x87_rounding = -1;
    unsigned mxcsr = 0;
    std::fesetround(FE_DOWNWARD);
    _mm_setcsr(_mm_getcsr() | _MM_FLUSH_ZERO_ON);
    TestFiber fiber(pool, [&](TestFiber&) {
        x87_rounding = std::fegetround();
        mxcsr = _mm_getcsr();
    });
    std::fesetround(FE_TONEAREST);

    fiber.resume();

    EXPECT_EQ(FE_DOWNWARD, x87_rounding);
    EXPECT_EQ(static_cast<unsigned>(_MM_FLUSH_ZERO_ON | _MM_ROUND_DOWN), mxcsr & (_MM_FLUSH_ZERO_ON | _MM_ROUND_MASK));
}

TEST_F(FiberContextTest, NewStackDoesNotInheritTheStatusFlags) {
    const FloatingPointGuard guard;
    unsigned flags = 1;
    std::feraiseexcept(FE_DIVBYZERO);
    TestFiber fiber(pool, [&](TestFiber&) { flags = _mm_getcsr() & 0x3f; });

    fiber.resume();

    EXPECT_EQ(0u, flags);
}

TEST_F(FiberContextTest, ExceptionIsCaughtOnTheStackThatThrewIt) {
    std::string what;
    TestFiber fiber(pool, [&](TestFiber&) {
        try {
            throw std::runtime_error("thrown on a fiber");
        } catch (const std::runtime_error& error) {
            what = error.what();
        }
    });

    fiber.resume();

    EXPECT_EQ("thrown on a fiber", what);
    EXPECT_EQ(0u, exception_globals().uncaught_count);
    EXPECT_EQ(nullptr, exception_globals().caught);
}

/// Parks inside a catch block, and then rethrows what it caught.
void park_in_catch(TestFiber& self, const char* text, std::string& result) {
    try {
        try {
            throw std::runtime_error(text);
        } catch (const std::runtime_error&) {
            self.suspend();
            throw;
        }
    } catch (const std::runtime_error& error) {
        result = error.what();
    }
}

TEST_F(FiberContextTest, ParkedCatchBlocksRethrowTheirOwnExceptions) {
    std::string first;
    std::string second;
    TestFiber a(pool, [&](TestFiber& self) { park_in_catch(self, "a", first); });
    TestFiber b(pool, [&](TestFiber& self) { park_in_catch(self, "b", second); });

    a.resume();
    b.resume();
    EXPECT_EQ(nullptr, std::current_exception());  // we are in no catch block
    a.resume();
    b.resume();

    EXPECT_EQ("a", first);
    EXPECT_EQ("b", second);
}

TEST_F(FiberContextTest, ResumerInACatchBlockKeepsItsException) {
    std::string inner;
    std::string outer;
    TestFiber fiber(pool, [&](TestFiber& self) { park_in_catch(self, "inner", inner); });

    try {
        try {
            throw std::runtime_error("outer");
        } catch (const std::runtime_error&) {
            fiber.resume();
            throw;
        }
    } catch (const std::runtime_error& error) {
        outer = error.what();
    }
    fiber.resume();

    EXPECT_EQ("outer", outer);
    EXPECT_EQ("inner", inner);
}

TEST_F(FiberContextTest, UncaughtCountIsThatOfTheStack) {
    struct ParksWhenUnwound {
        TestFiber& self;
        ~ParksWhenUnwound() { self.suspend(); }
    };
    int inside = -1;
    TestFiber fiber(pool, [&](TestFiber& self) {
        try {
            const ParksWhenUnwound parks{self};
            throw 1;
        } catch (int) {
            inside = std::uncaught_exceptions();
        }
    });

    fiber.resume();  // in the middle of unwinding
    EXPECT_EQ(0, std::uncaught_exceptions());
    fiber.resume();

    EXPECT_EQ(0, inside);
    EXPECT_TRUE(fiber.is_done());
}

struct Walk {
    std::size_t frames = 0;
    std::uintptr_t last = 0;
};

_Unwind_Reason_Code count_frame(_Unwind_Context* context, void* argument) {
    auto& walk = *static_cast<Walk*>(argument);
    walk.last = _Unwind_GetIP(context);
    return ++walk.frames < 1000 ? _URC_NO_REASON : _URC_NORMAL_STOP;
}

TEST_F(FiberContextTest, StackWalkEndsAtTheEntry) {
    Walk walk;
    TestFiber fiber(pool, [&](TestFiber&) { _Unwind_Backtrace(&count_frame, &walk); });

    fiber.resume();

    EXPECT_GE(walk.frames, 3u);
    EXPECT_LT(walk.frames, 30u);
}

using FiberContextDeathTest = FiberContextTest;

TEST_F(FiberContextDeathTest, ExceptionThatLeavesTheEntryTerminates) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";

    EXPECT_DEATH(
        {
            TestFiber fiber(pool, [](TestFiber&) { throw std::runtime_error("nobody catches this"); });
            fiber.resume();
        },
        "nobody catches this");
}

[[gnu::noinline]] int recurse_for_ever(int depth) {
    volatile char frame[1024];
    frame[0] = static_cast<char>(depth);
    return frame[0] + (depth < 0 ? 0 : recurse_for_ever(depth + 1)) + frame[0];
}

class GuardDeathTest : public ::testing::TestWithParam<Guard> {};

TEST_P(GuardDeathTest, EndlessRecursionRunsIntoTheGuard) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    StackPool::limit_guards({.may_install = GetParam() == Guard::kInstalled});
    if (StackPool::available_guard() != GetParam()) {
        StackPool::limit_guards({});
        GTEST_SKIP() << "this kernel has no MADV_GUARD_INSTALL";
    }

    EXPECT_DEATH(
        {
            StackPool pool;
            TestFiber fiber(pool, [](TestFiber&) { recurse_for_ever(0); });
            TestFiber below(pool, [](TestFiber&) {});  // what would be overwritten
            below.resume();
            fiber.resume();
        },
        "");
    StackPool::limit_guards({});
}

INSTANTIATE_TEST_SUITE_P(Kinds, GuardDeathTest, ::testing::Values(Guard::kInstalled, Guard::kProtected),
                         [](const auto& kind) { return kind.param == Guard::kInstalled ? "Installed" : "Protected"; });

TEST_F(FiberContextTest, AStackIsUsedAgainAfterItsTenantWasLeftForGood) {
    for (int round = 0; round < 1000; ++round) {
        TestFiber abandoned(pool, [](TestFiber& self) {
            char large[4096] = "";
            char* address = large;
            asm volatile("" : "+r"(address) : : "memory");
            self.suspend();
        });
        abandoned.resume();  // its frames stay on the stack that the next round's fiber gets
    }
    EXPECT_EQ(0u, pool.stacks_in_use());
}

TEST_F(FiberContextTest, AThousandFibersTakeTurns) {
    constexpr int kFibers = 1000;
    std::vector<std::unique_ptr<TestFiber>> fibers;
    std::vector<int> turns(kFibers);
    for (int index = 0; index < kFibers; ++index) {
        fibers.push_back(std::make_unique<TestFiber>(pool, [&turns, index](TestFiber& self) {
            for (int turn = 0; turn < 10; ++turn) {
                ++turns[static_cast<std::size_t>(index)];
                self.suspend();
            }
        }));
    }

    for (int round = 0; round <= 10; ++round) {
        for (auto& fiber : fibers) {
            fiber->resume();
        }
    }

    for (int index = 0; index < kFibers; ++index) {
        EXPECT_EQ(10, turns[static_cast<std::size_t>(index)]);
        EXPECT_TRUE(fibers[static_cast<std::size_t>(index)]->is_done());
    }
}

/// A call on another stack: it may be left for its caller, and continued from anywhere.
class StackCall final {
public:
    explicit StackCall(StackPool& pool) : pool_(pool), stack_(pool.acquire()) {}
    StackCall(const StackCall&) = delete;
    StackCall& operator=(const StackCall&) = delete;
    ~StackCall() { pool_.release(stack_, false); }

    void start(std::function<void(StackCall&)> body) {
        body_ = std::move(body);
        call_on_stack(caller_, callee_, stack_.limit, stack_.top, &StackCall::run, this);
    }
    void go_on() { switch_context(caller_, callee_); }
    void leave() { switch_context(callee_, caller_); }
    bool is_inside(const void* address) const noexcept { return stack_.limit <= address && address < stack_.top; }

private:
    static void run(void* self) { static_cast<StackCall*>(self)->body_(*static_cast<StackCall*>(self)); }

    StackPool& pool_;
    Stack stack_;
    FiberContext caller_;
    FiberContext callee_;
    std::function<void(StackCall&)> body_;
};

TEST_F(FiberContextTest, ACallOnAnotherStackReturnsToItsCaller) {
    StackCall call(pool);
    bool is_inside = false;

    call.start([&](StackCall& self) { is_inside = self.is_inside(__builtin_frame_address(0)); });

    EXPECT_TRUE(is_inside);
}

TEST_F(FiberContextTest, ACallThatWasLeftReturnsToWhoeverContinuedItLast) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "to a sanitizer a context is one stack's for ever";
    }
    StackCall call(pool);
    std::vector<int> order;

    call.start([&](StackCall& self) {
        order.push_back(1);
        self.leave();
        order.push_back(3);
        self.leave();
        order.push_back(6);
    });
    order.push_back(2);
    call.go_on();
    order.push_back(4);
    StackCall other(pool);
    other.start([&](StackCall&) {
        order.push_back(5);
        call.go_on();  // from another stack than the one that started it
        order.push_back(7);
    });

    EXPECT_EQ((std::vector<int>{1, 2, 3, 4, 5, 6, 7}), order);
}

TEST_F(FiberContextTest, ACallOnAnotherStackLeavesTheCallersControlWordsAlone) {
    StackCall call(pool);
    const unsigned int before = _mm_getcsr();

    call.start([&](StackCall& self) {
        self.leave();
        _MM_SET_ROUNDING_MODE(_MM_ROUND_UP);
    });
    _MM_SET_ROUNDING_MODE(_MM_ROUND_DOWN);
    call.go_on();
    const unsigned int rounding = _MM_GET_ROUNDING_MODE();
    _mm_setcsr(before);

    EXPECT_EQ(static_cast<unsigned int>(_MM_ROUND_DOWN), rounding);
}

}  // namespace
}  // namespace gossamer::core
