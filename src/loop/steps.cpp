// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/steps.hpp"

#include <algorithm>
#include <cstdio>
#include <new>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/frames.hpp"
#include "loop/parked_steps.hpp"
#include "loop/step_loop.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

std::atomic<bool> steps_are_off{false};

Ref interned(const char* text) { return steal(PyUnicode_InternFromString(text)); }

Ref attribute_of(const char* module, const char* name) {
    const Ref imported = steal(PyImport_ImportModule(module));
    return steal(PyObject_GetAttrString(imported.ptr(), name));
}

/// What a weak reference refers to, or null.
Ref target_of(PyObject* weak_reference) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* target = nullptr;
    (void)PyWeakref_GetRef(weak_reference, &target);
    return Ref::steal_or_null(target);
#else
    PyObject* target = PyWeakref_GetObject(weak_reference);
    return target == Py_None ? Ref() : cpython::borrow(target);
#endif
}

}  // namespace

bool are_steps_off() noexcept { return steps_are_off.load(std::memory_order_relaxed); }

void stay_off_fibers(PyObject*) {
    if (!steps_are_off.exchange(true)) {
        std::fputs(
            "gossamer: the greenlet extension is loaded, so a blocking call in an asyncio task blocks its loop\n",
            stderr);
    }
}

Steps& Steps::of(Hub& hub) {
    if (Steps* steps = existing(hub)) {
        return *steps;
    }
    hub.set_extension(std::make_unique<Steps>(hub));
    const Ref install = attribute_of("gossamer._nested_run", "install");
    steal(PyObject_CallNoArgs(install.ptr()));
    return *existing(hub);
}

Steps::Steps(Hub& hub) : hub_(hub) {
    stub_code_ = steal(reinterpret_cast<PyObject*>(PyCode_NewEmpty("<gossamer>", "<step>", 1)));
    loop_type_ = steal(create_step_loop_type());
    get_running_loop_ = attribute_of("_asyncio", "_get_running_loop");
    current_task_ = attribute_of("_asyncio", "current_task");
    const Ref find_and_load = attribute_of("_frozen_importlib", "_find_and_load");
    import_code_ = steal(PyObject_GetAttrString(find_and_load.ptr(), "__code__"));
    get_coro_ = interned("get_coro");
    create_future_ = interned("create_future");
    future_blocking_ = interned("_asyncio_future_blocking");
    set_result_ = interned("set_result");
    done_ = interned("done");
}

Steps::~Steps() {
    for (StepLoop* joined : loops_) {
        joined->steps = nullptr;
    }
}

Step& Steps::take() {
    if (free_ != nullptr) {
        --free_count_;
        return *std::exchange(free_, free_->next_free);
    }
    const core::Stack stack = stacks_.acquire();
    // Safety: the record's room is ours; it lies above the stack, which begins below it.
    Step* step = step_of(stack);
    if (!stack.has_record) {
        new (step) Step(*this);
    }
    step->prepare(stack, stub_code_.ptr());
    return *step;
}

void Steps::give_back(Step& step) noexcept {
    if (free_count_ < kFreeSteps) {
        ++free_count_;
        step.next_free = std::exchange(free_, &step);
        return;
    }
    const core::Stack stack = step.stack();
    step.forget_allocations();
    stacks_.release(stack, step.is_posted.load());
}

Ref Steps::running_loop() {
#if PY_VERSION_HEX >= 0x030D0000
    return cpython::borrow(cpython::VersionState::running_loop(hub_.tstate()));
#else
    Ref loop = steal(PyObject_CallNoArgs(get_running_loop_.ptr()));
    return loop.ptr() == Py_None ? Ref() : std::move(loop);
#endif
}

/// The coroutine of the task that `loop` runs; empty when it runs none.
Ref Steps::current_coroutine(PyObject* loop) {
#if PY_VERSION_HEX >= 0x030E0000
    Ref task = cpython::borrow(cpython::VersionState::running_task(hub_.tstate()));
    if (!task) {
        // A task that is not C's own; those are kept in a dictionary that C does not look into.
        const Ref current = attribute_of("asyncio.tasks", "_py_current_task");
        task = steal(PyObject_CallOneArg(current.ptr(), loop));
    }
#else
    Ref task = steal(PyObject_CallOneArg(current_task_.ptr(), loop));
#endif
    return task.ptr() == Py_None ? Ref() : steal(PyObject_CallMethodNoArgs(task.ptr(), get_coro_.ptr()));
}

