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
}

/// Saves the running stack in `from` and continues `to`. Returns when somebody switches back to `from`. The exception
/// globals are the caller's to exchange. Parks: no. Thread: the one that `to` was left on. Python: not needed.
inline void switch_context(FiberContext& from, FiberContext& to) noexcept {
    from.sanitizer.leave_for(to.sanitizer);
    gossamer_switch_context(&from.stack_pointer, to.stack_pointer);
    from.sanitizer.arrive();
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
