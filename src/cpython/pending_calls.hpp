// SPDX-License-Identifier: Apache-2.0
// The queue of functions that an interpreter calls between two bytecodes, and the mark of whoever is calling them.
//
// make_pending_calls (Python/ceval_gil.c) takes the mark, pops and calls entries one by one, and gives the mark back; while
// it is taken every other attempt to run pending calls, by any thread, returns at once. Across one call it keeps nothing
// but the mark: entries are popped under a mutex that is free meanwhile, and its last act is a plain store. So a fiber
// that parks inside a pending call must give the mark up before it switches and take it back when it continues; or all
// pending calls of the interpreter, and with them preemption, stand still until it does.
//
// The mark is `pending.busy` in 3.12 (it does not say whose it is) and `pending.handling_thread` from 3.13 on. Neither is
// public, so verify() checks by an entry of our own that they are where this was compiled to look for them; until it has
// passed nothing is touched.
#pragma once

#include "cpython/api.hpp"

#include <cstdint>

namespace gossamer::cpython {

class PendingCalls final {
public:
    using Function = int (*)(void*);

    enum class Check : std::uint8_t {
        kPassed,
        kBusy,    // somebody is running pending calls just now: ask again
        kFailed,  // this interpreter differs from what was compiled: keep off
    };

    explicit PendingCalls(PyInterpreterState& interpreter) noexcept : interpreter_(&interpreter) {}

    /// Looks for the queue and the mark. Runs the pending calls that wait, and on the main thread signal handlers: throws
    /// ErrorSet when one of them raises. Parks: yes (others' pending calls). Thread: any. Python: attached.
    Check verify(PyThreadState& tstate);

    /// Has `function(argument)` called by a thread of the interpreter between two bytecodes. Returns false when the queue
    /// is full. Thread: any. Python: not needed.
    static bool add(PyInterpreterState& interpreter, Function function, void* argument) noexcept;

    /// Has `tstate`'s thread look at the queue. One that met the mark of another thread leaves what is queued to that one
    /// (3.13 on), which may end or sleep without looking again. Thread: any; `tstate` must live. Python: not needed.
    static void remind([[maybe_unused]] PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
        signal(tstate);
#endif
    }

    /// Gives the mark up: the caller is a pending call, and takes it back. Thread: carrier. Python: attached.
    void give_up_mark(PyThreadState& tstate) noexcept;

    /// Gives the mark up if the running code is inside a pending call. Returns whether it must be taken back.
    /// Thread: carrier. Python: attached.
    bool give_up_mark_if_ours(PyThreadState& tstate) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
        // relaxed: if it is ours nobody else writes it.
        if (__atomic_load_n(mark_, __ATOMIC_RELAXED) != &tstate) {
            return false;
        }
        give_up_mark(tstate);
        return true;
#else
        return *mark_ != 0 && give_up_nameless_mark(tstate);
#endif
    }

    /// Takes the mark back. Returns false while another OS thread has it. Thread: carrier. Python: attached.
    [[nodiscard]] bool try_take_mark(PyThreadState& tstate) noexcept;

    /// Before the main thread continues: calls that wait for it alone were passed over while another virtual thread ran.
    /// Thread: carrier. Python: attached.
    void signal_calls_for_main(PyThreadState& tstate) noexcept {
        if (is_verified_ && has_calls_for_main()) {
            signal(tstate);
        }
    }

private:
#if PY_VERSION_HEX >= 0x030D0000
    using Mark = PyThreadState*;
#else
    using Mark = int;
#endif

    bool give_up_nameless_mark(PyThreadState& tstate) noexcept;
    bool has_entry(Function function, const void* argument) const noexcept;
    bool has_calls() const noexcept;
    static bool has_calls_for_main() noexcept;
    static void signal(PyThreadState& tstate) noexcept;
    static int probe(void* self) noexcept;

    PyInterpreterState* const interpreter_;
    Mark no_mark_{};  // stands in for the interpreter's until it is verified: never set
    Mark* mark_ = &no_mark_;
    bool is_verified_ = false;
};

}  // namespace gossamer::cpython
