// SPDX-License-Identifier: Apache-2.0
#include "core/parking_lot.hpp"

#include <cerrno>
#include <deque>
#include <gtest/gtest.h>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/os_thread_waiter.hpp"
#include "core/support.hpp"

namespace gossamer::core {
namespace {

using testing::CountingWaiter;

class ParkingLotTest : public ::testing::Test {
protected:
    ParkingLot& lot = ParkingLot::instance();
    int key = 0;
    int other_key = 0;
};

TEST_F(ParkingLotTest, NobodyWaitsAtFirst) {
    EXPECT_FALSE(lot.may_have_waiters(&key));
    EXPECT_FALSE(lot.unpark_one(&key));
    lot.unpark_all(&key);
}

TEST_F(ParkingLotTest, WaitersOfAKeyAreServedInOrder) {
    CountingWaiter targets[3];
    ParkedWaiter waiters[] = {ParkedWaiter(targets[0]), ParkedWaiter(targets[1]), ParkedWaiter(targets[2])};
    for (ParkedWaiter& waiter : waiters) {
        lot.enqueue(&key, waiter);
    }
    EXPECT_TRUE(lot.may_have_waiters(&key));

    for (int served = 0; served < 3; ++served) {
        EXPECT_TRUE(lot.unpark_one(&key));
        for (int index = 0; index < 3; ++index) {
            EXPECT_EQ(index <= served ? 1 : 0, targets[index].count.load());
        }
    }

    EXPECT_FALSE(lot.unpark_one(&key));
    EXPECT_FALSE(lot.may_have_waiters(&key));
}

TEST_F(ParkingLotTest, KeysThatShareABucketDoNotWakeEachOther) {
    std::vector<char> keys(1 << 20);  // 65,536 keys in 16,384 buckets
    CountingWaiter target;
    ParkedWaiter waiter(target);
    lot.enqueue(keys.data(), waiter);

    for (std::size_t offset = 16; offset < keys.size(); offset += 16) {
        ASSERT_FALSE(lot.unpark_one(keys.data() + offset));
    }

    EXPECT_EQ(0, target.count.load());
    EXPECT_TRUE(lot.unpark_one(keys.data()));
}

TEST_F(ParkingLotTest, UnparkAllWakesThoseOfTheKeyOnly) {
    CountingWaiter mine[2];
    CountingWaiter others;
    ParkedWaiter first(mine[0]);
    ParkedWaiter second(mine[1]);
    ParkedWaiter third(others);
    lot.enqueue(&key, first);
    lot.enqueue(&other_key, third);
    lot.enqueue(&key, second);

    lot.unpark_all(&key);

    EXPECT_EQ(1, mine[0].count.load());
    EXPECT_EQ(1, mine[1].count.load());
    EXPECT_EQ(0, others.count.load());
    EXPECT_TRUE(lot.cancel(third));
}

TEST_F(ParkingLotTest, CancelledWaiterIsNotWoken) {
    CountingWaiter target;
    ParkedWaiter waiter(target);
    lot.enqueue(&key, waiter);

    EXPECT_TRUE(lot.cancel(waiter));

    EXPECT_FALSE(lot.may_have_waiters(&key));
    EXPECT_FALSE(lot.unpark_one(&key));
    EXPECT_EQ(0, target.count.load());
}

TEST_F(ParkingLotTest, CancellingAWaiterKeepsTheOrderOfTheOthers) {
    for (std::size_t cancelled = 0; cancelled < 4; ++cancelled) {
        CountingWaiter targets[5];
        ParkedWaiter waiters[] = {ParkedWaiter(targets[0]), ParkedWaiter(targets[1]), ParkedWaiter(targets[2]),
                                  ParkedWaiter(targets[3]), ParkedWaiter(targets[4])};
        for (std::size_t index = 0; index < 4; ++index) {
            lot.enqueue(&key, waiters[index]);
        }
        EXPECT_TRUE(lot.cancel(waiters[cancelled]));
        lot.enqueue(&key, waiters[4]);

        for (std::size_t index = 0; index < 5; ++index) {
            if (index != cancelled) {
                EXPECT_EQ(0, targets[index].count.load());
                EXPECT_TRUE(lot.unpark_one(&key));
                EXPECT_EQ(1, targets[index].count.load());
            }
        }

        EXPECT_EQ(0, targets[cancelled].count.load());
        EXPECT_FALSE(lot.may_have_waiters(&key));
    }
}

TEST_F(ParkingLotTest, QueuesOfManyKeysBehaveAsIfEachWereAlone) {
    constexpr std::size_t kKeys = 40'000;  // more than buckets
    constexpr std::size_t kSteps = 400'000;
    std::vector<char> keys(kKeys * 16);
    std::vector<std::deque<std::size_t>> model(kKeys);
    std::vector<CountingWaiter> targets(kKeys * 2);
    std::deque<ParkedWaiter> waiters;  // never moved
    std::vector<std::size_t> key_of(targets.size(), kKeys);
    std::vector<int> expected(targets.size());
    for (CountingWaiter& target : targets) {
        waiters.emplace_back(target);
    }
    std::mt19937 random(1);
    const auto serve = [&](std::size_t chosen) {
        const std::size_t waiter = model[chosen].front();
        model[chosen].pop_front();
        key_of[waiter] = kKeys;
        ++expected[waiter];
    };

    for (std::size_t step = 0; step < kSteps; ++step) {
        const std::size_t chosen = random() % kKeys;
        const std::size_t waiter = random() % targets.size();
        const char* const chosen_key = keys.data() + (chosen * 16);
        if (key_of[waiter] == kKeys) {
            lot.enqueue(chosen_key, waiters[waiter]);
            key_of[waiter] = chosen;
            model[chosen].push_back(waiter);
        } else if (step % 3 == 0) {
            ASSERT_TRUE(lot.cancel(waiters[waiter]));
            std::erase(model[key_of[waiter]], waiter);
            key_of[waiter] = kKeys;
        } else if (step % 3 == 1) {
            ASSERT_EQ(!model[chosen].empty(), lot.unpark_one(chosen_key));
            if (!model[chosen].empty()) {
                serve(chosen);
            }
        } else {
            lot.unpark_all(chosen_key);
            while (!model[chosen].empty()) {
                serve(chosen);
            }
        }
    }

    for (std::size_t waiter = 0; waiter < targets.size(); ++waiter) {
        ASSERT_EQ(expected[waiter], targets[waiter].count.load()) << waiter;
        ASSERT_EQ(key_of[waiter] != kKeys, lot.cancel(waiters[waiter]));
    }
}

TEST_F(ParkingLotTest, CancelTellsThatAWakerWasFirst) {
    CountingWaiter target;
    ParkedWaiter waiter(target);
    lot.enqueue(&key, waiter);
    lot.unpark_one(&key);

    EXPECT_FALSE(lot.cancel(waiter));
    EXPECT_FALSE(lot.cancel(waiter));
}

TEST_F(ParkingLotTest, ForkedChildHasNoWaitersAndFreeMutexes) {
    CountingWaiter target;
    ParkedWaiter waiter(target);
    lot.enqueue(&key, waiter);

    const int code = testing::run_in_child([&] {
        lot.reset_after_fork();
        if (lot.may_have_waiters(&key) || lot.unpark_one(&key)) {
            return 1;
        }
        ParkedWaiter again(target);
        lot.enqueue(&key, again);
        return lot.unpark_one(&key) && target.count.load() == 1 ? 0 : 2;
    });

    EXPECT_EQ(0, code);
    EXPECT_TRUE(lot.cancel(waiter));
}

/// One permit, several takers, taken apart into the steps of the protocol, so that a test can run them in any order. A
/// step is what happens between two points where another thread may come in.
struct Permit {
    int permits = 0;
};

class Taker {
public:
    Taker(Permit& permit, bool gives_up) : permit_(permit), gives_up_(gives_up), waiter_(target_) {}
    ~Taker() {
        if (waiter_.is_queued) {
            std::ignore = ParkingLot::instance().cancel(waiter_);
        }
    }