bool Steps::is_in_task() noexcept {
    const bool result = guarded(false, [&] {
        const Ref loop = running_loop();
        return loop && current_coroutine(loop.ptr());
    });
    PyErr_Clear();
    return result;
}

/// Whether an import is under way in the step, or in one on top of it: the import system knows its users by thread, and tasks of a loop are one. A module that
/// is half imported must not be seen by the others, so the call blocks, as on plain asyncio.
bool Steps::is_importing(const Step& step) noexcept {
    const _PyInterpreterFrame* frame = cpython::running_frame(hub_.tstate());
    for (; frame != nullptr && frame != step.bottom_frame(); frame = frame->previous) {
        if (reinterpret_cast<PyObject*>(cpython::code_of(*frame)) == import_code_.ptr()) {
            return true;
        }
    }
    return false;
}

Step* Steps::find_step_of_task(PyObject* loop, Step& innermost) {
    const Ref coroutine = loop != nullptr ? current_coroutine(loop) : Ref();
    if (!coroutine) {
        return nullptr;
    }
    Step* step = &innermost;
    while (step != nullptr && step->coroutine() != coroutine.ptr()) {
        step = step->parent();
    }
    if (step == nullptr && !PyCoro_CheckExact(coroutine.ptr()) && innermost.parent() == nullptr) {
        step = &innermost;  // a coroutine of another type drives ours
    }
    return step == nullptr || is_importing(*step) ? nullptr : step;
}

Step* Steps::target(Step& innermost) noexcept {
    if (hub_.running().blocking_in_tasks != sched::BlockingInTasks::kPark) {
        return nullptr;
    }
    Step* found = guarded<Step*>(nullptr, [&]() -> Step* {
        const Ref loop = running_loop();
        Step* step = find_step_of_task(loop.ptr(), innermost);
        if (step == nullptr) {
            return nullptr;
        }
        step->loop = loop_for(loop.ptr());
        return step->loop == nullptr ? nullptr : step;
    });
    PyErr_Clear();
    return found;
}

Step* Steps::step_of_task(Step& innermost) noexcept {
    Step* found = guarded<Step*>(nullptr, [&] { return find_step_of_task(running_loop().ptr(), innermost); });
    PyErr_Clear();
    return found;
}

StepLoop* Steps::loop_for(PyObject* loop) {
    for (StepLoop* joined : loops_) {
        if (joined->key == loop && target_of(joined->loop).ptr() == loop) {
            if (joined->thread != &hub_.running()) {
                joined->thread = &hub_.running();
            }
            return joined->is_usable ? joined : nullptr;
        }
    }
    return attach_to_loop(*this, loop);
}

void Steps::let_drive(PyObject* loop) {
    const StepLoop* joined = loop_for(loop);
    if (joined != nullptr && joined->drives) {
        hub_.begin_to_be_driven();
    }
}

bool Steps::may_resume(const Step& step) noexcept {
    const bool result = guarded(false, [&] {
        const Ref loop = running_loop();
        const Ref coroutine = loop ? current_coroutine(loop.ptr()) : Ref();
        return coroutine && (coroutine.ptr() == step.coroutine() || !PyCoro_CheckExact(coroutine.ptr()));
    });
    PyErr_Clear();
    return result;
}

Ref Steps::pending_future() {
    const Ref loop = running_loop();
    Ref future = steal(PyObject_CallMethodNoArgs(loop.ptr(), create_future_.ptr()));
    cpython::check(PyObject_SetAttr(future.ptr(), future_blocking_.ptr(), Py_True));
    return future;
}

void Steps::set_result(PyObject* future) {
    const Ref is_done = steal(PyObject_CallMethodNoArgs(future, done_.ptr()));
    if (is_done.ptr() != Py_True) {
        steal(PyObject_CallMethodOneArg(future, set_result_.ptr(), Py_None));
    }
}

