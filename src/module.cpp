// SPDX-License-Identifier: Apache-2.0
// The extension module gossamer._core: what python/gossamer/ is built on. Multi-phase, its state per interpreter.
#include "cpython/api.hpp"

#include <mutex>
#include <new>
#include <pthread.h>

#include "core/assert.hpp"
#include "core/parking_lot.hpp"
#include "core/stack_pool.hpp"
#include "core/thread_pool.hpp"
#include "core/watchdog.hpp"
#include "cpython/args.hpp"
#include "cpython/frames.hpp"
#include "cpython/layout_check.hpp"
#include "cpython/module_state.hpp"
#include "cpython/ref.hpp"
#include "cpython/runtime.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "loop/await.hpp"
#include "loop/coroutine_slots.hpp"
#include "loop/greenlet_type.hpp"
#include "loop/parked_steps.hpp"
#include "loop/running_loop.hpp"
#include "loop/steps.hpp"
#include "loop/parts.hpp"
#include "loop/tls_transport.hpp"
#include "sched/scope.hpp"
#include "sched/task.hpp"
#include "sched/wait.hpp"

namespace gossamer {

using cpython::guarded;
using cpython::ModuleState;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

Hub& current_hub() {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        cpython::raise(PyExc_RuntimeError, "not in a virtual thread: use gossamer.run() or `gossamer run`");
    }
    return *hub;
}

void raise_deadlock(Hub& hub) {
    guarded(0, [&hub] {
        const Ref module = steal(PyImport_ImportModule("gossamer._errors"));
        const Ref error =
            steal(PyObject_CallMethod(module.ptr(), "make_deadlock_error", "s", hub.running().wait_note.what));
        PyErr_SetRaisedException(Py_NewRef(error.ptr()));
        return 0;
    });
}

/// Once asyncio is imported its steps run on stacks of their own; once greenlet is, they no longer do.
void plan_steps() {
    static std::once_flag planned;
    std::call_once(planned, [] {
        Hub::forbids_wait = &loop::forbid_wait;
        interpose::adopt_when_imported(
            "_asyncio",
            [](PyObject* asyncio) {
                loop::install_slots();
                loop::install_running_loop_watch(asyncio);
            },
            [](PyObject*) {
                loop::uninstall_slots();
                loop::uninstall_running_loop_watch();
            });
        interpose::plan_when_imported("greenlet._greenlet", &loop::stay_off_fibers);
    });
}

/// The module `threading`, or null if it is not imported, or not to its end. Throws ErrorSet.
Ref imported_threading() {
    const Ref name = steal(PyUnicode_FromString("threading"));
    Ref module = Ref::steal_or_null(PyImport_GetModule(name.ptr()));
    cpython::check(PyErr_Occurred() != nullptr ? -1 : 0);
    const bool is_whole = module && PyModule_Check(module.ptr()) &&
                          PyDict_GetItemString(PyModule_GetDict(module.ptr()), "_after_fork") != nullptr;
    return is_whole ? std::move(module) : Ref();
}

/// adopt_threading(): what `threading` needs of ours, if it is imported. Called again it does nothing.
PyObject* adopt_threading(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        ModuleState& state = cpython::state_of_module(module);
        const Ref threading = state.threading_names == nullptr ? imported_threading() : Ref();
        if (threading) {
            state.threading_names = Py_NewRef(PyModule_GetDict(threading.ptr()));
            const Ref objects = steal(PyImport_ImportModule("gossamer._thread_objects"));
            steal(PyObject_CallMethod(objects.ptr(), "install", nullptr));
        }
        Py_RETURN_NONE;
    });
}

PyObject* enter(PyObject* module, PyObject* makes_threads_virtual) {
    return guarded<PyObject*>(nullptr, [&] {
        const int is_virtual = PyObject_IsTrue(makes_threads_virtual);
        cpython::check(is_virtual);
        if (Hub::current() == nullptr) {
            plan_steps();
            interpose::install();  // never on a virtual thread, which could be preempted under its mutex
        }
        steal(adopt_threading(module, nullptr));
        Hub& hub = Hub::enter();
        hub.makes_threads_virtual = is_virtual != 0;
        Py_RETURN_NONE;
    });
}

