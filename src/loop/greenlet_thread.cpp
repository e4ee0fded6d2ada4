// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/greenlet_thread.hpp"

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/frames.hpp"
#include "sched/hub.hpp"

namespace gossamer::loop {

using cpython::borrow;
using cpython::check;
using cpython::steal;

struct GreenletThread::Machine {
    core::StackPool stacks;
    std::map<const std::byte*, Greenlet*, std::greater<>> started;  // borrowed, by the lowest address of the stack
    Parcel parcel;                                                  // on its way
    Greenlet* departed = nullptr;  // owned: was left, and not yet released by the one that came next

    std::mutex mutex;
    std::vector<Greenlet*> condemned;  // owned, under the mutex
    bool has_ended = false;            // under the mutex: the thread takes no more of them
    std::atomic<bool> has_condemned{false};
};

namespace {

/// What stands for a GreenletThread in its thread's dictionary.
struct Token {
    PyObject ob_base;
    GreenletThread* thread;  // owned
};

PyObject* object_of(Greenlet& greenlet) noexcept { return &greenlet.ob_base; }

/// The bounds of the C stack that the calling code runs on.
cpython::StackBounds running_bounds() noexcept {
    sched::Hub* hub = sched::Hub::current();
    return hub == nullptr ? cpython::StackBounds{} : hub->running().state.bounds();
}

void set_running_bounds(cpython::StackBounds bounds) noexcept {
    if (sched::Hub* hub = sched::Hub::current()) {
        hub->running().state.set_bounds(bounds);
    }
}

}  // namespace

bool is_greenlet_exit(const cpython::ModuleState& module, PyObject* error) noexcept {
    return PyErr_GivenExceptionMatches(error, module.greenlet_exit) != 0;
}

GreenletThread& GreenletThread::current(cpython::ModuleState& module) {
    PyObject* words = PyThreadState_GetDict();
    if (words == nullptr) {
        cpython::raise(PyExc_RuntimeError, "a greenlet needs a Python thread");
    }
    auto* key = reinterpret_cast<PyObject*>(module.greenlet_token_type);
    if (PyObject* token = PyDict_GetItemWithError(words, key)) {
        GreenletThread& thread = *reinterpret_cast<Token*>(token)->thread;
        if (thread.machine_->has_condemned.load(std::memory_order_relaxed)) [[unlikely]] {
            thread.end_condemned();
        }
        return thread;
    }
    check(PyErr_Occurred() != nullptr ? -1 : 0);
    const Ref token = steal(PyType_GenericAlloc(module.greenlet_token_type, 0));
    const Ref object = steal(PyType_GenericAlloc(module.greenlet_thread_type, 0));
    auto& thread = *reinterpret_cast<GreenletThread*>(object.ptr());
    thread.module = &module;
    thread.machine_ = new Machine;
    const Ref main = steal(PyType_GenericAlloc(module.greenlet_type, 0));
    auto* greenlet = reinterpret_cast<Greenlet*>(main.ptr());
    new (&greenlet->continuation) Continuation;
    greenlet->is_main = true;
    greenlet->status = GreenletStatus::kStarted;
    greenlet->thread = &thread;
    thread.main_greenlet = reinterpret_cast<Greenlet*>(Py_NewRef(main.ptr()));
    Py_INCREF(object.ptr());
    reinterpret_cast<Token*>(token.ptr())->thread = &thread;
    check(PyDict_SetItem(words, key, token.ptr()));
    return thread;
}

/// The thread ends. Called on it.
void GreenletThread::free_token(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    if (GreenletThread* thread = std::exchange(reinterpret_cast<Token*>(self)->thread, nullptr)) {
        {
            const std::lock_guard lock(thread->machine_->mutex);
            thread->machine_->has_ended = true;
        }
        thread->end_condemned();
        thread->main_greenlet->status = GreenletStatus::kDead;
        Py_DECREF(thread->object());
    }
    type->tp_free(self);
    Py_DECREF(type);
}

int GreenletThread::traverse(PyObject* self, visitproc visit, void* arg) {
    const auto& thread = *reinterpret_cast<GreenletThread*>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(reinterpret_cast<PyObject*>(thread.main_greenlet));
    Py_VISIT(thread.trace);
    return 0;
}

int GreenletThread::clear(PyObject* self) {
    Py_CLEAR(reinterpret_cast<GreenletThread*>(self)->trace);
    return 0;  // the main greenlet stays: what is in it goes with it
}

void GreenletThread::free(PyObject* self) {
    auto& thread = *reinterpret_cast<GreenletThread*>(self);
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (thread.main_greenlet != nullptr) {
        thread.main_greenlet->thread = nullptr;
        Py_DECREF(reinterpret_cast<PyObject*>(std::exchange(thread.main_greenlet, nullptr)));
    }
    Py_CLEAR(thread.trace);
    delete thread.machine_;
    type->tp_free(self);
    Py_DECREF(type);
}

Greenlet& GreenletThread::running() noexcept {
    const auto* here = static_cast<const std::byte*>(__builtin_frame_address(0));
    const auto found = machine_->started.lower_bound(here);  // the nearest one that begins below
    return found == machine_->started.end() || here >= found->second->stack.top ? *main_greenlet : *found->second;
}

/// What a greenlet that has not started will call. Runs Python, which may start it or give it to another thread.
Ref GreenletThread::look_run_up(Greenlet& target) {
    Ref run = steal(PyObject_GetAttrString(object_of(target), "run"));
    if (target.thread != this) {
        raise_other_thread(target);
    }
    return run;
}

void GreenletThread::start(Greenlet& target, Ref run) {
    const core::Stack stack = machine_->stacks.acquire();
    try {
        machine_->started.emplace(stack.limit, &target);
    } catch (const std::bad_alloc&) {
        machine_->stacks.release(stack, false);
        throw;
    }
    target.stack = stack;
    target.status = GreenletStatus::kStarted;
    run.swap_with(target.run);
    Continuation& continuation = target.continuation;
    continuation.context = core::make_context(stack.limit, stack.top, &GreenletThread::run_greenlet, &target);
    continuation.exceptions = {};
    continuation.state.begin(*cpython::attached_thread_state(), {stack.limit, stack.size_bytes()}, stack.chunk,
                             stack.chunk_end);
    continuation.state.set_context(std::exchange(target.initial_context, nullptr));
}

Parcel GreenletThread::switch_to(Greenlet& wanted, Parcel parcel) {
    Greenlet& origin = running();
    const bool is_thrown = static_cast<bool>(parcel.exception);
    Greenlet* target = &wanted;
    Ref run;
    for (;;) {
        if (target->thread != this) {
            raise_other_thread(*target);
        }
        if (target->status == GreenletStatus::kNew) {
            run = look_run_up(*target);
            if (target->status == GreenletStatus::kNew && !parcel.exception) {
                break;
            }
            if (target->status == GreenletStatus::kNew) {
                target->status = GreenletStatus::kDead;  // what is thrown into it is raised before its first line
            }
        }
        if (target->status == GreenletStatus::kStarted) {
            break;
        }
        if (target->is_main) {
            raise_other_thread(*target);
        }
        if (parcel.exception && is_greenlet_exit(*module, parcel.exception.ptr())) {
            parcel.args = steal(PyTuple_Pack(1, parcel.exception.ptr()));
            parcel.exception.reset();
        }
        target = target->parent;
    }
    if (target != &origin) {
        if (target->status == GreenletStatus::kNew) {
            start(*target, std::move(run));
        } else if (!target->is_main && target->main != nullptr) {
            cpython::raise(module->greenlet_error, "the greenlet runs in another task, which waits");
        }
        machine_->parcel = std::move(parcel);
        leave_for(origin, *target);
        const Ref departed = arrive();
        parcel = std::move(machine_->parcel);
        if (trace != nullptr && departed) {
            call_trace(parcel.exception ? "throw" : "switch", *reinterpret_cast<Greenlet*>(departed.ptr()), origin);
        }
    } else if (trace != nullptr) {
        call_trace(is_thrown ? "throw" : "switch", origin, origin);
    }
    if (parcel.exception) {
        PyErr_SetRaisedException(parcel.exception.release());
        throw cpython::ErrorSet{};
    }
    return parcel;
}

/// Returns when somebody switches back to `origin`, if it has not ended.
void GreenletThread::leave_for(Greenlet& origin, Greenlet& target) noexcept {
    PyThreadState& tstate = *cpython::attached_thread_state();
    Continuation on_this_stack;  // where the main greenlet goes on
    Continuation* main = origin.is_main ? &on_this_stack : std::exchange(origin.main, nullptr);
    Continuation& from = origin.is_main ? on_this_stack : origin.continuation;
    Continuation& to = target.is_main ? *main : target.continuation;
    if (!target.is_main) {
        target.main = main;
        Py_INCREF(object_of(target));  // one that runs is kept alive by that
    }
    GS_ASSERT(machine_->departed == nullptr);
    machine_->departed = &origin;
    if (origin.is_main) {
        Py_INCREF(object_of(origin));
    }
    from.state.set_bounds(running_bounds());
    from.state.save_shared(tstate);
    from.exceptions = std::exchange(core::exception_globals(), to.exceptions);
    set_running_bounds(to.state.bounds());
    to.state.restore(tstate);
    core::switch_context(from.context, to.context);
}

/// Releases what the greenlet that was left needs no more. Returns it; its death may run Python.
Ref GreenletThread::arrive() noexcept {
    Greenlet& departed = *std::exchange(machine_->departed, nullptr);
    if (departed.status == GreenletStatus::kDead && departed.stack.limit != nullptr) {
        machine_->started.erase(departed.stack.limit);
        machine_->stacks.release(std::exchange(departed.stack, {}), false);
    }
    return Ref::steal_or_null(object_of(departed));
}

void GreenletThread::run_greenlet(void* argument) {
    auto& self = *static_cast<Greenlet*>(argument);
    GreenletThread& thread = *self.thread;
    Ref result;
    {
        Ref departed = thread.arrive();
        Parcel parcel = std::move(thread.machine_->parcel);
        const Ref run = Ref::steal_or_null(std::exchange(self.run, nullptr));
        result = Ref::steal_or_null(cpython::guarded<PyObject*>(nullptr, [&] {
            if (thread.trace != nullptr) {
                thread.call_trace("switch", *reinterpret_cast<Greenlet*>(departed.ptr()), self);
            }
            departed.reset();
            return PyObject_Call(run.ptr(), parcel.args.ptr(), parcel.kwargs.ptr());
        }));
    }
    Parcel parcel;
    if (!result) {
        parcel.exception = Ref::steal_or_null(PyErr_GetRaisedException());
        if (is_greenlet_exit(*thread.module, parcel.exception.ptr())) {
            result = std::move(parcel.exception);
        }
    }
    if (result) {
        parcel.args = Ref::steal_or_null(PyTuple_Pack(1, result.ptr()));
        result.reset();
        if (!parcel.args) {
            parcel.exception = Ref::steal_or_null(PyErr_GetRaisedException());
        }
    }
    cpython::FiberState::free_pushed_chunks(*cpython::attached_thread_state());
    self.status = GreenletStatus::kDead;
    Greenlet* next = self.parent;
    Ref next_run;
    while (next->status != GreenletStatus::kStarted) {
        if (next->status == GreenletStatus::kNew) {
            // Its function is called with what this one returned; an exception ends it before its first line.
            next_run = Ref::steal_or_null(
                cpython::guarded<PyObject*>(nullptr, [&] { return thread.look_run_up(*next).release(); }));
            if (next_run && !parcel.exception && next->status == GreenletStatus::kNew && cpython::guarded(false, [&] {
                    thread.start(*next, std::move(next_run));
                    return true;
                })) {
                break;
            }
            if (PyErr_Occurred() != nullptr) {  // it stays as it is, and its parent is told
                parcel = {};
                parcel.exception = Ref::steal_or_null(PyErr_GetRaisedException());
                next = next->parent;
            } else if (next->status == GreenletStatus::kNew) {
                next->status = GreenletStatus::kDead;
            }
        } else {
            next = next->parent;
        }
    }
    thread.machine_->parcel = std::move(parcel);
    thread.leave_for(self, *next);
    GS_UNREACHABLE();
}

void GreenletThread::raise_other_thread(Greenlet& target) {
    const bool has_ended = target.thread == nullptr || target.thread->main_greenlet == nullptr ||
                           target.thread->main_greenlet->status == GreenletStatus::kDead;
    if (has_ended) {
        cpython::raise(module->greenlet_error, "cannot switch to a different thread (which happens to have exited)");
    }
    cpython::raise(module->greenlet_error, "Cannot switch to a different thread\n\tCurrent:  %R\n\tExpected: %R",
                   object_of(*main_greenlet), object_of(*target.thread->main_greenlet));
}

void GreenletThread::call_trace(const char* event, Greenlet& origin, Greenlet& target) {
    const Ref callback = borrow(trace);
    const Ref pair = steal(PyTuple_Pack(2, object_of(origin), object_of(target)));
    if (!Ref::steal_or_null(PyObject_CallFunction(callback.ptr(), "sO", event, pair.ptr()))) {
        Py_CLEAR(trace);  // as greenlet does: one that fails is not called again
        throw cpython::ErrorSet{};
    }
}

bool GreenletThread::condemn(Greenlet& greenlet) {
    const std::lock_guard lock(machine_->mutex);
    if (machine_->has_ended) {
        return false;
    }
    machine_->condemned.push_back(&greenlet);
    machine_->has_condemned.store(true);
    Py_INCREF(object_of(greenlet));
    return true;
}

void GreenletThread::forget(Greenlet& greenlet) noexcept {
    const std::lock_guard lock(machine_->mutex);
    if (greenlet.main != nullptr || !cpython::is_private_chain(greenlet.continuation.state.parked_frame())) {
        Py_INCREF(object_of(greenlet));  // somebody may look at its frames, so it stays, with its stack
        return;
    }
    greenlet.continuation.state.free_chunks_of_parked();
    machine_->started.erase(greenlet.stack.limit);
    machine_->stacks.release(std::exchange(greenlet.stack, {}), false);
    greenlet.status = GreenletStatus::kDead;
}

void GreenletThread::end_condemned() {
    std::vector<Greenlet*> condemned;
    {
        const std::lock_guard lock(machine_->mutex);
        condemned.swap(machine_->condemned);
        machine_->has_condemned.store(false);
    }
    for (Greenlet* greenlet : condemned) {
        end(*greenlet);
        Py_DECREF(object_of(*greenlet));
    }
}

void GreenletThread::end(Greenlet& greenlet) noexcept {
    Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    cpython::guarded(0, [&] {
        // What it raises or returns comes here, not to whoever started it.
        Greenlet& here = running();
        Greenlet* parent = std::exchange(greenlet.parent, reinterpret_cast<Greenlet*>(Py_NewRef(object_of(here))));
        Ref own_parent = Ref::steal_or_null(object_of(*parent));
        Parcel parcel;
        parcel.exception = steal(PyObject_CallNoArgs(module->greenlet_exit));
        const bool is_done = cpython::guarded(false, [&] {
            (void)switch_to(greenlet, std::move(parcel));
            return true;
        });
        if (greenlet.parent == &here) {
            greenlet.parent = reinterpret_cast<Greenlet*>(own_parent.release());
            own_parent = Ref::steal_or_null(object_of(here));
        }
        return is_done ? 0 : -1;
    });
    if (PyErr_Occurred() != nullptr) {
        PyErr_WriteUnraisable(object_of(greenlet));
    }
    if (greenlet.status == GreenletStatus::kStarted) {
        Py_INCREF(object_of(greenlet));  // it swallowed the exception and switched away: it stays, with its stack
    }
    if (error) {
        PyErr_SetRaisedException(error.release());
    }
}

}  // namespace gossamer::loop