void Steps::call_when_none_is_left(PyObject* function) {
    if (when_none_is_left_) {
        cpython::raise(PyExc_RuntimeError, "something waits for this already");
    }
    when_none_is_left_ = cpython::borrow(function);
}

void Steps::call_if_none_is_left() noexcept {
    if (!when_none_is_left_ || parked_count_ > 0 || hub_.running().inner_waits != nullptr) {
        return;
    }
    const Ref function = std::move(when_none_is_left_);
    PyObject* pending = PyErr_GetRaisedException();
    if (!Ref::steal_or_null(PyObject_CallNoArgs(function.ptr()))) {
        PyErr_WriteUnraisable(function.ptr());
    }
    PyErr_SetRaisedException(pending);
}

bool Steps::is_one_to_go_on() const {
    return parked_count_ > 0 && !std::ranges::all_of(ParkedSteps::instance().of(*this), &Step::is_orphan);
}

void Steps::condemn(PyObject* coroutine) {
    const std::lock_guard lock(condemned_mutex_);
    condemned_.push_back(coroutine);
    has_condemned_.store(true);
}

void Steps::close_condemned() noexcept {
    std::vector<PyObject*> condemned;
    {
        const std::lock_guard lock(condemned_mutex_);
        condemned.swap(condemned_);
        has_condemned_.store(false);
    }
    PyObject* pending = PyErr_GetRaisedException();
    for (PyObject* coroutine : condemned) {
        Step* step = ParkedSteps::instance().find(coroutine);
        if (step != nullptr && Ref::steal_or_null(close_parked(*step)).ptr() == nullptr) {
            PyErr_WriteUnraisable(coroutine);
        }
        Py_DECREF(coroutine);
    }
    PyErr_SetRaisedException(pending);
}

void Steps::end() noexcept {
    close_condemned();
    for (;;) {
        const std::vector<Step*> parked = ParkedSteps::instance().of(*this);
        if (parked.empty()) {
            return;
        }
        Step* step = parked.front();  // closing it may run anything
        const Ref coroutine = cpython::borrow(step->coroutine());
        if (!Ref::steal_or_null(close_parked(*step))) {
            PyErr_WriteUnraisable(coroutine.ptr());
        }
    }
}

void Steps::reset_after_fork() noexcept {
    new (&condemned_mutex_) std::mutex;
    for (Step* step : ParkedSteps::instance().of(*this)) {
        step->abandon();
    }
    parked_count_ = 0;
}

PyObject* close_parked(Step& step) noexcept {
    const Ref coroutine = cpython::borrow(step.coroutine());
    PyObject* exit = PyObject_CallNoArgs(PyExc_GeneratorExit);
    if (exit == nullptr) {
        return nullptr;
    }
    PyObject* value = nullptr;
    switch (step.resume(exit, &value)) {
        case PYGEN_NEXT:
            Py_DECREF(value);
            PyErr_SetString(PyExc_RuntimeError, "coroutine ignored GeneratorExit");
            return nullptr;
        case PYGEN_RETURN:
            if (cpython::kPython313) {
                return value;
            }
            Py_DECREF(value);
            Py_RETURN_NONE;
        case PYGEN_ERROR:
            break;
    }
    if (PyErr_ExceptionMatches(PyExc_StopIteration) || PyErr_ExceptionMatches(PyExc_GeneratorExit)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return nullptr;
}

Ref loop_of(const StepLoop& joined) noexcept { return target_of(joined.loop); }
Ref loop_of(const Step& step) noexcept { return step.loop == nullptr ? Ref() : loop_of(*step.loop); }

bool forbid_wait(Hub& hub, const sched::WaitNote& note) {
    return guarded(true, [&] {
        PyObject* modules = PyImport_GetModuleDict();
        if (PyDict_GetItemString(modules, "_asyncio") == nullptr || !Steps::of(hub).is_in_task()) {
            return false;
        }
        const Ref module = steal(PyImport_ImportModule("gossamer._blocking"));
        const Ref error = steal(PyObject_CallMethod(module.ptr(), "make_error", "s", note.what));
        PyErr_SetRaisedException(Py_NewRef(error.ptr()));
        return true;
    });
}

}  // namespace gossamer::loop
