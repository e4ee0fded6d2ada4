// SPDX-License-Identifier: Apache-2.0
// Greenlets on fibers: switching between the C stacks of one thread of control, and what a greenlet is to that.
//
// A greenlet is a fiber inside of a virtual thread (or of an ordinary OS thread), not one of the scheduler's: it shares the
// thread's identity and thread-local data, and a wait inside of it parks the whole virtual thread, or the asyncio task that
// it runs in. Which greenlet runs follows from the C stack that the caller stands on, so that tasks of one loop, each parked
// inside a greenlet of its own, need not tell anyone.
//
//     kNew --switched to--> kStarted --its function ends--> kDead
//
// A *main* greenlet stands for the thread outside of any: it has no stack of its own. Where it continues lies on the stack
// that it was left on, and every greenlet that was switched to from there carries a pointer to it. In an asyncio task that is
// the stack of the task's step, another one for each task.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>

#include "core/fiber_context.hpp"
#include "core/stack_pool.hpp"
#include "cpython/fiber_state.hpp"
#include "cpython/module_state.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

using cpython::Ref;

class GreenletThread;

/// Where a stack that was left goes on.
struct Continuation {
    core::FiberContext context;
    core::ExceptionGlobals exceptions;
    cpython::FiberState state;
};

enum class GreenletStatus : std::uint8_t { kNew, kStarted, kDead };

/// The Python object.
struct Greenlet {
    PyObject ob_base;
    PyObject* dictionary;
    PyObject* weak_references;
    PyObject* run;              // owned; until it starts
    PyObject* initial_context;  // owned; until it starts
    Greenlet* parent;           // owned; null for a main greenlet
    GreenletThread* thread;     // owned, but by a main greenlet, whose thread owns it
    GreenletStatus status;
    bool is_main;
    Continuation* main;  // where the main greenlet goes on, for as long as this one runs
    core::Stack stack;
    Continuation continuation;
};

/// What goes from one greenlet to another: the arguments of switch(), or an exception.
struct Parcel {
    Ref args;
    Ref kwargs;
    Ref exception;
};

/// The greenlets of one thread of control: a Python object that each of them keeps alive, as does a token in the thread's
/// dictionary, whose death tells that the thread ends.
class GreenletThread final {
public:
    /// That of the calling thread, made on the first call. Throws ErrorSet, std::bad_alloc. Python: attached.
    static GreenletThread& current(cpython::ModuleState& module);

    /// The greenlet that runs.
    Greenlet& running() noexcept;

    /// Leaves the running greenlet for `target`, with `parcel`. A dead one passes on to its parent. Returns what comes back
    /// once somebody switches here again. Throws ErrorSet: an exception that was thrown in, or before anything has happened.
    [[nodiscard]] Parcel switch_to(Greenlet& target, Parcel parcel);

    /// Has a greenlet that dies in another thread end here, at this thread's next switch. Returns whether there may be one:
    /// the thread has not ended. Thread: any. Python: attached.
    [[nodiscard]] bool condemn(Greenlet& greenlet);

    /// Gives the stack of a started greenlet back without running it: nobody refers to it, and its thread has ended. As with
    /// the extension, what its frames refer to lives on. Thread: any. Python: attached.
    void forget(Greenlet& greenlet) noexcept;

    /// Ends a started greenlet that nobody refers to any more, by GreenletExit. Keeps the error indicator.
    void end(Greenlet& greenlet) noexcept;

    PyObject* object() noexcept { return &ob_base; }

    /// Deallocate the object, and what stands for it in the thread's dictionary: that the thread ends.
    static void free(PyObject* self);
    static void free_token(PyObject* self);

    /// For the garbage collector: the main greenlet of a thread that has ended may be part of a cycle.
    static int traverse(PyObject* self, visitproc visit, void* arg);
    static int clear(PyObject* self);

    PyObject ob_base;
    cpython::ModuleState* module;
    Greenlet* main_greenlet;  // owned; dead once the thread has ended
    PyObject* trace;          // owned: what settrace() was given, or null

private:
    struct Machine;  // what is C++

    static void run_greenlet(void* greenlet);
    Ref look_run_up(Greenlet& target);
    void start(Greenlet& target, Ref run);
    void leave_for(Greenlet& origin, Greenlet& target) noexcept;
    Ref arrive() noexcept;
    void end_condemned();
    [[noreturn]] void raise_other_thread(Greenlet& target);
    void call_trace(const char* event, Greenlet& origin, Greenlet& target);

    Machine* machine_;
};

/// Whether `error` is a GreenletExit of this interpreter.
bool is_greenlet_exit(const cpython::ModuleState& module, PyObject* error) noexcept;

}  // namespace gossamer::loop
