// SPDX-License-Identifier: Apache-2.0
// _thread._ThreadHandle (3.13 on): the handle of a virtual thread is a real one whose words say "running, no OS thread
// behind it". Everything but join() is then the original's; when the virtual thread ends the original `_set_done` marks
// it, which also wakes OS threads that join. The words' place is checked at start-up against a handle made by
// `_make_thread_handle`. Source: ThreadHandle in Modules/_threadmodule.c.
//
// The end of an OS thread is told by the interpreter in C, where nobody can listen but by joining. So a virtual thread
// that joins one has a helper OS thread join it, one a handle however many wait, and parks.
#include "cpython/api.hpp"

#if PY_VERSION_HEX >= 0x030D0000

#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/parking_lot.hpp"
#include "core/thread_pool.hpp"
#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/offload.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_join = nullptr;
PyCFunction original_is_done = nullptr;
PyCFunction original_set_done = nullptr;

struct HandleWords {
    void* nodes[4];
    unsigned long long ident;
    unsigned long os_handle;
    int has_os_handle;
    int state;
    unsigned char mutex;
    unsigned char is_exiting;  // the event that join() waits for
    unsigned char once;        // join() and _set_done() do their work once
};
struct HandleObject {
    PyObject ob_base;
    HandleWords* words;
};

int not_started = 0;
int running = 0;

HandleWords& words_of(PyObject* handle) noexcept { return *reinterpret_cast<HandleObject*>(handle)->words; }

/// The handles that a helper thread joins, and whether the interpreter knows the helper yet.
struct Joins {
    std::mutex mutex;
    std::map<PyObject*, bool> handles;  // under mutex

    bool begin(PyObject* handle) {
        const std::lock_guard lock(mutex);
        return handles.try_emplace(handle, false).second;
    }
    void set_known(PyObject* handle) {
        const std::lock_guard lock(mutex);
        handles[handle] = true;
    }
    bool is_known(PyObject* handle) {
        const std::lock_guard lock(mutex);
        const auto found = handles.find(handle);
        return found != handles.end() && found->second;
    }
    void end(PyObject* handle) noexcept {
        const std::lock_guard lock(mutex);
        handles.erase(handle);
    }
    bool contains(PyObject* handle) {
        const std::lock_guard lock(mutex);
        return handles.contains(handle);
    }
};

Joins& joins() {
    static auto* list = new Joins;  // never destroyed: helpers may outlive main()
    return *list;
}

/// Joins one OS thread, wakes those who wait for it. What join() raises is raised again where they call it themselves.
class JoinJob final : public core::Job {
public:
    JoinJob(PyInterpreterState* interpreter, PyObject* handle, unsigned long joined) noexcept
        : interpreter_(interpreter), handle_(Py_NewRef(handle)), joined_(joined) {}

    void run() override {
        PyThreadState* tstate = PyThreadState_New(interpreter_);
        PyEval_RestoreThread(tstate);
        Hub::add_joiner(*tstate, joined_);
        joins().set_known(handle_);
        core::ParkingLot::instance().unpark_all(handle_);  // for them a deadlock is possible from now on
        PyObject* no_arguments = PyTuple_New(0);
        PyObject* result = no_arguments == nullptr ? nullptr : original_join(handle_, no_arguments);
        if (result == nullptr) {
            PyErr_Clear();
        }
        Py_XDECREF(result);
        Py_XDECREF(no_arguments);
        joins().end(handle_);
        core::ParkingLot::instance().unpark_all(handle_);
        Py_DECREF(handle_);
        Hub::remove_joiner(*tstate);
        PyThreadState_Clear(tstate);
        PyThreadState_DeleteCurrent();
    }

private:
    PyInterpreterState* interpreter_;
    PyObject* handle_;  // owned; given back attached, in run()
    unsigned long joined_;
};

bool is_done(PyObject* handle) {
    const Ref answer = steal(original_is_done(handle, nullptr));
    return answer.ptr() == Py_True;
}

