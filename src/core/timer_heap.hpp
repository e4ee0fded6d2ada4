// SPDX-License-Identifier: Apache-2.0
// Timers of one hub: a 4-ary heap of deadlines whose nodes live in the waiting fibers.
//
// The deadline is kept beside the pointer, so that sifting touches no parked stack. Arming and disarming are O(log n);
// a disarmed timer leaves nothing behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/deadline.hpp"

namespace gossamer::core {

/// One timer. Its owner must disarm it before it goes.
struct Timer {
    using Fire = void (*)(Timer&) noexcept;
    static constexpr std::uint32_t kIdle = UINT32_MAX;

    /// `when_due` is what the heap's user calls once the timer has been taken out.
    explicit Timer(Fire when_due) noexcept : fire(when_due) {}
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    bool is_armed() const noexcept { return index != kIdle; }

    const Fire fire;
    std::uint32_t index = kIdle;
};

class TimerHeap final {
public:
    /// Arms `timer`, which is idle. Throws std::bad_alloc with the heap unchanged.
    void arm(Timer& timer, Deadline deadline);

    /// Disarms `timer`; nothing happens if it is idle.
    void disarm(Timer& timer) noexcept;

    /// The earliest deadline, or never().
    Deadline next() const noexcept { return entries_.empty() ? Deadline::never() : entries_.front().deadline; }

    /// Takes the earliest timer out if its deadline has passed, else returns null.
    Timer* pop_expired(Nanoseconds now) noexcept;

    /// Calls `visit(Timer&)` for each armed timer, in no order.
    template <typename Visit>
    void for_each(Visit visit) const {
        for (const Entry& entry : entries_) {
            visit(*entry.timer);
        }
    }

    bool is_empty() const noexcept { return entries_.empty(); }
    std::size_t size() const noexcept { return entries_.size(); }

private:
    struct Entry {
        Deadline deadline;
        Timer* timer;
    };

    void place(std::size_t index, const Entry& entry) noexcept;
    void sift_up(std::size_t index, const Entry& entry) noexcept;
    void sift_down(std::size_t index, const Entry& entry) noexcept;
    void remove(std::size_t index) noexcept;

    std::vector<Entry> entries_;
};

}  // namespace gossamer::core
