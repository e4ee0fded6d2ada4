// SPDX-License-Identifier: Apache-2.0
#include "core/parking_lot.hpp"

#include <new>

namespace gossamer::core {

ParkingLot& ParkingLot::instance() noexcept {
    // Never destroyed: threads that the interpreter leaves behind may still release locks while the process exits.
    static ParkingLot* lot = new ParkingLot;
    return *lot;
}

void ParkingLot::enqueue(const void* key, ParkedWaiter& waiter) noexcept {
    Bucket& bucket = buckets_[index_of(key)];
    const std::lock_guard lock(bucket.mutex);
    waiter.key = key;
    bucket.waiters.push_back(waiter);
    // seq_cst read-modify-write: pairs with the waker's change before its may_have_waiters().
    bucket.count.fetch_add(1);
}

bool ParkingLot::cancel(ParkedWaiter& waiter) noexcept {
    Bucket& bucket = buckets_[index_of(waiter.key)];
    const std::lock_guard lock(bucket.mutex);
    if (!waiter.is_linked()) {
        return false;
    }
    waiter.unlink();
    bucket.count.fetch_sub(1);
    return true;
}

bool ParkingLot::unpark_one(const void* key) noexcept { return unpark(key, false); }

void ParkingLot::unpark_all(const void* key) noexcept { unpark(key, true); }

bool ParkingLot::unpark(const void* key, bool all) noexcept {
    Bucket& bucket = buckets_[index_of(key)];
    const std::lock_guard lock(bucket.mutex);
    bool found = false;
    for (ParkedWaiter* waiter = bucket.waiters.front(); waiter != nullptr;) {
        ParkedWaiter* next = bucket.waiters.next_of(*waiter);
        if (waiter->key == key) {
            waiter->unlink();
            bucket.count.fetch_sub(1);
            waiter->target->wake();  // under the mutex: until it is released the waiter cannot go
            found = true;
            if (!all) {
                break;
            }
        }
        waiter = next;
    }
    return found;
}

void ParkingLot::reset_after_fork() noexcept {
    for (Bucket& bucket : buckets_) {
        // Safety: the child has one thread; a mutex that another thread held at the fork is made anew, and the waiters
        // are dropped without touching them.
        bucket.~Bucket();
        new (&bucket) Bucket;
    }
}

}  // namespace gossamer::core
