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

#if !defined(__x86_64__) || !defined(__linux__)
#error "Gossamer needs Linux on x86-64"
#endif

namespace gossamer::core {

/// Where a stack that is not running continues.
struct FiberContext {
    void* stack_pointer = nullptr;
};

extern "C" {
/// Saves the running stack in `*from` and continues `to`. Returns when somebody switches back to `*from`.
/// Parks: no. Thread: the one that `to` was left on. Python: not needed.
void gossamer_switch_context(void** from, void* to) noexcept;
}

/// The C++ runtime's exceptions in flight of one thread, or of one stack while it does not run.
struct ExceptionGlobals {
    void* caught = nullptr;
    std::uintptr_t uncaught_count = 0;
};

/// Returns the calling thread's own words; their address is constant for the thread's life.
ExceptionGlobals& exception_globals() noexcept;

/// Makes a context that calls `entry(argument)` on the stack that ends at `stack_top`. `entry` must not return.
FiberContext make_context(void* stack_top, void (*entry)(void*), void* argument) noexcept;

}  // namespace gossamer::core
