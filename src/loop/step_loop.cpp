// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/step_loop.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <new>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/parked_steps.hpp"
#include "loop/steps.hpp"
#include "sched/wait.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

StepLoop& as_step_loop(PyObject* object) noexcept { return *reinterpret_cast<StepLoop*>(object); }

/// Called by the loop: the eventfd is readable.
PyObject* step_loop_call(PyObject* self, PyObject*, PyObject*) {
    StepLoop& joined = as_step_loop(self);
    std::uint64_t count = 0;
    // EAGAIN: a call that the loop had queued already; there is nothing more to do than usual.
    [[maybe_unused]] const ssize_t got = ::read(joined.event.fd, &count, sizeof count);
    joined.event.is_signalled = false;
    const Ref keep_alive = cpython::borrow(self);
    return guarded<PyObject*>(nullptr, [&] {
        if (joined.drives && joined.steps != nullptr) {
            const sched::Wake wake = joined.steps->hub().drive();
            if (wake != sched::Wake::kReady) {
                sched::raise_wake(joined.steps->hub(), wake);
            }
            joined.next_call = core::Deadline::never();
        }
        joined.complete_woken();
        if (joined.drives && joined.steps != nullptr) {
            joined.arrange_call();
        }
        if (joined.steps != nullptr && joined.steps->has_condemned()) {
            joined.steps->close_condemned();
        }
        Py_RETURN_NONE;
    });
}

int step_loop_traverse(PyObject* self, visitproc visit, void* arg) {
    StepLoop& joined = as_step_loop(self);
    Py_VISIT(Py_TYPE(self));
    for (core::IntrusiveList<Step>* list : {&joined.parked, &joined.woken}) {
        for (Step* step = list->front(); step != nullptr; step = list->next_of(*step)) {
            Py_VISIT(step->future);
        }
    }
    return 0;
}

/// The futures let go, their tasks die if nobody else has them, and their coroutines are closed where they are parked.
int step_loop_clear(PyObject* self) {
    StepLoop& joined = as_step_loop(self);
    ParkedSteps::instance().orphan_those_of(joined);  // one that only gave way is in none of the lists
    for (core::IntrusiveList<Step>* list : {&joined.parked, &joined.woken}) {
        while (Step* step = list->pop_front()) {
            const Ref future = Ref::steal_or_null(std::exchange(step->future, nullptr));
        }
    }
    return 0;
}

void step_loop_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    StepLoop& joined = as_step_loop(self);
    PyObject_GC_UnTrack(self);
    if (joined.steps != nullptr) {
        joined.steps->hub().remove_own_event(joined.event);
        std::erase(joined.steps->loops(), &joined);
        if (joined.steps->to_complete == &joined) {
            joined.steps->to_complete = nullptr;
        }
        if (joined.drives && std::ranges::none_of(joined.steps->loops(), &StepLoop::drives)) {
            joined.steps->hub().end_to_be_driven();
        }
    }
    if (joined.event.fd >= 0) {
        ::close(joined.event.fd);
    }
    step_loop_clear(self);
    Py_XDECREF(joined.loop);
    type->tp_free(self);
    Py_DECREF(type);
}

PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>("Completes the futures of parked steps that were woken.")},
                       {Py_tp_dealloc, reinterpret_cast<void*>(step_loop_dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(step_loop_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(step_loop_clear)},
                       {Py_tp_call, reinterpret_cast<void*>(step_loop_call)},
                       {0, nullptr}};

PyType_Spec spec = {
    "gossamer._core.StepLoop", sizeof(StepLoop), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

bool waits_in_selector(PyObject* loop) noexcept {
    const Ref selector = Ref::steal_or_null(PyObject_GetAttrString(loop, "_selector"));
    PyErr_Clear();
    return static_cast<bool>(selector);
}

void StepLoop::signal() noexcept {
    if (event.is_signalled || steps == nullptr) {
        return;
    }
    if (thread == &steps->hub().running() && thread->inner_waits != nullptr &&
        (steps->to_complete == nullptr || steps->to_complete == this)) {
        steps->to_complete = this;
        return;
    }
    event.is_signalled = true;
    const std::uint64_t one = 1;
    // EAGAIN: the counter is full, so it is readable.
    [[maybe_unused]] const ssize_t written = ::write(event.fd, &one, sizeof one);
}

void StepLoop::arrange_call() {
    sched::Hub& hub = steps->hub();
    const core::Deadline deadline = hub.timers().next();
    if (deadline.is_never() || (!next_call.is_never() && next_call.time() <= deadline.time())) {
        return;
    }
    const Ref of_loop = loop_of(*this);
    if (!of_loop) {
        return;
    }
    const core::Nanoseconds delay = std::max(deadline.time() - hub.now(), core::Nanoseconds(0));
    steal(
        PyObject_CallMethod(of_loop.ptr(), "call_later", "dO", std::chrono::duration<double>(delay).count(), &ob_base));
    next_call = deadline;
}

void StepLoop::complete_woken() noexcept {
    if (steps != nullptr && steps->to_complete == this) {
        if (thread != &steps->hub().running()) {
            return;
        }
        steps->to_complete = nullptr;
    }
    if (woken.is_empty()) {
        return;
    }
    const Ref keep_alive = cpython::borrow(&ob_base);
    PyObject* pending = PyErr_GetRaisedException();
    while (Step* step = woken.front()) {
        step->unlink();
        parked.push_back(*step);
        const Ref awaited = cpython::borrow(step->future);
        if (!awaited) {
            continue;  // it is being made: Step::give_future completes it
        }
        guarded(0, [&] {
            step->steps().set_result(awaited.ptr());
            return 0;
        });
        if (PyErr_Occurred()) {
            PyErr_WriteUnraisable(awaited.ptr());
        }
    }
    PyErr_SetRaisedException(pending);
}

PyObject* create_step_loop_type() { return PyType_FromSpec(&spec); }

namespace {

/// In a context without variables: the loop keeps it for ever, and what is in that of the step that parks first with it.
void add_reader(PyObject* loop, int fd, PyObject* callback) {
    const Ref context = steal(PyContext_New());
    const Ref method = steal(PyObject_GetAttrString(loop, "add_reader"));
    steal(PyObject_CallMethod(context.ptr(), "run", "OiO", method.ptr(), fd, callback));
}

}  // namespace

StepLoop* attach_to_loop(Steps& steps, PyObject* loop) {
    Ref object = steal(steps.loop_type()->tp_alloc(steps.loop_type(), 0));
    StepLoop& joined = as_step_loop(object.ptr());
    new (&joined.parked) core::IntrusiveList<Step>;
    new (&joined.woken) core::IntrusiveList<Step>;
    joined.event = {.fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (joined.event.fd < 0) {
        cpython::raise_os_error(errno);
    }
    joined.loop = steal(PyWeakref_NewRef(loop, nullptr)).release();
    joined.key = loop;
    joined.thread = &steps.hub().running();
    steps.loops().push_back(&joined);
    steps.hub().add_own_event(joined.event);
    joined.steps = &steps;
    add_reader(loop, joined.event.fd, object.ptr());
    joined.next_call = core::Deadline::never();
    joined.drives = !waits_in_selector(loop);
    if (joined.drives) {
        add_reader(loop, steps.hub().reactor().fd(), object.ptr());
        steps.hub().begin_to_be_driven();
    }
    joined.is_usable = true;
    return &joined;  // the loop has it
}

}  // namespace gossamer::loop
