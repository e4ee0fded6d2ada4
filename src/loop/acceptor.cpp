// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/acceptor.hpp"

#include <algorithm>
#include <cerrno>
#include <new>

#include "core/file_descriptor.hpp"
#include "cpython/error.hpp"
#include "cpython/socket_object.hpp"
#include "loop/transport.hpp"

namespace gossamer::loop {

using core::FileDescriptor;
using core::Interest;
using cpython::guarded;
using cpython::Ref;
using cpython::SocketAddress;
using cpython::steal;
using cpython::words_of_socket;

namespace {

constexpr int kMostATurn = 1 << 16;

}  // namespace

Acceptor::Acceptor(EventLoop& loop, PyObject* self, PyObject* socket, PyObject* factory, PyObject* server, int backlog,
                   PyObject* context, PyObject* accept_otherwise)
    : LoopWatch(loop, words_of_socket(socket).fd, &serve),
      Runnable(self),
      loop_object_(cpython::borrow(loop.object())),
      socket_(cpython::borrow(socket)),
      factory_(cpython::borrow(factory)),
      server_(cpython::borrow(server)),
      context_(context == Py_None ? steal(PyContext_CopyCurrent()) : cpython::borrow(context)),
      accept_otherwise_(cpython::borrow(accept_otherwise)),
      most_a_turn_(std::clamp(backlog, 0, kMostATurn - 1) + 1),
      has_given_context_(context != Py_None) {}

void Acceptor::start() {
    loop().check_open();
    loop().watch(*this, static_cast<std::uint32_t>(Interest::kRead));
    loop().hold(*this, owner());
}

void Acceptor::stop() {
    const Ref kept = cpython::borrow(owner());
    is_stopped_ = true;
    loop().unwatch(*this);
    loop().release(*this);
}

void Acceptor::serve(LoopWatch& watch, std::uint32_t) {
    auto& self = static_cast<Acceptor&>(watch);
    self.is_readable_ = true;
    self.queue_if_useful();
}

void Acceptor::queue_if_useful() {
    if (is_readable_ && !is_queued_ && !is_paused_ && !is_stopped_) {
        loop().push_ready(*this);
        is_queued_ = true;
    }
}

void Acceptor::run() {
    is_queued_ = false;
    try {
        for (int count = 0; count < most_a_turn_ && is_readable_ && !is_paused_ && !is_stopped_; ++count) {
            if (words_of_socket(socket_.ptr()).fd != fd()) {  // its user has closed it
                stop();
            } else if (!accept_one()) {
                break;
            }
        }
    } catch (const cpython::ErrorSet&) {
        queue_if_useful();  // the others, should the program go on
        throw;
    }
    queue_if_useful();
}

/// Returns whether to go on at once.
bool Acceptor::accept_one() {
    SocketAddress peer;
    FileDescriptor connection(::accept4(fd(), peer.ptr(), &peer.size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (connection.get() >= 0) {
        take(std::move(connection), peer);
        return true;
    }
    switch (errno) {
        case EAGAIN:
            is_readable_ = false;
            return false;
        case EINTR:
        case ECONNABORTED:
            return true;
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
            PyErr_SetFromErrno(PyExc_OSError);
            pause();
            return false;
        default:  // of the network, of one connection (accept(2)), or the socket does not listen
            PyErr_SetFromErrno(PyExc_OSError);
            report("socket.accept() failed");
            return false;
    }
}

void Acceptor::pause() {
    is_paused_ = true;
    report("socket.accept() out of system resource");
    if (!is_stopped_) {
        steal(PyObject_CallMethod(loop_object_.ptr(), "_resume_accepting_later", "O", owner()));
    }
}

void Acceptor::resume() {
    is_paused_ = false;
    queue_if_useful();
}

void Acceptor::report(const char* message) {
    const Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    steal(PyObject_CallMethod(loop_object_.ptr(), "_report_accept_error", "sOO", message, error.ptr(), socket_.ptr()));
}

void Acceptor::take(FileDescriptor fd, const SocketAddress& peer) {
    const Parts& parts = loop().parts();
    // What is known of the number is of an earlier file.
    loop().hub()->reactor().forget(fd.get());
    Ref socket;
    Ref protocol;
    try {
        socket = cpython::new_connected_socket(reinterpret_cast<PyTypeObject*>(parts.socket_type), std::move(fd),
                                               socket_.ptr(), parts.io_refs_offset, parts.closed_offset);
        Ref peername = cpython::address_object(peer);
        if (!peername) {
            peername = steal(PyObject_CallMethodNoArgs(socket.ptr(), parts.transports.getpeername));
        }
        if (loop().is_debugging) {
            steal(PyObject_CallMethod(loop_object_.ptr(), "_note_connection", "OOO", server_.ptr(), peername.ptr(),
                                      socket.ptr()));
        }
        const Ref context = steal(PyContext_Copy(context_.ptr()));
        cpython::check(PyContext_Enter(context.ptr()));
        const bool is_made = cpython::guarded(false, [&] {
            if (accept_otherwise_.ptr() != Py_None) {
                PyObject* args[] = {socket.ptr(), peername.ptr(), has_given_context_ ? context.ptr() : Py_None};
                steal(PyObject_Vectorcall(accept_otherwise_.ptr(), args, 3, nullptr));
                return true;
            }
            const Ref factory = cpython::borrow(factory_.ptr());
            protocol = steal(PyObject_CallNoArgs(factory.ptr()));
            make_socket_transport(loop(), {.socket = socket.ptr(),
                                           .protocol = protocol.ptr(),
                                           .peername = peername.ptr(),
                                           .server = server_.ptr(),
                                           .context = has_given_context_ ? context.ptr() : nullptr});
            return true;
        });
        PyObject* error = is_made ? nullptr : PyErr_GetRaisedException();
        const int exit = PyContext_Exit(context.ptr());
        if (error != nullptr) {
            PyErr_SetRaisedException(error);
            throw cpython::ErrorSet{};
        }
        cpython::check(exit);
    } catch (const cpython::ErrorSet&) {
        refuse(socket.ptr(), protocol.ptr());
    }
}

/// A connection that could not be set up: closed, and told of in debug mode, as asyncio has it, unless it ends the program.
void Acceptor::refuse(PyObject* socket, PyObject* protocol) {
    const bool ends_program = is_exit();
    Ref error = Ref::steal_or_null(PyErr_GetRaisedException());
    if (socket != nullptr) {
        steal(PyObject_CallMethod(socket, "close", nullptr));
    }
    if (ends_program) {
        PyErr_SetRaisedException(error.release());
        throw cpython::ErrorSet{};
    }
    steal(PyObject_CallMethod(loop_object_.ptr(), "_note_refused_connection", "OO", error.ptr(),
                              protocol == nullptr ? Py_None : protocol));
}

int Acceptor::traverse(visitproc visit, void* arg) {
    for (const Ref* ref : {&loop_object_, &socket_, &factory_, &server_, &context_, &accept_otherwise_}) {
        Py_VISIT(ref->ptr());
    }
    return 0;
}

void Acceptor::clear() {
    // The loop stays: the watch refers to it for as long as it lives; so does the socket, which run() looks at.
    is_stopped_ = true;
    const Ref factory = std::move(factory_);
    const Ref server = std::move(server_);
    const Ref context = std::move(context_);
    const Ref other = std::move(accept_otherwise_);
}

// ---- the class ----

namespace {

struct AcceptorObject {
    PyObject ob_base;
    alignas(Acceptor) std::byte memory[sizeof(Acceptor)];
};

Acceptor& acceptor_of(PyObject* self) noexcept {
    // Safety: accept_on() has put one there.
    return *std::launder(reinterpret_cast<Acceptor*>(reinterpret_cast<AcceptorObject*>(self)->memory));
}

template <void (Acceptor::*call)()>
PyObject* simple(PyObject* self, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        (acceptor_of(self).*call)();
        Py_RETURN_NONE;
    });
}

void dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    acceptor_of(self).~Acceptor();
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return acceptor_of(self).traverse(visit, arg);
}

int clear(PyObject* self) {
    acceptor_of(self).clear();
    return 0;
}

PyMethodDef methods[] = {{"stop", simple<&Acceptor::stop>, METH_NOARGS, nullptr},
                         {"resume", simple<&Acceptor::resume>, METH_NOARGS, nullptr},
                         {}};

PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(clear)},
                       {Py_tp_methods, methods},
                       {0, nullptr}};

