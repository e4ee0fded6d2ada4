// SPDX-License-Identifier: Apache-2.0
// What a loop will run at its next turn, first in, first out: a ring that grows. What waits for its turn is owned by the
// queue, by hand: a reference is passed in and out.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <memory>
#include <utility>

namespace gossamer::loop {

/// Something of the loop's own that has work to do at its turn: part of the object that owns it.
class Runnable {
public:
    Runnable(const Runnable&) = delete;
    Runnable& operator=(const Runnable&) = delete;

    PyObject* owner() const noexcept { return owner_; }

    /// Does the work. Throws ErrorSet: what ends the program, or what the loop reports.
    virtual void run() = 0;

protected:
    explicit Runnable(PyObject* owner) noexcept : owner_(owner) {}
    ~Runnable() = default;

private:
    PyObject* const owner_;
};

/// A ring of pointers.
template <typename T>
class Ring final {
public:
    bool is_empty() const noexcept { return first_ == end_; }
    std::size_t size() const noexcept { return end_ - first_; }

    /// Throws std::bad_alloc with the ring unchanged.
    void push(T* entry) {
        if (size() == capacity_) {
            grow();
        }
        entries_[end_++ & (capacity_ - 1)] = entry;
    }

    T* pop() noexcept { return entries_[first_++ & (capacity_ - 1)]; }

    template <typename Visit>
    void for_each(Visit visit) const {
        for (std::size_t index = first_; index != end_; ++index) {
            visit(entries_[index & (capacity_ - 1)]);
        }
    }

private:
    void grow() {
        const std::size_t capacity = capacity_ == 0 ? 64 : capacity_ * 2;
        auto larger = std::make_unique<T*[]>(capacity);
        std::size_t count = 0;
        for_each([&](T* entry) { larger[count++] = entry; });
        entries_ = std::move(larger);
        capacity_ = capacity;
        first_ = 0;
        end_ = count;
    }

    std::unique_ptr<T*[]> entries_;
    std::size_t capacity_ = 0;  // a power of two
    std::size_t first_ = 0;     // these two only grow
    std::size_t end_ = 0;
};

using HandleQueue = Ring<PyObject>;
using RunnableQueue = Ring<Runnable>;

}  // namespace gossamer::loop
