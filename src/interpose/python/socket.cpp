// SPDX-License-Identifier: Apache-2.0
// _socket.socket: every waiting method tries its system call first, without the descriptor's own blocking mode
// (MSG_DONTWAIT), and parks on EAGAIN.
//
// recv, recv_into, send and sendall are our own, for speed. The others run the original on a NonBlockingShadow. Two calls
// have no MSG_DONTWAIT: accept, for which the listening descriptor is made non-blocking for good (an OS thread that uses
// the same object waits with poll(2) instead), and connect, for which it is while the call lasts.
#include "cpython/api.hpp"

#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "interpose/python/name_resolution.hpp"
#include "interpose/python/socket_object.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using core::Interest;
using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_accept = nullptr;
PyCFunction original_connect = nullptr;
PyCFunction original_connect_ex = nullptr;
PyCFunction original_recv = nullptr;
PyCFunction original_recv_into = nullptr;
PyCFunction original_recvfrom = nullptr;
PyCFunction original_recvfrom_into = nullptr;
PyCFunction original_recvmsg = nullptr;
PyCFunction original_recvmsg_into = nullptr;
PyCFunction original_send = nullptr;
PyCFunction original_sendall = nullptr;
PyCFunction original_sendto = nullptr;
PyCFunction original_sendmsg = nullptr;
PyCFunction original_close = nullptr;
PyCFunction original_detach = nullptr;
wrapperfunc_kwds original_init_wrapper = nullptr;

/// The running hub if the socket's method would wait, else null: the original is called then.
Hub* hub_for(PyObject* self) noexcept { return words_of_socket(self).waits() ? Hub::current() : nullptr; }

/// Whether a blocking socket's call with these flags fails with EAGAIN instead of waiting: the original is called then.
bool never_waits(PyObject* self, long flags) noexcept {
    return words_of_socket(self).is_blocking() && (flags & (MSG_DONTWAIT | MSG_ERRQUEUE)) != 0;
}

/// Whether a read goes on until its buffer is full, as recv(2) says of MSG_WAITALL for a blocking stream.
bool reads_all(PyObject* self, int flags) noexcept {
    return words_of_socket(self).is_blocking() && words_of_socket(self).type == SOCK_STREAM &&
           (flags & (MSG_WAITALL | MSG_PEEK | MSG_OOB)) == MSG_WAITALL;
}

[[noreturn]] void raise_socket_error(PyObject* self, int error) {
    errno = error;
    words_of_socket(self).error_handler();
    throw ErrorSet{};
}

/// One wait of one call; keeps the deadline over several parks.
class Patience final {
public:
    Patience(Hub& hub, PyObject* self, Interest interest, const char* what) noexcept
        : hub_(hub), self_(self), interest_(interest), what_(what) {}

    /// Parks until the socket may be ready. Throws ErrorSet: TimeoutError, OSError when it was closed meanwhile.
    void wait() {
        const SocketWords& words = words_of_socket(self_);
        if (words.fd < 0) {
            raise_socket_error(self_, EBADF);
        }
        if (!is_started_) {
            deadline_ = socket_deadline(hub_, words);
            is_started_ = true;
        }
        if (!sched::wait_for_fd(hub_, words.fd, self_, interest_, what_, deadline_)) {
            raise_socket_timeout();
        }
    }

private:
    Hub& hub_;
    PyObject* const self_;
    const Interest interest_;
    const char* const what_;
    core::Deadline deadline_ = core::Deadline::never();
    bool is_started_ = false;
};

/// Calls `attempt(fd)` (a system call: result, or -1 and errno) until it does not say EAGAIN, parking between.
template <typename Attempt>
ssize_t read_with(Hub& hub, PyObject* self, const char* what, std::size_t wanted, int flags, Attempt attempt) {
    Patience patience(hub, self, Interest::kRead, what);
    for (;;) {
        const SocketWords& words = words_of_socket(self);
        if (words.fd < 0) {
            raise_socket_error(self, EBADF);
        }
        core::FdEntry& entry = hub.reactor().entry(words.fd, self);
        // With flags, what is read may be something else than the stream that is known to be drained.
        if (entry.may_be_readable || flags != 0) {
            const ssize_t size = attempt(words.fd);
            if (size >= 0) {
                // Drained: the next read would say EAGAIN, so it waits for the next edge at once.
                if (static_cast<std::size_t>(size) < wanted && size > 0 && flags == 0 && words.is_byte_stream() &&
                    entry.is_registered && !entry.is_hung_up && !entry.has_urgent_data) {
                    entry.may_be_readable = false;
                }
                return size;
            }
            if (errno == EINTR) {
                cpython::check(PyErr_CheckSignals());
                continue;
            }
            if (errno != EAGAIN && errno != EWOULDBLOCK) {
                raise_socket_error(self, errno);
            }
            entry.may_be_readable = entry.is_hung_up;
        }
        patience.wait();
    }
}

