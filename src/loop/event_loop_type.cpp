// SPDX-License-Identifier: Apache-2.0
// The Python class around EventLoop: arguments and the fields that asyncio's own code reads and writes.
#include "cpython/api.hpp"

#include <new>

#include "cpython/error.hpp"
#include "loop/acceptor.hpp"
#include "loop/event_loop.hpp"
#include "loop/socket_calls.hpp"
#include "loop/transport_base.hpp"

namespace gossamer::loop {

using core::Interest;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;

namespace {

struct EventLoopObject {
    PyObject ob_base;
    alignas(EventLoop) std::byte memory[sizeof(EventLoop)];
};

/// The arguments of `call(callback, *args, context=None)`; with `first_name`, of `call(first, callback, *args, context=None)`.
struct CallArguments {
    CallArguments(const char* name, const char* first_name, PyObject* const* given, Py_ssize_t given_count,
                  PyObject* names) {
        const Py_ssize_t leading = first_name == nullptr ? 0 : 1;
        if (leading == 1 && given_count > 0) {
            first = given[0];
        }
        if (given_count > leading) {
            callback = given[leading];
            args = given + leading + 1;
            count = given_count - leading - 1;
        }
        for (Py_ssize_t index = 0; names != nullptr && index < PyTuple_GET_SIZE(names); ++index) {
            take_named(name, first_name, PyTuple_GET_ITEM(names, index), given[given_count + index]);
        }
        if (callback == nullptr || (leading == 1 && first == nullptr)) {
            const bool lacks_first = leading == 1 && first == nullptr;
            cpython::raise(PyExc_TypeError, "%s() missing the required argument '%s'", name,
                           lacks_first ? first_name : "callback");
        }
    }

    PyObject* first = nullptr;
    PyObject* callback = nullptr;
    PyObject* const* args = nullptr;
    Py_ssize_t count = 0;
    PyObject* context = nullptr;

private:
    void take_named(const char* name, const char* first_name, PyObject* keyword, PyObject* value) {
        const auto is = [&](const char* text) { return PyUnicode_CompareWithASCIIString(keyword, text) == 0; };
        PyObject** place = is("context")                             ? &context
                           : is("callback")                          ? &callback
                           : first_name != nullptr && is(first_name) ? &first
                                                                     : nullptr;
        if (place == nullptr || *place != nullptr) {
            cpython::raise(PyExc_TypeError, "%s() got %s '%U'", name,
                           place == nullptr ? "an unexpected keyword argument" : "multiple values for argument",
                           keyword);
        }
        *place = value;
    }
};

/// Debug mode's checks, which are asyncio's own.
void check_call(EventLoop& loop, const char* method, PyObject* callback, bool is_from_anywhere) {
    if (!loop.is_debugging) {
        return;
    }
    if (!is_from_anywhere) {
        steal(PyObject_CallMethod(loop.object(), "_check_thread", nullptr));
    }
    steal(PyObject_CallMethod(loop.object(), "_check_callback", "Os", callback, method));
}

Ref make_ready_handle(EventLoop& loop, const CallArguments& call) {
    return make_handle(loop.parts(), loop.object(), call.callback, call.args, call.count, call.context);
}

/// One that any thread may cancel: it has a lock, and is asyncio's own (3.14).
Ref make_thread_safe_handle(EventLoop& loop, const CallArguments& call) {
    PyObject* type = loop.parts().thread_safe_handle;
    if (type == nullptr) {
        return make_ready_handle(loop, call);
    }
    const Ref args = steal(PyTuple_New(call.count));
    for (Py_ssize_t index = 0; index < call.count; ++index) {
        PyTuple_SET_ITEM(args.ptr(), index, Py_NewRef(call.args[index]));
    }
    Ref handle = steal(PyObject_CallFunctionObjArgs(type, call.callback, args.ptr(), loop.object(),
                                                    call.context == nullptr ? Py_None : call.context, nullptr));
    if (loop.is_debugging) {  // it has looked at who called it, which was no Python
        PyObject*& trace = field_of(handle.ptr(), loop.parts().fields.source_traceback);
        Ref right = trace_of_caller(loop.object());
        Py_XSETREF(trace, right.release());
    }
    return handle;
}

PyObject* call_soon(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        const CallArguments call("call_soon", nullptr, args, count, names);
        loop.check_open();
        check_call(loop, "call_soon", call.callback, false);
        Ref handle = make_ready_handle(loop, call);
        loop.push_ready(cpython::borrow(handle.ptr()));
        return handle.release();
    });
}

