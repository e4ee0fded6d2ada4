// SPDX-License-Identifier: Apache-2.0
// _io.FileIO on pipes, sockets and terminals: the reads and writes of os.read and os.write, on the object's descriptor.
//
// Which descriptor that is, and whether it may be read or written, is read of the object; its place is checked at start-up.
// Regular files, closed objects and wrong arguments go to the original. BufferedReader and its kin, and with them text
// files, sys.stdin and sys.stdout, stand on these methods.
//
// Source: Modules/_io/fileio.c, 3.12 to 3.15.
#include "cpython/api.hpp"

#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

#include "core/file_descriptor.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/descriptor_io.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_read = nullptr;
PyCFunction original_readinto = nullptr;
PyCFunction original_readall = nullptr;
PyCFunction original_write = nullptr;
PyCFunction original_close = nullptr;

struct FileWords {
    PyObject ob_base;
    int fd;
    unsigned int flags;  // bit fields: created, readable, writable, appending, seekable (2), 3.15: truncate, closefd

    bool is_readable() const noexcept { return (flags & 2) != 0; }
    bool is_writable() const noexcept { return (flags & 4) != 0; }
    bool closes_fd() const noexcept { return (flags & (cpython::kPython315 ? 0x80u : 0x40u)) != 0; }
};

const FileWords& words_of_file(PyObject* file) noexcept { return *reinterpret_cast<FileWords*>(file); }

Hub* hub_for_reading(PyObject* self) noexcept {
    const FileWords& words = words_of_file(self);
    return words.fd >= 0 && words.is_readable() ? Hub::current() : nullptr;
}

Hub* hub_for_writing(PyObject* self) noexcept {
    const FileWords& words = words_of_file(self);
    return words.fd >= 0 && words.is_writable() ? Hub::current() : nullptr;
}

/// Reads to the end of the file. Null and no error: the original should be called.
PyObject* read_all(Hub& hub, PyObject* self) {
    constexpr std::size_t kFirst = 8 * 1024;
    std::vector<char> bytes;
    std::size_t size = 0;
    for (;;) {
        const int fd = words_of_file(self).fd;
        if (fd < 0) {
            cpython::raise_os_error(EBADF);  // closed by another thread meanwhile
        }
        if (size == bytes.size()) {
            bytes.resize(bytes.empty() ? kFirst : bytes.size() * 2);
        }
        const std::optional<ssize_t> got =
            read_or_park(hub, fd, {{bytes.data() + size, bytes.size() - size}}, "FileIO.readall");
        if (!got && size == 0) {
            return nullptr;
        }
        if (!got || *got == 0) {
            return steal(PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(size))).release();
        }
        size += static_cast<std::size_t>(*got);
    }
}

PyObject* readall(PyObject* self, PyObject* unused) {
    Hub* hub = hub_for_reading(self);
    if (hub == nullptr) {
        return original_readall(self, unused);
    }
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* result = read_all(*hub, self);
        return result != nullptr ? result : original_readall(self, unused);
    });
}

/// 3.15's has the defining class.
PyObject* readall_of_class(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count,
                           PyObject* names) {
    const auto original = as<MethodFunction>(original_readall);
    Hub* hub = hub_for_reading(self);
    if (hub == nullptr || count != 0 || names != nullptr) {
        return original(self, type, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* result = read_all(*hub, self);
        return result != nullptr ? result : original(self, type, args, count, names);
    });
}

PyObject* read(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<MethodFunction>(original_read);
    Hub* hub = hub_for_reading(self);
    PyObject* limit = count > 0 ? args[0] : Py_None;
    if (hub == nullptr || count > 1 || names != nullptr || !(limit == Py_None || PyLong_Check(limit))) {
        return original(self, type, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const Py_ssize_t wanted = limit == Py_None ? -1 : PyLong_AsSsize_t(limit);
        if (wanted == 0 || (wanted == -1 && PyErr_Occurred())) {
            PyErr_Clear();
            return original(self, type, args, count, names);
        }
        if (wanted < 0) {
            PyObject* result = read_all(*hub, self);
            return result != nullptr ? result : original(self, type, args, count, names);
        }
        Ref owned = steal(PyBytes_FromStringAndSize(nullptr, wanted));
        const std::optional<ssize_t> size =
            read_or_park(*hub, words_of_file(self).fd,
                         {{PyBytes_AS_STRING(owned.ptr()), static_cast<std::size_t>(wanted)}}, "FileIO.read");
        if (!size) {
            return original(self, type, args, count, names);
        }
        PyObject* bytes = owned.release();
        if (*size != wanted) {
            _PyBytes_Resize(&bytes, *size);  // sets bytes to null and the error indicator when it fails
        }
        return bytes;
    });
}

