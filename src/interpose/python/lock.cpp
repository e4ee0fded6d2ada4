// SPDX-License-Identifier: Apache-2.0
// _thread.lock and _thread.RLock.
//
// A lock has no owner: acquire tries with the original, queues in the parking lot, tries again, parks; release runs the
// original, then wakes one waiter. What stands on locks in Python (Condition, Event, Semaphore, Barrier, queue.Queue)
// follows.
//
// An RLock is owned by an OS thread's identity, which two virtual threads of a carrier share, so ownership is ours: the
// owner word of the object holds the virtual thread's identity. While the original runs on its behalf the word holds the
// OS thread's, which is what the original compares with. The words' place is found at start-up by looking.
#include "cpython/api.hpp"

#include <atomic>
#include <cstdint>
#include <cstring>

#include "core/assert.hpp"
#include "core/parking_lot.hpp"
#include "cpython/args.hpp"
#include "cpython/frames.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_lock_acquire = nullptr;
PyCFunction original_lock_enter = nullptr;
PyCFunction original_lock_release = nullptr;
PyCFunction original_lock_exit = nullptr;
PyCFunction original_lock_acquire_old = nullptr;
PyCFunction original_lock_release_old = nullptr;
PyCFunction original_rlock_acquire = nullptr;
PyCFunction original_rlock_enter = nullptr;
PyCFunction original_rlock_release = nullptr;
PyCFunction original_rlock_exit = nullptr;
PyCFunction original_rlock_is_owned = nullptr;
PyCFunction original_rlock_acquire_restore = nullptr;
PyCFunction original_rlock_release_save = nullptr;
PyCFunction original_rlock_recursion_count = nullptr;

// The words of an RLock object, the same in 3.12 to 3.15 (Modules/_threadmodule.c): the lock, the owner, the count. From
// 3.14 on the count is that of acquisitions beyond the first. Checked by find_rlock_words().
struct RLockWords {
    PyObject ob_base;
    void* lock;
    unsigned long owner;
    unsigned long count;
};
constexpr unsigned long kFirstCount = cpython::kPython314 ? 0 : 1;

RLockWords& words_of(PyObject* rlock) noexcept { return *reinterpret_cast<RLockWords*>(rlock); }

struct AcquireArguments {
    bool blocks = true;
    core::Deadline deadline = core::Deadline::never();
};

/// Parses `acquire(blocking=True, timeout=-1)` with the original's messages.
AcquireArguments parse_acquire(PyObject* args, PyObject* kwargs) {
    if (PyTuple_GET_SIZE(args) == 0 && kwargs == nullptr) {
        return {};
    }
    static const char* const keywords[] = {"blocking", "timeout", nullptr};
    int blocking = 1;
    PyObject* timeout = nullptr;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|pO:acquire", const_cast<char**>(keywords), &blocking, &timeout)) {
        throw cpython::ErrorSet{};
    }
    AcquireArguments result{.blocks = blocking != 0};
    if (timeout == nullptr) {
        return result;
    }
    constexpr std::int64_t kUnset = -1'000'000'000;
    const std::int64_t nanoseconds = cpython::nanoseconds_from_seconds(timeout);
    if (!result.blocks && nanoseconds != kUnset) {
        cpython::raise(PyExc_ValueError, "can't specify a timeout for a non-blocking call");
    }
    if (nanoseconds < 0 && nanoseconds != kUnset) {
        cpython::raise(PyExc_ValueError, "timeout value must be %s",
                       cpython::kPython313 ? "a non-negative number" : "positive");
    }
    if (nanoseconds / 1000 > PY_TIMEOUT_MAX) {
        cpython::raise(PyExc_OverflowError, "timeout value is too large");
    }
    if (result.blocks && nanoseconds != kUnset) {
        result.deadline = core::Deadline::after(core::monotonic_now(), core::Nanoseconds(nanoseconds));
        result.blocks = nanoseconds > 0;
    }
    return result;
}

/// Calls `acquire(False)`. From 3.15 on the method is METH_FASTCALL.
bool try_acquire(PyCFunction original, PyObject* self) {
    if (cpython::kPython315) {
        PyObject* arguments[] = {Py_False};
        return steal(as<FastKeywordFunction>(original)(self, arguments, 1, nullptr)).ptr() == Py_True;
    }
    // One tuple for the process's life would be shared by interpreters; making one takes 15 ns.
    const Ref arguments = steal(PyTuple_Pack(1, Py_False));
    return steal(as<KeywordFunction>(original)(self, arguments.ptr(), nullptr)).ptr() == Py_True;
}

