// SPDX-License-Identifier: Apache-2.0
#include "core/parking_lot.hpp"

#include <cstring>
#include <new>
#include <type_traits>

namespace gossamer::core {

ParkingLot& ParkingLot::instance() noexcept {
    // All zero, so that a bucket costs memory only once somebody waits in it. Never destroyed: threads that the interpreter
    // leaves behind may still release locks while the process exits.
    constinit static ParkingLot lot;
    static_assert(std::is_trivially_destructible_v<ParkingLot>);
    return lot;
}

/// The link to the first waiter of `key`, or the null link at the end of the chain.
ParkedWaiter** ParkingLot::Bucket::find(const void* key) noexcept {
    ParkedWaiter** link = &first;
    while (*link != nullptr && (*link)->key != key) {
        link = &(*link)->next_key;
    }
    return link;
}

/// Takes `waiter` off the queue whose first is `*link`.
void ParkingLot::Bucket::take_off(ParkedWaiter** link, ParkedWaiter& waiter) noexcept {
    ParkedWaiter* const next = waiter.next;
    if (*link != &waiter) {
        waiter.previous->next = next;
        (next == nullptr ? *link : next)->previous = waiter.previous;
    } else if (next != nullptr) {
        next->previous = waiter.previous;
        next->next_key = waiter.next_key;
        *link = next;
    } else {
        *link = waiter.next_key;
    }
    waiter.is_queued = false;
    count.fetch_sub(1);
}

void ParkingLot::enqueue(const void* key, ParkedWaiter& waiter) noexcept {
    Bucket& bucket = buckets_[index_of(key)];
    const std::lock_guard lock(bucket.mutex);
    waiter.key = key;
    waiter.is_queued = true;
    waiter.next = waiter.next_key = nullptr;
    ParkedWaiter** link = bucket.find(key);
    if (ParkedWaiter* first = *link) {
        waiter.previous = first->previous;
        first->previous->next = &waiter;
        first->previous = &waiter;
    } else {
        waiter.previous = &waiter;
        *link = &waiter;
    }
    // seq_cst read-modify-write: pairs with the waker's change before its may_have_waiters().
    bucket.count.fetch_add(1);
}

bool ParkingLot::cancel(ParkedWaiter& waiter) noexcept {
    Bucket& bucket = buckets_[index_of(waiter.key)];
    const std::lock_guard lock(bucket.mutex);
    if (!waiter.is_queued) {
        return false;
    }
    bucket.take_off(bucket.find(waiter.key), waiter);
    return true;
}

bool ParkingLot::unpark_one(const void* key) noexcept {
    Bucket& bucket = buckets_[index_of(key)];
    const std::lock_guard lock(bucket.mutex);
    ParkedWaiter** link = bucket.find(key);
    ParkedWaiter* waiter = *link;
    if (waiter == nullptr) {
        return false;
    }
    bucket.take_off(link, *waiter);
    waiter->target->wake();  // under the mutex: until it is released the waiter cannot go
    return true;
}

void ParkingLot::unpark_all(const void* key) noexcept {
    Bucket& bucket = buckets_[index_of(key)];
    const std::lock_guard lock(bucket.mutex);
    ParkedWaiter** link = bucket.find(key);
    if (*link == nullptr) {
        return;
    }
    ParkedWaiter* waiter = *link;
    *link = waiter->next_key;
    while (waiter != nullptr) {
        ParkedWaiter* next = waiter->next;
        waiter->is_queued = false;
        bucket.count.fetch_sub(1);
        waiter->target->wake();  // under the mutex, as above
        waiter = next;
    }
}

void ParkingLot::reset_after_fork() noexcept {
    static constexpr char kUntouched[sizeof(Bucket)] = {};
    for (Bucket& bucket : buckets_) {
        // Safety: the child has one thread; a mutex that another thread held at the fork is made anew, and the waiters
        // are dropped without touching them. A bucket that nobody has used yet is not written to.
        if (std::memcmp(static_cast<const void*>(&bucket), kUntouched, sizeof(Bucket)) != 0) {
            bucket.~Bucket();
            new (&bucket) Bucket;
        }
    }
}

}  // namespace gossamer::core
