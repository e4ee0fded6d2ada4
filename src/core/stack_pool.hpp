// SPDX-License-Identifier: Apache-2.0
// Stacks for fibers, cut from slabs and pooled.
//
// One mapping holds many stacks, because the kernel allows some 65,000 mappings a process (vm.max_map_count). A slot is,
// from low to high addresses:
//
//     guard page | C stack, grows down from `top` ... top | record | data chunk, grows up
//                                                 ^------- one page ------^
//
// `top`, the record of the fiber and the start of the interpreter's data chunk share a page, so that a parked fiber that
// used little of either keeps one page resident: what starting a threading.Thread takes of each fits. (Moving `top` from
// slot to slot, so that hot lines fall into different cache sets, made switches among 2 to 2,000 fibers no faster.)
//
// Guards: MADV_GUARD_INSTALL (Linux 6.13, madvise(2)), which costs no mapping; where the kernel lacks it, mprotect(2) for
// the first stacks, which costs two, and for the rest a canary that the owner checks. A hub owns one pool; not
// thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gossamer::core {

enum class Guard : std::uint8_t { kInstalled, kProtected, kCanary };

/// One slot; a plain value that borrows from the pool.
struct Stack {
    std::byte* limit = nullptr;   // lowest usable address, just above the guard
    std::byte* top = nullptr;     // initial stack pointer, 64-byte aligned
    std::byte* record = nullptr;  // StackPool::kRecordBytes for the owner's record
    std::byte* chunk = nullptr;   // memory for the interpreter's data stack
    std::byte* chunk_end = nullptr;
    std::uint32_t slot = 0;
    Guard guard = Guard::kInstalled;
    bool has_record = false;  // the record of the last tenant is still there

    std::size_t size_bytes() const noexcept { return static_cast<std::size_t>(top - limit); }
};

class StackPool final {
public:
    static constexpr std::size_t kDefaultStackBytes = 512 * 1024;
    static constexpr std::size_t kRecordBytes = 448;
    static constexpr std::size_t kWarmStacks = 1024;         // released stacks that keep their pages
    static constexpr std::size_t kProtectedStacks = 25'000;  // two mappings each, of some 65,000

    /// `stack_bytes` is rounded up to whole pages, the one that `top` shares among them.
    explicit StackPool(std::size_t stack_bytes = kDefaultStackBytes) noexcept;
    StackPool(const StackPool&) = delete;
    StackPool& operator=(const StackPool&) = delete;
    ~StackPool();

    /// Takes a stack. Throws std::bad_alloc or std::system_error (ENOMEM) with the pool unchanged.
    Stack acquire();

    /// Gives a stack back; nobody runs on it. Its pages may be dropped unless `keep_record`, which says that another
    /// thread may still read the record.
    void release(const Stack& stack, bool keep_record) noexcept;

    /// Whether the canary of a stack without a guard is intact.
    static bool is_intact(const Stack& stack) noexcept;

    /// What guards may be made from. Tests lower it to run as on an older kernel or among very many stacks.
    struct GuardLimits {
        bool may_install = true;  // MADV_GUARD_INSTALL, where the kernel has it
        std::size_t protected_stacks = kProtectedStacks;
    };
    static void limit_guards(const GuardLimits& limits) noexcept;

    /// What this kernel lets us guard the next stack with.
    static Guard available_guard() noexcept;

    std::size_t stacks_in_use() const noexcept { return created_ - warm_.size() - cold_.size(); }
    std::size_t stack_bytes() const noexcept { return stack_bytes_; }

private:
    Stack describe(std::uint32_t slot) const noexcept;
    void grow();
    Guard install_guard(std::byte* page) noexcept;

    // never changes
    const std::size_t stack_bytes_;
    const std::size_t slot_bytes_;
    const std::size_t slots_per_slab_;

    struct SlotState {
        Guard guard;
        bool has_record;  // true for all of warm_, false for all of cold_
    };
    std::vector<std::byte*> slabs_;
    std::vector<SlotState> states_;    // by slot
    std::vector<std::uint32_t> warm_;  // released, with their pages and records; the last one is taken first
    std::vector<std::uint32_t> cold_;  // released, without; taken when no warm one is there
    std::size_t created_ = 0;
    std::size_t protected_ = 0;  // of created_, guarded by mprotect: our part of the process's limit
};

}  // namespace gossamer::core