// How a lock object keeps its lock (Modules/_threadmodule.c): a PyThread_type_lock with a flag beside it, or from some
// release of 3.13 on a PyMutex's byte. Found by find_lock_words(); unknown: the original is asked.
enum class LockLayout : std::uint8_t { kUnknown, kThreadLock, kMutexByte };
LockLayout lock_layout = LockLayout::kUnknown;

struct ThreadLockWords {
    PyObject ob_base;
    PyThread_type_lock lock;
    PyObject* weak_references;
    char is_locked;
};
struct MutexWords {
    PyObject ob_base;
    std::uint8_t bits;
};

bool try_take_thread_lock(PyThread_type_lock lock) noexcept {
    return PyThread_acquire_lock_timed(lock, 0, 0) == PY_LOCK_ACQUIRED;
}

/// Include/cpython/lock.h: bit 0 is "locked", the others belong to who waits.
bool try_take_mutex(std::uint8_t& bits) noexcept {
    constexpr std::uint8_t kLocked = 1;
    const std::atomic_ref<std::uint8_t> word(bits);
    std::uint8_t seen = word.load();
    while ((seen & kLocked) == 0) {
        if (word.compare_exchange_weak(seen, seen | kLocked)) {
            return true;
        }
    }
    return false;
}

/// Takes the lock if it is free. Without the original, whose parsing of arguments takes 100 ns and, where a virtual thread
/// starts, a second page of its stack.
bool try_take_lock(PyObject* self) {
    switch (lock_layout) {
        case LockLayout::kThreadLock: {
            auto& words = *reinterpret_cast<ThreadLockWords*>(self);
            if (!try_take_thread_lock(words.lock)) {
                return false;
            }
            words.is_locked = 1;
            return true;
        }
        case LockLayout::kMutexByte:
            return try_take_mutex(reinterpret_cast<MutexWords*>(self)->bits);
        case LockLayout::kUnknown:
            break;
    }
    return try_acquire(original_lock_acquire, self);
}

/// Looks at a lock that the original takes and releases.
void find_lock_words(PyObject* thread_module, PyObject* type) {
    const Ref lock = steal(PyObject_CallMethod(thread_module, "allocate_lock", nullptr));
    const Py_ssize_t size = reinterpret_cast<PyTypeObject*>(type)->tp_basicsize;
    const auto& old_words = *reinterpret_cast<ThreadLockWords*>(lock.ptr());
    const auto& new_words = *reinterpret_cast<MutexWords*>(lock.ptr());
    const bool may_be_old =
        size == Py_ssize_t{sizeof(ThreadLockWords)} && old_words.lock != nullptr && old_words.is_locked == 0;
    const bool may_be_new = size == Py_ssize_t{sizeof(MutexWords)} && new_words.bits == 0;
    steal(PyObject_CallMethod(lock.ptr(), "acquire", nullptr));
    const bool is_old = may_be_old && old_words.is_locked == 1 && !try_take_thread_lock(old_words.lock);
    const bool is_new = may_be_new && new_words.bits == 1;
    steal(PyObject_CallMethod(lock.ptr(), "release", nullptr));
    if (is_old && old_words.is_locked == 0) {
        lock_layout = LockLayout::kThreadLock;
    } else if (is_new && new_words.bits == 0) {
        lock_layout = LockLayout::kMutexByte;
    }
}

/// Whether the calling Python function is Condition._acquire_restore: with a plain lock that is written in Python.
bool is_called_by_condition(Hub& hub) noexcept {
    const _PyInterpreterFrame* frame = cpython::running_frame(hub.tstate());
    const PyCodeObject* code = frame == nullptr ? nullptr : cpython::code_of(*frame);
    return code != nullptr && PyUnicode_CompareWithASCIIString(code->co_qualname, "Condition._acquire_restore") == 0;
}

bool acquire_lock(Hub& hub, PyObject* self, const AcquireArguments& arguments) {
    const auto take = [&] { return try_take_lock(self); };
    if (take()) {
        return true;
    }
    if (!arguments.blocks) {
        return false;
    }
    // A Condition must get its lock back, also when it was cancelled: it is about to release it. The original's wait ends by
    // a signal handler that raises, so does this.
    const auto cancellable = is_called_by_condition(hub) ? sched::Cancellable::kNo : sched::Cancellable::kYes;
    return sched::wait_until(hub, self, {.what = "Lock.acquire", .object = self}, arguments.deadline, take,
                             cancellable);
}