/// Reads until `size` bytes are there or the stream ends. Returns how many came.
std::size_t read_all(Hub& hub, PyObject* self, const char* what, char* into, std::size_t size, int flags) {
    std::size_t done = 0;
    while (done < size) {
        const ssize_t got = read_with(hub, self, what, size - done, flags, [&](int fd) {
            return ::recv(fd, into + done, size - done, flags | MSG_DONTWAIT);
        });
        if (got == 0) {
            break;
        }
        done += static_cast<std::size_t>(got);
    }
    return done;
}

/// Sends once, as much as the kernel takes.
ssize_t send_once(PyObject* self, Patience& patience, const char* from, std::size_t size, int flags) {
    for (;;) {
        const int fd = words_of_socket(self).fd;
        if (fd < 0) {
            raise_socket_error(self, EBADF);
        }
        const ssize_t sent = ::send(fd, from, size, flags | MSG_DONTWAIT);
        if (sent >= 0) {
            return sent;
        }
        if (errno == EINTR) {
            cpython::check(PyErr_CheckSignals());
        } else if ((errno == EAGAIN || errno == EWOULDBLOCK) && !never_waits(self, flags)) {
            patience.wait();
        } else {
            raise_socket_error(self, errno);
        }
    }
}

class Buffer final {
public:
    Buffer() noexcept = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (view.obj != nullptr) {
            PyBuffer_Release(&view);
        }
    }
    char* bytes() const noexcept { return static_cast<char*>(view.buf); }
    std::size_t size() const noexcept { return static_cast<std::size_t>(view.len); }

    Py_buffer view{};
};

/// The arguments of recv: (size, flags=0).
struct RecvArguments {
    explicit RecvArguments(PyObject* args) {
        if (!PyArg_ParseTuple(args, "n|i:recv", &wanted, &flags)) {
            throw ErrorSet{};
        }
        check_wanted();
    }
    /// `size` is an int itself, and there are no flags.
    static RecvArguments of_int(PyObject* size) {
        RecvArguments arguments;
        arguments.wanted = PyLong_AsSsize_t(size);
        if (arguments.wanted == -1 && PyErr_Occurred()) {
            throw ErrorSet{};
        }
        arguments.check_wanted();
        return arguments;
    }

    std::size_t size() const noexcept { return static_cast<std::size_t>(wanted); }

    Py_ssize_t wanted = 0;
    int flags = 0;

private:
    RecvArguments() noexcept = default;

    void check_wanted() const {
        if (wanted < 0) {
            cpython::raise(PyExc_ValueError, "negative buffersize in recv");
        }
    }
};

/// Remembers for the next recv whether reads of this socket are big ones.
void note_size(Hub& hub, PyObject* self, ssize_t size) {
    constexpr ssize_t kBulk = 16 * 1024;
    const int fd = words_of_socket(self).fd;
    if (fd >= 0) {
        hub.reactor().entry(fd, self).reads_in_bulk = size >= kBulk;
    }
}

/// Receives straight into a new bytes object: for what is likely to fill it.
PyObject* recv_in_place(Hub& hub, PyObject* self, const RecvArguments& arguments) {
    PyObject* bytes = nullptr;
    const auto attempt = [&](int fd) -> ssize_t {
        // Made for each try, so that a parked reader holds no buffer.
        bytes = steal(PyBytes_FromStringAndSize(nullptr, arguments.wanted)).release();
        const ssize_t size = ::recv(fd, PyBytes_AS_STRING(bytes), arguments.size(), arguments.flags | MSG_DONTWAIT);
        if (size < 0) {
            const int error = errno;
            Py_CLEAR(bytes);
            errno = error;
        }
        return size;
    };
    const ssize_t size = read_with(hub, self, "socket.recv", arguments.size(), arguments.flags, attempt);
    note_size(hub, self, size);
    if (size != arguments.wanted) {
        _PyBytes_Resize(&bytes, size);  // sets bytes to null and the error indicator when it fails
    }
    return bytes;
}

/// Receives into the hub's buffer and copies: programs ask for 64 KiB and get a hundred bytes, and to allocate, shrink
/// and free such a block costs more than to copy a small one.
PyObject* recv_by_copy(Hub& hub, PyObject* self, const RecvArguments& arguments) {
    char* buffer = hub.read_buffer();
    const ssize_t size = read_with(hub, self, "socket.recv", arguments.size(), arguments.flags, [&](int fd) {
        return ::recv(fd, buffer, arguments.size(), arguments.flags | MSG_DONTWAIT);
    });
    // Nothing of Python has run since the system call, so the buffer is still ours.
    note_size(hub, self, size);
    return PyBytes_FromStringAndSize(buffer, size);
}

