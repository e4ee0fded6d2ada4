// SPDX-License-Identifier: Apache-2.0
// signal.sigwait, sigwaitinfo, sigtimedwait and pause: park instead of putting the carrier to sleep.
//
// A signal that is blocked and waited for is seen by a signalfd(2) of the same set, which epoll can wait for; the original
// then takes it without waiting. Signals are the carrier's: virtual threads that wait for the same one share it as OS threads
// of a process do. pause() ends when a Python handler has run, which only the main virtual thread sees.
#include "cpython/api.hpp"

#include <cerrno>
#include <csignal>
#include <sys/signalfd.h>

#include "core/file_descriptor.hpp"
#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/offload.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_sigwait = nullptr;
PyCFunction original_sigwaitinfo = nullptr;
PyCFunction original_sigtimedwait = nullptr;
PyCFunction original_pause = nullptr;

/// Whether the original, too, finds the signals in it: it is a collection, not an iterator.
bool may_be_read_twice(PyObject* signals) noexcept {
    return PyAnySet_Check(signals) || PyList_Check(signals) || PyTuple_Check(signals) || PyRange_Check(signals);
}

/// The signals of an iterable of numbers, or nothing for what the original refuses.
bool parse_signals(PyObject* iterable, sigset_t& set) {
    sigemptyset(&set);
    const Ref iterator = Ref::steal_or_null(PyObject_GetIter(iterable));
    if (!iterator) {
        PyErr_Clear();  // the original complains
        return false;
    }
    bool is_right = true;
    while (Ref item = Ref::steal_or_null(PyIter_Next(iterator.ptr()))) {
        const long number = PyLong_AsLong(item.ptr());
        is_right = is_right && number > 0 && sigaddset(&set, static_cast<int>(number)) == 0;
    }
    is_right = is_right && !PyErr_Occurred();
    PyErr_Clear();  // of an item that is no number: the original complains
    return is_right;
}

/// Whether one of the signals is pending for this OS thread or the process.
bool is_pending(const sigset_t& set) noexcept {
    sigset_t pending;
    sigpending(&pending);
    sigset_t both;
    sigandset(&both, &pending, &set);
    return sigisemptyset(&both) == 0;
}

/// Parks until a signal of the set is pending. Returns false when the deadline passed. Throws ErrorSet.
bool wait_for_signal(Hub& hub, const sigset_t& set, core::Deadline deadline) {
    const core::FileDescriptor descriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (descriptor.get() < 0) {
        cpython::raise_os_error(errno);
    }
    const sched::FdInterest interest{descriptor.get(), static_cast<std::uint32_t>(core::Interest::kRead)};
    sched::AnyFdWait wait(hub, {.what = "a signal", .fd = descriptor.get()}, {&interest, 1});
    while (!is_pending(set)) {
        if (!wait.wait(deadline)) {
            return false;
        }
    }
    hub.reactor().forget(descriptor.get());
    return true;
}

template <PyCFunction& Original>
PyObject* wait_then_take(PyObject* module, PyObject* signals) {
    Hub* hub = Hub::current();
    sigset_t set;
    if (hub == nullptr || !may_be_read_twice(signals) || !parse_signals(signals, set)) {
        return Original(module, signals);
    }
    return guarded<PyObject*>(nullptr, [&] {
        (void)wait_for_signal(*hub, set, core::Deadline::never());
        return Original(module, signals);
    });
}

PyObject* sigtimedwait(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    Hub* hub = Hub::current();
    sigset_t set;
    const auto original = as<FastFunction>(original_sigtimedwait);
    if (hub == nullptr || count != 2 || !may_be_read_twice(args[0]) || !parse_signals(args[0], set)) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const std::int64_t delay = cpython::nanoseconds_from_seconds(args[1]);
        if (delay > 0) {
            (void)wait_for_signal(*hub, set, hub->deadline_after(core::Nanoseconds(delay)));
        }
        if (delay < 0) {
            return original(module, args, count);
        }
        const Ref zero = steal(PyLong_FromLong(0));
        PyObject* without_waiting[] = {args[0], zero.ptr()};
        return original(module, without_waiting, 2);
    });
}

PyObject* pause(PyObject* module, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_pause(module, unused);
    }
    return guarded<PyObject*>(nullptr, [&] {
        // The signal may come from anywhere, so it is no deadlock that nobody here sends it.
        const sched::ExternalWakeExpected expected(*hub);
        const std::uint64_t before = hub->handled_signals();
        while (hub->handled_signals() == before) {
            const sched::Wake wake =
                hub->park({.what = "signal.pause"}, core::Deadline::never(), sched::Cancellable::kYes);
            if (wake != sched::Wake::kReady) {
                sched::raise_wake(*hub, wake);
            }
        }
        Py_RETURN_NONE;
    });
}

}  // namespace

void plan_signal() {
    const Ref module = steal(PyImport_ImportModule("_signal"));
    plan_swap(module.ptr(), "sigwait", {{METH_O, wait_then_take<original_sigwait>}}, original_sigwait);
    plan_swap(module.ptr(), "sigwaitinfo", {{METH_O, wait_then_take<original_sigwaitinfo>}}, original_sigwaitinfo);
    plan_swap(module.ptr(), "sigtimedwait", {{METH_FASTCALL, sigtimedwait}}, original_sigtimedwait);
    plan_swap(module.ptr(), "pause", {{METH_NOARGS, pause}}, original_pause);
}

}  // namespace gossamer::interpose
