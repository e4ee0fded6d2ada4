// SPDX-License-Identifier: Apache-2.0
#include "core/stack_pool.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <sys/mman.h>
#include <system_error>

#include "core/sanitizer_fibers.hpp"

namespace gossamer::core {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kChunkBytes = 16 * 1024;
constexpr std::size_t kTopOffset =
    2816;  // of `top` in its page; starting a threading.Thread on 3.14 takes 2,792 of it, and 824 above the record
constexpr std::size_t kSlabBytes = std::size_t{128} << 20;
constexpr int kMadvGuardInstall = 102;  // linux/mman.h of 6.13; glibc 2.36 does not name it
constexpr std::uint64_t kCanary = 0x676f7373616d6572;

// Larger than any address space: who asks for more is told ENOMEM by the kernel, and no sum of sizes wraps around.
constexpr std::size_t kHugestStack = std::size_t{1} << 48;

std::atomic<bool> guard_install_works{true};
std::atomic<std::size_t> protected_stacks{0};
std::atomic<std::size_t> most_protected_stacks{StackPool::kProtectedStacks};

std::size_t usable_bytes(std::size_t bytes) noexcept {
    return (std::clamp(bytes, kPage, kHugestStack) + kPage - 1) & ~(kPage - 1);
}

}  // namespace

StackPool::StackPool(std::size_t stack_bytes) noexcept
    : stack_bytes_(usable_bytes(stack_bytes)),
      slot_bytes_(kPage + stack_bytes_ + kChunkBytes),
      slots_per_slab_(std::max<std::size_t>(1, kSlabBytes / slot_bytes_)) {}

StackPool::~StackPool() {
    for (std::byte* slab : slabs_) {
        SanitizerFiber::forget(slab, slab + slot_bytes_ * slots_per_slab_);
        ::munmap(slab, slot_bytes_ * slots_per_slab_);
    }
    protected_stacks -= protected_;
}

void StackPool::limit_guards(const GuardLimits& limits) noexcept {
    guard_install_works = limits.may_install;
    most_protected_stacks = limits.protected_stacks;
}

Guard StackPool::available_guard() noexcept {
    if (guard_install_works) {
        void* page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        const bool works = page != MAP_FAILED && ::madvise(page, kPage, kMadvGuardInstall) == 0;
        if (page != MAP_FAILED) {
            ::munmap(page, kPage);
        }
        if (works) {
            return Guard::kInstalled;
        }
    }
    return protected_stacks < most_protected_stacks ? Guard::kProtected : Guard::kCanary;
}

Stack StackPool::describe(std::uint32_t slot) const noexcept {
    std::byte* base = slabs_[slot / slots_per_slab_] + (slot % slots_per_slab_) * slot_bytes_;
    std::byte* top = base + stack_bytes_ + kTopOffset;
    return Stack{.limit = base + kPage,
                 .top = top,
                 .record = top,
                 .chunk = top + kRecordBytes,
                 .chunk_end = base + slot_bytes_,
                 .slot = slot,
                 .guard = states_[slot].guard,
                 .has_record = states_[slot].has_record};
}

Stack StackPool::acquire() {
    std::vector<std::uint32_t>& released = warm_.empty() ? cold_ : warm_;
    if (!released.empty()) {
        const std::uint32_t slot = released.back();
        released.pop_back();
        return describe(slot);
    }
    if (created_ == slabs_.size() * slots_per_slab_) {
        grow();
    }
    const auto slot = static_cast<std::uint32_t>(created_);
    states_.push_back({Guard::kCanary, false});
    ++created_;
    Stack stack = describe(slot);
    stack.guard = states_[slot].guard = install_guard(stack.limit - kPage);
    if (stack.guard == Guard::kCanary) {
        std::memcpy(stack.limit, &kCanary, sizeof kCanary);
    }
    return stack;
}

void StackPool::release(const Stack& stack, bool keep_record) noexcept {
    SanitizerFiber::forget(stack.limit, stack.top);
    const bool stays_warm = warm_.size() < kWarmStacks || keep_record;
    states_[stack.slot].has_record = stays_warm;
    if (stays_warm) {
        warm_.push_back(stack.slot);  // reserved in grow(), as for cold_
        return;
    }
    std::byte* begin = stack.guard == Guard::kCanary ? stack.limit + kPage : stack.limit;
    ::madvise(begin, static_cast<std::size_t>(stack.chunk_end - begin), MADV_DONTNEED);
    cold_.push_back(stack.slot);
}

bool StackPool::is_intact(const Stack& stack) noexcept {
    return stack.guard != Guard::kCanary || std::memcmp(stack.limit, &kCanary, sizeof kCanary) == 0;
}

void StackPool::grow() {
    const std::size_t slots = (slabs_.size() + 1) * slots_per_slab_;
    for (std::vector<std::uint32_t>* released : {&warm_, &cold_}) {
        if (released->capacity() < slots) {
            released->reserve(std::max(2 * released->capacity(), slots));  // release() must not allocate
        }
    }
    if (states_.capacity() < slots) {
        states_.reserve(std::max(2 * states_.capacity(), slots));
    }
    slabs_.reserve(slabs_.size() + 1);
    void* slab = ::mmap(nullptr, slot_bytes_ * slots_per_slab_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (slab == MAP_FAILED) {
        throw std::system_error(errno, std::generic_category(), "mmap of fiber stacks");
    }
    // A huge page under a stack would make 2 MiB of it resident at the first touch. EINVAL: the kernel has none.
    ::madvise(slab, slot_bytes_ * slots_per_slab_, MADV_NOHUGEPAGE);
    slabs_.push_back(static_cast<std::byte*>(slab));
}

Guard StackPool::install_guard(std::byte* page) noexcept {
    if (guard_install_works) {
        if (::madvise(page, kPage, kMadvGuardInstall) == 0) {
            return Guard::kInstalled;
        }
        if (errno != ENOMEM) {  // that is about this page; the rest (EINVAL: older than 6.13, or mlockall) about all
            guard_install_works = false;
        }
    }
    if (protected_stacks.fetch_add(1) < most_protected_stacks && ::mprotect(page, kPage, PROT_NONE) == 0) {
        ++protected_;
        return Guard::kProtected;
    }
    --protected_stacks;
    return Guard::kCanary;
}

}  // namespace gossamer::core
