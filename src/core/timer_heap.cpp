// SPDX-License-Identifier: Apache-2.0
#include "core/timer_heap.hpp"

#include <algorithm>

#include "core/assert.hpp"

namespace gossamer::core {

namespace {
constexpr std::size_t kArity = 4;
}

void TimerHeap::arm(Timer& timer, Deadline deadline) {
    GS_ASSERT(!timer.is_armed());
    const Entry entry{deadline, &timer};
    entries_.push_back(entry);
    sift_up(entries_.size() - 1, entry);
}

void TimerHeap::disarm(Timer& timer) noexcept {
    if (timer.is_armed()) {
        remove(timer.index);
    }
}

Timer* TimerHeap::pop_expired(Nanoseconds now) noexcept {
    if (entries_.empty() || !entries_.front().deadline.is_past(now)) {
        return nullptr;
    }
    Timer* timer = entries_.front().timer;
    remove(0);
    return timer;
}

void TimerHeap::place(std::size_t index, const Entry& entry) noexcept {
    entries_[index] = entry;
    entry.timer->index = static_cast<std::uint32_t>(index);
}

void TimerHeap::sift_up(std::size_t index, const Entry& entry) noexcept {
    while (index > 0) {
        const std::size_t parent = (index - 1) / kArity;
        if (entries_[parent].deadline <= entry.deadline) {
            break;
        }
        place(index, entries_[parent]);
        index = parent;
    }
    place(index, entry);
}

void TimerHeap::sift_down(std::size_t index, const Entry& entry) noexcept {
    for (;;) {
        const std::size_t first = index * kArity + 1;
        if (first >= entries_.size()) {
            break;
        }
        const std::size_t last = std::min(first + kArity, entries_.size());
        std::size_t least = first;
        for (std::size_t child = first + 1; child < last; ++child) {
            if (entries_[child].deadline < entries_[least].deadline) {
                least = child;
            }
        }
        if (entry.deadline <= entries_[least].deadline) {
            break;
        }
        place(index, entries_[least]);
        index = least;
    }
    place(index, entry);
}

void TimerHeap::remove(std::size_t index) noexcept {
    entries_[index].timer->index = Timer::kIdle;
    const Entry moved = entries_.back();
    entries_.pop_back();
    if (index == entries_.size()) {
        return;
    }
    if (index > 0 && moved.deadline < entries_[(index - 1) / kArity].deadline) {
        sift_up(index, moved);
    } else {
        sift_down(index, moved);
    }
}

}  // namespace gossamer::core
