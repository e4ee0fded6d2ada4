// SPDX-License-Identifier: Apache-2.0
#include "core/epoll_reactor.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <poll.h>
#include <pthread.h>
#include <string>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

#include "core/support.hpp"

namespace gossamer::core {
namespace {

using testing::CountingWaiter;

constexpr auto kRead = static_cast<std::uint32_t>(Interest::kRead);
constexpr auto kWrite = static_cast<std::uint32_t>(Interest::kWrite);
constexpr auto kException = static_cast<std::uint32_t>(Interest::kException);
constexpr auto kPeerClosed = static_cast<std::uint32_t>(Interest::kPeerClosed);

/// One wait, with whom it wakes.
struct Wait {
    explicit Wait(std::uint32_t wanted) : waiter(target, wanted) {}

    CountingWaiter target;
    FdWaiter waiter;
};

/// A watch that adds up what it is told.
struct CountingWatch final : FdWatch {
    CountingWatch() noexcept : FdWatch(&note) {}

    static void note(FdWatch& watch, std::uint32_t events) noexcept {
        auto& self = static_cast<CountingWatch&>(watch);
        ++self.count;
        self.events |= events;
    }

    int count = 0;
    std::uint32_t events = 0;
};

struct SocketPair {
    SocketPair() {
        int ends[2];
        EXPECT_EQ(0, ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
        left = FileDescriptor(ends[0]);
        right = FileDescriptor(ends[1]);
    }

    void send(const std::string& text = "x") {
        EXPECT_EQ(static_cast<ssize_t>(text.size()), ::write(right.get(), text.data(), text.size()));
    }
    void drain_left() {
        char buffer[256];
        while (::read(left.get(), buffer, sizeof buffer) > 0) {
        }
    }
    void fill_left() {
        const std::vector<char> buffer(65536);
        while (::write(left.get(), buffer.data(), buffer.size()) > 0) {
        }
    }
    void drain_right() {
        std::vector<char> buffer(65536);
        while (::read(right.get(), buffer.data(), buffer.size()) > 0) {
        }
    }

    FileDescriptor left;
    FileDescriptor right;
};

class EpollReactorTest : public ::testing::Test {
protected:
    ~EpollReactorTest() override { EpollReactor::forbid_pwait2(false); }

    int add(int fd, const void* owner, Wait& wait) {
        return reactor.add_waiter(fd, reactor.entry(fd, owner), wait.waiter);
    }

    int wait(Deadline deadline) {
        return reactor.wait(deadline, monotonic_now(), nullptr, [] {}, [] {});
    }

    EpollReactor reactor;
    SocketPair pair;
    const int owner_ = 0;
    const int other_owner_ = 0;
    const void* const owner = &owner_;
    const void* const other_owner = &other_owner_;
};

TEST_F(EpollReactorTest, NothingHappensNothingIsReported) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));

    EXPECT_EQ(0, reactor.poll());

    EXPECT_EQ(0, read.target.count.load());
    EXPECT_EQ(1u, reactor.waiter_count());
    reactor.remove_waiter(read.waiter);
    EXPECT_EQ(0u, reactor.waiter_count());
}

TEST_F(EpollReactorTest, EdgeWakesTheWaiterOnceAndTakesItOff) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));

    pair.send();
    EXPECT_EQ(1, reactor.poll());

    EXPECT_TRUE(read.waiter.is_ready);
    EXPECT_EQ(1, read.target.count.load());
    EXPECT_EQ(0u, reactor.waiter_count());
    pair.send();
    reactor.poll();
    EXPECT_EQ(1, read.target.count.load());
    reactor.remove_waiter(read.waiter);
    EXPECT_EQ(0u, reactor.waiter_count());
}

TEST_F(EpollReactorTest, WhatWasReadyBeforeTheRegistrationIsReported) {
    Wait read(kRead);
    pair.send();

    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    reactor.poll();

    EXPECT_TRUE(read.waiter.is_ready);
}