    bool has_permit = false;
    bool has_given_up = false;
    bool can_go_on() const {
        return state_ != State::kOver && (state_ != State::kParked || target_.count.load() > 0 || gives_up_);
    }

    /// Runs one step.
    void step() {
        ParkingLot& lot = ParkingLot::instance();
        switch (state_) {
            case State::kStart:
                lot.enqueue(&permit_, waiter_);
                state_ = State::kQueued;
                break;
            case State::kQueued:  // look again
                has_permit = try_take();
                state_ = has_permit ? State::kLeaving : State::kParked;
                break;
            case State::kParked:  // woken, or the deadline passed
                has_given_up = target_.count.load() == 0;
                target_.count = 0;
                state_ = State::kLeaving;
                break;
            case State::kLeaving:
                was_chosen_ = !lot.cancel(waiter_);
                state_ = State::kLast;
                break;
            case State::kLast:
                if (!has_permit && !(has_permit = try_take())) {
                    if (!has_given_up) {
                        state_ = State::kStart;
                        break;
                    }
                } else {
                    has_given_up = false;
                }
                // Chosen by a waker, but served without it or gone: the wake-up is another's.
                if (was_chosen_) {
                    lot.unpark_one(&permit_);
                }
                state_ = State::kOver;
                break;
            case State::kOver:
                break;
        }
    }

private:
    enum class State { kStart, kQueued, kParked, kLeaving, kLast, kOver };