PyObject* acquire_lock(PyCFunction original, PyObject* self, PyObject* args, PyObject* kwargs) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as<KeywordFunction>(original)(self, args, kwargs);
    }
    return guarded<PyObject*>(
        nullptr, [&] { return Py_NewRef(acquire_lock(*hub, self, parse_acquire(args, kwargs)) ? Py_True : Py_False); });
}

PyObject* lock_acquire_fast(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as<FastKeywordFunction>(original_lock_acquire)(self, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const PackedArguments packed(args, count, names);
        const bool taken = acquire_lock(*hub, self, parse_acquire(packed.args.ptr(), packed.kwargs.ptr()));
        return Py_NewRef(taken ? Py_True : Py_False);
    });
}

PyObject* release_lock(PyCFunction original, PyObject* self, PyObject* args) {
    PyObject* result = original(self, args);
    if (result != nullptr) {
        wake_one_waiter(self);
    }
    return result;
}

PyObject* lock_acquire(PyObject* self, PyObject* args, PyObject* kwargs) {
    return acquire_lock(original_lock_acquire, self, args, kwargs);
}
PyObject* lock_acquire_old(PyObject* self, PyObject* args, PyObject* kwargs) {
    return acquire_lock(original_lock_acquire_old, self, args, kwargs);
}
PyObject* lock_enter(PyObject* self, PyObject* args, PyObject* kwargs) {
    return acquire_lock(original_lock_enter, self, args, kwargs);
}
/// 3.15's `__enter__` takes nothing.
PyObject* lock_enter_bare(PyObject* self, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_lock_enter(self, unused);
    }
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(acquire_lock(*hub, self, {}) ? Py_True : Py_False); });
}
PyObject* lock_exit_fast(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    PyObject* result = as<FastFunction>(original_lock_exit)(self, args, count);
    if (result != nullptr) {
        wake_one_waiter(self);
    }
    return result;
}
PyObject* lock_release(PyObject* self, PyObject* args) { return release_lock(original_lock_release, self, args); }
PyObject* lock_release_old(PyObject* self, PyObject* args) {
    return release_lock(original_lock_release_old, self, args);
}
PyObject* lock_exit(PyObject* self, PyObject* args) { return release_lock(original_lock_exit, self, args); }

// ---- RLock ----

/// Takes the lock inside an RLock if it is free: a PyThread_type_lock up to 3.13, a PyMutex's byte from 3.14 on.
bool try_take_rlock_word(RLockWords& words) noexcept {
    if (cpython::kPython314) {
        return try_take_mutex(reinterpret_cast<std::uint8_t&>(words.lock));
    }
    return try_take_thread_lock(words.lock);
}

bool is_rlock_word_known = false;  // by find_rlock_words()

/// Takes the free lock for the running virtual thread, or returns false.
bool try_take_rlock(Hub& hub, PyObject* self) {
    RLockWords& words = words_of(self);
    const unsigned long os_ident = PyThread_get_thread_ident();
    if (words.owner == os_ident) {
        return false;  // held by the carrier's main virtual thread: the original would take us for it
    }
    if (!is_rlock_word_known) {
        if (!try_acquire(original_rlock_acquire, self)) {
            return false;
        }
    } else if (!try_take_rlock_word(words)) {
        return false;
    } else {
        words.count = kFirstCount;
    }
    words.owner = hub.running().ident();
    if (sched::InnerWaits* step = hub.running().inner_waits) {
        step->hold_rlock(self, words.owner);
    }
    return true;
}

bool acquire_rlock(Hub& hub, PyObject* self, const AcquireArguments& arguments) {
    RLockWords& words = words_of(self);
    if (words.owner == hub.running().ident()) {
        if (words.count + 1 == 0) {
            cpython::raise(PyExc_OverflowError, "Internal lock count overflowed");
        }
        ++words.count;
        return true;
    }
    const auto take = [&] { return try_take_rlock(hub, self); };
    return take() || (arguments.blocks && sched::wait_until(hub, self, {.what = "RLock.acquire", .object = self},
                                                            arguments.deadline, take));
}

PyObject* rlock_acquire_with(PyCFunction original, PyObject* self, PyObject* args, PyObject* kwargs) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as<KeywordFunction>(original)(self, args, kwargs);
    }
    return guarded<PyObject*>(nullptr, [&] {
        return Py_NewRef(acquire_rlock(*hub, self, parse_acquire(args, kwargs)) ? Py_True : Py_False);
    });
}