PyObject* leave(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Hub& hub = current_hub();
        if (&hub.running() != &hub.main()) {
            cpython::raise(PyExc_RuntimeError, "only the main virtual thread can leave");
        }
        if (hub.running().inner_waits != nullptr) {
            cpython::raise(PyExc_RuntimeError, "a task cannot leave: its step runs on a stack of the hub's");
        }
        hub.leave();
        Py_RETURN_NONE;
    });
}

/// Raises while a task is parked in a blocking call.
PyObject* uninstall(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        loop::require_none_parked();
        interpose::uninstall();
        Py_CLEAR(cpython::state_of_module(module).threading_names);  // entering again adopts it again
        Py_RETURN_NONE;
    });
}

sched::BlockingInTasks mode_of(PyObject* number) {
    const long mode = PyLong_AsLong(number);
    if (mode < 0 || mode > 2) {
        cpython::raise(PyExc_ValueError, "no such mode");
    }
    return static_cast<sched::BlockingInTasks>(mode);
}

/// block_in_tasks(mode): what a blocking call does in tasks that this virtual thread runs: 0 parks the task, 1 blocks the
/// thread, 2 raises. Returns the mode before.
PyObject* block_in_tasks(PyObject*, PyObject* wanted) {
    return guarded<PyObject*>(nullptr, [&] {
        const sched::BlockingInTasks mode = mode_of(wanted);
        return PyLong_FromLong(static_cast<long>(std::exchange(current_hub().running().blocking_in_tasks, mode)));
    });
}

/// block_in_all_tasks(mode): the same for this virtual thread and all that are spawned from now on.
PyObject* block_in_all_tasks(PyObject*, PyObject* wanted) {
    return guarded<PyObject*>(nullptr, [&] {
        Hub& hub = current_hub();
        hub.blocking_in_tasks = hub.running().blocking_in_tasks = mode_of(wanted);
        Py_RETURN_NONE;
    });
}

PyObject* is_virtual(PyObject*, PyObject*) { return Py_NewRef(Hub::current() != nullptr ? Py_True : Py_False); }

PyObject* checkpoint(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        if (Hub* hub = Hub::current()) {
            sched::checkpoint(*hub);
        }
        Py_RETURN_NONE;
    });
}

PyObject* current(PyObject*, PyObject*) {
    Hub* hub = Hub::current();
    PyObject* task = hub == nullptr ? nullptr : hub->running().object;
    return Py_NewRef(task == nullptr ? Py_None : task);
}

PyObject* spawn(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        if (count < 1) {
            cpython::raise(PyExc_TypeError, "spawn() needs a callable");
        }
        sched::TaskObject* task = sched::spawn_task(cpython::state_of_module(module), current_hub(), args[0], args + 1,
                                                    static_cast<std::size_t>(count - 1), names, nullptr, 0);
        return &task->ob_base;
    });
}

PyObject* change_depth(int VirtualThread::* depth, PyObject* change) {
    return guarded<PyObject*>(nullptr, [&] {
        const long by = PyLong_AsLong(change);
        if (by == -1 && PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        if (Hub* hub = Hub::current()) {
            hub->running().*depth += static_cast<int>(by);
        }
        Py_RETURN_NONE;
    });
}

PyObject* shield(PyObject*, PyObject* change) { return change_depth(&VirtualThread::shield_depth, change); }
PyObject* no_switch(PyObject*, PyObject* change) { return change_depth(&VirtualThread::no_switch_depth, change); }

/// raise_cancellation_again(): see VirtualThread.
PyObject* raise_cancellation_again(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        current_hub().running().raise_cancellation_again();
        Py_RETURN_NONE;
    });
}

PyObject* note_lost_error(PyObject*, PyObject*) {
    interpose::note_lost_error();
    Py_RETURN_NONE;
}

PyObject* call_noting_error(PyObject* function, PyObject* argument) {
    PyObject* result = PyObject_CallOneArg(function, argument);
    if (result == nullptr && PySys_GetObject("unraisablehook") == PySys_GetObject("__unraisablehook__")) {
        interpose::note_lost_error();
    }
    return result;
}

PyMethodDef call_noting_error_method = {"call_noting_error", call_noting_error, METH_O, nullptr};