PyObject* recv_whole(Hub& hub, PyObject* self, const RecvArguments& arguments) {
    Ref whole = steal(PyBytes_FromStringAndSize(nullptr, arguments.wanted));
    const std::size_t got =
        read_all(hub, self, "socket.recv", PyBytes_AS_STRING(whole.ptr()), arguments.size(), arguments.flags);
    PyObject* result = whole.release();
    _PyBytes_Resize(&result, static_cast<Py_ssize_t>(got));
    return result;
}

PyObject* recv_with(Hub& hub, PyObject* self, const RecvArguments& arguments) {
    if (reads_all(self, arguments.flags)) {
        return recv_whole(hub, self, arguments);
    }
    const int fd = words_of_socket(self).fd;
    const bool copies =
        arguments.size() <= Hub::kReadBufferBytes && fd >= 0 && !hub.reactor().entry(fd, self).reads_in_bulk;
    return copies ? recv_by_copy(hub, self, arguments) : recv_in_place(hub, self, arguments);
}

PyObject* recv(PyObject* self, PyObject* args) {
    Hub* hub = hub_for(self);
    if (hub == nullptr) {
        return original_recv(self, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const RecvArguments arguments(args);
        return never_waits(self, arguments.flags) ? original_recv(self, args) : recv_with(*hub, self, arguments);
    });
}

PyObject* recv_into(PyObject* self, PyObject* args, PyObject* kwargs) {
    Hub* hub = hub_for(self);
    if (hub == nullptr) {
        return as<KeywordFunction>(original_recv_into)(self, args, kwargs);
    }
    return guarded<PyObject*>(nullptr, [&] {
        static const char* const names[] = {"buffer", "nbytes", "flags", nullptr};
        Buffer buffer;
        Py_ssize_t wanted = 0;
        int flags = 0;
        if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*|ni:recv_into", const_cast<char**>(names), &buffer.view,
                                         &wanted, &flags)) {
            throw ErrorSet{};
        }
        if (wanted < 0) {
            cpython::raise(PyExc_ValueError, "negative buffersize in recv_into");
        }
        if (buffer.view.len < wanted) {
            cpython::raise(PyExc_ValueError, "buffer too small for requested bytes");
        }
        if (never_waits(self, flags)) {
            return as<KeywordFunction>(original_recv_into)(self, args, kwargs);
        }
        const std::size_t size = wanted == 0 ? buffer.size() : static_cast<std::size_t>(wanted);
        if (reads_all(self, flags)) {
            return PyLong_FromSize_t(read_all(*hub, self, "socket.recv_into", buffer.bytes(), size, flags));
        }
        return PyLong_FromSsize_t(read_with(*hub, self, "socket.recv_into", size, flags, [&](int fd) {
            return ::recv(fd, buffer.bytes(), size, flags | MSG_DONTWAIT);
        }));
    });
}

/// The arguments of a send: (bytes, flags=0). METH_VARARGS up to 3.14, METH_FASTCALL from 3.15 on, so both come as an array.
struct SendArguments {
    SendArguments(PyObject* const* args, Py_ssize_t count) {
        if (PyBytes_CheckExact(args[0])) {
            // Safety: the caller's array holds the object for as long as the call lasts.
            bytes = PyBytes_AS_STRING(args[0]);
            size = static_cast<std::size_t>(PyBytes_GET_SIZE(args[0]));
        } else {
            cpython::check(PyObject_GetBuffer(args[0], &buffer.view, PyBUF_SIMPLE));
            bytes = buffer.bytes();
            size = buffer.size();
        }
        if (count == 2) {
            const long value = PyLong_AsLong(args[1]);
            if (value == -1 && PyErr_Occurred()) {
                throw ErrorSet{};
            }
            flags = static_cast<int>(value);
        }
    }

    Buffer buffer;
    const char* bytes = nullptr;
    std::size_t size = 0;
    int flags = 0;
};

PyObject* send_array(Hub& hub, PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        const SendArguments arguments(args, count);
        Patience patience(hub, self, Interest::kWrite, "socket.send");
        return PyLong_FromSsize_t(send_once(self, patience, arguments.bytes, arguments.size, arguments.flags));
    });
}