PyObject* readinto(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<MethodFunction>(original_readinto);
    Hub* hub = hub_for_reading(self);
    if (hub == nullptr || count != 1 || names != nullptr) {
        return original(self, type, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        BufferView view;
        std::optional<ssize_t> size;
        if (view.try_acquire(args[0], PyBUF_WRITABLE)) {
            size = read_or_park(*hub, words_of_file(self).fd, {view.bytes()}, "FileIO.readinto");
        }
        return size ? PyLong_FromSsize_t(*size) : original(self, type, args, count, names);
    });
}

PyObject* write(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<MethodFunction>(original_write);
    Hub* hub = hub_for_writing(self);
    if (hub == nullptr || count != 1 || names != nullptr) {
        return original(self, type, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        BufferView view;
        std::optional<ssize_t> size;
        if (view.try_acquire(args[0], PyBUF_SIMPLE)) {
            size = write_or_park(*hub, words_of_file(self).fd, {view.bytes()}, "FileIO.write");
        }
        return size ? PyLong_FromSsize_t(*size) : original(self, type, args, count, names);
    });
}

PyObject* close(PyObject* self, PyTypeObject* type, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const FileWords& words = words_of_file(self);
    if (words.closes_fd()) {
        forget_descriptor(words.fd);
    }
    return as<MethodFunction>(original_close)(self, type, args, count, names);
}

/// Checks the words by looking at the two ends of a pipe.
void find_file_words(PyObject* type) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
        cpython::raise_os_error(errno);
    }
    const core::FileDescriptor reader(ends[0]);
    const core::FileDescriptor writer(ends[1]);
    const Ref in = steal(PyObject_CallFunction(type, "isO", reader.get(), "r", Py_False));
    const Ref out = steal(PyObject_CallFunction(type, "isO", writer.get(), "w", Py_False));
    const FileWords& in_words = words_of_file(in.ptr());
    const FileWords& out_words = words_of_file(out.ptr());
    bool is_known = reinterpret_cast<PyTypeObject*>(type)->tp_basicsize >= Py_ssize_t{sizeof(FileWords)} &&
                    in_words.fd == reader.get() && in_words.is_readable() && !in_words.is_writable() &&
                    !in_words.closes_fd() && out_words.fd == writer.get() && !out_words.is_readable() &&
                    out_words.is_writable() && !out_words.closes_fd();
    steal(PyObject_CallMethod(in.ptr(), "close", nullptr));
    steal(PyObject_CallMethod(out.ptr(), "close", nullptr));
    is_known = is_known && in_words.fd < 0;
    const Ref owner = steal(PyObject_CallFunction(type, "is", ::dup(reader.get()), "r"));
    is_known = is_known && words_of_file(owner.ptr()).closes_fd();
    steal(PyObject_CallMethod(owner.ptr(), "close", nullptr));
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of FileIO objects in this Python");
    }
}

}  // namespace

void plan_file_io() {
    constexpr int kMethod = METH_METHOD | METH_FASTCALL | METH_KEYWORDS;
    const Ref module = steal(PyImport_ImportModule("_io"));
    const Ref type = steal(PyObject_GetAttrString(module.ptr(), "FileIO"));
    find_file_words(type.ptr());
    plan_swap(type.ptr(), "read", {{kMethod, read}}, original_read);
    plan_swap(type.ptr(), "readinto", {{kMethod, readinto}}, original_readinto);
    plan_swap(type.ptr(), "write", {{kMethod, write}}, original_write);
    plan_swap(type.ptr(), "close", {{kMethod, close}}, original_close);
    plan_swap(type.ptr(), "readall", {{METH_NOARGS, readall}, {kMethod, readall_of_class}}, original_readall);
}

}  // namespace gossamer::interpose