/// noting_errors_of(function): a function of one argument that calls it; an error on its way to the default
/// sys.unraisablehook counts as lost.
PyObject* noting_errors_of(PyObject*, PyObject* function) {
    return PyCFunction_New(&call_noting_error_method, function);
}

/// track_coroutine_origins(depth): sys.set_coroutine_origin_tracking_depth(depth) in every virtual thread to come.
PyObject* track_coroutine_origins(PyObject*, PyObject* depth) {
    return guarded<PyObject*>(nullptr, [&] {
        Hub& hub = current_hub();
        const long frames = PyLong_AsLong(depth);
        if (frames < 0 || frames > 1000 || hub.live_count() != 1) {
            cpython::raise(PyExc_ValueError, "origins are tracked by 0 to 1000 frames, from before the first spawn on");
        }
        hub.set_usual_origin_depth(static_cast<int>(frames));
        Py_RETURN_NONE;
    });
}

/// set_own_signal_handler(handler): it does not count as the program's, which might end a deadlock.
PyObject* set_own_signal_handler(PyObject*, PyObject* handler) {
    return guarded<PyObject*>(nullptr, [&] {
        current_hub().own_signal_handler = Py_NewRef(handler);
        Py_RETURN_NONE;
    });
}

/// set_interrupt_function_of_runner(function): handlers that asyncio.Runner makes with it do not count as the program's.
PyObject* set_interrupt_function_of_runner(PyObject*, PyObject* function) {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {  // no other has signal handlers
        Hub::on_interrupt_of_runner = Py_NewRef(function);
    }
    Py_RETURN_NONE;
}

PyObject* make_threads_virtual(PyObject*, PyObject* wanted) {
    return guarded<PyObject*>(nullptr, [&] {
        const int is_wanted = PyObject_IsTrue(wanted);
        cpython::check(is_wanted);
        current_hub().makes_threads_virtual = is_wanted != 0;
        Py_RETURN_NONE;
    });
}

/// hub_ident(): a number for the hub that runs the caller, 0 on an ordinary thread.
PyObject* hub_ident(PyObject*, PyObject*) { return PyLong_FromVoidPtr(Hub::current()); }

PyObject* start_virtual_clock(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        current_hub();
        interpose::start_virtual_clock();
        Py_RETURN_NONE;
    });
}

PyObject* stop_virtual_clock(PyObject*, PyObject*) {
    interpose::stop_virtual_clock();
    Py_RETURN_NONE;
}

/// advance_virtual_clock(seconds): what is due runs at the next switches.
PyObject* advance_virtual_clock(PyObject*, PyObject* seconds) {
    return guarded<PyObject*>(nullptr, [&] {
        Hub& hub = current_hub();
        const core::Nanoseconds by(cpython::nanoseconds_from_seconds(seconds));
        if (by.count() < 0 || core::virtual_clock() == nullptr) {
            cpython::raise(PyExc_ValueError, "a virtual clock that is on goes forward only");
        }
        core::virtual_clock()->monotonic += by;
        hub.look_soon();
        Py_RETURN_NONE;
    });
}