PyObject* sendall_array(Hub& hub, PyObject* self, PyObject* const* args, Py_ssize_t count) {
    return guarded<PyObject*>(nullptr, [&] {
        const SendArguments arguments(args, count);
        Patience patience(hub, self, Interest::kWrite, "socket.sendall");
        std::size_t done = 0;
        do {
            done += static_cast<std::size_t>(
                send_once(self, patience, arguments.bytes + done, arguments.size - done, arguments.flags));
        } while (done < arguments.size);
        Py_RETURN_NONE;
    });
}

bool is_send_count(Py_ssize_t count) noexcept { return count == 1 || count == 2; }

PyObject* send(PyObject* self, PyObject* args) {
    Hub* hub = hub_for(self);
    return hub == nullptr || !is_send_count(PyTuple_GET_SIZE(args))
               ? original_send(self, args)
               : send_array(*hub, self, &PyTuple_GET_ITEM(args, 0), PyTuple_GET_SIZE(args));
}
PyObject* send_fast(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    Hub* hub = hub_for(self);
    return hub == nullptr || !is_send_count(count) ? as<FastFunction>(original_send)(self, args, count)
                                                   : send_array(*hub, self, args, count);
}
PyObject* sendall(PyObject* self, PyObject* args) {
    Hub* hub = hub_for(self);
    return hub == nullptr || !is_send_count(PyTuple_GET_SIZE(args))
               ? original_sendall(self, args)
               : sendall_array(*hub, self, &PyTuple_GET_ITEM(args, 0), PyTuple_GET_SIZE(args));
}
PyObject* sendall_fast(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    Hub* hub = hub_for(self);
    return hub == nullptr || !is_send_count(count) ? as<FastFunction>(original_sendall)(self, args, count)
                                                   : sendall_array(*hub, self, args, count);
}

// ---- recv and sendall without a tuple ----
//
// Both are METH_VARARGS (sendall up to 3.14), so each call of `sock.recv(n)` makes a tuple, which takes 3 % of an echo
// server's time. The descriptor in the type has a vectorcall function, which is ours too: it takes the one common form of
// the call, and leaves every other, and every ordinary thread, to the original, which comes back through the table.

vectorcallfunc original_call_recv = nullptr;
vectorcallfunc original_call_sendall = nullptr;

/// The hub if it is the call `descriptor(socket, argument)` on a virtual thread.
Hub* hub_for_one_argument(PyObject* descriptor, PyObject* const* args, std::size_t count, PyObject* names) noexcept {
    const bool fits = PyVectorcall_NARGS(count) == 2 && names == nullptr &&
                      PyObject_TypeCheck(args[0], reinterpret_cast<PyDescrObject*>(descriptor)->d_type);
    return fits ? hub_for(args[0]) : nullptr;
}

PyObject* call_recv(PyObject* descriptor, PyObject* const* args, std::size_t count, PyObject* names) {
    Hub* hub = hub_for_one_argument(descriptor, args, count, names);
    if (hub == nullptr || !PyLong_CheckExact(args[1])) {
        return original_call_recv(descriptor, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] { return recv_with(*hub, args[0], RecvArguments::of_int(args[1])); });
}

PyObject* call_sendall(PyObject* descriptor, PyObject* const* args, std::size_t count, PyObject* names) {
    Hub* hub = hub_for_one_argument(descriptor, args, count, names);
    return hub == nullptr ? original_call_sendall(descriptor, args, count, names)
                          : sendall_array(*hub, args[0], args + 1, 1);
}

/// What `type` has of its own under `name`, which must be of the type `kind`. Borrowed. Throws ErrorSet, ImportError.
PyObject* descriptor_of(PyObject* type, const char* name, PyTypeObject& kind) {
    PyObject* dict = PyType_GetDict(reinterpret_cast<PyTypeObject*>(type));
    PyObject* descriptor = PyDict_GetItemString(dict, name);
    Py_DECREF(dict);
    if (descriptor == nullptr || !Py_IS_TYPE(descriptor, &kind)) {
        cpython::raise(PyExc_ImportError, "gossamer cannot take over _socket.socket.%s in this Python", name);
    }
    return descriptor;
}

PyMethodDescrObject& method_descriptor(PyObject* type, const char* name) {
    return *reinterpret_cast<PyMethodDescrObject*>(descriptor_of(type, name, PyMethodDescr_Type));
}

void adopt_call(PyObject* type, const char* name, vectorcallfunc function, vectorcallfunc& original) {
    PyMethodDescrObject& descriptor = method_descriptor(type, name);
    if (descriptor.d_method->ml_flags == METH_VARARGS && descriptor.vectorcall != function) {
        original = descriptor.vectorcall;  // CPython's own for METH_VARARGS, the same in every interpreter
        descriptor.vectorcall = function;
    }
}

