// SPDX-License-Identifier: Apache-2.0
// The steps of the whole process that are parked, by coroutine: any thread may meet the coroutine of a parked step.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace gossamer::loop {

class Step;
class Steps;
struct StepLoop;

class ParkedSteps final {
public:
    static ParkedSteps& instance() noexcept;

    /// Throws std::bad_alloc.
    void add(Step& step);
    void remove(Step& step) noexcept;
    /// Null when none is parked for it.
    Step* find(PyObject* coroutine) noexcept;
    /// Those of `steps` that can be continued. Throws std::bad_alloc.
    std::vector<Step*> of(const Steps& steps);
    std::size_t count() noexcept;

    /// A loop ends: nobody goes on with its steps, and they forget it.
    void orphan_those_of(const StepLoop& loop) noexcept;

    /// In a forked child: another thread may have had the mutex.
    void reset_after_fork() noexcept;

private:
    ParkedSteps() = default;

    // any thread, under mutex_; no Python runs under it
    std::mutex mutex_;
    std::unordered_map<PyObject*, Step*> steps_;
};

}  // namespace gossamer::loop