PyType_Spec spec = {
    "gossamer._core.Acceptor", sizeof(AcceptorObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyTypeObject* create_acceptor_type(PyObject* module) {
    return reinterpret_cast<PyTypeObject*>(steal(PyType_FromModuleAndSpec(module, &spec, nullptr)).release());
}

PyObject* accept_on(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        EventLoop& loop = loop_of(self);
        PyObject* socket = nullptr;
        PyObject* factory = nullptr;
        PyObject* server = nullptr;
        int backlog = 0;
        PyObject* context = nullptr;
        PyObject* accept_otherwise = nullptr;
        if (!PyArg_ParseTuple(args, "O!OOiOO:_accept_on", loop.parts().socket_type, &socket, &factory, &server,
                              &backlog, &context, &accept_otherwise)) {
            throw cpython::ErrorSet{};
        }
        if (words_of_socket(socket).fd < 0) {
            cpython::raise(PyExc_ValueError, "the listening socket is closed");
        }
        auto* object = PyObject_GC_New(AcceptorObject, loop.parts().acceptor_type);
        if (object == nullptr) {
            throw cpython::ErrorSet{};
        }
        new (object->memory)
            Acceptor(loop, &object->ob_base, socket, factory, server, backlog, context, accept_otherwise);
        const Ref acceptor = Ref::steal_or_null(&object->ob_base);
        PyObject_GC_Track(acceptor.ptr());
        acceptor_of(acceptor.ptr()).start();
        return Py_NewRef(acceptor.ptr());
    });
}

}  // namespace gossamer::loop