void release_call(PyObject* type, const char* name, vectorcallfunc function, vectorcallfunc original) {
    PyMethodDescrObject& descriptor = method_descriptor(type, name);
    if (descriptor.vectorcall == function) {
        descriptor.vectorcall = original;
    }
}

/// Runs `original_call(shadow)` until it does not raise BlockingIOError, parking between.
template <typename Call>
PyObject* retried(Hub& hub, PyObject* self, Interest interest, const char* what, long flags, Call original_call) {
    Patience patience(hub, self, interest, what);
    for (;;) {
        core::FdEntry* entry =
            words_of_socket(self).fd < 0 ? nullptr : &hub.reactor().entry(words_of_socket(self).fd, self);
        if (entry == nullptr || interest != Interest::kRead || entry->may_be_readable || flags != 0) {
            NonBlockingShadow shadow(self);
            PyObject* result = original_call(shadow.object());
            if (result != nullptr || !PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
                return result;
            }
            PyErr_Clear();
            if (entry != nullptr && interest == Interest::kRead) {
                entry->may_be_readable = entry->is_hung_up;
            }
        }
        patience.wait();
    }
}

/// The flags at `index` of `args`; 0 when left out. Throws ErrorSet.
long flags_at(PyObject* args, Py_ssize_t index) {
    const long flags = index < PyTuple_GET_SIZE(args) ? PyLong_AsLong(PyTuple_GET_ITEM(args, index)) : 0;
    if (flags == -1 && PyErr_Occurred()) {
        throw ErrorSet{};
    }
    return flags;
}

/// `args` with MSG_DONTWAIT added to the flags at `index`, which are 0 when left out; what lies between gets `fillers`.
Ref with_dontwait(PyObject* args, Py_ssize_t index, std::initializer_list<PyObject*> fillers) {
    const Py_ssize_t given = PyTuple_GET_SIZE(args);
    const Py_ssize_t size = given > index ? given : index + 1;
    Ref result = steal(PyTuple_New(size));
    for (Py_ssize_t position = 0; position < size; ++position) {
        PyObject* item = nullptr;
        if (position == index) {
            item = steal(PyLong_FromLong(flags_at(args, index) | MSG_DONTWAIT)).release();
        } else if (position < given) {
            item = Py_NewRef(PyTuple_GET_ITEM(args, position));
        } else {
            item = Py_NewRef(fillers.begin()[position - 1]);
        }
        PyTuple_SET_ITEM(result.ptr(), position, item);
    }
    return result;
}

/// A read whose original takes positional arguments with the flags at `flags_index`.
PyObject* read_by_original(PyCFunction original, const char* what, PyObject* self, PyObject* args,
                           Py_ssize_t flags_index) {
    Hub* hub = hub_for(self);
    if (hub == nullptr || PyTuple_GET_SIZE(args) == 0) {
        return original(self, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const long flags = flags_at(args, flags_index);
        if (never_waits(self, flags)) {
            return original(self, args);
        }
        const Ref zero = steal(PyLong_FromLong(0));
        const Ref arguments = with_dontwait(args, flags_index, {zero.ptr(), zero.ptr()});
        return retried(*hub, self, Interest::kRead, what, flags,
                       [&](PyObject* shadow) { return original(shadow, arguments.ptr()); });
    });
}

PyObject* recvfrom(PyObject* self, PyObject* args) {
    return read_by_original(original_recvfrom, "socket.recvfrom", self, args, 1);
}
PyObject* recvmsg(PyObject* self, PyObject* args) {
    return read_by_original(original_recvmsg, "socket.recvmsg", self, args, 2);
}
PyObject* recvmsg_into(PyObject* self, PyObject* args) {
    return read_by_original(original_recvmsg_into, "socket.recvmsg_into", self, args, 2);
}

PyObject* recvfrom_into(PyObject* self, PyObject* args, PyObject* kwargs) {
    Hub* hub = hub_for(self);
    if (hub == nullptr) {
        return as<KeywordFunction>(original_recvfrom_into)(self, args, kwargs);
    }
    return guarded<PyObject*>(nullptr, [&] {
        static const char* const names[] = {"buffer", "nbytes", "flags", nullptr};
        PyObject* buffer = nullptr;
        Py_ssize_t wanted = 0;
        int flags = 0;
        if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|ni:recvfrom_into", const_cast<char**>(names), &buffer,
                                         &wanted, &flags)) {
            throw ErrorSet{};
        }
        if (never_waits(self, flags)) {
            return as<KeywordFunction>(original_recvfrom_into)(self, args, kwargs);
        }
        const Ref arguments = steal(Py_BuildValue("(Oni)", buffer, wanted, flags | MSG_DONTWAIT));
        return retried(*hub, self, Interest::kRead, "socket.recvfrom_into", flags, [&](PyObject* shadow) {
            return as<KeywordFunction>(original_recvfrom_into)(shadow, arguments.ptr(), nullptr);
        });
    });
}

