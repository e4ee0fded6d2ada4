// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/running_loop.hpp"

#include <atomic>
#include <cstring>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"
#include "loop/step_loop.hpp"
#include "loop/steps.hpp"
#include "sched/hub.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

// Process-wide on purpose, as the function is; written once, before the entry is replaced.
PyMethodDef* definition = nullptr;
PyCFunction original = nullptr;

void store(PyCFunction function) noexcept {
    std::atomic_ref<PyCFunction>(definition->ml_meth).store(function, std::memory_order_release);
}

/// A loop that waits in C code drives the hub from the beginning on: virtual threads may be there before a task parks.
void let_drive(PyObject* loop) noexcept {
    sched::Hub* hub = sched::Hub::current();
    if (hub != nullptr && loop != Py_None && !waits_in_selector(loop)) {
        guarded(0, [&] {
            Steps::of(*hub).let_drive(loop);
            return 0;
        });
        PyErr_Clear();  // a loop without readers cannot
    }
}

PyObject* set_running_loop(PyObject* module, PyObject* loop) {
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        Ref result = steal(original(module, loop));
        const Ref name = steal(PyUnicode_InternFromString("gossamer._running_loops"));
        const Ref watcher = Ref::steal_or_null(PyImport_GetModule(name.ptr()));
        cpython::check(PyErr_Occurred() != nullptr ? -1 : 0);
        if (watcher) {
            steal(PyObject_CallMethod(watcher.ptr(), "note", "O", loop));
        }
        let_drive(loop);
        return result.release();
    });
}

PyMethodDef& definition_of(PyObject* function) {
    PyMethodDef* found = PyCFunction_Check(function) ? reinterpret_cast<PyCFunctionObject*>(function)->m_ml : nullptr;
    if (found == nullptr || found->ml_flags != METH_O || std::strcmp(found->ml_name, "_set_running_loop") != 0) {
        cpython::raise(PyExc_ImportError, "gossamer does not know _asyncio._set_running_loop() in this Python");
    }
    return *found;
}

}  // namespace

void install_running_loop_watch(PyObject* asyncio_module) {
    if (original == nullptr) {
        const Ref function = steal(PyObject_GetAttrString(asyncio_module, "_set_running_loop"));
        definition = &definition_of(function.ptr());
        original = definition->ml_meth;
    }
    store(&set_running_loop);
}

void uninstall_running_loop_watch() noexcept {
    if (original != nullptr) {
        store(original);
    }
}

PyObject* watch_running_loops(PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [] {
        const Ref asyncio = steal(PyImport_ImportModule("_asyncio"));
        install_running_loop_watch(asyncio.ptr());
        Py_RETURN_NONE;
    });
}

}  // namespace gossamer::loop
