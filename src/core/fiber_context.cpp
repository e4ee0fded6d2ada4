// SPDX-License-Identifier: Apache-2.0
#include "core/fiber_context.hpp"

#include <cxxabi.h>

namespace gossamer::core {

// Pushed order = popped order reversed: rbp rbx r12 r13 r14 r15, then mxcsr and the x87 control word in one slot.
// The unwind table is right at each instruction and for both stacks, which have the same shape around the exchange: a
// profiler's signal may walk the stack in the middle.
asm(R"(
.pushsection .text
.p2align 4
.globl gossamer_switch_context
.hidden gossamer_switch_context
.type gossamer_switch_context, @function
gossamer_switch_context:
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset rbx, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r12, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r13, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r14, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset r15, 0
    subq $8, %rsp
    .cfi_adjust_cfa_offset 8
    stmxcsr (%rsp)
    fnstcw 4(%rsp)
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    .cfi_adjust_cfa_offset -8
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore r15
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore r14
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore r13
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore r12
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore rbp
    ret
    .cfi_endproc
.size gossamer_switch_context, .-gossamer_switch_context

.p2align 4
.globl gossamer_call_on_stack
.hidden gossamer_call_on_stack
.type gossamer_call_on_stack, @function
gossamer_call_on_stack:
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
    // On the other stack, the bottom of which ends a walk: what the caller continues with is not known until the return.
    .cfi_undefined rip
    movq %rdi, %rbx
    movq %rcx, %rdi
    xorl %ebp, %ebp
    call *%rdx
    movq (%rbx), %rsp
    ldmxcsr (%rsp)
    fldcw 4(%rsp)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    .cfi_restore rip
    .cfi_def_cfa rsp, 8
    ret
    .cfi_endproc
.size gossamer_call_on_stack, .-gossamer_call_on_stack

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
.popsection
.pushsection .note.GNU-stack,"",@progbits
.popsection
)");

extern "C" void gossamer_fiber_entry() noexcept;

ExceptionGlobals& exception_globals() noexcept {
    // Safety: __cxa_eh_globals is these two words in every release of libstdc++ and libc++abi (Itanium C++ ABI).
    return *reinterpret_cast<ExceptionGlobals*>(abi::__cxa_get_globals());
}

namespace {

using Word = std::uintptr_t;

/// What mxcsr and the x87 control word hold now, as gossamer_switch_context lays them out. Without the status flags:
/// those tell of the caller's own computations.
Word control_words() noexcept {
    constexpr std::uint32_t kStatusFlags = 0x3f;
    std::uint16_t x87 = 0;
    asm volatile("fnstcw %0" : "=m"(x87));
    return (__builtin_ia32_stmxcsr() & ~kStatusFlags) | (Word{x87} << 32);
}

}  // namespace

FiberContext make_context(void* limit, void* top, void (*entry)(void*), void* argument) noexcept {
    FiberContext context{nullptr, SanitizerFiber(limit, top)};
    auto* slot = reinterpret_cast<Word*>(reinterpret_cast<Word>(top) & ~Word{15});
    // Two words, so that the stack is 16-byte aligned at the entry's call.
    *--slot = SanitizerFiber::kIsActive ? reinterpret_cast<Word>(entry) : 0;
    *--slot = SanitizerFiber::kIsActive ? reinterpret_cast<Word>(argument) : 0;
    if constexpr (SanitizerFiber::kIsActive) {
        argument = slot;
        entry = [](void* words) {
            SanitizerFiber::arrive_first();
            const auto* pair = static_cast<const Word*>(words);
            reinterpret_cast<void (*)(void*)>(pair[1])(reinterpret_cast<void*>(pair[0]));
        };
    }
    *--slot = reinterpret_cast<Word>(&gossamer_fiber_entry);
    *--slot = 0;                                 // rbp
    *--slot = 0;                                 // rbx
    *--slot = reinterpret_cast<Word>(entry);     // r12
    *--slot = reinterpret_cast<Word>(argument);  // r13
    *--slot = 0;                                 // r14
    *--slot = 0;                                 // r15
    *--slot = control_words();
    context.stack_pointer = slot;
    return context;
}

}  // namespace gossamer::core