PyObject* call_soon_threadsafe(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        const CallArguments call("call_soon_threadsafe", nullptr, args, count, names);
        loop.check_open();
        check_call(loop, "call_soon_threadsafe", call.callback, true);
        Ref handle = make_thread_safe_handle(loop, call);
        loop.push_from_anywhere(cpython::borrow(handle.ptr()));
        return handle.release();
    });
}

PyObject* schedule(EventLoop& loop, const CallArguments& call, PyObject* when) {
    const double time = PyFloat_AsDouble(when);
    if (time == -1.0 && PyErr_Occurred()) {
        throw cpython::ErrorSet{};
    }
    check_call(loop, "call_at", call.callback, false);
    Ref handle =
        make_timer_handle(loop.parts(), loop.object(), when, call.callback, call.args, call.count, call.context);
    loop.arm_timer(cpython::borrow(handle.ptr()), time);
    return handle.release();
}

PyObject* call_at(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        const CallArguments call("call_at", "when", args, count, names);
        if (call.first == Py_None) {
            cpython::raise(PyExc_TypeError, "when cannot be None");
        }
        loop.check_open();
        return schedule(loop, call, call.first);
    });
}

double now_in_seconds() noexcept { return std::chrono::duration<double>(core::monotonic_now()).count(); }

PyObject* call_later(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        const CallArguments call("call_later", "delay", args, count, names);
        if (call.first == Py_None) {
            cpython::raise(PyExc_TypeError, "delay must not be None");
        }
        loop.check_open();
        // The clock is a method that tests and libraries replace.
        const Ref now = steal(PyObject_CallMethodNoArgs(self, loop.parts().time_name));
        const Ref when = steal(PyNumber_Add(now.ptr(), call.first));
        return schedule(loop, call, when.ptr());
    });
}

PyObject* time(PyObject*, PyObject*) { return PyFloat_FromDouble(now_in_seconds()); }

PyObject* get_debug(PyObject* self, PyObject*) { return Py_NewRef(loop_of(self).is_debugging ? Py_True : Py_False); }

PyObject* is_closed(PyObject* self, PyObject*) { return Py_NewRef(loop_of(self).is_closed ? Py_True : Py_False); }

PyObject* create_future(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] { return loop_of(self).create_future().release(); });
}

template <Interest interest>
PyObject* add_bare(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        loop.check_open();
        const CallArguments call("add_reader", "fd", args, count, names);
        Ref handle = make_ready_handle(loop, call);
        loop.add_bare(call.first, interest, cpython::borrow(handle.ptr()));
        return handle.release();
    });
}

template <Interest interest>
PyObject* remove_bare(PyObject* self, PyObject* file) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        if (loop.is_closed) {
            return Py_NewRef(Py_False);
        }
        return Py_NewRef(loop.remove_bare(loop.descriptor_of(file), interest) ? Py_True : Py_False);
    });
}

void check_is_handle(EventLoop& loop, PyObject* handle) {
    if (!PyObject_TypeCheck(handle, loop.parts().asyncio_handle)) {
        cpython::raise(PyExc_TypeError, "an asyncio.Handle is required");
    }
}

/// _add_callback(handle): as BaseEventLoop's.
PyObject* add_callback(PyObject* self, PyObject* handle) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        check_is_handle(loop, handle);
        loop.push_ready(cpython::borrow(handle));
        Py_RETURN_NONE;
    });
}

PyObject* add_callback_signalsafe(PyObject* self, PyObject* handle) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        check_is_handle(loop, handle);
        loop.push_from_anywhere(cpython::borrow(handle));
        Py_RETURN_NONE;
    });
}

PyObject* run_once(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        loop_of(self).run();
        Py_RETURN_NONE;
    });
}

/// _watched(file): what is watched of it by a reader or a writer, as a mask of `selectors`.
PyObject* watched(PyObject* self, PyObject* file) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        const std::uint32_t events = loop.watched_events(loop.descriptor_of(file));
        const int kRead = 1;  // selectors.EVENT_READ
        const int kWrite = 2;
        return PyLong_FromLong(((events & static_cast<std::uint32_t>(Interest::kRead)) != 0 ? kRead : 0) |
                               ((events & static_cast<std::uint32_t>(Interest::kWrite)) != 0 ? kWrite : 0));
    });
}