// The contract of an edge: who waits without having read until EAGAIN waits for the next change.
TEST_F(EpollReactorTest, RegisteredDescriptorReportsChangesOnly) {
    Wait first(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, first));
    pair.send();
    reactor.poll();
    Wait second(kRead);

    EXPECT_EQ(0, add(pair.left.get(), owner, second));
    EXPECT_EQ(0, reactor.poll());
    EXPECT_FALSE(second.waiter.is_ready);
    pair.send();
    EXPECT_EQ(1, reactor.poll());

    EXPECT_TRUE(second.waiter.is_ready);
}

TEST_F(EpollReactorTest, EdgeBetweenTwoWaitsIsRemembered) {
    Wait first(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, first));
    pair.send();
    reactor.poll();
    pair.drain_left();
    FdEntry& entry = reactor.entry(pair.left.get(), owner);
    entry.may_be_readable = false;

    pair.send();
    reactor.poll();

    EXPECT_TRUE(reactor.entry(pair.left.get(), owner).may_be_readable);
}

TEST_F(EpollReactorTest, OneOwnerIsRegisteredOnce) {
    Wait first(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, first));
    const std::uint32_t generation = reactor.entry(pair.left.get(), owner).generation;
    reactor.remove_waiter(first.waiter);
    Wait second(kRead);

    EXPECT_EQ(0, add(pair.left.get(), owner, second));

    EXPECT_EQ(generation, reactor.entry(pair.left.get(), owner).generation);
    reactor.remove_waiter(second.waiter);
}

TEST_F(EpollReactorTest, RegistrationGrowsFromReadToReadAndWrite) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    pair.fill_left();
    Wait write(kWrite);

    EXPECT_EQ(0, add(pair.left.get(), owner, write));
    reactor.poll();
    EXPECT_FALSE(write.waiter.is_ready);
    EXPECT_FALSE(read.waiter.is_ready);
    pair.drain_right();
    reactor.poll();

    EXPECT_TRUE(write.waiter.is_ready);
    EXPECT_FALSE(read.waiter.is_ready);
    EXPECT_EQ(EPOLLIN | EPOLLOUT, static_cast<int>(reactor.entry(pair.left.get(), owner).registered_events));
    pair.send();
    reactor.poll();
    EXPECT_TRUE(read.waiter.is_ready);
}

TEST_F(EpollReactorTest, WaitersOfABareNumberAreServedByInterest) {
    pair.fill_left();
    Wait reads[2] = {Wait(kRead), Wait(kRead)};
    Wait write(kWrite);
    Wait both(kRead | kWrite);
    EXPECT_EQ(0, add(pair.left.get(), nullptr, reads[0]));
    EXPECT_EQ(0, add(pair.left.get(), nullptr, write));
    EXPECT_EQ(0, add(pair.left.get(), nullptr, both));
    EXPECT_EQ(0, add(pair.left.get(), nullptr, reads[1]));
    reactor.poll();
    EXPECT_EQ(4u, reactor.waiter_count());

    pair.send();
    reactor.poll();
    EXPECT_TRUE(reads[0].waiter.is_ready);
    EXPECT_TRUE(reads[1].waiter.is_ready);
    EXPECT_TRUE(both.waiter.is_ready);
    EXPECT_FALSE(write.waiter.is_ready);
    pair.drain_right();
    reactor.poll();

    EXPECT_TRUE(write.waiter.is_ready);
    EXPECT_EQ(0u, reactor.waiter_count());
}

TEST_F(EpollReactorTest, WaitForABareNumberReportsWhatIsReadyEachTime) {
    pair.send();

    for (int round = 0; round < 3; ++round) {
        Wait read(kRead);
        EXPECT_EQ(0, add(pair.left.get(), nullptr, read));
        reactor.poll();
        EXPECT_TRUE(read.waiter.is_ready) << round;
    }
}