/// shuffle(seed): see Hub; None: the usual order again.
PyObject* shuffle(PyObject*, PyObject* seed) {
    return guarded<PyObject*>(nullptr, [&] {
        if (seed == Py_None) {
            current_hub().stop_shuffling();
            Py_RETURN_NONE;
        }
        const unsigned long long bits = PyLong_AsUnsignedLongLongMask(seed);
        if (bits == static_cast<unsigned long long>(-1) && PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        current_hub().shuffle(bits);
        Py_RETURN_NONE;
    });
}

/// guard_kind(): how the next stack is guarded on this kernel.
PyObject* guard_kind(PyObject*, PyObject*) {
    switch (core::StackPool::available_guard()) {
        case core::Guard::kInstalled:
            return PyUnicode_FromString("installed");
        case core::Guard::kProtected:
            return PyUnicode_FromString("protected");
        case core::Guard::kCanary:
            return PyUnicode_FromString("canary");
    }
    GS_UNREACHABLE();
}

PyObject* was_error_lost(PyObject*, PyObject*) { return Py_NewRef(interpose::was_error_lost() ? Py_True : Py_False); }

const char* status_name(sched::ThreadStatus status) noexcept {
    switch (status) {
        case sched::ThreadStatus::kReady:
            return "ready";
        case sched::ThreadStatus::kRunning:
            return "running";
        case sched::ThreadStatus::kParked:
            return "parked";
        case sched::ThreadStatus::kFinished:
            return "finished";
    }
    GS_UNREACHABLE();
}

/// The innermost frame of a virtual thread, which may be another carrier's; empty if it has none.
Ref frame_of(VirtualThread& thread) {
    Hub& hub = thread.hub();
    const bool is_running = &thread == &hub.running();
    return cpython::frame_object(hub.tstate(),
                                 is_running ? cpython::running_frame(hub.tstate()) : thread.state.parked_frame());
}

Ref describe(VirtualThread& thread) {
    const Ref frame = frame_of(thread);
    const bool waits = thread.status == sched::ThreadStatus::kParked;
    return steal(Py_BuildValue("(ksziOOOOdkO)", thread.ident(), status_name(thread.status),
                               waits ? thread.wait_note.what : nullptr, waits ? thread.wait_note.fd : -1,
                               &thread == &thread.hub().main() ? Py_True : Py_False,
                               thread.is_daemon ? Py_True : Py_False, thread.is_scoped ? Py_True : Py_False,
                               thread.object == nullptr ? Py_None : thread.object,
                               std::chrono::duration<double>(core::coarse_now() - thread.born).count(),
                               thread.hub().os_ident(), frame ? frame.ptr() : Py_None));
}

/// threads(): a tuple for each virtual thread of the interpreter, the caller's carrier first: (ident, status, what it
/// waits for, descriptor, is main, is daemon, is scoped, task or None, age in seconds, the carrier's ident,
/// innermost frame or None).
PyObject* threads(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Ref list = steal(PyList_New(0));
        const auto add_all = [&list](Hub& hub) {
            core::IntrusiveList<VirtualThread>& roster = hub.roster();
            for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
                cpython::check(PyList_Append(list.ptr(), describe(*thread).ptr()));
            }
        };
        Hub* own = Hub::current();
        if (own != nullptr) {
            add_all(*own);
        }
        Hub::for_each(PyInterpreterState_Get(), [own, &add_all](Hub& hub) {
            if (&hub != own) {
                add_all(hub);
            }
        });
        return list.release();
    });
}

void add_parked_steps(Hub& hub, PyObject* list) {
    const loop::Steps* steps = loop::Steps::existing(hub);
    if (steps == nullptr) {
        return;
    }
    for (loop::Step* step : loop::ParkedSteps::instance().of(*steps)) {
        const Ref frame = cpython::frame_object(hub.tstate(), step->parked_frame());
        const Ref asyncio_loop = loop::loop_of(*step);
        const sched::WaitNote& note = step->wait_note();
        const Ref entry =
            steal(Py_BuildValue("(OsidOO)", step->coroutine(), note.what, note.fd,
                                std::chrono::duration<double>(core::coarse_now() - step->parked_at()).count(),
                                frame ? frame.ptr() : Py_None, asyncio_loop ? asyncio_loop.ptr() : Py_None));
        cpython::check(PyList_Append(list, entry.ptr()));
    }
}

/// parked_steps(carrier): a tuple for each task that is parked in a blocking call, the caller's carrier first: (coroutine,
/// what it waits for, descriptor, since how many seconds, innermost frame, its loop or None). `carrier`: the ident of one,
/// or None for all of the interpreter.
PyObject* parked_steps(PyObject*, PyObject* carrier) {
    return guarded<PyObject*>(nullptr, [&] {
        const unsigned long wanted = carrier == Py_None ? 0 : PyLong_AsUnsignedLong(carrier);
        cpython::check(PyErr_Occurred() != nullptr ? -1 : 0);
        Ref list = steal(PyList_New(0));
        const auto add = [&](Hub& hub) {
            if (wanted == 0 || hub.os_ident() == wanted) {
                add_parked_steps(hub, list.ptr());
            }
        };
        Hub* own = Hub::current();
        if (own != nullptr) {
            add(*own);
        }
        Hub::for_each(PyInterpreterState_Get(), [&](Hub& hub) {
            if (&hub != own) {
                add(hub);
            }
        });
        return list.release();
    });
}

