// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <pthread.h>
#include <system_error>

#include "core/signals_blocked.hpp"

namespace gossamer::core {

struct ThreadPool::State {
    std::mutex mutex;
    std::condition_variable work_came;
    std::deque<std::unique_ptr<Job>> jobs;  // under mutex
    std::size_t threads = 0;                // under mutex
    std::size_t idle = 0;                   // under mutex
    std::size_t running = 0;                // under mutex
};

ThreadPool::ThreadPool() noexcept : state_(new State) {}

ThreadPool& ThreadPool::instance() noexcept {
    static ThreadPool* pool = new ThreadPool;
    return *pool;
}

void ThreadPool::submit(std::unique_ptr<Job> job) {
    const std::lock_guard lock(state_->mutex);
    if (state_->idle <= state_->jobs.size() && state_->threads < kMaxThreads) {
        start_thread();
    }
    state_->jobs.push_back(std::move(job));
    state_->work_came.notify_one();
}

void ThreadPool::run_apart(std::unique_ptr<Job> job) {
    const SignalsBlocked blocked;
    pthread_t thread{};
    const auto body = [](void* argument) -> void* {
        pthread_setname_np(pthread_self(), "gossamer-wait");
        const std::unique_ptr<Job> owned(static_cast<Job*>(argument));
        owned->run();
        return nullptr;
    };
    if (const int error = pthread_create(&thread, nullptr, body, job.get()); error != 0) {
        throw std::system_error(error, std::generic_category(), "pthread_create");
    }
    pthread_detach(thread);
    (void)job.release();
}

std::size_t ThreadPool::pending() const noexcept {
    const std::lock_guard lock(state_->mutex);
    return state_->jobs.size() + state_->running;
}

void ThreadPool::reset_after_fork() noexcept {
    // The old state may be locked by a thread that is not here; leaking it is the only safe end.
    state_ = new State;
}

void ThreadPool::start_thread() {
    const SignalsBlocked blocked;
    pthread_t thread{};
    const int error = pthread_create(&thread, nullptr, &ThreadPool::serve, state_);
    if (error == 0) {
        pthread_detach(thread);
        ++state_->threads;
    } else if (state_->threads == 0) {
        throw std::system_error(error, std::generic_category(), "pthread_create");
    }
}

void* ThreadPool::serve(void* argument) {
    pthread_setname_np(pthread_self(), "gossamer-pool");
    auto& state = *static_cast<State*>(argument);
    std::unique_lock lock(state.mutex);
    for (;;) {
        while (state.jobs.empty()) {
            ++state.idle;
            state.work_came.wait(lock);
            --state.idle;
        }
        std::unique_ptr<Job> job = std::move(state.jobs.front());
        state.jobs.pop_front();
        ++state.running;
        lock.unlock();
        job->run();
        job.reset();
        lock.lock();
        --state.running;
    }
}

}  // namespace gossamer::core