// What an earlier wait asked for is no reason to be woken for it: only the waiters that are queued count.
TEST_F(EpollReactorTest, NewRegistrationAsksForNoMoreThanIsWaitedFor) {
    Wait write(kWrite);
    EXPECT_EQ(0, add(pair.left.get(), nullptr, write));
    reactor.poll();
    Wait read(kRead);

    EXPECT_EQ(0, add(pair.left.get(), nullptr, read));

    EXPECT_EQ(EPOLLIN, static_cast<int>(reactor.entry(pair.left.get(), nullptr).registered_events));
    EXPECT_EQ(0, reactor.poll());
    reactor.remove_waiter(read.waiter);
}

TEST_F(EpollReactorTest, HangUpEndsEveryWait) {
    Wait waits[] = {Wait(kRead), Wait(kWrite), Wait(kException), Wait(kPeerClosed)};
    pair.fill_left();
    for (Wait& wait : waits) {
        EXPECT_EQ(0, add(pair.left.get(), owner, wait));
    }
    reactor.poll();

    pair.right = FileDescriptor();
    reactor.poll();

    for (Wait& wait : waits) {
        EXPECT_TRUE(wait.waiter.is_ready);
    }
    EXPECT_TRUE(reactor.entry(pair.left.get(), owner).is_hung_up);
}

TEST_F(EpollReactorTest, HalfCloseWakesReadersAndIsRemembered) {
    Wait read(kRead);
    Wait exception(kException);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    EXPECT_EQ(0, add(pair.left.get(), owner, exception));

    ::shutdown(pair.right.get(), SHUT_WR);
    reactor.poll();

    EXPECT_TRUE(read.waiter.is_ready);
    EXPECT_FALSE(exception.waiter.is_ready);
    EXPECT_TRUE(reactor.entry(pair.left.get(), owner).is_hung_up);
    reactor.remove_waiter(exception.waiter);
}

TEST_F(EpollReactorTest, DataIsNoEndOfThePeerButItsHalfCloseIs) {
    Wait closed(kPeerClosed);
    EXPECT_EQ(0, add(pair.left.get(), owner, closed));

    pair.send();
    reactor.poll();
    EXPECT_FALSE(closed.waiter.is_ready);
    ::shutdown(pair.right.get(), SHUT_WR);
    reactor.poll();

    EXPECT_TRUE(closed.waiter.is_ready);
    EXPECT_FALSE(closed.waiter.is_closed);  // the peer's end, not ours
}

TEST_F(EpollReactorTest, ForgetRangeWakesThoseInItAndSaysThatTheyWereClosed) {
    SocketPair others[2];
    Wait inside(kRead);
    Wait outside(kRead);
    const int low = std::min(others[0].left.get(), others[1].left.get());
    const int high = std::max(others[0].left.get(), others[1].left.get());
    EXPECT_EQ(0, add(low, owner, inside));
    EXPECT_EQ(0, add(high, owner, outside));

    reactor.forget_range(low, high);

    EXPECT_TRUE(inside.waiter.is_ready);
    EXPECT_TRUE(inside.waiter.is_closed);
    EXPECT_FALSE(outside.waiter.is_ready);
    reactor.forget_range(0, std::numeric_limits<int>::max());
    EXPECT_TRUE(outside.waiter.is_closed);
}

TEST_F(EpollReactorTest, ForgetWakesEveryWaiter) {
    Wait waits[] = {Wait(kRead), Wait(kWrite), Wait(kException), Wait(kPeerClosed)};
    pair.fill_left();
    for (Wait& wait : waits) {
        EXPECT_EQ(0, add(pair.left.get(), owner, wait));
    }

    reactor.forget(pair.left.get());

    for (Wait& wait : waits) {
        EXPECT_TRUE(wait.waiter.is_ready);
        EXPECT_EQ(1, wait.target.count.load());
    }
    EXPECT_EQ(0u, reactor.waiter_count());
    pair.send();
    EXPECT_EQ(0, reactor.poll());
}

