// SPDX-License-Identifier: Apache-2.0
// What one interpreter's copy of the extension module owns: its types and exceptions.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::loop {
struct Parts;
}

namespace gossamer::cpython {

/// Owned; null until they are needed.
struct ModuleObjects {
    PyTypeObject* task_type = nullptr;
    PyTypeObject* scope_type = nullptr;
    PyObject* threading_names = nullptr;    // the dictionary of the module threading, once it is imported
    PyObject* trace_hook_name = nullptr;    // "_trace_hook"
    PyObject* profile_hook_name = nullptr;  // "_profile_hook"

    // of the module greenlet (src/loop), made when it is imported
    PyTypeObject* greenlet_type = nullptr;
    PyTypeObject* greenlet_thread_type = nullptr;
    PyTypeObject* greenlet_token_type = nullptr;
    PyObject* greenlet_exit = nullptr;
    PyObject* greenlet_error = nullptr;
};

struct ModuleState : ModuleObjects {
    loop::Parts* loop_parts = nullptr;  // owned
};

extern PyModuleDef core_module;

/// The state behind a method's defining class. `type` was created in this module's exec slot.
inline ModuleState& state_of_defining_class(PyTypeObject* type) noexcept {
    return *static_cast<ModuleState*>(PyType_GetModuleState(type));
}

inline ModuleState& state_of_module(PyObject* module) noexcept {
    return *static_cast<ModuleState*>(PyModule_GetState(module));
}

}  // namespace gossamer::cpython
