// SPDX-License-Identifier: Apache-2.0
// time.sleep: parks on a timer.
#include "cpython/api.hpp"

#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

namespace {

PyCFunction original_sleep = nullptr;

PyObject* sleep(PyObject* module, PyObject* seconds) {
    sched::Hub* hub = sched::Hub::current();
    if (hub == nullptr) {
        return original_sleep(module, seconds);
    }
    return cpython::guarded<PyObject*>(nullptr, [&] {
        if (cpython::kPython313 && PySys_Audit("time.sleep", "O", seconds) < 0) {
            throw cpython::ErrorSet{};
        }
        const std::int64_t delay = cpython::nanoseconds_from_seconds(seconds);
        if (delay < 0) {
            cpython::raise(PyExc_ValueError, "sleep length must be non-negative");
        }
        if (delay == 0) {
            sched::checkpoint(*hub);
        } else {
            sched::sleep_until(*hub, hub->deadline_after(core::Nanoseconds(delay)));
        }
        Py_RETURN_NONE;
    });
}

}  // namespace

void plan_time() {
    const cpython::Ref module = cpython::steal(PyImport_ImportModule("time"));
    plan_swap(module.ptr(), "sleep", {{METH_O, sleep}}, original_sleep);
}

}  // namespace gossamer::interpose