/// has_steps(): whether the caller is a step of a task on a stack of its own, or a task of this hub is parked that its loop
/// may go on with.
PyObject* has_steps(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Hub& hub = current_hub();
        const loop::Steps* steps = loop::Steps::existing(hub);
        const bool has_parked = steps != nullptr && steps->is_one_to_go_on();
        return Py_NewRef(hub.running().inner_waits != nullptr || has_parked ? Py_True : Py_False);
    });
}

/// call_when_no_step_is_left(function): once, when none runs or is parked any more: at the end of a step.
PyObject* call_when_no_step_is_left(PyObject*, PyObject* function) {
    return guarded<PyObject*>(nullptr, [&] {
        loop::Steps::of(current_hub()).call_when_none_is_left(function);
        Py_RETURN_NONE;
    });
}

PyObject* statistics(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Hub& hub = current_hub();
        const sched::HubStatistics& counts = hub.statistics();
        const loop::Steps* steps = loop::Steps::existing(hub);
        return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:n,s:O,s:K,s:K,s:n,s:n}", "spawned", counts.spawned,
                             "finished", counts.finished, "parks", counts.parks, "switches", counts.switches.load(),
                             "polls", counts.polls, "waits", counts.waits, "preemptions", counts.preemptions,
                             "deadlocks", counts.deadlocks, "live", static_cast<Py_ssize_t>(hub.live_count()),
                             "main_is_virtual", hub.main().is_main() ? Py_True : Py_False, "steps",
                             steps == nullptr ? 0 : steps->started, "step_parks", steps == nullptr ? 0 : steps->parks,
                             "parked_steps", static_cast<Py_ssize_t>(hub.parked_steps()), "steps_in_use",
                             steps == nullptr ? Py_ssize_t{0} : static_cast<Py_ssize_t>(steps->in_use()));
    });
}

PyObject* join_non_daemons(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        current_hub();
        interpose::join_non_daemons();
        Py_RETURN_NONE;
    });
}

/// _cancel_all(): asks every other virtual thread of the hub to end; no new threads from now on.
PyObject* cancel_all(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Hub& hub = current_hub();
        hub.is_closing = true;
        core::IntrusiveList<VirtualThread>& roster = hub.roster();
        for (VirtualThread* thread = roster.front(); thread != nullptr; thread = roster.next_of(*thread)) {
            if (thread != &hub.running()) {
                thread->request_cancellation();
            }
        }
        Py_RETURN_NONE;
    });
}

/// cancel_thread(ident): asks the virtual thread of this hub that has this identity to end, if there is one.
PyObject* cancel_thread(PyObject*, PyObject* ident) {
    return guarded<PyObject*>(nullptr, [&] {
        const unsigned long wanted = PyLong_AsUnsignedLong(ident);
        if (wanted == static_cast<unsigned long>(-1) && PyErr_Occurred()) {
            throw cpython::ErrorSet{};
        }
        if (VirtualThread* thread = current_hub().find(wanted)) {
            thread->request_cancellation();
        }
        Py_RETURN_NONE;
    });
}

PyObject* after_fork_in_child(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        Hub::forget_others_after_fork();
        core::Watchdog::instance().reset_after_fork();
        if (Hub* hub = Hub::current()) {
            const bool was_main = &hub->running() == &hub->main();
            hub->reset_after_fork();
            interpose::keep_thread_alive_after_fork(hub->running());
            if (!was_main && hub->is_main_thread_hub()) {
                interpose::end_main_thread_after_fork();
            }
        }
        Py_RETURN_NONE;
    });
}

/// set_slice(seconds): the length of a slice; 0 turns preemption off.
PyObject* set_slice(PyObject*, PyObject* seconds) {
    return guarded<PyObject*>(nullptr, [&] {
        sched::Preemption::set_slice(core::Nanoseconds(cpython::nanoseconds_from_seconds(seconds)));
        Py_RETURN_NONE;
    });
}

/// Prints an uncaught exception as the interpreter does for the main program, by sys.excepthook.
PyObject* report_uncaught(PyObject*, PyObject* exception) {
    PyErr_SetRaisedException(Py_NewRef(exception));
    PyErr_Print();
    Py_RETURN_NONE;
}

PyObject* end_by_interrupt(PyObject*, PyObject*) {
    cpython::end_by_interrupt();
    Py_RETURN_NONE;
}