PyObject* sendto(PyObject* self, PyObject* args) {
    Hub* hub = hub_for(self);
    const Py_ssize_t count = PyTuple_GET_SIZE(args);
    if (hub == nullptr || count < 2 || count > 3) {
        return original_sendto(self, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* address = PyTuple_GET_ITEM(args, count - 1);
        const long bits = count == 3 ? flags_at(args, 1) : 0;
        const Ref resolved = resolve_address(*hub, words_of_socket(self).family, words_of_socket(self).type, address);
        const Ref arguments =
            steal(Py_BuildValue("(OlO)", PyTuple_GET_ITEM(args, 0), bits | MSG_DONTWAIT, resolved.ptr()));
        if (never_waits(self, bits)) {
            return original_sendto(self, arguments.ptr());
        }
        return retried(*hub, self, Interest::kWrite, "socket.sendto", bits,
                       [&](PyObject* shadow) { return original_sendto(shadow, arguments.ptr()); });
    });
}

PyObject* call_original_sendmsg(PyObject* self, PyObject* args) {
    return cpython::kPython315
               ? as<FastFunction>(original_sendmsg)(self, &PyTuple_GET_ITEM(args, 0), PyTuple_GET_SIZE(args))
               : original_sendmsg(self, args);
}

PyObject* sendmsg(PyObject* self, PyObject* args) {
    Hub* hub = hub_for(self);
    if (hub == nullptr || PyTuple_GET_SIZE(args) == 0) {
        return call_original_sendmsg(self, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const long flags = flags_at(args, 2);
        if (never_waits(self, flags)) {
            return call_original_sendmsg(self, args);
        }
        const Ref empty = steal(PyTuple_New(0));
        const Ref arguments = with_dontwait(args, 2, {empty.ptr(), empty.ptr()});
        return retried(*hub, self, Interest::kWrite, "socket.sendmsg", flags,
                       [&](PyObject* shadow) { return call_original_sendmsg(shadow, arguments.ptr()); });
    });
}
PyObject* sendmsg_fast(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    if (hub_for(self) == nullptr) {
        return as<FastFunction>(original_sendmsg)(self, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] { return sendmsg(self, PackedArguments(args, count, nullptr).args.ptr()); });
}

// ---- accept ----

/// For an OS thread that uses a listening socket which we made non-blocking: waits as a blocking accept would.
PyObject* accept_on_os_thread(PyObject* self, PyObject* unused) {
    for (;;) {
        PyObject* result = original_accept(self, unused);
        if (result != nullptr || !words_of_socket(self).is_blocking() ||
            !PyErr_ExceptionMatches(PyExc_BlockingIOError)) {
            return result;
        }
        PyErr_Clear();
        pollfd descriptor{.fd = words_of_socket(self).fd, .events = POLLIN, .revents = 0};
        PyThreadState* tstate = PyEval_SaveThread();
        const int count = ::poll(&descriptor, 1, -1);
        const int error = errno;
        PyEval_RestoreThread(tstate);
        if (count < 0 && error == EINTR && PyErr_CheckSignals() < 0) {
            return nullptr;
        }
    }
}

void make_non_blocking(int fd) noexcept {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) == 0) {
        ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
}

PyObject* accept(PyObject* self, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr || !words_of_socket(self).waits()) {
        return accept_on_os_thread(self, unused);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const SocketWords& words = words_of_socket(self);
        if (words.is_blocking() && words.fd >= 0) {  // each time: settimeout(None) makes it blocking again
            make_non_blocking(words.fd);
        }
        PyObject* result = retried(*hub, self, Interest::kRead, "socket.accept", 0,
                                   [&](PyObject* shadow) { return original_accept(shadow, unused); });
        if (result != nullptr) {
            const long fd = PyLong_AsLong(PyTuple_GET_ITEM(result, 0));
            hub->reactor().forget(static_cast<int>(fd));  // what is known of the number is of an earlier file
        }
        return result;
    });
}

// ---- connect ----

/// Sets O_NONBLOCK for as long as it lives.
class NonBlockingFor final {
public:
    explicit NonBlockingFor(int fd) noexcept : fd_(fd), flags_(::fcntl(fd, F_GETFL)) {
        if (flags_ >= 0 && (flags_ & O_NONBLOCK) == 0) {
            ::fcntl(fd_, F_SETFL, flags_ | O_NONBLOCK);
        }
    }
    NonBlockingFor(const NonBlockingFor&) = delete;
    NonBlockingFor& operator=(const NonBlockingFor&) = delete;
    ~NonBlockingFor() {
        if (flags_ >= 0 && (flags_ & O_NONBLOCK) == 0) {
            ::fcntl(fd_, F_SETFL, flags_);
        }
    }

private:
    const int fd_;
    const int flags_;
};

