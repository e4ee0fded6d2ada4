// SPDX-License-Identifier: Apache-2.0
// Looking at what belongs to other OS threads of the interpreter, which must not run meanwhile.
//
// With a GIL who holds it is alone. Without one the world is stopped, as sys._current_frames() stops it. The interpreter
// does not export that, but its public PyUnstable_GC_VisitObjects() calls a function while it is stopped (and holds the
// lock of the list of thread states); ours is called for the first object and asks for no more.
// Source: Python/gc_free_threading.c of 3.13.
#pragma once

#include "cpython/api.hpp"

#include <utility>

#include "core/assert.hpp"
#include "cpython/error.hpp"

namespace gossamer::cpython {

/// Calls `look()` while no other thread of the interpreter is attached. `look` must neither run Python code, nor detach,
/// nor go through the list of thread states by a function of the interpreter, nor come here again. Throws ErrorSet if it
/// does. Thread: any. Python: attached.
template <typename Look>
void while_others_stand(Look look) {
#ifdef Py_GIL_DISABLED
    struct Call {
        Look& look;
        bool has_run = false;
        bool has_failed = false;
    };
    const auto visit = [](PyObject*, void* argument) noexcept {
        auto& call = *static_cast<Call*>(argument);
        if (!std::exchange(call.has_run, true)) {
            call.has_failed = !guarded(false, [&call] {
                call.look();
                return true;
            });
        }
        return 0;
    };
    Call call{look};
    PyUnstable_GC_VisitObjects(visit, &call);
    GS_ASSERT(call.has_run);  // an interpreter has objects
    if (call.has_failed) {
        throw ErrorSet{};
    }
#else
    look();
#endif
}

/// The interpreter's first thread state if `previous` is null, else the one behind it; null at the end. For use inside
/// while_others_stand().
inline PyThreadState* next_thread_state(PyInterpreterState& interpreter, PyThreadState* previous) noexcept {
#ifdef Py_GIL_DISABLED
    return previous == nullptr ? interpreter.threads.head : previous->next;
#else
    return previous == nullptr ? PyInterpreterState_ThreadHead(&interpreter) : PyThreadState_Next(previous);
#endif
}

}  // namespace gossamer::cpython