/// Puts the hook before those of the standard library, which take locks: none may park before the hub is reset.
PyObject* register_fork_hooks(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        // In C, so that a fork that is not Python's finds them free too, and before the interpreter clears the thread
        // states of threads that are not there, which wakes who waits for them.
        const int error = pthread_atfork(nullptr, nullptr, [] {
            core::ParkingLot::instance().reset_after_fork();
            core::ThreadPool::instance().reset_after_fork();
            loop::ParkedSteps::instance().reset_after_fork();
            interpose::forget_semaphores_after_fork();
        });
        if (error != 0) {
            cpython::raise_os_error(error);
        }
        const Ref hook = steal(PyObject_GetAttrString(module, "after_fork_in_child"));
        PyInterpreterState& interpreter = *PyInterpreterState_Get();
        if (interpreter.after_forkers_child == nullptr) {
            interpreter.after_forkers_child = steal(PyList_New(0)).release();
        }
        cpython::check(PyList_Insert(interpreter.after_forkers_child, 0, hook.ptr()));
        Py_RETURN_NONE;
    });
}

PyObject* preemption_status(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] { return PyUnicode_FromString(sched::Preemption::status()); });
}

/// At the end of the interpreter: no request may reach it any more.
PyObject* end_preemption(PyObject*, PyObject*) {
    core::Watchdog::instance().remove_group(PyInterpreterState_Get());
    Py_RETURN_NONE;
}

void end_preemption_at_exit(PyObject* module) {
    const Ref atexit = steal(PyImport_ImportModule("atexit"));
    const Ref end = steal(PyObject_GetAttrString(module, "end_preemption"));
    steal(PyObject_CallMethod(atexit.ptr(), "register", "O", end.ptr()));
}

PyObject* greenlet_names(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return loop::create_greenlet_names(module); });
}

PyMethodDef functions[] = {{"enter", enter, METH_O, nullptr},
                           {"adopt_threading", adopt_threading, METH_NOARGS, nullptr},
                           {"leave", leave, METH_NOARGS, nullptr},
                           {"uninstall", uninstall, METH_NOARGS, nullptr},
                           {"block_in_tasks", block_in_tasks, METH_O, nullptr},
                           {"block_in_all_tasks", block_in_all_tasks, METH_O, nullptr},
                           {"is_virtual", is_virtual, METH_NOARGS, nullptr},
                           {"checkpoint", checkpoint, METH_NOARGS, nullptr},
                           {"current", current, METH_NOARGS, nullptr},
                           {"spawn", _PyCFunction_CAST(spawn), METH_FASTCALL | METH_KEYWORDS, nullptr},
                           {"shield", shield, METH_O, nullptr},
                           {"no_switch", no_switch, METH_O, nullptr},
                           {"raise_cancellation_again", raise_cancellation_again, METH_NOARGS, nullptr},
                           {"note_lost_error", note_lost_error, METH_NOARGS, nullptr},
                           {"noting_errors_of", noting_errors_of, METH_O, nullptr},
                           {"track_coroutine_origins", track_coroutine_origins, METH_O, nullptr},
                           {"set_own_signal_handler", set_own_signal_handler, METH_O, nullptr},
                           {"set_interrupt_function_of_runner", set_interrupt_function_of_runner, METH_O, nullptr},
                           {"make_threads_virtual", make_threads_virtual, METH_O, nullptr},
                           {"hub_ident", hub_ident, METH_NOARGS, nullptr},
                           {"start_virtual_clock", start_virtual_clock, METH_NOARGS, nullptr},
                           {"stop_virtual_clock", stop_virtual_clock, METH_NOARGS, nullptr},
                           {"advance_virtual_clock", advance_virtual_clock, METH_O, nullptr},
                           {"shuffle", shuffle, METH_O, nullptr},
                           {"guard_kind", guard_kind, METH_NOARGS, nullptr},
                           {"was_error_lost", was_error_lost, METH_NOARGS, nullptr},
                           {"threads", threads, METH_NOARGS, nullptr},
                           {"parked_steps", parked_steps, METH_O, nullptr},
                           {"has_steps", has_steps, METH_NOARGS, nullptr},
                           {"call_when_no_step_is_left", call_when_no_step_is_left, METH_O, nullptr},
                           {"statistics", statistics, METH_NOARGS, nullptr},
                           {"join_non_daemons", join_non_daemons, METH_NOARGS, nullptr},
                           {"cancel_all", cancel_all, METH_NOARGS, nullptr},
                           {"greenlet_names", greenlet_names, METH_NOARGS, nullptr},
                           {"await_in_task", _PyCFunction_CAST(loop::await_in_task), METH_FASTCALL, nullptr},
                           {"can_await_in_task", loop::can_await_in_task, METH_NOARGS, nullptr},
                           {"can_park_in_task", loop::can_park_in_task, METH_NOARGS, nullptr},
                           {"is_in_step", loop::is_in_step, METH_NOARGS, nullptr},
                           {"let_plain_functions_await", loop::let_plain_functions_await, METH_O, nullptr},
                           {"watch_running_loops", loop::watch_running_loops, METH_NOARGS, nullptr},
                           {"lend_context", loop::lend_context, METH_NOARGS, nullptr},
                           {"take_context_back", _PyCFunction_CAST(loop::take_context_back), METH_FASTCALL, nullptr},
                           {"cancel_thread", cancel_thread, METH_O, nullptr},
                           {"after_fork_in_child", after_fork_in_child, METH_NOARGS, nullptr},
                           {"set_slice", set_slice, METH_O, nullptr},
                           {"preemption_status", preemption_status, METH_NOARGS, nullptr},
                           {"end_preemption", end_preemption, METH_NOARGS, nullptr},
                           {"report_uncaught", report_uncaught, METH_O, nullptr},
                           {"end_by_interrupt", end_by_interrupt, METH_NOARGS, nullptr},
                           {"adopt_transports", _PyCFunction_CAST(loop::adopt_transports), METH_FASTCALL, nullptr},
                           {"adopt_asyncio", _PyCFunction_CAST(loop::adopt_asyncio), METH_FASTCALL, nullptr},
                           {"adopt_tls", _PyCFunction_CAST(loop::adopt_tls), METH_FASTCALL, nullptr},
                           {"register_fork_hooks", register_fork_hooks, METH_NOARGS, nullptr},
                           {}};

