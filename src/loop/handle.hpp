// SPDX-License-Identifier: Apache-2.0
// asyncio.Handle and asyncio.TimerHandle, made by C++.
//
// Our classes derive from asyncio's and fill their fields (their __slots__) in place, so that a handle is what asyncio's own
// code, and everybody's, expects, and every method that is not worth replacing is theirs. A timer's handle ends with the
// node of the loop's heap; the heap owns a reference to each handle in it.
#pragma once

#include "cpython/api.hpp"

#include "core/timer_heap.hpp"
#include "cpython/ref.hpp"
#include "loop/parts.hpp"

namespace gossamer::loop {

/// The field at `offset` of `handle`.
inline PyObject*& field_of(PyObject* handle, Py_ssize_t offset) noexcept {
    // Safety: the offsets are those of asyncio.Handle's member descriptors, and `handle` is an instance of it.
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(handle) + offset);
}

/// The place of a timer's handle in its loop's heap.
struct TimerNode final : core::Timer {
    explicit TimerNode(PyObject* whose) noexcept : Timer(nullptr), handle(whose) {}

    PyObject* const handle;
};

inline TimerNode& node_of(const Parts& parts, PyObject* timer_handle) noexcept {
    // Safety: the offset is that of our part of a TimerHandle, where make_timer_handle has put a node.
    return *reinterpret_cast<TimerNode*>(reinterpret_cast<char*>(timer_handle) + parts.timer_offset);
}

/// Creates the classes and finds the fields. Throws ErrorSet: ImportError when asyncio's handles are not what they were.
void create_handle_types(PyObject* module, Parts& parts, PyObject* handle, PyObject* timer_handle);

/// A new handle for `callback(*args)`; `context` null or None: a copy of the current one. Throws ErrorSet.
cpython::Ref make_handle(Parts& parts, PyObject* loop, PyObject* callback, PyObject* const* args, Py_ssize_t count,
                         PyObject* context);

/// The same, for the time `when` on the loop's clock; its node is idle.
cpython::Ref make_timer_handle(Parts& parts, PyObject* loop, PyObject* when, PyObject* callback, PyObject* const* args,
                               Py_ssize_t count, PyObject* context);

inline bool is_cancelled(const Parts& parts, PyObject* handle) noexcept {
    return field_of(handle, parts.fields.cancelled) == Py_True;
}

/// Cancels a handle as its own method does. Throws ErrorSet.
void cancel_handle(Parts& parts, PyObject* handle);

/// Calls the handle's callback in its context. Throws ErrorSet with what it raised.
void call_handle(const Parts& parts, PyObject* handle);

/// Visits what dead handles refer to still: their class.
int traverse_spare_handles(Parts& parts, visitproc visit, void* arg);

/// Frees the memory that dead handles have left for new ones.
void drop_spare_handles(Parts& parts) noexcept;

}  // namespace gossamer::loop
