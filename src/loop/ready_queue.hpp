// SPDX-License-Identifier: Apache-2.0
// What a loop will run at its next turn, first in, first out: a ring that grows. An entry owns a reference, to a handle or
// to something else that has work to do (its low bit says which), so that what waits for its turn stays alive.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace gossamer::loop {

/// An entry of a ReadyQueue. Not owned by itself: it is what passes an owned reference on.
class ReadyEntry final {
public:
    enum class Kind : std::uintptr_t { kHandle = 0, kWatch = 1 };

    ReadyEntry() noexcept = default;
    ReadyEntry(PyObject* object, Kind kind) noexcept
        : word_(reinterpret_cast<std::uintptr_t>(object) | static_cast<std::uintptr_t>(kind)) {}

    PyObject* object() const noexcept { return reinterpret_cast<PyObject*>(word_ & ~std::uintptr_t{1}); }
    Kind kind() const noexcept { return static_cast<Kind>(word_ & 1); }

private:
    std::uintptr_t word_ = 0;
};

class LoopReadyQueue final {
public:
    bool is_empty() const noexcept { return first_ == end_; }
    std::size_t size() const noexcept { return end_ - first_; }

    /// Throws std::bad_alloc with the queue unchanged, and the entry still the caller's.
    void push(ReadyEntry entry) {
        if (size() == capacity_) {
            grow();
        }
        entries_[end_++ & (capacity_ - 1)] = entry;
    }

    ReadyEntry pop() noexcept { return entries_[first_++ & (capacity_ - 1)]; }

    template <typename Visit>
    void for_each(Visit visit) const {
        for (std::size_t index = first_; index != end_; ++index) {
            visit(entries_[index & (capacity_ - 1)]);
        }
    }

private:
    void grow() {
        const std::size_t capacity = capacity_ == 0 ? 64 : capacity_ * 2;
        auto larger = std::make_unique<ReadyEntry[]>(capacity);
        std::size_t count = 0;
        for_each([&](ReadyEntry entry) { larger[count++] = entry; });
        entries_ = std::move(larger);
        capacity_ = capacity;
        first_ = 0;
        end_ = count;
    }

    std::unique_ptr<ReadyEntry[]> entries_;
    std::size_t capacity_ = 0;  // a power of two
    std::size_t first_ = 0;     // these two only grow
    std::size_t end_ = 0;
};

}  // namespace gossamer::loop