PyObject* rlock_acquire(PyObject* self, PyObject* args, PyObject* kwargs) {
    return rlock_acquire_with(original_rlock_acquire, self, args, kwargs);
}
PyObject* rlock_acquire_fast(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as<FastKeywordFunction>(original_rlock_acquire)(self, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const PackedArguments packed(args, count, names);
        const bool taken = acquire_rlock(*hub, self, parse_acquire(packed.args.ptr(), packed.kwargs.ptr()));
        return Py_NewRef(taken ? Py_True : Py_False);
    });
}
PyObject* rlock_enter(PyObject* self, PyObject* args, PyObject* kwargs) {
    return rlock_acquire_with(original_rlock_enter, self, args, kwargs);
}
PyObject* rlock_enter_bare(PyObject* self, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_rlock_enter(self, unused);
    }
    return guarded<PyObject*>(nullptr, [&] { return Py_NewRef(acquire_rlock(*hub, self, {}) ? Py_True : Py_False); });
}

/// Runs `original` with the owner word as the original expects it, then puts ours back if the lock is still held.
PyObject* as_os_owner(PyCFunction original, PyObject* self, PyObject* args) {
    Hub* hub = Hub::current();
    RLockWords& words = words_of(self);
    if (hub == nullptr) {
        PyObject* result = original(self, args);
        if (result != nullptr && words.owner == 0) {
            wake_one_waiter(self);
        }
        return result;
    }
    const unsigned long ident = hub->running().ident();
    const unsigned long os_ident = PyThread_get_thread_ident();
    const unsigned long owner = words.owner;
    if (owner == ident) {
        words.owner = os_ident;
    } else if (owner == os_ident) {
        words.owner = ~0UL;  // held by the carrier's main virtual thread: not by the caller
    }
    PyObject* result = original(self, args);
    if (words.owner == os_ident) {
        words.owner = ident;
    } else if (words.owner == ~0UL) {
        words.owner = os_ident;
    }
    if (result != nullptr && words.owner == 0) {
        if (sched::InnerWaits* step = hub->running().inner_waits) {
            step->drop_rlock(self);
        }
        wake_one_waiter(self);
    }
    return result;
}

PyObject* rlock_release(PyObject* self, PyObject* args) { return as_os_owner(original_rlock_release, self, args); }
PyObject* rlock_exit(PyObject* self, PyObject* args) { return as_os_owner(original_rlock_exit, self, args); }
PyObject* rlock_exit_fast(PyObject* self, PyObject* const*, Py_ssize_t) {
    return as_os_owner(original_rlock_release, self, nullptr);
}
PyObject* rlock_is_owned(PyObject* self, PyObject* args) { return as_os_owner(original_rlock_is_owned, self, args); }
PyObject* rlock_recursion_count(PyObject* self, PyObject* args) {
    return as_os_owner(original_rlock_recursion_count, self, args);
}
PyObject* rlock_release_save(PyObject* self, PyObject* args) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return as_os_owner(original_rlock_release_save, self, args);
    }
    const unsigned long ident = hub->running().ident();
    PyObject* saved = as_os_owner(original_rlock_release_save, self, args);
    if (saved == nullptr) {
        return nullptr;
    }
    // The saved owner is the OS thread's; what is restored must be ours.
    PyObject* result = Py_BuildValue("(Ok)", PyTuple_GET_ITEM(saved, 0), ident);
    Py_DECREF(saved);
    return result;
}

/// `_acquire_restore(state)`; METH_VARARGS up to 3.14, METH_O from 3.15 on.
PyObject* rlock_acquire_restore(PyObject* self, PyObject* argument) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_rlock_acquire_restore(self, argument);
    }
    return guarded<PyObject*>(nullptr, [&] {
        unsigned long count = 0;
        unsigned long owner = 0;
        const char* format = cpython::kPython315 ? "kk:_acquire_restore" : "(kk):_acquire_restore";
        if (!PyTuple_Check(argument)) {
            cpython::raise(PyExc_TypeError, "_acquire_restore() needs what _release_save() returned");
        }
        if (!PyArg_ParseTuple(argument, format, &count, &owner)) {
            throw cpython::ErrorSet{};
        }
        const auto take = [&] { return try_take_rlock(*hub, self); };
        // A Condition must get its lock back, also when it was cancelled.
        if (!take() && !sched::wait_until(*hub, self, {.what = "RLock.acquire", .object = self},
                                          core::Deadline::never(), take, sched::Cancellable::kNothing)) {
            GS_UNREACHABLE();
        }
        words_of(self).owner = owner;
        words_of(self).count = count - 1 + kFirstCount;
        Py_RETURN_NONE;
    });
}

