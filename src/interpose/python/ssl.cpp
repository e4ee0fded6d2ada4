// SPDX-License-Identifier: Apache-2.0
// _ssl._SSLSocket over a socket: do_handshake, read, write, shutdown. What ssl.SSLSocket has on top is Python and
// follows; an SSLObject over MemoryBIO never waits.
//
// The originals wait inside C, by read(2) on a blocking descriptor or by poll(2) for as long as the socket's timeout
// says. They learn the timeout through a weak reference to the socket, their first word. For the time of one call the
// word is replaced by a reference to a stand-in socket whose timeout is 0: the original then tries once and raises
// SSLWantReadError or SSLWantWriteError, and we park and try again. The socket itself, which other threads may use,
// never changes. When the timeout has passed, a last call is made with a stand-in whose timeout is a nanosecond, so
// that the original raises TimeoutError in its own words.
//
//     word of the object   who sees it                                 what the original does
//     ------------------   -----------                                 ----------------------
//     its own reference    OS threads, when nobody uses a stand-in     waits by itself
//     to `non_blocking`    an attempt, alone                           one try
//     to `expired`         the last attempt of a call, alone           one try, then TimeoutError
//
// Stand-ins are immortal and process-wide, so that an original which has released the GIL may hold one for as long as
// it likes. What an original does with its socket's descriptor is poll it, which timeout 0 prevents, and compare it
// with -1.
//
// The descriptor of a socket without timeout is made non-blocking for good at the first call on a virtual thread (a TLS
// connection is of one process), until shutdown() has given the plain socket back. An OS thread that uses the same
// connection waits with poll(2) outside of the original.
//
// The attempts of one connection take turns. Before 3.14 nothing else keeps an OS thread that reads out of OpenSSL while
// a virtual thread writes, and OpenSSL then tells the one what the other waits for.
//
// A write that waits has sent a part of a TLS record; OpenSSL demands that the next write is the same one. Other
// writers of that connection therefore wait for its end.
//
// Source: Modules/_ssl.c, 3.12 to 3.15; SSL_read(3), SSL_write(3), SSL_get_error(3).
#include "cpython/api.hpp"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <optional>
#include <poll.h>
#include <unordered_map>
#include <unordered_set>

#include "core/assert.hpp"
#include "core/parking_lot.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/late_import.hpp"
#include "interpose/python/method_table.hpp"
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

PyCFunction original_do_handshake = nullptr;
PyCFunction original_read = nullptr;
PyCFunction original_write = nullptr;
PyCFunction original_shutdown = nullptr;

/// What is read of a _ssl._SSLSocket object; checked by find_reference_word().
struct SslWords {
    PyObject ob_base;
    PyObject* socket_reference;  // a weak reference; null over MemoryBIO
};

SslWords& words_of_ssl(PyObject* object) noexcept { return *reinterpret_cast<SslWords*>(object); }

/// The object that a weak reference of _ssl refers to, or null when it died. Throws ErrorSet.
Ref referent_of(PyObject* reference) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* object = nullptr;
    cpython::check(PyWeakref_GetRef(reference, &object));
    return Ref::steal_or_null(object);
#else
    PyObject* object = PyWeakref_GetObject(reference);
    if (object == nullptr) {
        throw ErrorSet{};
    }
    return object == Py_None ? Ref() : cpython::borrow(object);
#endif
}

// ---- stand-ins ----

struct StandIn {
    SocketWords socket;
    PyWeakReference reference;

    void imitate(const SocketWords& real, const PyWeakReference& real_reference, std::int64_t timeout) noexcept {
        // Safety: None's head is that of an immortal object in every version and build; nobody changes it.
        socket = real;
        std::memcpy(&socket.ob_base, Py_None, sizeof socket.ob_base);
        socket.ob_base.ob_type = &PyBaseObject_Type;
        socket.fd = kNoDescriptor;
        socket.timeout_nanoseconds = timeout;
        socket.module_state = nullptr;  // of an interpreter that may end
        std::memcpy(&reference, &real_reference, sizeof reference);
        std::memcpy(&reference.ob_base, Py_None, sizeof reference.ob_base);
        reference.ob_base.ob_type = real_reference.ob_base.ob_type;
        reference.wr_object = &socket.ob_base;
        reference.wr_callback = nullptr;
        reference.wr_prev = reference.wr_next = nullptr;
    }

