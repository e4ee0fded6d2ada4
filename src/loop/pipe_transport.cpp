// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/pipe_transport.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cpython/error.hpp"
#include "loop/transport_type.hpp"

namespace gossamer::loop {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;

// ---- reading ----

void ReadPipeTransport::take_turn() {
    char* buffer = loop().hub()->read_buffer();
    const ssize_t size = ::read(fd(), buffer, sched::Hub::kReadBufferBytes);
    if (size < 0) {
        if (errno == EAGAIN) {
            is_readable_ = false;
        } else if (errno != EINTR) {
            fail_with_errno(errno, "Fatal read error on pipe transport");
        }
        return;
    }
    if (size == 0) {
        reach_eof();
        return;
    }
    // A short read has drained a FIFO; elsewhere it may end at a message's or a line's border.
    is_readable_ = size == ssize_t{sched::Hub::kReadBufferBytes} || is_hung_up_ || kind_ != PipeKind::kFifo;
    try {
        const Ref data = steal(PyBytes_FromStringAndSize(buffer, size));
        call_protocol(parts().data_received_name, data.ptr());
    } catch (const cpython::ErrorSet&) {
        report("protocol.data_received() failed");
    }
}

void ReadPipeTransport::reach_eof() {
    is_closing = true;
    loop().call_method_soon(protocol(), parts().eof_received_name, nullptr, 0, nullptr);
    schedule_connection_lost(Py_None);
}

// ---- writing ----

void WritePipeTransport::start_reading() {
    if (kind_ != PipeKind::kTerminal) {  // of which nobody would tell
        Transport::start_reading();
    }
}

void WritePipeTransport::take_turn() {
    if (has_lost_reader()) {
        const Ref error = unsent_bytes() > 0 ? steal(PyObject_CallNoArgs(PyExc_BrokenPipeError)) : Ref();
        force_close(error ? error.ptr() : Py_None);
    } else if (has_to_flush()) {
        flush();
    }
}

ssize_t WritePipeTransport::send(const char* bytes, std::size_t size) noexcept { return ::write(fd(), bytes, size); }

ssize_t WritePipeTransport::send(iovec* pieces, std::size_t count) noexcept {
    return ::writev(fd(), pieces, static_cast<int>(count));
}

void WritePipeTransport::become_empty() {
    if (is_closing && lost_count == 0) {
        schedule_connection_lost(Py_None);
    }
}

// ---- the classes ----

namespace {

/// What `fd` is; made non-blocking. Throws ErrorSet: ValueError, with `message`, when it is none of them.
PipeKind prepare_pipe(int fd, const char* message) {
    struct stat status{};
    if (::fstat(fd, &status) != 0) {
        cpython::raise_os_error(errno);
    }
    const bool is_terminal = S_ISCHR(status.st_mode);
    const bool is_socket = S_ISSOCK(status.st_mode);
    if (!is_terminal && !is_socket && !S_ISFIFO(status.st_mode)) {
        cpython::raise(PyExc_ValueError, message);
    }
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        cpython::raise_os_error(errno);
    }
    return is_terminal ? PipeKind::kTerminal : is_socket ? PipeKind::kSocket : PipeKind::kFifo;
}

/// _open(loop, pipe, protocol, waiter)
template <typename T>
PyObject* open(PyObject* self, PyObject* args, const char* message) {
    return guarded<PyObject*>(nullptr, [&] {
        const Parts& parts = parts_of_instance(self);
        PyObject* loop_object = nullptr;
        PyObject* pipe = nullptr;
        PyObject* protocol = nullptr;
        PyObject* waiter = nullptr;
        if (!PyArg_ParseTuple(args, "O!OOO:_open", parts.event_loop_type, &loop_object, &pipe, &protocol, &waiter)) {
            throw cpython::ErrorSet{};
        }
        EventLoop& loop = loop_of(loop_object);
        loop.check_open();
        const int fd = PyObject_AsFileDescriptor(pipe);
        cpython::check(fd);
        const PipeKind kind = prepare_pipe(fd, message);
        const auto make = [&] { return std::make_unique<T>(loop, self, pipe, fd, kind); };
        open_transport(self, make, [&](Transport& transport) {
            transport.set_protocol(protocol);
            const Ref extra = extra_of(self);
            cpython::check(PyMapping_SetItemString(extra.ptr(), "pipe", pipe));
            transport.begin(waiter);
        });
        Py_RETURN_NONE;
    });
}

PyObject* open_for_reading(PyObject* self, PyObject* args) {
    return open<ReadPipeTransport>(self, args, "Pipe transport is for pipes/sockets only.");
}

PyObject* open_for_writing(PyObject* self, PyObject* args) {
    return open<WritePipeTransport>(self, args, "Pipe transport is only for pipes, sockets and character devices");
}

int set_pipe(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        transport_of(self).set_file(value == nullptr ? Py_None : value);
        return 0;
    });
}

PyMethodDef read_methods[] = {{"pause_reading", method<&Transport::pause_reading>, METH_NOARGS,
                               PyDoc_STR("pause_reading($self, /)\n--\n\nReceive nothing until `resume_reading`.")},
                              {"resume_reading", method<&Transport::resume_reading>, METH_NOARGS,
                               PyDoc_STR("resume_reading($self, /)\n--\n\nReceive again.")},
                              {"_open", open_for_reading, METH_VARARGS, nullptr},
                              {}};

PyMethodDef write_methods[] = {
    {"write", _PyCFunction_CAST((method_of_one<&WritePipeTransport::write, "write", "data">)), kMethodOfOne,
     PyDoc_STR("write($self, /, data)\n--\n\nSend ``data``; what the kernel does not take now is kept.")},
    {"write_eof", method<&Transport::close>, METH_NOARGS,
     PyDoc_STR("write_eof($self, /)\n--\n\nClose once everything is sent.")},
    {"_open", open_for_writing, METH_VARARGS, nullptr},
    {}};

PyGetSetDef properties[] = {{"_pipe", attribute<&Transport::file>, set_pipe, nullptr, nullptr}, {}};

}  // namespace

void create_pipe_transport_types(PyObject* module, const Parts& parts) {
    const auto create = [&](const char* name, PyMethodDef* methods) {
        const Ref type = Ref::steal_or_null(
            reinterpret_cast<PyObject*>(create_transport_type(module, parts, name, methods, properties)));
    };
    create("gossamer._core.ReadPipeTransportBase", read_methods);
    create("gossamer._core.WritePipeTransportBase", write_methods);
}

}  // namespace gossamer::loop