/// Starts to connect and parks until it is decided. Returns 0 or the error; EAGAIN: the time-out passed. Throws ErrorSet
/// for everything that is not an error of the connection (a bad address, a cancellation).
int connect_and_wait(Hub& hub, PyObject* self, PyObject* address) {
    const SocketWords& words = words_of_socket(self);
    const Ref resolved = resolve_address(hub, words.family, words.type, address);
    const core::Deadline deadline = socket_deadline(hub, words);
    int error = 0;
    {
        const NonBlockingFor non_blocking(words.fd);
        NonBlockingShadow shadow(self);
        const Ref result = steal(original_connect_ex(shadow.object(), resolved.ptr()));
        error = static_cast<int>(PyLong_AsLong(result.ptr()));
    }
    hub.reactor().entry(words.fd, self).is_registered = false;  // a socket that was not connected reported a hang-up
    hub.reactor().entry(words.fd, self).is_hung_up = false;
    while (error == EAGAIN && words.family == AF_UNIX) {
        // The listener's queue is full, and the kernel has no event for its end (connect(2)): look again, ever less often.
        const core::Deadline next = hub.deadline_after(core::Nanoseconds(2'000'000));
        if (deadline < next) {
            return EAGAIN;
        }
        sched::sleep_until(hub, next);
        const NonBlockingFor non_blocking(words.fd);
        NonBlockingShadow shadow(self);
        const Ref result = steal(original_connect_ex(shadow.object(), resolved.ptr()));
        error = static_cast<int>(PyLong_AsLong(result.ptr()));
    }
    if (error != EINPROGRESS && error != EINTR) {
        return error;
    }
    if (!sched::wait_for_fd(hub, words.fd, self, Interest::kWrite, "socket.connect", deadline)) {
        return EAGAIN;
    }
    socklen_t size = sizeof error;
    if (words.fd < 0 || ::getsockopt(words.fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
        return words.fd < 0 ? EBADF : errno;
    }
    return error == EISCONN ? 0 : error;
}

PyObject* connect(PyObject* self, PyObject* address) {
    Hub* hub = hub_for(self);
    if (hub == nullptr || words_of_socket(self).fd < 0) {
        return original_connect(self, address);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const int error = connect_and_wait(*hub, self, address);
        if (error == EAGAIN) {
            raise_socket_timeout();
        }
        if (error != 0) {
            raise_socket_error(self, error);
        }
        Py_RETURN_NONE;
    });
}

PyObject* connect_ex(PyObject* self, PyObject* address) {
    Hub* hub = hub_for(self);
    if (hub == nullptr || words_of_socket(self).fd < 0) {
        return original_connect_ex(self, address);
    }
    return guarded<PyObject*>(nullptr, [&] { return PyLong_FromLong(connect_and_wait(*hub, self, address)); });
}

// ---- the life of a descriptor ----

/// Wakes who waits for the descriptor before it goes, so that they see EBADF instead of waiting for ever.
void forget(PyObject* self) noexcept {
    Hub* hub = Hub::current();
    const int fd = words_of_socket(self).fd;
    if (hub != nullptr && fd >= 0) {
        hub->reactor().forget(fd);
    }
}

PyObject* close(PyObject* self, PyObject* unused) {
    forget(self);
    return original_close(self, unused);
}

PyObject* detach(PyObject* self, PyObject* unused) {
    forget(self);
    return original_detach(self, unused);
}

/// `_socket.socket.__init__`: the new object may have the address and the number of one that died unclosed.
PyObject* init_wrapper(PyObject* self, PyObject* args, void* wrapped, PyObject* kwargs) {
    PyObject* result = original_init_wrapper(self, args, wrapped, kwargs);
    if (result != nullptr) {
        forget(self);
    }
    return result;
}

// Process-wide, as the original is; set once.
wrapperbase* original_init_base = nullptr;
wrapperbase replaced_init_base;

/// Our copy of what describes `__init__`'s slot; made at the first call.
wrapperbase& replaced_base(wrapperbase& original) noexcept {
    if (original_init_wrapper == nullptr) {
        original_init_base = &original;
        replaced_init_base = original;
        original_init_wrapper = reinterpret_cast<wrapperfunc_kwds>(reinterpret_cast<void (*)()>(original.wrapper));
        replaced_init_base.wrapper = reinterpret_cast<wrapperfunc>(reinterpret_cast<void (*)()>(&init_wrapper));
        replaced_init_base.flags |= PyWrapperFlag_KEYWORDS;
    }
    return replaced_init_base;
}