    static constexpr int kNoDescriptor = -2;  // not -1, which means closed; poll(2) ignores it
};

StandIn non_blocking;
StandIn expired;

PyObject* reference_to(StandIn& stand_in) noexcept { return reinterpret_cast<PyObject*>(&stand_in.reference); }

bool is_stand_in(const PyObject* reference) noexcept {
    return reference == reference_to(non_blocking) || reference == reference_to(expired);
}

/// The objects whose word is a stand-in's, and those in the middle of a write. One for the process.
class Connections final {
public:
    static Connections& instance() noexcept {
        static auto* connections = new Connections;
        return *connections;
    }

    /// Takes the turn to call an original of the object, which then sees `stand_in`.
    bool try_put_stand_in(PyObject* object, StandIn& stand_in) {
        const std::lock_guard lock(mutex_);
        const bool is_mine = own_references_.try_emplace(object, words_of_ssl(object).socket_reference).second;
        if (is_mine) {
            words_of_ssl(object).socket_reference = reference_to(stand_in);
        }
        return is_mine;
    }

    void put_back(PyObject* object) noexcept {
        {
            const std::lock_guard lock(mutex_);
            const auto found = own_references_.find(object);
            words_of_ssl(object).socket_reference = found->second;
            own_references_.erase(found);
        }
        core::ParkingLot::instance().unpark_one(turn_key(object));
    }

    /// The object's own weak reference, borrowed; null over MemoryBIO.
    PyObject* reference_of(PyObject* object) noexcept {
        PyObject* reference = words_of_ssl(object).socket_reference;
        if (!is_stand_in(reference)) {
            return reference;
        }
        const std::lock_guard lock(mutex_);
        const auto found = own_references_.find(object);
        return found == own_references_.end() ? words_of_ssl(object).socket_reference : found->second;
    }

    /// Whether any write may wait: the only thing that a write which need not wait looks at.
    bool has_unfinished_write() const noexcept { return unfinished_count_.load() > 0; }

    bool is_write_unfinished(PyObject* object) {
        const std::lock_guard lock(mutex_);
        return unfinished_.contains(object);
    }

    bool try_begin_write(PyObject* object) {
        const std::lock_guard lock(mutex_);
        const bool is_mine = unfinished_.insert(object).second;
        unfinished_count_.store(unfinished_.size());
        return is_mine;
    }

    void end_write(PyObject* object) noexcept {
        {
            const std::lock_guard lock(mutex_);
            unfinished_.erase(object);
            unfinished_count_.store(unfinished_.size());
        }
        core::ParkingLot::instance().unpark_all(write_key(object));
    }

    static const void* turn_key(PyObject* object) noexcept { return object; }
    static const void* write_key(PyObject* object) noexcept { return &words_of_ssl(object).socket_reference; }

private:
    // any thread, under mutex_
    std::mutex mutex_;
    std::unordered_map<PyObject*, PyObject*> own_references_;  // of the objects whose word is a stand-in's
    std::unordered_set<PyObject*> unfinished_;

    // any thread, atomic
    std::atomic<std::size_t> unfinished_count_{0};
};

// Whether a virtual thread ever used a TLS connection: until then OS threads need not look at theirs.
std::atomic<bool> has_virtual_user{false};

// ---- waiting ----

bool is_non_blocking(int fd) noexcept {
    const int flags = ::fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_NONBLOCK) != 0;
}

void set_non_blocking(int fd, bool is_on) noexcept {
    const int flags = ::fcntl(fd, F_GETFL);
    const int wanted = is_on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    if (flags >= 0 && wanted != flags) {
        ::fcntl(fd, F_SETFL, wanted);
    }
}

/// An attribute of the module that `object`'s type belongs to, in this interpreter.
Ref module_attribute(PyObject* object, const char* name) {
    PyObject* module = PyType_GetModule(Py_TYPE(object));
    if (module == nullptr) {
        throw ErrorSet{};
    }
    return steal(PyObject_GetAttrString(module, name));
}