    bool try_take() {
        if (permit_.permits == 0) {
            return false;
        }
        --permit_.permits;
        return true;
    }

    Permit& permit_;
    const bool gives_up_;
    CountingWaiter target_;
    ParkedWaiter waiter_;
    State state_ = State::kStart;
    bool was_chosen_ = false;
};

class Giver {
public:
    Giver(Permit& permit, int permits) : permit_(permit), left_(2 * permits) {}
    bool can_go_on() const { return left_ > 0; }
    void step() {
        if (left_-- % 2 == 0) {
            ++permit_.permits;
        } else if (ParkingLot::instance().may_have_waiters(&permit_)) {
            ParkingLot::instance().unpark_one(&permit_);
        }
    }

private:
    Permit& permit_;
    int left_;
};

struct World {
    World(int takers, bool last_gives_up, int permits_given) : giver(permit, permits_given) {
        for (int index = 0; index < takers; ++index) {
            this->takers.push_back(std::make_unique<Taker>(permit, last_gives_up && index == takers - 1));
        }
    }

    /// Who can take a step: the giver is 0.
    std::vector<std::size_t> choices() const {
        std::vector<std::size_t> result;
        if (giver.can_go_on()) {
            result.push_back(0);
        }
        for (std::size_t index = 0; index < takers.size(); ++index) {
            if (takers[index]->can_go_on()) {
                result.push_back(index + 1);
            }
        }
        return result;
    }

    void step(std::size_t choice) { choice == 0 ? giver.step() : takers[choice - 1]->step(); }