/// _transport_of(fd): the transport of ours that uses the descriptor, or None.
PyObject* transport_of(PyObject* self, PyObject* fd) {
    return guarded<PyObject*>(nullptr, [&] {
        int number = -1;
        if (!PyArg_Parse(fd, "i:_transport_of", &number)) {
            throw cpython::ErrorSet{};
        }
        PyObject* transport = loop_of(self).transport_of(number);
        return Py_NewRef(transport == nullptr ? Py_None : transport);
    });
}

/// _show_transport(fd, transport), _hide_transport(fd, transport): puts it where _transport_of finds it, and takes it off.
template <bool is_shown>
PyObject* show_transport(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        int fd = -1;
        PyObject* transport = nullptr;
        if (!PyArg_ParseTuple(args, "iO!", &fd, loop.parts().transport_base_type, &transport)) {
            throw cpython::ErrorSet{};
        }
        if (!is_shown) {
            loop.remove_transport(fd, transport);
        } else if (fd == fd_of_transport(transport)) {  // which takes itself off
            loop.add_transport(fd, transport);
        }
        Py_RETURN_NONE;
    });
}

PyObject* forget_everything(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        loop_of(self).close();
        Py_RETURN_NONE;
    });
}

template <bool EventLoop::* flag>
PyObject* get_flag(PyObject* self, void*) {
    return Py_NewRef(loop_of(self).*flag ? Py_True : Py_False);
}

template <bool EventLoop::* flag>
int set_flag(PyObject* self, PyObject* value, void*) {
    const int is_true = value == nullptr ? 0 : PyObject_IsTrue(value);
    if (is_true < 0) {
        return -1;
    }
    loop_of(self).*flag = is_true != 0;
    return 0;
}

PyObject* event_loop_new(PyTypeObject* type, PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        // The class that is ours, of which `type` may be a subclass.
        PyObject* module = PyType_GetModuleByDef(type, &cpython::core_module);
        if (module == nullptr) {
            throw cpython::ErrorSet{};
        }
        Parts& parts = *cpython::state_of_module(module).loop_parts;
        if (parts.handle_type == nullptr) {
            cpython::raise(PyExc_TypeError, "make loops with gossamer.new_event_loop()");
        }
        Ref self = steal(type->tp_alloc(type, 0));
        new (reinterpret_cast<EventLoopObject*>(self.ptr())->memory) EventLoop(parts, self.ptr());
        return self.release();
    });
}

int event_loop_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return loop_of(self).traverse(visit, arg);
}

int event_loop_clear(PyObject* self) {
    return guarded(-1, [self] {
        loop_of(self).close();
        return 0;
    });
}

void event_loop_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (event_loop_clear(self) < 0) {
        PyErr_WriteUnraisable(nullptr);
    }
    loop_of(self).~EventLoop();
    type->tp_free(self);
    Py_DECREF(type);
}

constexpr int kKeywords = METH_FASTCALL | METH_KEYWORDS;