/// What the error indicator says that OpenSSL waits for, taking it; nothing when the indicator says something else.
std::optional<Interest> take_want(PyObject* object) {
    const Ref raised = Ref::steal_or_null(PyErr_GetRaisedException());
    const Ref want_read = module_attribute(object, "SSLWantReadError");
    const Ref want_write = module_attribute(object, "SSLWantWriteError");
    if (Py_IS_TYPE(raised.ptr(), reinterpret_cast<PyTypeObject*>(want_read.ptr()))) {
        return Interest::kRead;
    }
    if (Py_IS_TYPE(raised.ptr(), reinterpret_cast<PyTypeObject*>(want_write.ptr()))) {
        return Interest::kWrite;
    }
    PyErr_SetRaisedException(Py_NewRef(raised.ptr()));
    return std::nullopt;
}

/// Waits with poll(2), detached. Returns false when `deadline` passed. Throws ErrorSet when a signal handler raised.
bool poll_for(int fd, Interest interest, core::Deadline deadline) {
    for (;;) {
        pollfd descriptor{.fd = fd, .events = static_cast<short>(interest), .revents = 0};
        timespec left{};
        if (!deadline.is_never()) {
            const core::Nanoseconds now = core::monotonic_now();
            const core::Nanoseconds delay = deadline.is_past(now) ? core::Nanoseconds{} : deadline.time() - now;
            left.tv_sec = delay.count() / 1'000'000'000;
            left.tv_nsec = delay.count() % 1'000'000'000;
        }
        PyThreadState* tstate = PyEval_SaveThread();
        const int count = ::ppoll(&descriptor, 1, deadline.is_never() ? nullptr : &left, nullptr);
        const int error = errno;
        PyEval_RestoreThread(tstate);
        if (count > 0) {
            return true;
        }
        if (count == 0) {
            return false;
        }
        if (error != EINTR) {
            cpython::raise_os_error(error);
        }
        cpython::check(PyErr_CheckSignals());
    }
}

enum class Writes : bool { kNo, kYes };

/// What a method is and what it was given.
struct Operation {
    const char* what;
    PyObject* buffer = nullptr;  // the caller's, borrowed: it is not to be resized while the call waits
    Writes writes = Writes::kNo;
};

/// One call of one method: tries, waits between, keeps the deadline over all its waits. `hub` is null on an OS thread.
class WaitingCall final {
public:
    WaitingCall(Hub* hub, PyObject* object, Ref socket, const Operation& operation) noexcept
        : hub_(hub), object_(object), socket_(std::move(socket)), operation_(operation) {}
    WaitingCall(const WaitingCall&) = delete;
    WaitingCall& operator=(const WaitingCall&) = delete;
    ~WaitingCall() {
        if (is_writing_) {
            Connections::instance().end_write(object_);
        }
        if (held_.obj != nullptr) {
            PyBuffer_Release(&held_);
        }
    }

    /// Returns what the original returns in the end, or null with its error. Throws ErrorSet.
    template <typename Call>
    PyObject* run(Call original_call) {
        if (operation_.writes == Writes::kYes && !wait_for_writers()) {
            return attempt(original_call, expired);
        }
        for (;;) {
            PyObject* result = attempt(original_call, non_blocking);
            if (result != nullptr) {
                return result;
            }
            const std::optional<Interest> wanted = take_want(object_);
            if (!wanted) {
                return nullptr;
            }
            hold_on();
            if (!wait_for(*wanted)) {
                return attempt(original_call, expired);
            }
        }
    }

    PyObject* socket() const noexcept { return socket_.ptr(); }
    const SocketWords& words() const noexcept { return words_of_socket(socket_.ptr()); }

private:
    /// The turn to call an original of the object with a stand-in. The constructor parks while another has it.
    class Turn final {
    public:
        Turn(WaitingCall& call, StandIn& stand_in) : object_(call.object_) {
            const auto take = [&] { return Connections::instance().try_put_stand_in(object_, stand_in); };
            // Without a deadline: a turn is as long as a call that does not block.
            if (!take() && !call.wait_until(Connections::turn_key(object_), core::Deadline::never(), take)) {
                GS_UNREACHABLE();
            }
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() { Connections::instance().put_back(object_); }

    private:
        PyObject* const object_;
    };

