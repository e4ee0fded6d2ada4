// SPDX-License-Identifier: Apache-2.0
// _queue.SimpleQueue: a getter that finds the queue empty parks; whoever puts wakes one, from any thread.
#include "cpython/api.hpp"

#include "core/parking_lot.hpp"
#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

namespace {

PyCFunction original_get = nullptr;
PyCFunction original_put = nullptr;
PyCFunction original_put_nowait = nullptr;
PyCFunction original_empty = nullptr;

void wake_getter(PyObject* queue) noexcept {
    core::ParkingLot& lot = core::ParkingLot::instance();
    if (lot.may_have_waiters(queue)) {
        lot.unpark_one(queue);
    }
}

PyObject* put(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    PyObject* result = as<FastKeywordFunction>(original_put)(self, args, count, names);
    if (result != nullptr) {
        wake_getter(self);
    }
    return result;
}

PyObject* put_nowait(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    PyObject* result = as<FastKeywordFunction>(original_put_nowait)(self, args, count, names);
    if (result != nullptr) {
        wake_getter(self);
    }
    return result;
}

struct GetArguments {
    bool blocks = true;
    core::Deadline deadline = core::Deadline::never();
};

/// Parses `get(block=True, timeout=None)`; what the original would refuse is left to it (`blocks` false).
GetArguments parse_get(PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const std::optional<cpython::BlockAndTimeout> given = cpython::block_and_timeout(args, count, names);
    GetArguments result{.blocks = given && given->blocks};
    if (result.blocks && given->timeout != nullptr) {
        const std::int64_t delay = cpython::nanoseconds_from_seconds(given->timeout);
        if (delay < 0) {
            cpython::raise(PyExc_ValueError, "'timeout' must be a non-negative number");
        }
        result.deadline = core::Deadline::after(core::monotonic_now(), core::Nanoseconds(delay));
    }
    return result;
}

PyObject* get(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    sched::Hub* hub = sched::Hub::current();
    if (hub == nullptr) {
        return as<MethodFunction>(original_get)(self, type, args, count, names);
    }
    return cpython::guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const GetArguments parsed = parse_get(args, count, names);
        if (!parsed.blocks) {
            return as<MethodFunction>(original_get)(self, type, args, count, names);
        }
        PyObject* without_waiting[] = {Py_False};
        PyObject* item = nullptr;
        const auto take = [&] {
            const cpython::Ref is_empty = cpython::steal(original_empty(self, nullptr));
            if (is_empty.ptr() == Py_True) {
                return false;
            }
            item = as<MethodFunction>(original_get)(self, type, without_waiting, 1, nullptr);
            if (item == nullptr) {
                throw cpython::ErrorSet{};
            }
            return true;
        };
        if (!take() &&
            !sched::wait_until(*hub, self, {.what = "SimpleQueue.get", .object = self}, parsed.deadline, take)) {
            // Empty is raised by the original, which knows the class.
            return as<MethodFunction>(original_get)(self, type, without_waiting, 1, nullptr);
        }
        return item;
    });
}

}  // namespace

void plan_queue() {
    const cpython::Ref module = cpython::steal(PyImport_ImportModule("_queue"));
    const cpython::Ref type = cpython::steal(PyObject_GetAttrString(module.ptr(), "SimpleQueue"));
    plan_swap(type.ptr(), "get", {{METH_METHOD | METH_FASTCALL | METH_KEYWORDS, get}}, original_get);
    plan_swap(type.ptr(), "put", {{METH_FASTCALL | METH_KEYWORDS, put}}, original_put);
    plan_swap(type.ptr(), "put_nowait", {{METH_FASTCALL | METH_KEYWORDS, put_nowait}}, original_put_nowait);
    original_empty = method_of(type.ptr(), "empty").ml_meth;
}

}  // namespace gossamer::interpose