PyObject* join(PyObject* self, PyObject* args) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_join(self, args);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        PyObject* timeout = nullptr;
        if (!PyArg_ParseTuple(args, "|O:join", &timeout)) {
            throw cpython::ErrorSet{};
        }
        core::Deadline deadline = core::Deadline::never();
        if (timeout != nullptr && timeout != Py_None) {
            deadline = core::Deadline::after(core::monotonic_now(),
                                             core::Nanoseconds(cpython::nanoseconds_from_seconds(timeout)));
        }
        const HandleWords& words = words_of(self);
        if (words.state != running || is_done(self)) {
            return original_join(self, args);  // never started, or over
        }
        if (words.ident == hub->running().ident()) {
            cpython::raise(PyExc_RuntimeError, "Cannot join current thread");
        }
        const bool is_os_thread = words.has_os_handle != 0;
        std::optional<sched::ExternalWakeExpected> expected;
        if (is_os_thread) {
            expected.emplace(*hub);
        }
        if (is_os_thread && joins().begin(self)) {
            try {
                core::ThreadPool::run_apart(std::make_unique<JoinJob>(hub->tstate().interp, self, words.ident));
            } catch (...) {
                joins().end(self);
                throw;
            }
        }
        const auto is_over = [self, is_os_thread, &expected] {
            if (joins().is_known(self)) {
                expected.reset();  // the helper is one of the interpreter's threads
            }
            return is_done(self) || (is_os_thread && !joins().contains(self));
        };
        if (!is_over() && !sched::wait_until(*hub, self, {.what = "Thread.join", .object = self}, deadline, is_over)) {
            Py_RETURN_NONE;
        }
        const Ref at_once = steal(Py_BuildValue("(i)", 0));
        return original_join(self, at_once.ptr());
    });
}

PyObject* set_done(PyObject* self, PyObject* args) {
    PyObject* result = original_set_done(self, args);
    if (result != nullptr) {
        core::ParkingLot::instance().unpark_all(self);
    }
    return result;
}

void find_handle_words(PyObject* thread_module, PyObject* type) {
    constexpr unsigned long long kIdent = 0x1234567;
    const Ref fresh = steal(PyObject_CallNoArgs(type));
    const Ref made = steal(PyObject_CallMethod(thread_module, "_make_thread_handle", "K", kIdent));
    const HandleWords& words = words_of(made.ptr());
    not_started = words_of(fresh.ptr()).state;
    running = words.state;
    const bool is_known = words.ident == kIdent && words.has_os_handle == 0 && words_of(fresh.ptr()).ident == 0 &&
                          not_started == 1 && running == 3 && words.mutex == 0 && words.is_exiting == 0 &&
                          words.once == 0;
    steal(PyObject_CallMethod(made.ptr(), "_set_done", nullptr));
    if (!is_known || words.state != 4 || words.mutex != 0 || words.is_exiting != 1 || words.once == 0) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of _ThreadHandle in this Python");
    }
}

}  // namespace

bool is_startable(PyObject* handle) noexcept { return words_of(handle).state == not_started; }

void start_handle(PyObject* handle, sched::VirtualThread& thread) noexcept {
    HandleWords& words = words_of(handle);
    words.ident = thread.ident();
    words.has_os_handle = 0;
    words.state = running;
    thread.end_marker = Py_NewRef(handle);
}

void finish_thread(sched::VirtualThread& thread) {
    const Ref handle = Ref::steal_or_null(std::exchange(thread.end_marker, nullptr));
    if (!handle) {
        return;
    }
    PyObject* pending = PyErr_GetRaisedException();
    PyObject* result = set_done(handle.ptr(), nullptr);
    if (result == nullptr) {
        PyErr_WriteUnraisable(handle.ptr());
    }
    Py_XDECREF(result);
    PyErr_SetRaisedException(pending);
}

void keep_thread_alive_after_fork(sched::VirtualThread& thread) noexcept {
    // The interpreter knows the thread that forked by its OS identity, and has marked this handle as done.
    if (thread.end_marker != nullptr) {
        HandleWords& words = words_of(thread.end_marker);
        words.state = running;
        words.is_exiting = 0;
        words.once = 0;
    }
    new (&joins()) Joins;  // its helpers do not exist here
}

void adopt_thread_ends() {}

void release_thread_ends() noexcept {}

void plan_thread_end(PyObject* thread_module) {
    const Ref type = steal(PyObject_GetAttrString(thread_module, "_ThreadHandle"));
    find_handle_words(thread_module, type.ptr());
    original_is_done = method_of(type.ptr(), "is_done").ml_meth;
    plan_swap(type.ptr(), "join", {{METH_VARARGS, join}}, original_join);
    plan_swap(type.ptr(), "_set_done", {{METH_NOARGS, set_done}}, original_set_done);
}

}  // namespace gossamer::interpose

#endif
