// SPDX-License-Identifier: Apache-2.0
#include "core/fiber_context.hpp"

#include <cxxabi.h>

namespace gossamer::core {

// Pushed order = popped order reversed: rbp rbx r12 r13 r14 r15, then mxcsr and the x87 control word in one slot.
asm(R"(
.text
.p2align 4
.globl gossamer_switch_context
.hidden gossamer_switch_context
.type gossamer_switch_context, @function
gossamer_switch_context:
    .cfi_startproc
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .cfi_endproc
.size gossamer_switch_context, .-gossamer_switch_context

.p2align 4
.globl gossamer_fiber_entry
.hidden gossamer_fiber_entry
.type gossamer_fiber_entry, @function
gossamer_fiber_entry:
    .cfi_startproc
    .cfi_undefined rip
    endbr64
    movq %r13, %rdi
    xorl %ebp, %ebp
    call *%r12
    ud2
    .cfi_endproc
.size gossamer_fiber_entry, .-gossamer_fiber_entry
.section .note.GNU-stack,"",@progbits
.text
)");

extern "C" void gossamer_fiber_entry() noexcept;

ExceptionGlobals& exception_globals() noexcept {
    // Safety: __cxa_eh_globals is these two words in every release of libstdc++ and libc++abi (Itanium C++ ABI).
    return *reinterpret_cast<ExceptionGlobals*>(abi::__cxa_get_globals());
}

FiberContext make_context(void* stack_top, void (*entry)(void*), void* argument) noexcept {
    constexpr std::uint32_t kDefaultMxcsr = 0x1f80;  // System V ABI x86-64, 3.4.1: state at process start
    constexpr std::uint32_t kDefaultX87 = 0x037f;
    auto address = reinterpret_cast<std::uintptr_t>(stack_top) & ~std::uintptr_t{15};
    auto* slot = reinterpret_cast<std::uintptr_t*>(address);
    *--slot = 0;  // two words, so that the stack is 16-byte aligned at the entry's call
    *--slot = 0;
    *--slot = reinterpret_cast<std::uintptr_t>(&gossamer_fiber_entry);
    *--slot = 0;                                            // rbp
    *--slot = 0;                                            // rbx
    *--slot = reinterpret_cast<std::uintptr_t>(entry);      // r12
    *--slot = reinterpret_cast<std::uintptr_t>(argument);   // r13
    *--slot = 0;                                            // r14
    *--slot = 0;                                            // r15
    *--slot = kDefaultMxcsr | (std::uintptr_t{kDefaultX87} << 32);
    return FiberContext{slot};
}

}  // namespace gossamer::core