PyWrapperDescrObject& init_descriptor(PyObject* type) {
    return *reinterpret_cast<PyWrapperDescrObject*>(descriptor_of(type, "__init__", PyWrapperDescr_Type));
}

void adopt_init(PyObject* type) {
    // Safety: d_base is only read; the copy is the same but for the wrapper that it names.
    PyWrapperDescrObject& descriptor = init_descriptor(type);
    if (descriptor.d_base != &replaced_init_base) {
        descriptor.d_base = &replaced_base(*descriptor.d_base);
    }
}

void release_init(PyObject* type) {
    PyWrapperDescrObject& descriptor = init_descriptor(type);
    if (descriptor.d_base == &replaced_init_base) {
        descriptor.d_base = original_init_base;
    }
}

void find_socket_words(PyObject* type) {
    const Ref socket = steal(PyObject_CallFunction(type, "ii", AF_UNIX, SOCK_DGRAM));
    steal(PyObject_CallMethod(socket.ptr(), "settimeout", "d", 1.25));
    const Ref fileno = steal(PyObject_CallMethod(socket.ptr(), "fileno", nullptr));
    const SocketWords& words = words_of_socket(socket.ptr());
    const bool is_known = reinterpret_cast<PyTypeObject*>(type)->tp_basicsize >= Py_ssize_t{sizeof(SocketWords)} &&
                          words.fd == PyLong_AsLong(fileno.ptr()) && words.family == AF_UNIX &&
                          words.type == SOCK_DGRAM && words.timeout_nanoseconds == 1'250'000'000;
    steal(PyObject_CallMethod(socket.ptr(), "close", nullptr));
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of socket objects in this Python");
    }
}

}  // namespace

void plan_socket() {
    constexpr int kKeywords = METH_VARARGS | METH_KEYWORDS;
    const Ref module = steal(PyImport_ImportModule("_socket"));
    const Ref type = steal(PyObject_GetAttrString(module.ptr(), "socket"));
    find_socket_words(type.ptr());
    plan_swap(type.ptr(), "_accept", {{METH_NOARGS, accept}}, original_accept);
    plan_swap(type.ptr(), "connect", {{METH_O, connect}}, original_connect);
    plan_swap(type.ptr(), "connect_ex", {{METH_O, connect_ex}}, original_connect_ex);
    plan_swap(type.ptr(), "recv", {{METH_VARARGS, recv}}, original_recv);
    plan_swap(type.ptr(), "recv_into", {{kKeywords, recv_into}}, original_recv_into);
    plan_swap(type.ptr(), "recvfrom", {{METH_VARARGS, recvfrom}}, original_recvfrom);
    plan_swap(type.ptr(), "recvfrom_into", {{kKeywords, recvfrom_into}}, original_recvfrom_into);
    plan_swap(type.ptr(), "recvmsg", {{METH_VARARGS, recvmsg}}, original_recvmsg);
    plan_swap(type.ptr(), "recvmsg_into", {{METH_VARARGS, recvmsg_into}}, original_recvmsg_into);
    plan_swap(type.ptr(), "send", {{METH_VARARGS, send}, {METH_FASTCALL, send_fast}}, original_send);
    plan_swap(type.ptr(), "sendall", {{METH_VARARGS, sendall}, {METH_FASTCALL, sendall_fast}}, original_sendall);
    plan_swap(type.ptr(), "sendmsg", {{METH_VARARGS, sendmsg}, {METH_FASTCALL, sendmsg_fast}}, original_sendmsg);
    plan_swap(type.ptr(), "sendto", {{METH_VARARGS, sendto}}, original_sendto);
    plan_swap(type.ptr(), "close", {{METH_NOARGS, close}}, original_close);
    plan_swap(type.ptr(), "detach", {{METH_NOARGS, detach}}, original_detach);
}

void adopt_socket_type() {
    const Ref module = steal(PyImport_ImportModule("_socket"));
    const Ref type = steal(PyObject_GetAttrString(module.ptr(), "socket"));
    adopt_init(type.ptr());
    adopt_call(type.ptr(), "recv", call_recv, original_call_recv);
    adopt_call(type.ptr(), "sendall", call_sendall, original_call_sendall);
}

void release_socket_type() {
    const Ref module = steal(PyImport_ImportModule("_socket"));
    const Ref type = steal(PyObject_GetAttrString(module.ptr(), "socket"));
    release_init(type.ptr());
    release_call(type.ptr(), "recv", call_recv, original_call_recv);
    release_call(type.ptr(), "sendall", call_sendall, original_call_sendall);
}

}  // namespace gossamer::interpose
