// SPDX-License-Identifier: Apache-2.0
// PyThreadState_SetAsyncExc for virtual threads. Extension modules call it by its name: their calls are redirected
// (interpose/libc/relocation_table.hpp). Debuggers, test tools and `stopit`-like libraries call it through
// `ctypes.pythonapi`, which looks the C symbol up in the executable, where nothing of ours can stand before it. So the
// look-up is answered instead: `ctypes` makes a foreign function by `_FuncPtr((name, library))`, that is by the tp_new of
// `_ctypes.CFuncPtr`; ours, when asked for this one name, makes one of our function's address. Classes made from CFuncPtr
// inherit the slot when they are made; those that exist already are changed too.
//
// `_ctypes` may be imported at any time, as may an extension module that calls the symbol (late_import.hpp).
#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include <string_view>

#include "interpose/libc/redirected_calls.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

newfunc original_new = nullptr;

constexpr const char* kSymbol = "PyThreadState_SetAsyncExc";

/// What the C function does, for a virtual thread too. Returns how many threads it reached.
int set_async_exception(unsigned long ident, PyObject* exception) {
    return guarded(-1, [&] {
        Ref old;
        const bool is_virtual = Hub::visit_thread(PyInterpreterState_Get(), ident, [&](VirtualThread& thread) {
            Hub& hub = thread.hub();
            const bool is_running = &thread == &hub.running();
            old = Ref::steal_or_null(is_running ? cpython::FiberState::set_async_exception_of(hub.tstate(), exception)
                                                : thread.state.set_async_exception(exception));
        });
        return is_virtual ? 1 : PyThreadState_SetAsyncExc(ident, exception);
    });
}

/// Whether `args` asks for the symbol in a library: `((name, library),)`. The name may be bytes, or an ordinary string.
bool asks_for_symbol(PyObject* args) noexcept {
    PyObject* spec = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0) : nullptr;
    if (spec == nullptr || !PyTuple_Check(spec) || PyTuple_GET_SIZE(spec) != 2) {
        return false;
    }
    PyObject* name = PyTuple_GET_ITEM(spec, 0);
    return (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, kSymbol) == 0) ||
           (PyBytes_Check(name) && std::string_view(PyBytes_AS_STRING(name)) == kSymbol);
}

PyObject* make_foreign_function(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
    if (!is_installed() || !asks_for_symbol(args)) {
        return original_new(type, args, kwargs);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Ref original = steal(original_new(type, args, kwargs));  // the library must have it
        const Ref address = steal(PyLong_FromVoidPtr(reinterpret_cast<void*>(&set_async_exception)));
        const Ref arguments = steal(PyTuple_Pack(1, address.ptr()));
        return original_new(type, arguments.ptr(), nullptr);
    });
}

void replace_new(PyTypeObject* type, newfunc old, newfunc replacement) {
    if (type->tp_new == old) {
        type->tp_new = replacement;
    }
    const Ref subclasses = steal(PyObject_CallMethod(reinterpret_cast<PyObject*>(type), "__subclasses__", nullptr));
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(subclasses.ptr()); ++index) {
        replace_new(reinterpret_cast<PyTypeObject*>(PyList_GET_ITEM(subclasses.ptr(), index)), old, replacement);
    }
}

void adopt_ctypes(PyObject* module) {
    const Ref type = steal(PyObject_GetAttrString(module, "CFuncPtr"));
    auto* function_type = reinterpret_cast<PyTypeObject*>(type.ptr());
    if (function_type->tp_new != &make_foreign_function) {
        original_new = function_type->tp_new;
        replace_new(function_type, original_new, &make_foreign_function);
    }
}

void release_ctypes(PyObject* module) {
    const Ref type = steal(PyObject_GetAttrString(module, "CFuncPtr"));
    replace_new(reinterpret_cast<PyTypeObject*>(type.ptr()), &make_foreign_function, original_new);
}

}  // namespace

SymbolRedirection& async_exception_redirection() noexcept {
    static SymbolRedirection redirection(kSymbol, reinterpret_cast<void*>(&PyThreadState_SetAsyncExc),
                                         reinterpret_cast<void*>(&set_async_exception));
    return redirection;
}

void plan_async_exception() { adopt_when_imported("_ctypes", &adopt_ctypes, &release_ctypes); }

}  // namespace gossamer::interpose
