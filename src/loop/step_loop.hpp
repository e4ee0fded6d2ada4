// SPDX-License-Identifier: Apache-2.0
// What joins parked steps to the asyncio loop that they belong to.
//
// The loop owns it, as a reader of an eventfd; it owns the futures of the loop's parked steps, and these the tasks. So a
// parked task lives as long as its loop wants it: a task that sleeps need not be referred to by anyone else, and when the
// loop is closed its parked tasks are garbage ("Task was destroyed but it is pending"), as on plain asyncio.
//
// A woken step is put on a list. The loop completes what is there when it finds the eventfd readable, or at the end of the
// step that runs now: then nothing is written.
//
// A loop of the standard library waits in a selector, which parks its virtual thread: the hub waits for the kernel. One
// that waits in C code (uvloop) holds the OS thread, so it must drive the hub: the hub's epoll descriptor is another
// reader, and the loop's timers stand in for the hub's next deadline.
#pragma once

#include "cpython/api.hpp"

#include "core/deadline.hpp"
#include "core/intrusive_list.hpp"
#include "loop/step.hpp"

namespace gossamer::loop {

struct StepLoop {
    PyObject ob_base;
    Steps* steps;                  // null once the hub is gone
    PyObject* loop;                // a weak reference
    PyObject* key;                 // the loop, borrowed, for comparing
    sched::VirtualThread* thread;  // that runs the loop
    sched::OwnEvent event;
    bool is_usable;            // the loop took the reader
    bool drives;               // the loop waits in C code: it drives the hub (Hub::drive)
    core::Deadline next_call;  // of the loop's timer for the hub's next deadline; never: none is set
    core::IntrusiveList<Step> parked;
    core::IntrusiveList<Step> woken;

    /// Has the woken steps completed soon. Parks: no. Thread: carrier.
    void signal() noexcept;

    /// Before a step gives way to a loop that drives the hub: has it come back at the hub's next deadline. Throws ErrorSet.
    void arrange_call();

    /// Completes the futures of the woken steps, so that asyncio goes on with their tasks. Errors are unraisable.
    void complete_woken() noexcept;
};

/// The type, made once a hub. Throws ErrorSet.
PyObject* create_step_loop_type();

/// Whether the loop waits in an object of the module `selectors`, or in one of ours, whose waits park. Keeps no error.
bool waits_in_selector(PyObject* loop) noexcept;

/// Makes one and has `loop` own it. Throws ErrorSet, std::system_error.
StepLoop* attach_to_loop(Steps& steps, PyObject* loop);

}  // namespace gossamer::loop