    Permit permit;
    Giver giver;
    std::vector<std::unique_ptr<Taker>> takers;
};

/// Runs every order of steps (up to `longest` of them: a taker that gives up may be asked to wait again and again) and
/// calls `check(world, order)` at each end. Returns how many orders there were.
template <typename Make, typename Check>
std::size_t walk_interleavings(Make make, Check check) {
    std::vector<std::size_t> order;  // indices into choices()
    std::size_t walks = 0;
    for (;;) {
        auto world = make();
        std::vector<std::size_t> widths;
        std::string text;
        for (std::size_t depth = 0;; ++depth) {
            const std::vector<std::size_t> choices = world->choices();
            if (choices.empty()) {
                break;
            }
            if (depth == order.size()) {
                order.push_back(0);
            }
            widths.push_back(choices.size());
            text += static_cast<char>('0' + choices[order[depth]]);
            world->step(choices[order[depth]]);
        }
        check(*world, text);
        ++walks;
        order.resize(widths.size());
        while (!order.empty() && order.back() + 1 == widths[order.size() - 1]) {
            order.pop_back();
        }
        if (order.empty() || ::testing::Test::HasFailure()) {
            return walks;
        }
        ++order.back();
    }
}

TEST_F(ParkingLotTest, NoOrderOfStepsLosesTheWakeUpOfAWaiter) {
    const std::size_t walks = walk_interleavings(
        [] { return std::make_unique<World>(1, false, 1); },
        [](World& world, const std::string& order) { EXPECT_TRUE(world.takers[0]->has_permit) << order; });

    EXPECT_GT(walks, 5u);
}

TEST_F(ParkingLotTest, NoOrderOfStepsLosesOneOfTwoPermits) {
    const std::size_t walks = walk_interleavings([] { return std::make_unique<World>(2, false, 2); },
                                                 [](World& world, const std::string& order) {
                                                     EXPECT_TRUE(world.takers[0]->has_permit) << order;
                                                     EXPECT_TRUE(world.takers[1]->has_permit) << order;
                                                 });

    EXPECT_GT(walks, 1000u);
}

// The second may give up just when it is chosen; then the permit must reach the first.
TEST_F(ParkingLotTest, NoOrderOfStepsLosesAPermitToAWaiterThatGivesUp) {
    std::size_t gave_up = 0;
    const std::size_t walks = walk_interleavings([] { return std::make_unique<World>(2, true, 1); },
                                                 [&](World& world, const std::string& order) {
                                                     const bool first = world.takers[0]->has_permit;
                                                     const bool second = world.takers[1]->has_permit;
                                                     gave_up += world.takers[1]->has_given_up ? 1 : 0;
                                                     EXPECT_TRUE(first != second) << order;
                                                     EXPECT_EQ(second, !world.takers[1]->has_given_up) << order;
                                                 });

    EXPECT_GT(walks, 1000u);
    EXPECT_GT(gave_up, 0u);
}

/// The protocol as an OS thread follows it: waits until `is_over()` or the deadline.
template <typename IsOver>
bool wait_until(const void* key, Deadline deadline, IsOver is_over) {
    ParkingLot& lot = ParkingLot::instance();
    OsThreadWaiter sleeper;
    ParkedWaiter waiter(sleeper);
    for (;;) {
        lot.enqueue(key, waiter);
        bool is_served = is_over();
        const int result = is_served ? 0 : sleeper.wait(deadline);
        const bool was_chosen = !lot.cancel(waiter);
        is_served = is_served || is_over();
        if (is_served || result == ETIMEDOUT) {
            if (was_chosen) {
                lot.unpark_one(key);
            }
            return is_served;
        }
    }
}

TEST_F(ParkingLotTest, CancelRacesWithAWakeAndExactlyOneWins) {
    constexpr int kRounds = testing::kIsSanitized ? 20'000 : 200'000;
    std::atomic<int> go{0};
    std::atomic<int> answered{0};
    std::atomic<bool> has_woken{false};
    std::thread waker([&] {
        for (int round = 1; round <= kRounds; ++round) {
            while (go.load() != round) {
                std::this_thread::yield();
            }
            has_woken = lot.unpark_one(&key);
            answered = round;
        }
    });

    for (int round = 1; round <= kRounds; ++round) {
        CountingWaiter target;
        ParkedWaiter waiter(target);
        lot.enqueue(&key, waiter);
        go = round;
        for (int pause = 0; pause < round % 32; ++pause) {
            asm volatile("pause");
        }
        const bool is_cancelled = lot.cancel(waiter);
        const int count = target.count.load();  // after cancel() nobody touches the waiter any more
        while (answered.load() != round) {
            std::this_thread::yield();
        }
        ASSERT_NE(is_cancelled, has_woken.load()) << round;
        ASSERT_EQ(is_cancelled ? 0 : 1, count) << round;
    }

    waker.join();
}

/// A baton that goes from thread to thread at random; a lost wake-up would leave it where nobody looks.
TEST_F(ParkingLotTest, AMillionRandomHandOffsLoseNoWakeUp) {
    constexpr int kThreads = 4;
    constexpr int kHandOffs = testing::kIsSanitized ? 150'000 : 1'000'000;
    constexpr int kBatons = 2;
    const std::uint64_t seed = testing::seed();
    struct alignas(64) Place {
        std::atomic<int> batons{0};
    };
    Place places[kThreads];
    std::atomic<int> left{kHandOffs};
    std::vector<std::thread> threads;

    for (std::size_t self = 0; self < kThreads; ++self) {
        threads.emplace_back([&, self] {
            std::mt19937_64 random(seed + self);
            while (left.load() > 0) {
                const auto take = [&] {
                    int have = places[self].batons.load();
                    while (have > 0 && !places[self].batons.compare_exchange_weak(have, have - 1)) {
                    }
                    return have > 0 || left.load() <= 0;
                };
                // Some look a while first, some time out in the middle, some sleep until they are woken.
                bool is_mine = false;
                for (std::uint64_t looks = random() % 4; !is_mine && looks > 0; --looks) {
                    is_mine = take();
                    std::this_thread::yield();
                }
                if (!is_mine) {
                    const bool has_deadline = random() % 8 == 0;
                    const Nanoseconds delay(random() % 20'000);
                    is_mine =
                        wait_until(&places[self],
                                   has_deadline ? Deadline::after(monotonic_now(), delay) : Deadline::never(), take);
                    if (!is_mine && !(is_mine = take())) {
                        continue;
                    }
                }
                if (left.fetch_sub(1) <= 1) {
                    for (const Place& place : places) {
                        lot.unpark_all(&place);
                    }
                    return;
                }
                const std::size_t next = (self + 1 + random() % (kThreads - 1)) % kThreads;
                places[next].batons.fetch_add(1);
                if (lot.may_have_waiters(&places[next])) {
                    lot.unpark_one(&places[next]);
                }
            }
        });
    }
    for (std::size_t baton = 0; baton < kBatons; ++baton) {
        places[baton].batons.fetch_add(1);
        lot.unpark_one(&places[baton]);
    }

    for (std::thread& thread : threads) {
        thread.join();  // hangs if a wake-up was lost
    }
    EXPECT_LE(left.load(), 0);
    for (const Place& place : places) {
        EXPECT_FALSE(lot.unpark_one(&place));
    }
}

TEST_F(ParkingLotTest, ManyTakersOfFewPermitsGetEachOne) {
    constexpr int kThreads = 4;
    constexpr int kRounds = testing::kIsSanitized ? 10'000 : 50'000;
    std::atomic<int> permits{2};
    std::atomic<int> inside{0};
    std::atomic<int> most{0};
    std::vector<std::thread> threads;

    for (int self = 0; self < kThreads; ++self) {
        threads.emplace_back([&] {
            for (int round = 0; round < kRounds; ++round) {
                const auto take = [&] {
                    int have = permits.load();
                    while (have > 0 && !permits.compare_exchange_weak(have, have - 1)) {
                    }
                    return have > 0;
                };
                if (!take() && !wait_until(&permits, Deadline::never(), take)) {
                    ADD_FAILURE();
                }
                const int now = inside.fetch_add(1) + 1;
                for (int seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
                }
                inside.fetch_sub(1);
                permits.fetch_add(1);
                if (lot.may_have_waiters(&permits)) {
                    lot.unpark_one(&permits);
                }
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }

    EXPECT_EQ(2, permits.load());
    EXPECT_LE(most.load(), 2);
}

}  // namespace
}  // namespace gossamer::core
