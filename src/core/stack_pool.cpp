// SPDX-License-Identifier: Apache-2.0
#include "core/stack_pool.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>
#include <sys/mman.h>
#include <system_error>

namespace gossamer::core {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kChunkBytes = 16 * 1024;
constexpr std::size_t kTopOffset = 1280;  // of `top` in its page: what a parked fiber's C stack has room for
constexpr std::size_t kColourStep = 128;
constexpr std::size_t kColours = 6;
constexpr std::size_t kSlabBytes = std::size_t{128} << 20;
constexpr int kMadvGuardInstall = 102;  // linux/mman.h of 6.13; glibc 2.36 does not name it
constexpr std::uint64_t kCanary = 0x676f7373616d6572;

std::atomic<bool> guard_install_works{true};
std::atomic<std::size_t> protected_stacks{0};

std::size_t round_to_page(std::size_t bytes) noexcept { return (bytes + kPage - 1) & ~(kPage - 1); }

}  // namespace

StackPool::StackPool(std::size_t stack_bytes) noexcept
    : stack_bytes_(round_to_page(stack_bytes)),
      slot_bytes_(kPage + stack_bytes_ + kChunkBytes),
      slots_per_slab_(std::max<std::size_t>(1, kSlabBytes / slot_bytes_)) {}

StackPool::~StackPool() {
    for (std::byte* slab : slabs_) {
        ::munmap(slab, slot_bytes_ * slots_per_slab_);
    }
}

void StackPool::forbid_guard_install() noexcept { guard_install_works = false; }

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
    return protected_stacks < kProtectedStacks ? Guard::kProtected : Guard::kCanary;
}

Stack StackPool::describe(std::uint32_t slot) const noexcept {
    std::byte* base = slabs_[slot / slots_per_slab_] + (slot % slots_per_slab_) * slot_bytes_;
    std::byte* top = base + stack_bytes_ + kTopOffset + (slot % kColours) * kColourStep;
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
    if (free_.empty()) {
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
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    warm_ -= warm_ > 0 ? 1 : 0;
    return describe(slot);
}

void StackPool::release(const Stack& stack, bool keep_record) noexcept {
    states_[stack.slot].has_record = warm_ < kWarmStacks || keep_record;
    if (states_[stack.slot].has_record) {
        free_.push_back(stack.slot);  // reserved in acquire()
        ++warm_;
        return;
    }
    // Dropped, and put where it is taken last: below the warm ones.
    std::byte* end = stack.chunk_end;
    std::byte* begin = stack.guard == Guard::kCanary ? stack.limit + kPage : stack.limit;
    ::madvise(begin, static_cast<std::size_t>(end - begin), MADV_DONTNEED);
    free_.push_back(stack.slot);
    std::swap(free_.back(), free_[free_.size() - 1 - warm_]);
}

bool StackPool::is_intact(const Stack& stack) noexcept {
    return stack.guard != Guard::kCanary || std::memcmp(stack.limit, &kCanary, sizeof kCanary) == 0;
}

void StackPool::grow() {
    slabs_.reserve(slabs_.size() + 1);
    const std::size_t slots = std::max(2 * free_.capacity(), (slabs_.size() + 1) * slots_per_slab_);
    if (free_.capacity() < (slabs_.size() + 1) * slots_per_slab_) {
        states_.reserve(slots);
        free_.reserve(slots);  // release() must not allocate
    }
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
        guard_install_works = false;  // EINVAL: older than 6.13
    }
    if (protected_stacks.fetch_add(1) < kProtectedStacks && ::mprotect(page, kPage, PROT_NONE) == 0) {
        return Guard::kProtected;
    }
    return Guard::kCanary;
}

}  // namespace gossamer::core
