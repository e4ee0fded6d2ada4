// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/late_import.hpp"

#include <algorithm>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "cpython/ref.hpp"
#include "interpose/libc/redirected_calls.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

PyCFunction original_exec_dynamic = nullptr;
PyCFunction original_exec_builtin = nullptr;

struct LatePlan {
    const char* name;
    void (*plan)(PyObject* module);
    void (*release)(PyObject* module) = nullptr;

    bool is_for_each_interpreter() const noexcept { return release != nullptr; }
};

/// What is not planned yet; no Python runs under the mutex.
class LatePlans final {
public:
    static LatePlans& instance() noexcept {
        static auto* plans = new LatePlans;
        return *plans;
    }

    void add(LatePlan plan) {
        const std::lock_guard lock(mutex_);
        plans_.push_back(plan);
    }

    /// Takes the plan for the module `name`, if nobody has.
    std::optional<LatePlan> take(std::string_view name) {
        const std::lock_guard lock(mutex_);
        const auto found = std::ranges::find(plans_, name, &LatePlan::name);
        if (found == plans_.end()) {
            return std::nullopt;
        }
        const LatePlan plan = *found;
        if (!plan.is_for_each_interpreter()) {
            plans_.erase(found);
        }
        return plan;
    }

    std::vector<LatePlan> all() {
        const std::lock_guard lock(mutex_);
        return plans_;
    }

private:
    // any thread, under mutex_
    std::mutex mutex_;
    std::vector<LatePlan> plans_;
};

/// Carries out the plan for `module`, which is imported. One that fails is due again. Throws ErrorSet.
void plan_for(PyObject* module, std::string_view name) {
    const std::optional<LatePlan> plan = LatePlans::instance().take(name);
    if (!plan) {
        return;
    }
    try {
        plan->plan(module);
    } catch (const cpython::ErrorSet&) {
        if (!plan->is_for_each_interpreter()) {
            LatePlans::instance().add(*plan);
        }
        throw;
    }
    install_planned();
}

/// Passes on the result of the original, unless a plan fails: importing the module then fails, with the reason.
PyObject* after_exec(PyObject* result, PyObject* module) noexcept {
    if (result == nullptr || !PyModule_Check(module)) {
        return result;
    }
    return guarded<PyObject*>(nullptr, [&] {
        Ref passed_on = steal(result);
        const Ref name = steal(PyModule_GetNameObject(module));
        const char* text = PyUnicode_AsUTF8(name.ptr());
        if (text == nullptr) {
            throw cpython::ErrorSet{};
        }
        plan_for(module, text);
        return passed_on.release();
    });
}

/// The module if this interpreter has imported it; else empty. Throws ErrorSet.
Ref imported_module(const char* name) {
    const Ref text = steal(PyUnicode_FromString(name));
    Ref module = Ref::steal_or_null(PyImport_GetModule(text.ptr()));
    if (!module && PyErr_Occurred()) {
        throw cpython::ErrorSet{};
    }
    return module;
}

PyObject* exec_dynamic(PyObject* self, PyObject* module) {
    redirect_calls_in_new_objects();
    return after_exec(original_exec_dynamic(self, module), module);
}

PyObject* exec_builtin(PyObject* self, PyObject* module) {
    return after_exec(original_exec_builtin(self, module), module);
}

}  // namespace

void plan_when_imported(const char* name, void (*plan)(PyObject* module)) { LatePlans::instance().add({name, plan}); }

void adopt_when_imported(const char* name, void (*adopt)(PyObject* module), void (*release)(PyObject* module)) {
    LatePlans::instance().add({name, adopt, release});
}

void plan_late_imports() {
    const Ref module = steal(PyImport_ImportModule("_imp"));
    plan_swap(module.ptr(), "exec_dynamic", {{METH_O, exec_dynamic}}, original_exec_dynamic);
    plan_swap(module.ptr(), "exec_builtin", {{METH_O, exec_builtin}}, original_exec_builtin);
}

void plan_imported() {
    for (const LatePlan& late : LatePlans::instance().all()) {
        if (const Ref module = imported_module(late.name)) {
            plan_for(module.ptr(), late.name);
        }
    }
}

void release_imported() {
    for (const LatePlan& late : LatePlans::instance().all()) {
        if (!late.is_for_each_interpreter()) {
            continue;
        }
        if (const Ref module = imported_module(late.name)) {
            late.release(module.ptr());
        }
    }
}

}  // namespace gossamer::interpose