PyMethodDef methods[] = {
    {"call_soon", _PyCFunction_CAST(call_soon), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("call_soon($self, /, callback, *args, context=None)\n--\n\n"
               "Call ``callback(*args)`` at the loop's next turn; return its handle.")},
    {"call_soon_threadsafe", _PyCFunction_CAST(call_soon_threadsafe), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("call_soon_threadsafe($self, /, callback, *args, context=None)\n--\n\n"
               "As `call_soon`, from any thread.")},
    {"call_later", _PyCFunction_CAST(call_later), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("call_later($self, /, delay, callback, *args, context=None)\n--\n\n"
               "Call ``callback(*args)`` after ``delay`` seconds; return its handle.")},
    {"call_at", _PyCFunction_CAST(call_at), METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("call_at($self, /, when, callback, *args, context=None)\n--\n\n"
               "Call ``callback(*args)`` when the loop's clock reaches ``when``; return its handle.")},
    {"time", time, METH_NOARGS, PyDoc_STR("time($self, /)\n--\n\nThe loop's clock, in seconds: `time.monotonic`.")},
    {"get_debug", get_debug, METH_NOARGS, PyDoc_STR("get_debug($self, /)\n--\n\nWhether the loop is in debug mode.")},
    {"is_closed", is_closed, METH_NOARGS, PyDoc_STR("is_closed($self, /)\n--\n\nWhether the loop was closed.")},
    {"create_future", create_future, METH_NOARGS,
     PyDoc_STR("create_future($self, /)\n--\n\nReturn a new future of the loop.")},
    {"sock_recv", _PyCFunction_CAST(sock_recv), kKeywords,
     PyDoc_STR("sock_recv($self, sock, n, /)\n--\n\nReceive up to ``n`` bytes from a non-blocking socket.")},
    {"sock_recv_into", _PyCFunction_CAST(sock_recv_into), kKeywords,
     PyDoc_STR("sock_recv_into($self, sock, buf, /)\n--\n\nReceive into ``buf``; the result is how many bytes.")},
    {"sock_recvfrom", _PyCFunction_CAST(sock_recvfrom), kKeywords,
     PyDoc_STR("sock_recvfrom($self, sock, bufsize, /)\n--\n\n"
               "Receive a datagram of at most ``bufsize`` bytes; the result is its bytes and who sent it.")},
    {"sock_recvfrom_into", _PyCFunction_CAST(sock_recvfrom_into), kKeywords,
     PyDoc_STR("sock_recvfrom_into($self, sock, buf, nbytes=0, /)\n--\n\n"
               "Receive a datagram into ``buf``; the result is how many bytes, and who sent them.")},
    {"sock_sendall", _PyCFunction_CAST(sock_sendall), kKeywords,
     PyDoc_STR("sock_sendall($self, sock, data, /)\n--\n\nSend all of ``data`` through a non-blocking socket.")},
    {"sock_sendto", _PyCFunction_CAST(sock_sendto), kKeywords,
     PyDoc_STR("sock_sendto($self, sock, data, address, /)\n--\n\n"
               "Send a datagram to ``address``; the result is how many bytes.")},
    {"sock_connect", _PyCFunction_CAST(sock_connect), kKeywords,
     PyDoc_STR("sock_connect($self, sock, address, /)\n--\n\nConnect a non-blocking socket.")},
    {"sock_accept", _PyCFunction_CAST(sock_accept), kKeywords,
     PyDoc_STR("sock_accept($self, sock, /)\n--\n\n"
               "Accept a connection; the result is its non-blocking socket and the peer's address.")},
    {"_add_reader", _PyCFunction_CAST(add_bare<Interest::kRead>), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"_add_writer", _PyCFunction_CAST(add_bare<Interest::kWrite>), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"_remove_reader", remove_bare<Interest::kRead>, METH_O, nullptr},
    {"_remove_writer", remove_bare<Interest::kWrite>, METH_O, nullptr},
    {"_accept_on", accept_on, METH_VARARGS, nullptr},
    {"_transport_of", transport_of, METH_O, nullptr},
    {"_show_transport", show_transport<true>, METH_VARARGS, nullptr},
    {"_hide_transport", show_transport<false>, METH_VARARGS, nullptr},
    {"_add_callback", add_callback, METH_O, nullptr},
    {"_add_callback_signalsafe", add_callback_signalsafe, METH_O, nullptr},
    {"_watched", watched, METH_O, nullptr},
    {"_run_once", run_once, METH_NOARGS, nullptr},
    {"_forget_everything", forget_everything, METH_NOARGS, nullptr},
    {}};

PyGetSetDef properties[] = {
    {"_stopping", get_flag<&EventLoop::is_stopping>, set_flag<&EventLoop::is_stopping>, nullptr, nullptr},
    {"_closed", get_flag<&EventLoop::is_closed>, set_flag<&EventLoop::is_closed>, nullptr, nullptr},
    {"_debug", get_flag<&EventLoop::is_debugging>, set_flag<&EventLoop::is_debugging>, nullptr, nullptr},
    {}};

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(event_loop_new)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(event_loop_dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(event_loop_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(event_loop_clear)},
                       {Py_tp_methods, methods},
                       {Py_tp_getset, properties},
                       {0, nullptr}};

PyType_Spec spec = {"gossamer._core.EventLoopBase", sizeof(EventLoopObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

PyTypeObject* create_event_loop_type(PyObject* module) {
    return reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, nullptr)).release());
}

EventLoop& loop_of(PyObject* object) noexcept {
    // Safety: `object` is an instance of our class, whose tp_new has put an EventLoop there.
    return *std::launder(reinterpret_cast<EventLoop*>(reinterpret_cast<EventLoopObject*>(object)->memory));
}

bool is_debugging(PyObject* loop) noexcept { return loop_of(loop).is_debugging; }

void disarm_timer(PyObject* loop, TimerNode& node) noexcept { loop_of(loop).disarm_timer(node); }

Ref trace_of_caller(PyObject* loop) { return steal(PyObject_CallMethod(loop, "_trace_of_caller", nullptr)); }

}  // namespace gossamer::loop
