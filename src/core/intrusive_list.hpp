// SPDX-License-Identifier: Apache-2.0
// Lists whose links live in the elements, so that queueing a waiter allocates nothing and unlinking it is O(1).
//
// An element borrows its place: it lives on a parked stack or in a pooled record, and whoever owns it must unlink it
// before it goes. One element is on at most one list at a time.
#pragma once

namespace gossamer::core {

/// The links of one element of an IntrusiveList.
struct ListHook {
    ListHook() noexcept = default;
    ListHook(const ListHook&) = delete;
    ListHook& operator=(const ListHook&) = delete;

    bool is_linked() const noexcept { return next != nullptr; }

    void unlink() noexcept {
        previous->next = next;
        next->previous = previous;
        next = previous = nullptr;
    }

    ListHook* next = nullptr;
    ListHook* previous = nullptr;
};

/// A doubly linked list of T, which derives from ListHook. Not thread-safe.
template <typename T>
class IntrusiveList final {
public:
    IntrusiveList() noexcept { root_.next = root_.previous = &root_; }
    IntrusiveList(const IntrusiveList&) = delete;
    IntrusiveList& operator=(const IntrusiveList&) = delete;
    ~IntrusiveList() = default;

    bool is_empty() const noexcept { return root_.next == &root_; }

    void push_back(T& element) noexcept {
        ListHook& hook = element;
        hook.previous = root_.previous;
        hook.next = &root_;
        root_.previous->next = &hook;
        root_.previous = &hook;
    }

    T* front() noexcept { return is_empty() ? nullptr : static_cast<T*>(root_.next); }

    T* pop_front() noexcept {
        T* first = front();
        if (first != nullptr) {
            static_cast<ListHook*>(first)->unlink();
        }
        return first;
    }

    /// The element after `element`, or null at the end.
    T* next_of(T& element) noexcept {
        ListHook* next = static_cast<ListHook&>(element).next;
        return next == &root_ ? nullptr : static_cast<T*>(next);
    }

private:
    ListHook root_;
};

}  // namespace gossamer::core