    template <typename Call>
    PyObject* attempt(Call original_call, StandIn& stand_in) {
        const Turn turn(*this, stand_in);
        if (words().fd < 0) {
            cpython::raise_os_error(EBADF);  // OpenSSL has the number, which may be another file's by now
        }
        if (words().is_blocking()) {
            set_non_blocking(words().fd, true);
        }
        return original_call();
    }

    template <typename IsOver>
    bool wait_until(const void* key, core::Deadline deadline, IsOver is_over) {
        return hub_ != nullptr
                   ? sched::wait_until(*hub_, key, {.what = operation_.what, .object = object_}, deadline, is_over)
                   : sched::wait_until_on_os_thread(key, deadline, is_over);
    }

    /// Before the first wait: keeps the caller's buffer as it is, and other writers out.
    void hold_on() {
        if (is_waiting_) {
            return;
        }
        is_waiting_ = true;
        const bool writes = operation_.writes == Writes::kYes;
        if (operation_.buffer != nullptr) {
            cpython::check(PyObject_GetBuffer(operation_.buffer, &held_, writes ? PyBUF_SIMPLE : PyBUF_WRITABLE));
        }
        is_writing_ = writes && Connections::instance().try_begin_write(object_);
    }

    core::Deadline deadline() noexcept {
        if (!is_deadline_set_) {
            is_deadline_set_ = true;
            deadline_ =
                words().timeout_nanoseconds <= 0
                    ? core::Deadline::never()
                    : core::Deadline::after(core::monotonic_now(), core::Nanoseconds(words().timeout_nanoseconds));
        }
        return deadline_;
    }

    /// Returns false when the deadline passed. Throws ErrorSet.
    bool wait_for(Interest interest) {
        const int fd = words().fd;
        return hub_ != nullptr ? sched::wait_for_fd(*hub_, fd, socket(), interest, operation_.what, deadline())
                               : poll_for(fd, interest, deadline());
    }

    /// Waits until no other write of this connection is unfinished. Returns false when the deadline passed.
    bool wait_for_writers() {
        Connections& connections = Connections::instance();
        if (!connections.has_unfinished_write() || !connections.is_write_unfinished(object_)) {
            return true;
        }
        return wait_until(Connections::write_key(object_), deadline(),
                          [&] { return !connections.is_write_unfinished(object_); });
    }

