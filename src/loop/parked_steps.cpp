// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/parked_steps.hpp"

#include <new>

#include "loop/step.hpp"

namespace gossamer::loop {

ParkedSteps& ParkedSteps::instance() noexcept {
    static auto* all = new ParkedSteps;  // never destroyed: threads may outlive main()
    return *all;
}

void ParkedSteps::add(Step& step) {
    const std::lock_guard lock(mutex_);
    steps_[step.coroutine()] = &step;
}

void ParkedSteps::remove(Step& step) noexcept {
    const std::lock_guard lock(mutex_);
    steps_.erase(step.coroutine());
}

Step* ParkedSteps::find(PyObject* coroutine) noexcept {
    const std::lock_guard lock(mutex_);
    const auto found = steps_.find(coroutine);
    return found == steps_.end() ? nullptr : found->second;
}

std::vector<Step*> ParkedSteps::of(const Steps& steps) {
    std::vector<Step*> found;
    const std::lock_guard lock(mutex_);
    for (const auto& [coroutine, step] : steps_) {
        if (&step->steps() == &steps && step->status() != sched::ThreadStatus::kFinished) {
            found.push_back(step);
        }
    }
    return found;
}

std::size_t ParkedSteps::count() noexcept {
    const std::lock_guard lock(mutex_);
    return steps_.size();
}

void ParkedSteps::orphan_those_of(const StepLoop& loop) noexcept {
    const std::lock_guard lock(mutex_);
    for (const auto& [coroutine, step] : steps_) {
        if (step->loop == &loop) {
            step->loop = nullptr;
            step->is_orphan = true;
        }
    }
}

void ParkedSteps::reset_after_fork() noexcept { new (&mutex_) std::mutex; }

}  // namespace gossamer::loop
