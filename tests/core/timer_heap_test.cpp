// SPDX-License-Identifier: Apache-2.0
#include "core/timer_heap.hpp"

#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

void do_nothing(Timer&) noexcept {}

struct TestTimer : Timer {
    TestTimer() : Timer(&do_nothing) {}
};

Deadline at(std::int64_t nanoseconds) { return Deadline::at(Nanoseconds(nanoseconds)); }

TEST(TimerHeap, EmptyHeapIsDueNever) {
    TimerHeap heap;

    EXPECT_TRUE(heap.next().is_never());
    EXPECT_EQ(nullptr, heap.pop_expired(Nanoseconds::max()));
}

TEST(TimerHeap, PopsInOrderOfDeadlineAndNotBeforeTheirTime) {
    TimerHeap heap;
    TestTimer late;
    TestTimer early;
    heap.arm(late, at(20));
    heap.arm(early, at(10));

    EXPECT_EQ(at(10), heap.next());
    EXPECT_EQ(nullptr, heap.pop_expired(Nanoseconds(9)));
    EXPECT_EQ(&early, heap.pop_expired(Nanoseconds(10)));
    EXPECT_FALSE(early.is_armed());
    EXPECT_EQ(nullptr, heap.pop_expired(Nanoseconds(19)));
    EXPECT_EQ(&late, heap.pop_expired(Nanoseconds(100)));
    EXPECT_TRUE(heap.is_empty());
}

TEST(TimerHeap, DisarmingAnIdleTimerDoesNothing) {
    TimerHeap heap;
    TestTimer timer;
    TestTimer other;
    heap.arm(other, at(1));

    heap.disarm(timer);

    EXPECT_EQ(1u, heap.size());
}

TEST(TimerHeap, AMillionDisarmedTimersLeaveNothing) {
    TimerHeap heap;
    TestTimer other;
    TestTimer timer;
    heap.arm(other, at(5));

    for (int count = 0; count < 1'000'000; ++count) {
        heap.arm(timer, at(count % 10));
        heap.disarm(timer);
    }

    EXPECT_EQ(1u, heap.size());
    EXPECT_EQ(at(5), heap.next());
}

TEST(TimerHeap, EachArmedTimerIsVisitedOnce) {
    TimerHeap heap;
    TestTimer timers[3];
    for (TestTimer& timer : timers) {
        heap.arm(timer, at(1));
    }
    heap.disarm(timers[1]);
    std::map<Timer*, int> visits;

    heap.for_each([&](Timer& timer) { ++visits[&timer]; });

    EXPECT_EQ((std::map<Timer*, int>{{&timers[0], 1}, {&timers[2], 1}}), visits);
}

TEST(TimerHeap, NeverSortsLast) {
    TimerHeap heap;
    TestTimer never;
    TestTimer once;
    heap.arm(never, Deadline::never());
    heap.arm(once, at(1));

    EXPECT_EQ(&once, heap.pop_expired(Nanoseconds(1)));
    EXPECT_EQ(nullptr, heap.pop_expired(Nanoseconds::max() - Nanoseconds(1)));
    heap.disarm(never);
    EXPECT_TRUE(heap.is_empty());
}

TEST(TimerHeap, AgreesWithASortedMapUnderRandomUse) {
    std::mt19937_64 random(testing::seed());
    TimerHeap heap;
    std::multimap<Deadline, Timer*> model;
    std::vector<std::unique_ptr<TestTimer>> timers;
    std::vector<std::multimap<Deadline, Timer*>::iterator> places;
    for (int count = 0; count < 500; ++count) {
        timers.push_back(std::make_unique<TestTimer>());
        places.push_back(model.end());
    }
    std::int64_t now = 0;

    for (int step = 0; step < 500'000; ++step) {
        const std::size_t index = random() % timers.size();
        TestTimer& timer = *timers[index];
        if (random() % 8 == 0) {
            now += static_cast<std::int64_t>(random() % 20);
            while (Timer* due = heap.pop_expired(Nanoseconds(now))) {
                auto place = model.begin();
                while (place->second != due) {
                    ++place;
                }
                ASSERT_EQ(model.begin()->first, place->first) << "not the earliest";
                model.erase(place);
            }
            ASSERT_TRUE(model.empty() || !model.begin()->first.is_past(Nanoseconds(now))) << "an expired one is left";
        } else if (timer.is_armed()) {
            heap.disarm(timer);
            model.erase(places[index]);
        } else {
            const Deadline deadline = at(now + static_cast<std::int64_t>(random() % 300));  // many equal ones
            heap.arm(timer, deadline);
            places[index] = model.emplace(deadline, &timer);
        }
        ASSERT_EQ(model.size(), heap.size());
        ASSERT_EQ(model.empty() ? Deadline::never() : model.begin()->first, heap.next());
    }
}

TEST(TimerHeapDeathTest, ArmingTwiceIsAnInternalError) {
    ::testing::FLAGS_gtest_death_test_style = "threadsafe";
    TimerHeap heap;
    TestTimer timer;
    heap.arm(timer, at(1));

    EXPECT_DEATH(heap.arm(timer, at(2)), "gossamer: internal error: .*is_armed");
}

}  // namespace
}  // namespace gossamer::core