TEST_F(EpollReactorTest, ForgettingWhatWasNeverKnownDoesNothing) {
    reactor.forget(-1);
    reactor.forget(100'000);
    reactor.forget(pair.left.get());
}

TEST_F(EpollReactorTest, ForgottenNumberIsFreshForItsNextOwnerAlsoAtTheSameAddress) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    pair.right = FileDescriptor();
    reactor.poll();
    FdEntry& entry = reactor.entry(pair.left.get(), owner);
    entry.may_be_readable = entry.may_be_writable = false;
    entry.has_urgent_data = true;

    reactor.forget(pair.left.get());
    const FdEntry& again = reactor.entry(pair.left.get(), owner);

    EXPECT_FALSE(again.is_registered);
    EXPECT_TRUE(again.may_be_readable);
    EXPECT_TRUE(again.may_be_writable);
    EXPECT_FALSE(again.is_hung_up);
    EXPECT_FALSE(again.has_urgent_data);
}

// The number is closed without a word and used again: the new owner's file must be registered, the old one is gone.
TEST_F(EpollReactorTest, NumberThatWasUsedAgainIsRegisteredForItsNewOwner) {
    Wait old_read(kRead);
    const int number = pair.left.get();
    EXPECT_EQ(0, add(number, owner, old_read));
    reactor.remove_waiter(old_read.waiter);
    reactor.entry(number, owner).may_be_readable = false;
    SocketPair fresh;
    EXPECT_EQ(number, ::dup2(fresh.left.get(), number));
    Wait read(kRead);

    EXPECT_TRUE(reactor.entry(number, other_owner).may_be_readable);
    EXPECT_EQ(0, add(number, other_owner, read));
    reactor.poll();
    EXPECT_FALSE(read.waiter.is_ready);
    fresh.send();
    reactor.poll();

    EXPECT_TRUE(read.waiter.is_ready);
}

// The kernel keys on the open file: one that lives on under another number keeps its registration under the old number,
// and its events came for whoever uses the number now.
TEST_F(EpollReactorTest, FileThatLivesOnElsewhereDoesNotSpeakForItsOldNumber) {
    Wait old_read(kRead);
    const int number = pair.left.get();
    EXPECT_EQ(0, add(number, owner, old_read));
    reactor.remove_waiter(old_read.waiter);
    const FileDescriptor elsewhere(::dup(number));
    SocketPair fresh;
    EXPECT_EQ(number, ::dup2(fresh.left.get(), number));
    Wait read(kRead);
    EXPECT_EQ(0, add(number, other_owner, read));

    pair.send();                    // to the old file
    pair.right = FileDescriptor();  // and its end
    reactor.poll();

    EXPECT_FALSE(read.waiter.is_ready);
    EXPECT_FALSE(reactor.entry(number, other_owner).is_hung_up);
    fresh.send();
    reactor.poll();
    EXPECT_TRUE(read.waiter.is_ready);
}

TEST_F(EpollReactorTest, ReplacedFileOfTheSameOwnerIsFoundOutWhenTheRegistrationGrows) {
    Wait read(kRead);
    const int number = pair.left.get();
    EXPECT_EQ(0, add(number, owner, read));
    reactor.entry(number, owner).may_be_readable = false;  // drained: but that was the old file
    SocketPair fresh;
    EXPECT_EQ(number, ::dup2(fresh.left.get(), number));
    Wait write(kWrite);

    EXPECT_EQ(0, add(number, owner, write));

    EXPECT_TRUE(reactor.entry(number, owner).may_be_readable);
    fresh.send();
    reactor.poll();
    EXPECT_TRUE(write.waiter.is_ready);
    EXPECT_TRUE(read.waiter.is_ready);
}

TEST_F(EpollReactorTest, RegularFileIsEperm) {
    char name[] = "/tmp/gossamer-reactor-XXXXXX";
    const FileDescriptor file(::mkstemp(name));
    ::unlink(name);
    Wait read(kRead);

    EXPECT_EQ(EPERM, add(file.get(), owner, read));

    EXPECT_EQ(0u, reactor.waiter_count());
    EXPECT_FALSE(read.waiter.is_linked());
}

