// SPDX-License-Identifier: Apache-2.0
// What a loop will run at its next turn, first in, first out: a ring that grows. What waits for its turn stays alive.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace gossamer::loop {

/// Something of the loop's own that has work to do at its turn: part of the object that owns it.
class Runnable {
public:
    Runnable(const Runnable&) = delete;
    Runnable& operator=(const Runnable&) = delete;

    PyObject* owner() const noexcept { return owner_; }

    /// Does the work. Throws ErrorSet: KeyboardInterrupt or SystemExit of what it called.
    virtual void run() = 0;

protected:
    explicit Runnable(PyObject* owner) noexcept : owner_(owner) {}
    ~Runnable() = default;

private:
    PyObject* const owner_;
};

/// An entry of a LoopReadyQueue: an owned reference, to a handle or to the owner of a Runnable. It is passed on by hand.
class ReadyEntry final {
public:
    ReadyEntry() noexcept = default;
    explicit ReadyEntry(PyObject* handle) noexcept : word_(reinterpret_cast<std::uintptr_t>(handle)) {}
    explicit ReadyEntry(Runnable& runnable) noexcept : word_(reinterpret_cast<std::uintptr_t>(&runnable) | 1) {}

    bool is_handle() const noexcept { return (word_ & 1) == 0; }
    Runnable& runnable() const noexcept { return *reinterpret_cast<Runnable*>(word_ & ~std::uintptr_t{1}); }
    PyObject* object() const noexcept { return is_handle() ? reinterpret_cast<PyObject*>(word_) : runnable().owner(); }

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