int execute(PyObject* module) noexcept {
    return guarded(-1, [&] {
        auto* state = new (PyModule_GetState(module)) ModuleState{};
        cpython::check_layout();
        Hub::raise_deadlock = &raise_deadlock;
        end_preemption_at_exit(module);
        state->trace_hook_name = steal(PyUnicode_InternFromString("_trace_hook")).release();
        state->profile_hook_name = steal(PyUnicode_InternFromString("_profile_hook")).release();
        state->task_type = sched::create_task_type(module);
        state->scope_type = sched::create_scope_type(module);
        cpython::check(PyModule_AddObjectRef(module, "Task", reinterpret_cast<PyObject*>(state->task_type)));
        cpython::check(PyModule_AddObjectRef(module, "ScopeBase", reinterpret_cast<PyObject*>(state->scope_type)));
        loop::create_parts(module);
        return 0;
    });
}

int traverse(PyObject* module, visitproc visit, void* arg) {
    ModuleState& state = cpython::state_of_module(module);
    for (PyObject* object : cpython::references_in<cpython::ModuleObjects>(state)) {
        Py_VISIT(object);
    }
    return loop::traverse_parts(state.loop_parts, visit, arg);
}

int clear(PyObject* module) {
    ModuleState& state = cpython::state_of_module(module);
    for (PyObject*& object : cpython::references_in<cpython::ModuleObjects>(state)) {
        Py_CLEAR(object);
    }
    loop::clear_parts(state.loop_parts);
    return 0;
}

void free_module(void* module) {
    clear(static_cast<PyObject*>(module));
    loop::free_parts(cpython::state_of_module(static_cast<PyObject*>(module)).loop_parts);
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(&execute)},
                            {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#if PY_VERSION_HEX >= 0x030D0000
                            {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
                            {0, nullptr}};

}  // namespace

namespace cpython {
PyModuleDef core_module = {PyModuleDef_HEAD_INIT,
                           "gossamer._core",
                           nullptr,
                           sizeof(ModuleState),
                           functions,
                           slots,
                           traverse,
                           clear,
                           free_module};
}

}  // namespace gossamer

PyMODINIT_FUNC PyInit__core() { return PyModuleDef_Init(&gossamer::cpython::core_module); }
