// SPDX-License-Identifier: Apache-2.0
#include "core/mailbox.hpp"

#include <gtest/gtest.h>
#include <memory>
#include <thread>
#include <vector>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

struct NumberedLetter : Letter {
    explicit NumberedLetter(int value) : number(value) {}
    int number;
};

std::vector<int> numbers_in(Mailbox& box) {
    std::vector<int> numbers;
    box.take([&](Letter& letter) { numbers.push_back(static_cast<NumberedLetter&>(letter).number); });
    return numbers;
}

/// Without giving up the core at first: the two sides are to run at the same time.
void spin_until(const std::atomic<int>& value, int wanted) {
    for (int looks = 0; value.load(std::memory_order_acquire) != wanted; ++looks) {
        if (looks > 2000) {
            std::this_thread::yield();
        }
    }
}

TEST(Mailbox, OldestComesFirst) {
    Mailbox box;
    NumberedLetter letters[] = {NumberedLetter(1), NumberedLetter(2), NumberedLetter(3)};

    EXPECT_TRUE(box.is_empty());
    for (NumberedLetter& letter : letters) {
        EXPECT_TRUE(box.post(letter));
    }

    EXPECT_FALSE(box.is_empty());
    EXPECT_EQ((std::vector<int>{1, 2, 3}), numbers_in(box));
    EXPECT_TRUE(box.is_empty());
}

TEST(Mailbox, LetterIsInTheBoxAtMostOnce) {
    Mailbox box;
    NumberedLetter letter(7);

    EXPECT_TRUE(box.post(letter));
    EXPECT_FALSE(box.post(letter));

    EXPECT_EQ((std::vector<int>{7}), numbers_in(box));
    EXPECT_TRUE(box.post(letter));
}

TEST(Mailbox, ReceiverMayPostTheLetterAgain) {
    Mailbox box;
    NumberedLetter letter(7);
    NumberedLetter other(8);
    box.post(letter);
    box.post(other);
    int received = 0;

    box.take([&](Letter& taken) {
        ++received;
        EXPECT_TRUE(box.post(taken));
    });

    EXPECT_EQ(2, received);
    EXPECT_EQ((std::vector<int>{7, 8}), numbers_in(box));
}

// The poster finds the letter posted already and leaves it at that; its receiver is just about to look. If the flag were
// cleared by a plain store, the receiver's look could come before it and both would miss each other.
TEST(Mailbox, PostOfALetterThatLiesThereIsNotLost) {
    constexpr int kRounds = testing::kIsSanitized ? 20'000 : 200'000;
    Mailbox box;
    NumberedLetter letter(0);
    std::atomic<int> go{0};
    std::atomic<int> change{0};  // what the poster has done before its post
    std::atomic<int> posted{0};
    std::thread poster([&] {
        for (int round = 1; round <= kRounds; ++round) {
            spin_until(go, round);
            change.store(round, std::memory_order_relaxed);
            box.post(letter);
            posted.store(round, std::memory_order_relaxed);
        }
    });
    int lost = 0;

    for (int round = 1; round <= kRounds; ++round) {
        int seen = 0;
        const auto look = [&](Letter&) { seen = change.load(std::memory_order_relaxed); };
        box.post(letter);
        go.store(round, std::memory_order_release);
        for (int pause = 0; pause < round % 64; ++pause) {
            asm volatile("pause");
        }
        box.take(look);
        spin_until(posted, round);
        box.take(look);
        lost += seen != round ? 1 : 0;
    }
    poster.join();

    EXPECT_EQ(0, lost);
}

TEST(Mailbox, ManyProducersLoseNoWakeUp) {
    constexpr int kProducers = 4;
    constexpr int kLetters = 16;
    constexpr int kRounds = testing::kIsSanitized ? 20'000 : 100'000;
    struct Waiter : Letter {
        std::atomic<std::uint64_t> work{0};  // what the waiter is woken for
    };
    Mailbox box;
    std::vector<std::unique_ptr<Waiter>> waiters;
    for (int count = 0; count < kLetters; ++count) {
        waiters.push_back(std::make_unique<Waiter>());
    }
    std::vector<std::thread> producers;
    std::atomic<int> running{kProducers};
    for (int producer = 0; producer < kProducers; ++producer) {
        producers.emplace_back([&, producer] {
            for (int round = 0; round < kRounds; ++round) {
                Waiter& waiter = *waiters[static_cast<std::size_t>(round * 7 + producer) % kLetters];
                waiter.work.fetch_add(1, std::memory_order_relaxed);
                box.post(waiter);
            }
            running.fetch_sub(1);
        });
    }
    std::uint64_t done = 0;
    const auto receive = [&](Letter& letter) {
        done += static_cast<Waiter&>(letter).work.exchange(0, std::memory_order_relaxed);
    };

    while (running.load() > 0) {
        box.take(receive);
        std::this_thread::yield();
    }
    box.take(receive);

    for (std::thread& producer : producers) {
        producer.join();
    }
    EXPECT_EQ(std::uint64_t{kProducers} * kRounds, done);
}

// Plain data behind the flag: ThreadSanitizer sees a race if a post that found the letter there does not synchronise.
TEST(Mailbox, PostPublishesWhatThePosterWroteBefore) {
    Mailbox box;
    NumberedLetter letter(0);
    int written = 0;
    std::atomic<bool> is_posted{false};
    box.post(letter);
    std::thread poster([&] {
        written = 42;
        EXPECT_FALSE(box.post(letter));
        is_posted.store(true, std::memory_order_relaxed);
    });
    while (!is_posted.load(std::memory_order_relaxed)) {
        std::this_thread::yield();
    }
    int seen = 0;

    box.take([&](Letter&) { seen = written; });

    poster.join();
    EXPECT_EQ(42, seen);
}

}  // namespace
}  // namespace gossamer::core
