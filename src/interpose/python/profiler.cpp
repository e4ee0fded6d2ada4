// SPDX-License-Identifier: Apache-2.0
// _lsprof.Profiler, which cProfile is: one that is turned on in a virtual thread records that virtual thread.
//
// Since 3.12 it gets its events from sys.monitoring, those of every thread, and keeps one stack of calls. Calls of threads
// that switch in the middle of each other would be taken for each other's, so an event of another thread, virtual or not,
// is left out. One that is turned on outside of Gossamer is left as it is.
//
// Source: Modules/_lsprof.c, 3.12 to 3.15.
#include "cpython/api.hpp"

#include <mutex>
#include <optional>
#include <unordered_map>

#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_enable = nullptr;
PyCFunction original_disable = nullptr;

/// The virtual threads that profilers were turned on in. Process-wide, as the tables are.
class Owners final {
public:
    static Owners& instance() noexcept {
        static auto* owners = new Owners;
        return *owners;
    }

    void set(const PyObject* profiler, std::optional<unsigned long> ident) {
        const std::lock_guard lock(mutex_);
        if (ident) {
            idents_[profiler] = *ident;
        } else {
            idents_.erase(profiler);
        }
    }

    std::optional<unsigned long> of(const PyObject* profiler) {
        const std::lock_guard lock(mutex_);
        const auto found = idents_.find(profiler);
        return found == idents_.end() ? std::nullopt : std::optional(found->second);
    }

private:
    // any thread, under mutex_
    std::mutex mutex_;
    std::unordered_map<const PyObject*, unsigned long> idents_;
};

/// Also for a profiler at the address of one that died while it was on.
void set_owner(const PyObject* profiler) {
    Hub* hub = Hub::current();
    Owners::instance().set(profiler, hub == nullptr ? std::nullopt : std::optional(hub->running().ident()));
}

bool is_of_another_thread(const PyObject* profiler) {
    const std::optional<unsigned long> owner = Owners::instance().of(profiler);
    Hub* hub = Hub::current();
    return owner && *owner != (hub == nullptr ? PyThread_get_thread_ident() : hub->running().ident());
}

PyObject* enable(PyObject* self, PyObject* args, PyObject* kwargs) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(as<KeywordFunction>(original_enable)(self, args, kwargs));
        set_owner(self);
        return result.release();
    });
}

PyObject* enable_fast(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(as<FastKeywordFunction>(original_enable)(self, args, count, names));
        set_owner(self);
        return result.release();
    });
}

PyObject* disable(PyObject* self, PyObject* unused) {
    return guarded<PyObject*>(nullptr, [&] {
        Ref result = steal(original_disable(self, unused));
        Owners::instance().set(self, std::nullopt);
        return result.release();
    });
}

enum Callback { kPyStart, kPyReturn, kPyThrow, kCCall, kCReturn, kCallbacks };
constexpr const char* kNames[kCallbacks] = {"_pystart_callback", "_pyreturn_callback", "_pythrow_callback",
                                            "_ccall_callback", "_creturn_callback"};
PyCFunction originals[kCallbacks] = {};

template <Callback callback>
PyObject* note(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        return is_of_another_thread(self) ? Py_NewRef(Py_None)
                                          : as<FastFunction>(originals[callback])(self, args, count);
    });
}

template <Callback callback>
void plan_callback(PyObject* type) {
    plan_swap(type, kNames[callback], {{METH_FASTCALL, note<callback>}}, originals[callback], callback == kPyThrow);
}

void plan_lsprof(PyObject* module) {
    const Ref type = steal(PyObject_GetAttrString(module, "Profiler"));
    plan_swap(type.ptr(), "enable",
              {{METH_VARARGS | METH_KEYWORDS, enable}, {METH_FASTCALL | METH_KEYWORDS, enable_fast}}, original_enable);
    plan_swap(type.ptr(), "disable", {{METH_NOARGS, disable}}, original_disable);
    plan_callback<kPyStart>(type.ptr());
    plan_callback<kPyReturn>(type.ptr());
    plan_callback<kPyThrow>(type.ptr());
    plan_callback<kCCall>(type.ptr());
    plan_callback<kCReturn>(type.ptr());
}

}  // namespace

void plan_profiler() { plan_when_imported("_lsprof", &plan_lsprof); }

}  // namespace gossamer::interpose
