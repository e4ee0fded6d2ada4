// SPDX-License-Identifier: Apache-2.0
// _multiprocessing.SemLock, on which multiprocessing's Lock, RLock, Semaphore, Event, Condition, Barrier and Queue stand.
//
// It is a POSIX semaphore that other processes share. Nothing tells a process that another one has posted it but
// sem_wait(3), which blocks the carrier, and nothing else can end that: so it is asked for. Of the virtual threads that
// wait for one semaphore one asks, after a delay that grows to 20 ms, as CPython does where sem_timedwait(3) is missing;
// the others are woken by it. A release in this process wakes at once.
//
// A recursive one belongs to a thread: here to a virtual thread, by the identity that threading.get_ident() tells.
// Source: Modules/_multiprocessing/semaphore.c, of 3.12 to 3.15.
#include "cpython/api.hpp"

#include <semaphore.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <vector>

#include "core/parking_lot.hpp"
#include "cpython/args.hpp"
#include "cpython/critical_section.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

namespace {

using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

PyCFunction original_acquire = nullptr;
PyCFunction original_release = nullptr;
PyCFunction original_enter = nullptr;
PyCFunction original_exit = nullptr;
PyCFunction original_is_mine = nullptr;

constexpr int kRecursive = 0;
constexpr core::Nanoseconds kFirstDelay = std::chrono::microseconds(100);
constexpr core::Nanoseconds kLongestDelay = std::chrono::milliseconds(20);

/// SemLockObject.
struct SemLock {
    PyObject ob_base;
    sem_t* handle;
    unsigned long last_tid;
    int count;
    int maxvalue;
    int kind;
    char* name;
};

SemLock& as_sem_lock(PyObject* self) noexcept { return *reinterpret_cast<SemLock*>(self); }

bool is_of(const SemLock& lock, Hub& hub) noexcept { return lock.count > 0 && lock.last_tid == hub.running().ident(); }

/// Throws ErrorSet, OSError.
bool try_acquire(SemLock& lock, Hub& hub) {
    const cpython::CriticalSection section(&lock.ob_base);
    if (lock.kind == kRecursive && is_of(lock, hub)) {
        ++lock.count;
        return true;
    }
    int result = 0;
    do {
        result = sem_trywait(lock.handle);
    } while (result < 0 && errno == EINTR);
    if (result < 0 && errno == EAGAIN) {
        return false;
    }
    if (result < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        throw ErrorSet{};
    }
    ++lock.count;
    lock.last_tid = hub.running().ident();
    return true;
}

/// Which semaphores somebody asks for; few at a time.
class Asked final {
public:
    static Asked& instance() noexcept {
        static auto* asked = new Asked;
        return *asked;
    }

    /// Whether the caller has become the one who asks.
    bool begin(const sem_t* handle) {
        const std::lock_guard lock(mutex_);
        if (std::ranges::find(handles_, handle) != handles_.end()) {
            return false;
        }
        handles_.push_back(handle);
        return true;
    }

    bool has(const sem_t* handle) noexcept {
        const std::lock_guard lock(mutex_);
        return std::ranges::find(handles_, handle) != handles_.end();
    }

    void end(const sem_t* handle) noexcept {
        const std::lock_guard lock(mutex_);
        std::erase(handles_, handle);
    }

    /// In a forked child: those who asked are threads of the parent, and another one may have had the mutex.
    void reset_after_fork() noexcept { new (this) Asked; }

private:
    // any thread, under mutex_
    std::mutex mutex_;
    std::vector<const sem_t*> handles_;
};

/// One of those who wait for a semaphore. If nobody asks when it goes, another one is woken to ask.
class Waiter final {
public:
    explicit Waiter(const sem_t* handle) noexcept : handle_(handle) {}
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() {
        if (asks_) {
            Asked::instance().end(handle_);
        }
        if (!Asked::instance().has(handle_)) {
            core::ParkingLot::instance().unpark_one(handle_);
        }
    }

    /// Whether it is the one who asks, from now on if nobody did.
    bool asks() { return asks_ || (asks_ = Asked::instance().begin(handle_)); }

    /// Whether it could become that.
    bool may_ask() const noexcept { return !asks_ && !Asked::instance().has(handle_); }

private:
    const sem_t* const handle_;
    bool asks_ = false;
};

/// Returns false when `deadline` passed. Throws ErrorSet. Parks: yes. Thread: carrier. Python: attached.
bool wait_for(SemLock& lock, Hub& hub, core::Deadline deadline) {
    Waiter waiter(lock.handle);
    core::Nanoseconds delay = kFirstDelay;
    for (;;) {
        const core::Deadline until =
            waiter.asks() ? std::min(deadline, core::Deadline::after(core::monotonic_now(), delay)) : deadline;
        bool is_acquired = false;
        const bool is_over =
            sched::wait_until(hub, lock.handle, {.what = "multiprocessing's acquire", .object = &lock}, until, [&] {
                is_acquired = try_acquire(lock, hub);
                return is_acquired || waiter.may_ask();
            });
        if (is_acquired) {
            return true;
        }
        if (!is_over && until == deadline) {
            return false;
        }
        delay = std::min(2 * delay, kLongestDelay);
    }
}

/// Of any number of seconds: less than 0 is none, as the original has it. Throws ErrorSet.
core::Deadline deadline_after(PyObject* timeout) {
    if (timeout == nullptr) {
        return core::Deadline::never();
    }
    const double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        throw ErrorSet{};
    }
    constexpr double kYears = 1e9;  // more than anyone waits, and few enough to count in nanoseconds
    const double bounded = seconds > 0 ? std::min(seconds, kYears) : 0;
    const auto delay = std::chrono::duration_cast<core::Nanoseconds>(std::chrono::duration<double>(bounded));
    return core::Deadline::after(core::monotonic_now(), delay);
}

