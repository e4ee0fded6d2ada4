// SPDX-License-Identifier: Apache-2.0
// io.BufferedReader, BufferedWriter and BufferedRandom used by several virtual threads.
//
// Such an object has a C lock, owned by an OS thread, that it holds while it calls its raw file. A virtual thread that
// parks in there keeps it, and a second one on the same carrier would be taken for the first ("reentrant call inside").
// So every method that takes the lock looks first: if the object's owner word is set and the running virtual thread is not
// inside a method of this object itself, it parks until the word is clear. A virtual thread that does come back into an
// object that it is inside of gets the original's error, as a thread does. What calls these methods (BufferedRWPair, text
// files, print) follows.
//
// `__next__` has no method table: the slot of the type, which each interpreter has of its own, is replaced, in its
// subclasses too, and the wrapper that shows it.
//
// Source: ENTER_BUFFERED in Modules/_io/bufferedio.c, 3.12 to 3.15. The word's place is found at start-up by looking.
#include "cpython/api.hpp"

#include <atomic>

#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/thread_parts.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;
using sched::VirtualThread;

namespace {

std::size_t owner_offset = 0;

unsigned long& owner_word(PyObject* buffered) noexcept {
    return *reinterpret_cast<unsigned long*>(reinterpret_cast<char*>(buffered) + owner_offset);
}

bool is_in_use(PyObject* buffered) noexcept {
    // relaxed: another OS thread's entry or exit that is seen late only costs a turn; the C lock itself decides.
    return std::atomic_ref<unsigned long>(owner_word(buffered)).load(std::memory_order_relaxed) != 0;
}

/// The running virtual thread's call of one method.
class BufferedCall final {
public:
    /// Parks while another thread, virtual or not, is inside of `buffered`. Throws ErrorSet.
    BufferedCall(Hub& hub, PyObject* buffered) : thread_(hub.running()) {
        if (is_in_use(buffered) && !is_inside(buffered)) {
            (void)sched::wait_until(hub, buffered, {.what = "a buffered file in use", .object = buffered},
                                    core::Deadline::never(), [&] { return !is_in_use(buffered); });
        }
        call_ = {.object = buffered, .outer = thread_.owning_call};
        thread_.owning_call = &call_;
    }
    BufferedCall(const BufferedCall&) = delete;
    BufferedCall& operator=(const BufferedCall&) = delete;
    ~BufferedCall() {
        thread_.owning_call = call_.outer;
        wake_one_waiter(call_.object);
    }

private:
    bool is_inside(const void* object) const noexcept {
        for (const sched::OwningCall* call = thread_.owning_call; call != nullptr; call = call->outer) {
            if (call->object == object) {
                return true;
            }
        }
        return false;
    }

    VirtualThread& thread_;
    sched::OwningCall call_{};
};

template <typename Call>
PyObject* exclusive(PyObject* self, Call call_original) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        PyObject* result = call_original();
        wake_one_waiter(self);
        return result;
    }
    return guarded<PyObject*>(nullptr, [&] {
        const BufferedCall call(*hub, self);
        return call_original();
    });
}

/// The methods that take the lock; each has one original for all the types.
enum Method {
    kClose,
    kFlush,
    kRead,
    kPeek,
    kRead1,
    kReadinto,
    kReadinto1,
    kReadline,
    kSeek,
    kTruncate,
    kWrite,
    kMethods
};
constexpr const char* kNames[kMethods] = {"close",     "flush",    "read", "peek",     "read1", "readinto",
                                          "readinto1", "readline", "seek", "truncate", "write"};
PyCFunction originals[kMethods] = {};

template <Method method>
PyObject* with_one(PyObject* self, PyObject* arg) {
    return exclusive(self, [&] { return originals[method](self, arg); });
}
template <Method method>
PyObject* with_fast(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return exclusive(self, [&] { return as<FastFunction>(originals[method])(self, args, count); });
}
template <Method method>
PyObject* with_class(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return exclusive(self, [&] { return as<MethodFunction>(originals[method])(self, type, args, count, names); });
}

template <Method method>
void plan_method(PyObject* type) {
    const PyCFunction known = originals[method];
    plan_swap(type, kNames[method],
              {{METH_NOARGS, with_one<method>},
               {METH_O, with_one<method>},
               {METH_FASTCALL, with_fast<method>},
               {METH_METHOD | METH_FASTCALL | METH_KEYWORDS, with_class<method>}},
              originals[method]);
    if (known != nullptr && known != originals[method]) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the %s methods of buffered files in this Python",
                       kNames[method]);
    }
}

// ---- __next__ ----

iternextfunc original_next = nullptr;

PyObject* next(PyObject* self) {
    return exclusive(self, [&] { return original_next(self); });
}

/// Replaces the slot of `type` and of the subclasses that have inherited it.
void replace_next(PyTypeObject* type, iternextfunc old, iternextfunc replacement) {
    if (type->tp_iternext == old) {
        type->tp_iternext = replacement;
    }
    const Ref subclasses = steal(PyObject_CallMethod(reinterpret_cast<PyObject*>(type), "__subclasses__", nullptr));
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(subclasses.ptr()); ++index) {
        replace_next(reinterpret_cast<PyTypeObject*>(PyList_GET_ITEM(subclasses.ptr(), index)), old, replacement);
    }
}

