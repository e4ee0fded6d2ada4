// SPDX-License-Identifier: Apache-2.0
// Which thread am I, and what a thread's identity is good for: `_thread.get_ident`, `_count`, `stack_size`, `set_name`,
// `signal.pthread_kill`, `time.pthread_getcpuclockid`.
//
// The main virtual thread has the identity of its OS thread; every other has one of its own. Where the kernel is asked
// (a signal, a clock) an identity stands for its carrier, and `get_native_id` is the carrier's: it is what the kernel
// knows. A carrier keeps its name in the kernel: it is not one virtual thread's to set.
#include "cpython/api.hpp"

#include <algorithm>

#include "core/stack_pool.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

PyCFunction original_get_ident = nullptr;
PyCFunction original_count = nullptr;
PyCFunction original_stack_size = nullptr;
PyCFunction original_set_name = nullptr;
PyCFunction original_pthread_kill = nullptr;
PyCFunction original_getcpuclockid = nullptr;

PyObject* get_ident(PyObject* module, PyObject* unused) {
    Hub* hub = Hub::current();
    return hub == nullptr ? original_get_ident(module, unused) : PyLong_FromUnsignedLong(hub->running().ident());
}

PyObject* count(PyObject* module, PyObject* unused) {
    Hub* hub = Hub::current();
    PyObject* os_threads = original_count(module, unused);
    if (hub == nullptr || os_threads == nullptr) {
        return os_threads;
    }
    const long total = PyLong_AsLong(os_threads) + static_cast<long>(hub->live_count()) - 1;
    Py_DECREF(os_threads);
    return PyLong_FromLong(total);
}

/// The original checks the size, keeps it and returns the last one; without an argument it takes the default again. A virtual thread's stack is never smaller than usual.
PyObject* stack_size(PyObject* module, PyObject* args) {
    PyObject* previous = original_stack_size(module, args);
    Hub* hub = Hub::current();
    if (previous != nullptr && hub != nullptr) {
        const std::size_t wanted = PyTuple_GET_SIZE(args) == 0 ? 0 : PyLong_AsSize_t(PyTuple_GET_ITEM(args, 0));
        if (PyErr_Occurred()) {
            PyErr_Clear();  // a size that is no int: the original has taken it by __index__
        } else {
            hub->thread_stack_bytes = wanted == 0 ? 0 : std::max(wanted, core::StackPool::kDefaultStackBytes);
        }
    }
    return previous;
}

PyObject* set_name(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    Hub* hub = Hub::current();
    const bool is_valid = count + (names == nullptr ? 0 : PyTuple_GET_SIZE(names)) == 1 && PyUnicode_Check(args[0]);
    if (hub == nullptr || hub->running().is_main() || !is_valid) {
        return as<FastKeywordFunction>(original_set_name)(module, args, count, names);
    }
    Py_RETURN_NONE;
}

/// Calls `visit` for the virtual thread of that identity, as Hub::visit_thread; what is no identity is nobody's.
template <typename Visit>
void visit_thread(PyObject* ident, Visit visit) {
    if (!PyLong_Check(ident)) {
        return;
    }
    const unsigned long value = PyLong_AsUnsignedLong(ident);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return;
    }
    Hub::visit_thread(PyInterpreterState_Get(), value, visit);
}

/// `ident` with a virtual thread's identity replaced by its carrier's; what is no identity is left to the original.
Ref os_ident_of(PyObject* ident) {
    unsigned long os_ident = 0;
    visit_thread(ident, [&os_ident](VirtualThread& thread) { os_ident = thread.hub().os_ident(); });
    return os_ident == 0 ? cpython::borrow(ident) : steal(PyLong_FromUnsignedLong(os_ident));
}

PyObject* pthread_kill(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        const auto original = as<FastFunction>(original_pthread_kill);
        if (count != 2) {
            return original(module, args, count);
        }
        const Ref ident = os_ident_of(args[0]);
        PyObject* const arguments[] = {ident.ptr(), args[1]};
        Ref result = steal(original(module, arguments, count));
        visit_thread(args[0], [](VirtualThread& thread) {
            if (!thread.is_main()) {
                thread.interrupt();
            }
        });
        if (Hub* hub = Hub::current()) {
            hub->look_soon();
        }
        return result.release();
    });
}

PyObject* getcpuclockid(PyObject* module, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        if (PyTuple_GET_SIZE(args) != 1) {
            return original_getcpuclockid(module, args);
        }
        const Ref ident = os_ident_of(PyTuple_GET_ITEM(args, 0));
        const Ref arguments = steal(PyTuple_Pack(1, ident.ptr()));
        return original_getcpuclockid(module, arguments.ptr());
    });
}

PyObject* getcpuclockid_of(PyObject* module, PyObject* ident) {
    return guarded<PyObject*>(nullptr, [&] { return original_getcpuclockid(module, os_ident_of(ident).ptr()); });
}

}  // namespace

void plan_thread_identity(PyObject* thread_module) {
    plan_swap(thread_module, "get_ident", {{METH_NOARGS, get_ident}}, original_get_ident);
    plan_swap(thread_module, "_count", {{METH_NOARGS, count}}, original_count);
    plan_swap(thread_module, "stack_size", {{METH_VARARGS, stack_size}}, original_stack_size);
    plan_swap(thread_module, "set_name", {{METH_FASTCALL | METH_KEYWORDS, set_name}}, original_set_name, true);
    const Ref signal = steal(PyImport_ImportModule("_signal"));
    plan_swap(signal.ptr(), "pthread_kill", {{METH_FASTCALL, pthread_kill}}, original_pthread_kill);
    const Ref time = steal(PyImport_ImportModule("time"));
    plan_swap(time.ptr(), "pthread_getcpuclockid", {{METH_VARARGS, getcpuclockid}, {METH_O, getcpuclockid_of}},
              original_getcpuclockid);
}

}  // namespace gossamer::interpose