TEST_F(EpollReactorTest, RegularFileIsEpermAlsoWhereASocketWas) {
    char name[] = "/tmp/gossamer-reactor-XXXXXX";
    const FileDescriptor file(::mkstemp(name));
    ::unlink(name);
    Wait old_read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), nullptr, old_read));
    reactor.remove_waiter(old_read.waiter);
    EXPECT_EQ(pair.left.get(), ::dup2(file.get(), pair.left.get()));
    Wait read(kRead);

    EXPECT_EQ(EPERM, add(pair.left.get(), nullptr, read));
    EXPECT_FALSE(reactor.entry(pair.left.get(), nullptr).is_registered);
}

TEST_F(EpollReactorTest, ClosedNumberIsEbadf) {
    const int number = ::dup(pair.left.get());
    ::close(number);
    Wait read(kRead);

    EXPECT_EQ(EBADF, add(number, owner, read));

    EXPECT_EQ(0u, reactor.waiter_count());
}

TEST_F(EpollReactorTest, HighNumbersHaveEntriesThatDoNotMove) {
    FdEntry& low = reactor.entry(3, owner);
    FdEntry& high = reactor.entry(100'000, owner);

    for (int fd = 0; fd < 200'000; fd += 97) {
        reactor.entry(fd, other_owner);
    }

    EXPECT_EQ(&low, &reactor.entry(3, owner));
    EXPECT_EQ(&high, &reactor.entry(100'000, owner));
}

TEST_F(EpollReactorTest, MoreEventsThanABatchAreAllReported) {
    constexpr std::size_t kPairs = 400;
    std::vector<FileDescriptor> events;
    std::vector<std::unique_ptr<Wait>> waits;
    for (std::size_t index = 0; index < kPairs; ++index) {
        events.emplace_back(::eventfd(1, EFD_NONBLOCK));
        ASSERT_GE(events.back().get(), 0);
        waits.push_back(std::make_unique<Wait>(kRead));
        ASSERT_EQ(0, add(events.back().get(), owner, *waits.back()));
    }

    while (reactor.poll() > 0) {
    }

    for (const auto& wait : waits) {
        EXPECT_TRUE(wait->waiter.is_ready);
    }
    EXPECT_EQ(0u, reactor.waiter_count());
}

/// What holds of wait() with epoll_pwait2 and without.
class EpollReactorWait : public EpollReactorTest, public ::testing::WithParamInterface<bool> {
protected:
    EpollReactorWait() { EpollReactor::forbid_pwait2(GetParam()); }
};

TEST_P(EpollReactorWait, CollectsAsPollDoes) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    pair.send();

    EXPECT_EQ(1, wait(Deadline::never()));

    EXPECT_TRUE(read.waiter.is_ready);
}

TEST_P(EpollReactorWait, EndsAtItsDeadlineAndNotBefore) {
    const Deadline deadline = Deadline::after(monotonic_now(), std::chrono::microseconds(2300));

    EXPECT_EQ(0, wait(deadline));

    EXPECT_TRUE(deadline.is_past(monotonic_now()));
}

TEST_P(EpollReactorWait, PastDeadlineDoesNotBlock) {
    EXPECT_EQ(0, wait(Deadline::at(Nanoseconds(0))));
    EXPECT_EQ(0, wait(Deadline::at(Nanoseconds::min())));
}

TEST_P(EpollReactorWait, FarthestDeadlineIsNoError) {
    std::thread waker([this] { reactor.wake_up(); });

    EXPECT_EQ(1,
              reactor.wait(Deadline::at(Nanoseconds::max() - Nanoseconds(1)), Nanoseconds(0), nullptr, [] {}, [] {}));

    waker.join();
}

TEST_P(EpollReactorWait, IsEndedByWakeUpFromAnotherThread) {
    for (int round = 0; round < 100; ++round) {
        std::thread waker([this] { reactor.wake_up(); });

        EXPECT_EQ(1, wait(Deadline::never()));

        waker.join();
    }
}

TEST_P(EpollReactorWait, WakeUpBeforeTheWaitIsKeptAndCountsOnce) {
    reactor.wake_up();
    reactor.wake_up();

    EXPECT_EQ(1, wait(Deadline::never()));
    EXPECT_EQ(0, reactor.poll());
}

void do_nothing(int) {}

TEST_P(EpollReactorWait, SignalThatTheMaskLetsThroughEndsIt) {
    struct sigaction action{};
    struct sigaction previous{};
    action.sa_handler = &do_nothing;
    sigaction(SIGUSR1, &action, &previous);
    sigset_t blocked;
    sigset_t unblocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &blocked, &unblocked);
    pthread_kill(pthread_self(), SIGUSR1);  // pending

    const int count = reactor.wait(Deadline::never(), Nanoseconds(0), &unblocked, [] {}, [] {});

    pthread_sigmask(SIG_SETMASK, &unblocked, nullptr);
    sigaction(SIGUSR1, &previous, nullptr);
    EXPECT_EQ(0, count);
}

TEST_P(EpollReactorWait, RunsItsCallbacksAroundTheCallAndBeforeAnyWakeUp) {
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    pair.send();
    std::string order;

    reactor.wait(
        Deadline::never(), Nanoseconds(0), nullptr, [&] { order += "before "; },
        [&] { order += read.target.count.load() == 0 ? "after" : "too late"; });

    EXPECT_EQ("before after", order);
    EXPECT_EQ(1, read.target.count.load());
}

INSTANTIATE_TEST_SUITE_P(Calls, EpollReactorWait, ::testing::Bool(),
                         [](const auto& kind) { return kind.param ? "WithoutPwait2" : "WithPwait2"; });

// The hub can be driven by another event loop, which watches this descriptor.
TEST_F(EpollReactorTest, OwnDescriptorIsReadableWhenThereAreEvents) {
    pollfd self{.fd = reactor.fd(), .events = POLLIN, .revents = 0};
    EXPECT_EQ(0, ::poll(&self, 1, 0));

    reactor.wake_up();
    EXPECT_EQ(1, ::poll(&self, 1, 0));
    reactor.poll();

    EXPECT_EQ(0, ::poll(&self, 1, 0));
}

TEST_F(EpollReactorTest, UrgentDataIsRememberedAndWakesWhoWaitsForIt) {
    // A TCP connection over the loopback interface: urgent data is TCP's.
    const FileDescriptor listener(::socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_EQ(0, ::listen(listener.get(), 1));
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    ASSERT_EQ(0, ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size));
    const FileDescriptor client(::socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_EQ(0, ::connect(client.get(), reinterpret_cast<sockaddr*>(&address), size));
    const FileDescriptor server(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
    Wait exception(kException);
    EXPECT_EQ(0, add(server.get(), owner, exception));
    EXPECT_EQ(0, reactor.poll());

    ASSERT_EQ(1, ::send(client.get(), "!", 1, MSG_OOB));
    wait(Deadline::never());

    EXPECT_TRUE(exception.waiter.is_ready);
    EXPECT_TRUE(reactor.entry(server.get(), owner).has_urgent_data);
}

TEST_F(EpollReactorTest, WatchIsToldOfEveryEdgeUntilItIsRemoved) {
    CountingWatch watch;
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));
    EXPECT_EQ(1u, reactor.waiter_count());
    EXPECT_EQ(0, reactor.poll());

    pair.send();
    reactor.poll();
    pair.send();
    reactor.poll();
    EXPECT_EQ(2, watch.count);
    EXPECT_NE(0u, watch.events & EPOLLIN);

    reactor.remove_watch(watch);
    reactor.remove_watch(watch);
    EXPECT_EQ(0u, reactor.waiter_count());
    pair.send();
    reactor.poll();

    EXPECT_EQ(2, watch.count);
}

TEST_F(EpollReactorTest, WatchIsToldOfWhatIsReadyAlreadyAlsoWhenItIsAddedAgain) {
    CountingWatch watch;
    pair.send();
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));
    reactor.poll();
    EXPECT_EQ(1, watch.count);

    reactor.remove_watch(watch);
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));
    reactor.poll();
    EXPECT_EQ(2, watch.count);

    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead | kWrite));
    reactor.poll();
    EXPECT_EQ(3, watch.count);
    EXPECT_NE(0u, watch.events & EPOLLOUT);
    EXPECT_EQ(1u, reactor.waiter_count());
    reactor.remove_watch(watch);
}