void adopt_next(PyObject* type_object) {
    auto* type = reinterpret_cast<PyTypeObject*>(type_object);
    if (type->tp_iternext == next) {
        return;
    }
    const Ref wrapper = steal(PyObject_GetAttrString(type_object, "__next__"));
    if ((original_next != nullptr && original_next != type->tp_iternext) ||
        !Py_IS_TYPE(wrapper.ptr(), &PyWrapperDescr_Type)) {
        cpython::raise(PyExc_ImportError, "gossamer cannot take over %R.__next__ in this Python", type_object);
    }
    original_next = type->tp_iternext;
    replace_next(type, original_next, next);
    reinterpret_cast<PyWrapperDescrObject*>(wrapper.ptr())->d_wrapped = reinterpret_cast<void*>(&next);
}

void release_next(PyObject* type_object) {
    replace_next(reinterpret_cast<PyTypeObject*>(type_object), next, original_next);
    const Ref wrapper = steal(PyObject_GetAttrString(type_object, "__next__"));
    void*& wrapped = reinterpret_cast<PyWrapperDescrObject*>(wrapper.ptr())->d_wrapped;
    if (wrapped == reinterpret_cast<void*>(&next)) {
        wrapped = reinterpret_cast<void*>(original_next);
    }
}

void for_each_iterated_type(void (*visit)(PyObject* type)) {
    const Ref module = steal(PyImport_ImportModule("_io"));
    for (const char* name : {"BufferedReader", "BufferedRandom"}) {
        visit(steal(PyObject_GetAttrString(module.ptr(), name)).ptr());
    }
}

// ---- the owner word ----

/// The raw file of the search: looks for the word that holds this OS thread's identity while the object reads.
PyObject* look_for_owner(PyObject* holder, PyObject*) {
    PyObject* buffered = PyDict_GetItemString(holder, "buffered");
    const auto size = static_cast<std::size_t>(Py_TYPE(buffered)->tp_basicsize);
    const unsigned long ident = PyThread_get_thread_ident();
    int found = 0;
    for (std::size_t offset = sizeof(PyObject); offset + sizeof ident <= size; offset += sizeof ident) {
        if (*reinterpret_cast<unsigned long*>(reinterpret_cast<char*>(buffered) + offset) == ident) {
            owner_offset = offset;
            ++found;
        }
    }
    owner_offset = found == 1 ? owner_offset : 0;
    return PyLong_FromLong(0);
}

PyObject* yes(PyObject*, PyObject*) { Py_RETURN_TRUE; }

PyMethodDef look_for_owner_method = {"readinto", look_for_owner, METH_O, nullptr};
PyMethodDef yes_method = {"readable", yes, METH_NOARGS, nullptr};

void find_owner_word(PyObject* reader_type) {
    const Ref holder = steal(PyDict_New());
    const Ref types = steal(PyImport_ImportModule("types"));
    const Ref raw = steal(PyObject_CallMethod(types.ptr(), "SimpleNamespace", nullptr));
    const auto set = [&](const char* name, PyObject* value) {
        cpython::check(PyObject_SetAttrString(raw.ptr(), name, value));
    };
    set("readable", steal(PyCFunction_New(&yes_method, nullptr)).ptr());
    set("readinto", steal(PyCFunction_New(&look_for_owner_method, holder.ptr())).ptr());
    set("closed", Py_False);
    const Ref reader = steal(PyObject_CallOneArg(reader_type, raw.ptr()));
    cpython::check(PyDict_SetItemString(holder.ptr(), "buffered", reader.ptr()));
    steal(PyObject_CallMethod(reader.ptr(), "read", "i", 1));
    PyDict_Clear(holder.ptr());
    set("closed", Py_True);  // nothing to close at its end
    if (owner_offset == 0 || owner_word(reader.ptr()) != 0) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of buffered files in this Python");
    }
}

}  // namespace

void adopt_buffered_types() { for_each_iterated_type(&adopt_next); }

void release_buffered_types() { for_each_iterated_type(&release_next); }

void plan_buffered_io() {
    const Ref module = steal(PyImport_ImportModule("_io"));
    const Ref reader = steal(PyObject_GetAttrString(module.ptr(), "BufferedReader"));
    const Ref writer = steal(PyObject_GetAttrString(module.ptr(), "BufferedWriter"));
    const Ref random = steal(PyObject_GetAttrString(module.ptr(), "BufferedRandom"));
    find_owner_word(reader.ptr());
    for (PyObject* type : {reader.ptr(), writer.ptr(), random.ptr()}) {
        plan_method<kClose>(type);
        plan_method<kSeek>(type);
        plan_method<kTruncate>(type);
    }
    for (PyObject* type : {reader.ptr(), random.ptr()}) {
        plan_method<kRead>(type);
        plan_method<kPeek>(type);
        plan_method<kRead1>(type);
        plan_method<kReadinto>(type);
        plan_method<kReadinto1>(type);
        plan_method<kReadline>(type);
    }
    for (PyObject* type : {writer.ptr(), random.ptr()}) {
        plan_method<kFlush>(type);  // a reader's only flushes its raw file, without the lock
        plan_method<kWrite>(type);
    }
}

}  // namespace gossamer::interpose