/// Checks where the owner and the count are, by looking at a lock that was acquired twice.
void find_rlock_words(PyObject* type) {
    const Ref rlock = steal(PyObject_CallNoArgs(type));
    steal(PyObject_CallMethod(rlock.ptr(), "acquire", nullptr));
    steal(PyObject_CallMethod(rlock.ptr(), "acquire", nullptr));
    RLockWords& words = words_of(rlock.ptr());
    const bool is_known = reinterpret_cast<PyTypeObject*>(type)->tp_basicsize >= Py_ssize_t{sizeof(RLockWords)} &&
                          words.owner == PyThread_get_thread_ident() && words.count == kFirstCount + 1;
    steal(PyObject_CallMethod(rlock.ptr(), "release", nullptr));
    steal(PyObject_CallMethod(rlock.ptr(), "release", nullptr));
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of RLock in this Python");
    }
    if (try_take_rlock_word(words)) {
        words.owner = PyThread_get_thread_ident();
        words.count = kFirstCount;
        // What we took must be what the original releases.
        const Ref released = Ref::steal_or_null(PyObject_CallMethod(rlock.ptr(), "release", nullptr));
        is_rlock_word_known = released && words.owner == 0 && try_take_rlock_word(words);
        if (is_rlock_word_known) {
            words.owner = PyThread_get_thread_ident();
            words.count = kFirstCount;
            steal(PyObject_CallMethod(rlock.ptr(), "release", nullptr));
        }
        PyErr_Clear();  // of a release that did not understand; the original is asked then
    }
}

}  // namespace

void wake_one_waiter(const void* key) noexcept {
    core::ParkingLot& lot = core::ParkingLot::instance();
    if (lot.may_have_waiters(key)) {
        lot.unpark_one(key);
    }
}

void plan_locks(PyObject* thread_module) {
    constexpr int kKeywords = METH_VARARGS | METH_KEYWORDS;
    constexpr int kFastKeywords = METH_FASTCALL | METH_KEYWORDS;
    const Ref lock = steal(PyObject_GetAttrString(thread_module, "LockType"));
    find_lock_words(thread_module, lock.ptr());
    plan_swap(lock.ptr(), "acquire", {{kKeywords, lock_acquire}, {kFastKeywords, lock_acquire_fast}},
              original_lock_acquire);
    plan_swap(lock.ptr(), "acquire_lock", {{kKeywords, lock_acquire_old}, {kFastKeywords, lock_acquire_fast}},
              original_lock_acquire_old, true);
    plan_swap(lock.ptr(), "__enter__", {{kKeywords, lock_enter}, {METH_NOARGS, lock_enter_bare}}, original_lock_enter);
    plan_swap(lock.ptr(), "release", {{METH_NOARGS, lock_release}}, original_lock_release);
    plan_swap(lock.ptr(), "release_lock", {{METH_NOARGS, lock_release_old}}, original_lock_release_old, true);
    plan_swap(lock.ptr(), "__exit__", {{METH_VARARGS, lock_exit}, {METH_FASTCALL, lock_exit_fast}}, original_lock_exit);

    const Ref rlock = steal(PyObject_GetAttrString(thread_module, "RLock"));
    find_rlock_words(rlock.ptr());
    plan_swap(rlock.ptr(), "acquire", {{kKeywords, rlock_acquire}, {kFastKeywords, rlock_acquire_fast}},
              original_rlock_acquire);
    plan_swap(rlock.ptr(), "__enter__", {{kKeywords, rlock_enter}, {METH_NOARGS, rlock_enter_bare}},
              original_rlock_enter);
    plan_swap(rlock.ptr(), "release", {{METH_NOARGS, rlock_release}}, original_rlock_release);
    plan_swap(rlock.ptr(), "__exit__", {{METH_VARARGS, rlock_exit}, {METH_FASTCALL, rlock_exit_fast}},
              original_rlock_exit);
    plan_swap(rlock.ptr(), "_is_owned", {{METH_NOARGS, rlock_is_owned}}, original_rlock_is_owned);
    plan_swap(rlock.ptr(), "_acquire_restore", {{METH_VARARGS, rlock_acquire_restore}, {METH_O, rlock_acquire_restore}},
              original_rlock_acquire_restore);
    plan_swap(rlock.ptr(), "_release_save", {{METH_NOARGS, rlock_release_save}}, original_rlock_release_save);
    plan_swap(rlock.ptr(), "_recursion_count", {{METH_NOARGS, rlock_recursion_count}}, original_rlock_recursion_count,
              true);
}

}  // namespace gossamer::interpose