PyObject* acquire(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as<FastKeywordFunction>(original_acquire)(self, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const std::optional<cpython::BlockAndTimeout> given = cpython::block_and_timeout(args, count, names);
        if (!given) {
            return as<FastKeywordFunction>(original_acquire)(self, args, count, names);
        }
        SemLock& lock = as_sem_lock(self);
        const core::Deadline deadline = deadline_after(given->timeout);
        return PyBool_FromLong(try_acquire(lock, *hub) || (given->blocks && wait_for(lock, *hub, deadline)));
    });
}

/// Releases a recursive lock of the running virtual thread. Throws ErrorSet, AssertionError.
void release_own(SemLock& lock, Hub& hub) {
    const cpython::CriticalSection section(&lock.ob_base);
    if (!is_of(lock, hub)) {
        cpython::raise(PyExc_AssertionError, "attempt to release recursive lock not owned by thread");
    }
    if (lock.count == 1 && sem_post(lock.handle) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        throw ErrorSet{};
    }
    --lock.count;
}

PyObject* release(PyObject* self, PyObject* unused) {
    SemLock& lock = as_sem_lock(self);
    Hub* hub = Hub::current();
    PyObject* result = nullptr;
    if (hub != nullptr && lock.kind == kRecursive) {
        result = guarded<PyObject*>(nullptr, [&] {
            release_own(lock, *hub);
            return Py_NewRef(Py_None);
        });
    } else {
        result = original_release(self, unused);
    }
    if (result != nullptr) {
        wake_one_waiter(lock.handle);
    }
    return result;
}

PyObject* enter(PyObject* self, PyObject* unused) {
    return Hub::current() == nullptr ? original_enter(self, unused) : acquire(self, nullptr, 0, nullptr);
}

PyObject* exit(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return count == 3 ? release(self, nullptr) : as<FastFunction>(original_exit)(self, args, count);
}

PyObject* is_mine(PyObject* self, PyObject* unused) {
    Hub* hub = Hub::current();
    return hub == nullptr ? original_is_mine(self, unused) : PyBool_FromLong(is_of(as_sem_lock(self), *hub));
}

/// Whether the fields that the type tells of are where SemLock has them; the two that it does not lie between them.
bool is_layout_known(const PyTypeObject& type) noexcept {
    std::size_t found = 0;
    for (const PyMemberDef* member = type.tp_members; member != nullptr && member->name != nullptr; ++member) {
        const auto is_at = [&](const char* name, std::size_t offset) {
            return std::strcmp(member->name, name) == 0 && member->offset == static_cast<Py_ssize_t>(offset);
        };
        found += is_at("handle", offsetof(SemLock, handle)) || is_at("kind", offsetof(SemLock, kind)) ||
                 is_at("maxvalue", offsetof(SemLock, maxvalue)) || is_at("name", offsetof(SemLock, name));
    }
    return found == 4 && type.tp_basicsize == Py_ssize_t{sizeof(SemLock)};
}

void plan_semaphores(PyObject* module) {
    const Ref type = steal(PyObject_GetAttrString(module, "SemLock"));
    if (!is_layout_known(*reinterpret_cast<PyTypeObject*>(type.ptr()))) {
        cpython::raise(PyExc_ImportError,
                       "gossamer does not know the layout of multiprocessing's locks in this Python");
    }
    PyObject* owner = type.ptr();
    plan_swap(owner, "acquire", {{METH_FASTCALL | METH_KEYWORDS, as_c_function(acquire)}}, original_acquire);
    plan_swap(owner, "release", {{METH_NOARGS, release}}, original_release);
    plan_swap(owner, "__enter__", {{METH_NOARGS, enter}}, original_enter);
    plan_swap(owner, "__exit__", {{METH_FASTCALL, as_c_function(exit)}}, original_exit);
    plan_swap(owner, "_is_mine", {{METH_NOARGS, is_mine}}, original_is_mine);
}

}  // namespace

void forget_semaphores_after_fork() noexcept { Asked::instance().reset_after_fork(); }

void plan_multiprocessing() { plan_when_imported("_multiprocessing", &plan_semaphores); }

}  // namespace gossamer::interpose
