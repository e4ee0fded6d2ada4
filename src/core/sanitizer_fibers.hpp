// SPDX-License-Identifier: Apache-2.0
// Tells AddressSanitizer and ThreadSanitizer which stack runs (sanitizer/common_interface_defs.h, tsan_interface.h).
//
// Without it the first takes a fiber's stack for a wild address and the second takes all fibers of a thread for one. The
// build defines GOSSAMER_ADDRESS_SANITIZER or GOSSAMER_THREAD_SANITIZER; in every other build the class is empty and its
// functions vanish. It is the only place of ours that knows which build it is.
#pragma once

#include <cstddef>
#include <utility>

#if defined(GOSSAMER_ADDRESS_SANITIZER)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(GOSSAMER_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace gossamer::core {

#if defined(GOSSAMER_ADDRESS_SANITIZER)

/// What the sanitizer knows of one stack.
class SanitizerFiber final {
public:
    static constexpr bool kIsActive = true;

    /// A context of an OS thread's own stack: its bounds are looked up when it is left for the first time.
    SanitizerFiber() noexcept = default;

    /// A new stack between two addresses.
    SanitizerFiber(const void* limit, const void* top) noexcept : limit_(limit), bytes_(bytes_between(limit, top)) {
        forget(limit, top);
    }

    /// The stack is about to be left for the last time.
    void will_end() noexcept { is_ending_ = true; }

    /// The memory of a stack whose tenant is gone is ordinary memory again.
    static void forget(const void* limit, const void* top) noexcept {
        __asan_unpoison_memory_region(limit, bytes_between(limit, top));
    }

    /// Immediately before `to` is continued.
    void leave_for(SanitizerFiber& to) noexcept {
        if (limit_ == nullptr) {
            find_bounds();
        }
        __sanitizer_start_switch_fiber(is_ending_ ? nullptr : &fake_stack_, to.limit_, to.bytes_);
    }

    /// Immediately after this stack is continued.
    void arrive() noexcept { __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr); }

    /// First of all on a new stack.
    static void arrive_first() noexcept { __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr); }

private:
    static std::size_t bytes_between(const void* low, const void* high) noexcept {
        return static_cast<std::size_t>(static_cast<const char*>(high) - static_cast<const char*>(low));
    }

    void find_bounds() noexcept {
        pthread_attr_t attributes;
        void* limit = nullptr;
        if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
            pthread_attr_getstack(&attributes, &limit, &bytes_);
            pthread_attr_destroy(&attributes);
        }
        limit_ = limit;
    }

    const void* limit_ = nullptr;
    std::size_t bytes_ = 0;
    void* fake_stack_ = nullptr;
    bool is_ending_ = false;
};

#elif defined(GOSSAMER_THREAD_SANITIZER)

class SanitizerFiber final {
public:
    static constexpr bool kIsActive = true;

    SanitizerFiber() noexcept = default;
    SanitizerFiber(const void*, const void*) noexcept : fiber_(__tsan_create_fiber(0)), is_owned_(true) {}
    SanitizerFiber(SanitizerFiber&& other) noexcept
        : fiber_(std::exchange(other.fiber_, nullptr)), is_owned_(std::exchange(other.is_owned_, false)) {}
    SanitizerFiber& operator=(SanitizerFiber&& other) noexcept {
        std::swap(fiber_, other.fiber_);
        std::swap(is_owned_, other.is_owned_);
        return *this;
    }
    ~SanitizerFiber() {
        if (is_owned_) {
            __tsan_destroy_fiber(fiber_);
        }
    }

    void will_end() noexcept {}
    static void forget(const void*, const void*) noexcept {}
    void leave_for(SanitizerFiber& to) noexcept {
        if (fiber_ == nullptr) {
            fiber_ = __tsan_get_current_fiber();
        }
        __tsan_switch_to_fiber(to.fiber_, 0);
    }
    void arrive() noexcept {}
    static void arrive_first() noexcept {}

private:
    void* fiber_ = nullptr;
    bool is_owned_ = false;
};

#else

class SanitizerFiber final {
public:
    static constexpr bool kIsActive = false;

    constexpr SanitizerFiber() noexcept = default;
    constexpr SanitizerFiber(const void*, const void*) noexcept {}
    constexpr void will_end() noexcept {}
    static constexpr void forget(const void*, const void*) noexcept {}
    constexpr void leave_for(SanitizerFiber&) noexcept {}
    constexpr void arrive() noexcept {}
    static constexpr void arrive_first() noexcept {}
};

#endif

}  // namespace gossamer::core