    Hub* const hub_;
    PyObject* const object_;
    const Ref socket_;
    const Operation operation_;
    core::Deadline deadline_ = core::Deadline::never();
    bool is_deadline_set_ = false;
    bool is_waiting_ = false;
    bool is_writing_ = false;
    Py_buffer held_{};
};

/// The socket that a call on this thread must wait for by itself, or null when the original is to be called as it is:
/// over MemoryBIO, without a wait, after the socket's end, or on an OS thread with a connection that no virtual thread
/// uses. Throws ErrorSet.
Ref socket_to_wait_for(Hub* hub, PyObject* object) {
    PyObject* reference = Connections::instance().reference_of(object);
    if (reference == nullptr) {
        return Ref();
    }
    Ref socket = referent_of(reference);
    if (!socket) {
        return Ref();
    }
    const SocketWords& words = words_of_socket(socket.ptr());
    if (!words.waits() || words.fd < 0) {
        return Ref();
    }
    if (hub != nullptr) {
        // relaxed: an OS thread that shares a connection has synchronised with us by the GIL.
        has_virtual_user.store(true, std::memory_order_relaxed);
        return socket;
    }
    // One without timeout whose descriptor still blocks is not shared yet.
    const bool may_be_shared =
        is_stand_in(words_of_ssl(object).socket_reference) || !words.is_blocking() || is_non_blocking(words.fd);
    return may_be_shared ? std::move(socket) : Ref();
}

/// Runs `original_call`, waiting as the calling thread does; `finish` sees a result.
template <typename Call, typename Finish>
PyObject* run_waiting(PyObject* object, const Operation& operation, Call original_call, Finish finish) {
    Hub* hub = Hub::current();
    if (hub == nullptr && !has_virtual_user.load(std::memory_order_relaxed)) {
        return original_call();
    }
    return guarded<PyObject*>(nullptr, [&] {
        Ref socket = socket_to_wait_for(hub, object);
        if (!socket) {
            return original_call();
        }
        WaitingCall call(hub, object, std::move(socket), operation);
        return finish(call, call.run(original_call));
    });
}

constexpr auto unchanged = [](WaitingCall&, PyObject* result) { return result; };

PyObject* do_handshake(PyObject* self, PyObject* unused) {
    return run_waiting(
        self, {.what = "ssl.do_handshake"}, [&] { return original_do_handshake(self, unused); }, unchanged);
}

PyObject* read(PyObject* self, PyObject* args) {
    PyObject* buffer = PyTuple_GET_SIZE(args) == 2 ? PyTuple_GET_ITEM(args, 1) : nullptr;
    return run_waiting(
        self, {.what = "ssl.read", .buffer = buffer}, [&] { return original_read(self, args); }, unchanged);
}

PyObject* write(PyObject* self, PyObject* bytes) {
    return run_waiting(
        self, {.what = "ssl.write", .buffer = bytes, .writes = Writes::kYes},
        [&] { return original_write(self, bytes); }, unchanged);
}

PyObject* shutdown(PyObject* self, PyObject* unused) {
    // The original returns the socket, which for it is the stand-in.
    const auto give_socket_back = [](WaitingCall& call, PyObject* result) {
        if (result == nullptr) {
            return result;
        }
        if (call.words().is_blocking() && call.words().fd >= 0) {
            set_non_blocking(call.words().fd, false);
        }
        Py_DECREF(result);
        return Py_NewRef(call.socket());
    };
    return run_waiting(
        self, {.what = "ssl.shutdown"}, [&] { return original_shutdown(self, unused); }, give_socket_back);
}

/// Checks the layout on a connection that is never made, and makes the stand-ins from it.
void find_reference_word(PyObject* module, PyObject* type) {
    constexpr int kProtocolTlsClient = 16;
    const Ref socket_module = steal(PyImport_ImportModule("socket"));
    const Ref context = steal(PyObject_CallMethod(module, "_SSLContext", "i", kProtocolTlsClient));
    const Ref socket = steal(PyObject_CallMethod(socket_module.ptr(), "socket", nullptr));
    const Ref object = steal(PyObject_CallMethod(context.ptr(), "_wrap_socket", "Oi", socket.ptr(), 0));
    PyObject* reference = words_of_ssl(object.ptr()).socket_reference;
    const bool is_known = Py_IS_TYPE(object.ptr(), reinterpret_cast<PyTypeObject*>(type)) &&
                          Py_TYPE(object.ptr())->tp_basicsize >= Py_ssize_t{sizeof(SslWords)} && reference != nullptr &&
                          PyWeakref_CheckRefExact(reference) && referent_of(reference).ptr() == socket.ptr();
    if (is_known) {
        const auto& weak_reference = *reinterpret_cast<PyWeakReference*>(reference);
        non_blocking.imitate(words_of_socket(socket.ptr()), weak_reference, 0);
        expired.imitate(words_of_socket(socket.ptr()), weak_reference, 1);
    }
    steal(PyObject_CallMethod(socket.ptr(), "close", nullptr));
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of ssl objects in this Python");
    }
}

void plan_ssl_module(PyObject* module) {
    const Ref type = steal(PyObject_GetAttrString(module, "_SSLSocket"));
    find_reference_word(module, type.ptr());
    plan_swap(type.ptr(), "do_handshake", {{METH_NOARGS, do_handshake}}, original_do_handshake);
    plan_swap(type.ptr(), "read", {{METH_VARARGS, read}}, original_read);
    plan_swap(type.ptr(), "write", {{METH_O, write}}, original_write);
    plan_swap(type.ptr(), "shutdown", {{METH_NOARGS, shutdown}}, original_shutdown);
}

}  // namespace

void plan_ssl() { plan_when_imported("_ssl", &plan_ssl_module); }

}  // namespace gossamer::interpose
