// SPDX-License-Identifier: Apache-2.0
// Switching between C stacks.
//
// A context is a stack pointer; everything else that the System V ABI (x86-64, section 3.2.1) makes the callee keep,
// the six registers and the control words of x87 and SSE, is pushed on the stack that is left. Besides, the C++
// runtime keeps the exceptions being handled in two words a thread (__cxa_get_globals, Itanium C++ ABI 2.2.2): each
// stack has its own, or a fiber that parks in a catch block would rethrow another's exception.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/sanitizer_fibers.hpp"

#if !defined(__x86_64__) || !defined(__linux__)
#error "Gossamer needs Linux on x86-64"
#endif

namespace gossamer::core {

/// Where a stack that is not running continues. Default-made: the OS thread's own stack, which runs.
struct FiberContext {
    void* stack_pointer = nullptr;
    [[no_unique_address]] SanitizerFiber sanitizer;
};

extern "C" {
/// Saves the running stack in `*from` and continues `to`. Called through switch_context, but for tools that look at code.
void gossamer_switch_context(void** from, void* to) noexcept;

/// Saves the running stack in `from`, calls `function(argument)` on the stack that ends at `top`, and on its return
/// continues what `from` holds then. Called through call_on_stack.
void gossamer_call_on_stack(void** from, void* top, void (*function)(void*), void* argument);
}

/// Saves the running stack in `from` and continues `to`. Returns when somebody switches back to `from`. The exception
/// globals are the caller's to exchange. Parks: no. Thread: the one that `to` was left on. Python: not needed.
inline void switch_context(FiberContext& from, FiberContext& to) noexcept {
    from.sanitizer.leave_for(to.sanitizer);
    gossamer_switch_context(&from.stack_pointer, to.stack_pointer);
    from.sanitizer.arrive();
}

/// A call on another stack as a sanitizer must see it.
struct WatchedCall {
    FiberContext& caller;
    FiberContext& callee;
    void (*function)(void*);
    void* argument;

    // TSan counts calls by fiber: this one begins on one and ends on the other.
    [[gnu::no_sanitize("thread")]] static void run(void* words) {
        SanitizerFiber::arrive_first();
        const WatchedCall call = *static_cast<WatchedCall*>(words);  // on the caller's stack, which goes on meanwhile
        call.function(call.argument);
        call.callee.sanitizer.will_end();
        call.callee.sanitizer.leave_for(call.caller.sanitizer);
    }
};

/// Calls `function(argument)` on another stack, from `limit` up to `top` (64-byte aligned). `callee` is where that call
/// continues if it is left, by switch_context(callee, caller), and continued, by switch_context(caller, callee), which may
/// come from anywhere: the call then returns there. Until one of both comes back to the caller. A call that is not left
/// costs less than a switch there and back, because the processor foresees its return. Parks: no. Thread: the one of both
/// stacks. Python: not needed.
inline void call_on_stack(FiberContext& caller, FiberContext& callee, void* limit, void* top, void (*function)(void*),
                          void* argument) {
    if constexpr (!SanitizerFiber::kIsActive) {
        gossamer_call_on_stack(&caller.stack_pointer, top, function, argument);
    } else {
        WatchedCall call{caller, callee, function, argument};
        callee.sanitizer = SanitizerFiber(limit, top);
        caller.sanitizer.leave_for(callee.sanitizer);
        gossamer_call_on_stack(&caller.stack_pointer, top, &WatchedCall::run, &call);
        caller.sanitizer.arrive();
    }
}

/// The C++ runtime's exceptions in flight of one thread, or of one stack while it does not run.
struct ExceptionGlobals {
    void* caught = nullptr;
    std::uintptr_t uncaught_count = 0;
};

/// Returns the calling thread's own words; their address is constant for the thread's life.
ExceptionGlobals& exception_globals() noexcept;

/// Makes a context that calls `entry(argument)` on the stack between `limit` and `top`. `entry` must not return, and an
/// exception that leaves it terminates. The control words (rounding, masked exceptions, flush to zero) are the caller's at
/// this moment, as pthread_create(3) has a new thread inherit them.
FiberContext make_context(void* limit, void* top, void (*entry)(void*), void* argument) noexcept;

}  // namespace gossamer::core
