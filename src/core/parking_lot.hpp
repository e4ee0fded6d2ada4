// SPDX-License-Identifier: Apache-2.0
// Queues of waiters keyed by address, for locks, queues, joins: anything that has no queue of its own that a fiber can
// stand in (the idea is WebKit's WTF::ParkingLot). One lot serves the process; a waiter may be a fiber or an OS thread.
//
// Protocol, the same on every thread:
//
//     waiter: enqueue(key) -> look again whether the wait is over -> if not: park, then look again ... -> cancel()
//     waker:  make the wait over (unlock, put, finish)            -> unpark_one(key) or unpark_all(key)
//
// `enqueue` and the waker's change are ordered by seq_cst operations on both sides, so either the waiter sees the change
// or the waker sees the waiter. The waker takes the waiter off its queue and wakes it under the bucket's mutex; after
// cancel() returns nobody refers to the waiter any more.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "core/wakeable.hpp"

namespace gossamer::core {

/// One wait on one key; lives on the waiter's stack. The waiters of a key are a queue, and the first of each queue stand in
/// a chain: a key with a hundred thousand waiters costs another one in its bucket a single step.
struct ParkedWaiter final {
    explicit ParkedWaiter(Wakeable& whom) noexcept : target(&whom) {}
    ParkedWaiter(const ParkedWaiter&) = delete;
    ParkedWaiter& operator=(const ParkedWaiter&) = delete;

    const void* key = nullptr;
    Wakeable* target;

    // under the bucket's mutex
    bool is_queued = false;
    ParkedWaiter* next = nullptr;      // in the key's queue
    ParkedWaiter* previous = nullptr;  // in the key's queue; of its first: the last
    ParkedWaiter* next_key = nullptr;  // of the first: the first of another key
};

class ParkingLot final {
public:
    constexpr ParkingLot() noexcept = default;
    ParkingLot(const ParkingLot&) = delete;
    ParkingLot& operator=(const ParkingLot&) = delete;
    ~ParkingLot() = default;

    /// The process's only lot.
    static ParkingLot& instance() noexcept;

    /// Queues `waiter` behind the others of `key`. Parks: no. Thread: any. Python: not needed.
    void enqueue(const void* key, ParkedWaiter& waiter) noexcept;

    /// Takes `waiter` off its queue. Returns false when a waker took it off before: that wake-up was meant for this
    /// waiter, and if it does not use it, it must pass it on with unpark_one.
    [[nodiscard]] bool cancel(ParkedWaiter& waiter) noexcept;

    /// Wakes the first waiter of `key`. Returns whether there was one.
    bool unpark_one(const void* key) noexcept;

    /// Wakes all waiters of `key`.
    void unpark_all(const void* key) noexcept;

    /// Whether somebody may be waiting on `key`: one load, and false only when nobody enqueued before the caller's last
    /// read-modify-write of the thing waited for.
    bool may_have_waiters(const void* key) const noexcept {
        // relaxed: the caller's own unlock was an atomic read-modify-write, which on x86-64 is a full fence and pairs
        // with the one in enqueue().
        return buckets_[index_of(key)].count.load(std::memory_order_relaxed) != 0;
    }

    /// In a forked child: forgets every waiter, for they are threads and fibers of the parent.
    void reset_after_fork() noexcept;

private:
    static constexpr int kBucketBits = 14;

    struct alignas(64) Bucket {
        std::mutex mutex;
        ParkedWaiter* first = nullptr;        // of each key in turn, by next_key; under mutex
        std::atomic<std::uint32_t> count{0};  // of waiters; written under mutex

        ParkedWaiter** find(const void* key) noexcept;
        void take_off(ParkedWaiter** link, ParkedWaiter& waiter) noexcept;
    };

    static std::size_t index_of(const void* key) noexcept {
        return static_cast<std::size_t>((reinterpret_cast<std::uintptr_t>(key) >> 4) * 0x9E3779B97F4A7C15u >>
                                        (64 - kBucketBits));
    }

    std::array<Bucket, std::size_t{1} << kBucketBits> buckets_;
};

}  // namespace gossamer::core