TEST_F(EpollReactorTest, WatchAndWaitOfOneDescriptorDoNotDisturbEachOther) {
    CountingWatch watch;
    Wait read(kRead);
    EXPECT_EQ(0, add(pair.left.get(), owner, read));
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kWrite));
    reactor.poll();
    EXPECT_FALSE(read.waiter.is_ready);
    watch.count = 0;

    pair.send();
    reactor.poll();

    EXPECT_TRUE(read.waiter.is_ready);
    EXPECT_EQ(1, watch.count);
    reactor.remove_watch(watch);
}

TEST_F(EpollReactorTest, ForgettingADescriptorDropsItsWatches) {
    CountingWatch watch;
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));

    reactor.forget(pair.left.get());
    pair.send();
    reactor.poll();

    EXPECT_EQ(0, watch.count);
    EXPECT_EQ(0u, reactor.waiter_count());
    EXPECT_FALSE(watch.is_linked());
}

TEST_F(EpollReactorTest, ADescriptorThatNobodyWantsAnyMoreReportsOnceAtMost) {
    CountingWatch watch;
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));
    reactor.remove_watch(watch);

    pair.send();
    EXPECT_EQ(1, reactor.poll());
    pair.send();
    EXPECT_EQ(0, reactor.poll());

    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));
    EXPECT_EQ(1, reactor.poll());
    EXPECT_EQ(1, watch.count);
    reactor.remove_watch(watch);
}

