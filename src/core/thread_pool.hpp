// SPDX-License-Identifier: Apache-2.0
// A few OS threads for what only an OS thread can wait for: name resolution, file locks.
//
// Threads are started on demand, at most kMaxThreads, and sleep on a condition variable when idle. Signals are blocked in
// them, but for faults of their own, so that the kernel gives those of the process to the main thread. A job runs once;
// the submitter learns of its end by what the job itself does last.
#pragma once

#include <cstddef>
#include <memory>

namespace gossamer::core {

class Job {
public:
    virtual ~Job() = default;
    /// Does the work. Parks: no. Thread: the pool's. Must not throw a C++ exception.
    virtual void run() = 0;
};

class ThreadPool final {
public:
    static constexpr std::size_t kMaxThreads = 6;

    /// The process's only pool.
    static ThreadPool& instance() noexcept;

    /// Queues `job`. Throws std::system_error when no thread can be started and none is there.
    void submit(std::unique_ptr<Job> job);

    /// Runs `job` on an OS thread of its own, for what may wait for ever and must not keep a thread of the pool. Throws
    /// std::system_error.
    static void run_apart(std::unique_ptr<Job> job);

    /// Jobs queued or running.
    std::size_t pending() const noexcept;

    /// In a forked child: the threads are gone; queued jobs are dropped.
    void reset_after_fork() noexcept;

private:
    struct State;
    ThreadPool() noexcept;
    ~ThreadPool() = delete;  // lives as long as the process
    void start_thread();
    static void* serve(void* pool);

    State* state_;
};

}  // namespace gossamer::core