TEST_F(EpollReactorTest, WhatCannotBeWatchedIsRefusedWithNothingQueued) {
    CountingWatch watch;
    const FileDescriptor file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));

    EXPECT_EQ(EPERM, reactor.add_watch(file.get(), watch, kRead));
    EXPECT_EQ(0u, reactor.waiter_count());
    EXPECT_FALSE(watch.is_linked());
}

TEST_F(EpollReactorTest, AfterTheReactorWasAbandonedAWatchMayBeTakenOff) {
    CountingWatch watch;
    EXPECT_EQ(0, reactor.add_watch(pair.left.get(), watch, kRead));

    reactor.abandon();
    reactor.remove_watch(watch);

    EXPECT_EQ(-1, reactor.fd());
    EXPECT_EQ(0u, reactor.waiter_count());
}

TEST(EpollReactorLimits, ConstructorThatFailsLeaksNoDescriptor) {
    if (testing::kIsSanitized) {
        GTEST_SKIP() << "UBSan checks the exception's type with a pipe, and there is no descriptor for it";
    }
    const int code = testing::run_in_child([] {
        // Room for the first descriptor of the reactor, not for the second.
        rlimit limit{};
        ::getrlimit(RLIMIT_NOFILE, &limit);
        const int lowest = ::eventfd(0, 0);
        limit.rlim_cur = static_cast<rlim_t>(lowest + 1);
        ::setrlimit(RLIMIT_NOFILE, &limit);
        while (::eventfd(0, 0) >= 0) {  // the numbers below that were free
        }
        ::close(lowest);
        try {
            const EpollReactor reactor;
            return 1;
        } catch (const std::system_error&) {
            return ::eventfd(0, 0) == lowest ? 0 : 2;
        }
    });

    EXPECT_EQ(0, code);
}

}  // namespace
}  // namespace gossamer::core
