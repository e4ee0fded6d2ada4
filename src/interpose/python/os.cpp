// SPDX-License-Identifier: Apache-2.0
// os: read, write and their vector forms, sendfile, closing and replacing of descriptors, waiting for child processes.
//
// A child is waited for through a pidfd, which is readable once it has ended; nothing is reaped before the virtual thread
// that asked does so itself, with WNOHANG. Where there is no pidfd (any child, a group, a stop), a thread of the pool waits
// with WNOWAIT, which leaves the child's status for the virtual thread to take.
//
// Sources: Modules/posixmodule.c (3.12 to 3.15), pidfd_open(2), waitid(2), sendfile(2).
#include "cpython/api.hpp"

#include <cerrno>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file_descriptor.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/descriptor_io.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/offload.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using core::Interest;
using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_read = nullptr;
PyCFunction original_readinto = nullptr;
PyCFunction original_write = nullptr;
PyCFunction original_readv = nullptr;
PyCFunction original_writev = nullptr;
PyCFunction original_sendfile = nullptr;
PyCFunction original_close = nullptr;
PyCFunction original_closerange = nullptr;
PyCFunction original_dup2 = nullptr;
PyCFunction original_waitpid = nullptr;
PyCFunction original_wait = nullptr;
PyCFunction original_wait3 = nullptr;
PyCFunction original_wait4 = nullptr;
PyCFunction original_waitid = nullptr;

/// `object` as an int if it is one that fits, else -1: what is wrong with it the original says.
long small_int(PyObject* object) noexcept {
    if (!PyLong_Check(object)) {
        return -1;
    }
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(object, &overflow);
    return overflow != 0 || value > INT_MAX || value < INT_MIN ? -1 : value;
}

// ---- read and write ----

PyObject* read(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_read);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2 || !PyLong_Check(args[1])) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const long fd = small_int(args[0]);
        const Py_ssize_t wanted = PyLong_AsSsize_t(args[1]);
        if (fd < 0 || wanted <= 0) {
            PyErr_Clear();
            return original(module, args, count);
        }
        PyObject* bytes = steal(PyBytes_FromStringAndSize(nullptr, wanted)).release();
        Ref owned = Ref::steal_or_null(bytes);
        const std::optional<ssize_t> size = read_or_park(
            *hub, static_cast<int>(fd), {{PyBytes_AS_STRING(bytes), static_cast<std::size_t>(wanted)}}, "os.read");
        if (!size) {
            return original(module, args, count);
        }
        bytes = owned.release();
        if (*size != wanted) {
            _PyBytes_Resize(&bytes, *size);  // sets bytes to null and the error indicator when it fails
        }
        return bytes;
    });
}

/// read_or_park or write_or_park on the buffers of `objects`; nothing also when they are not what the original takes.
template <typename Transfer>
std::optional<ssize_t> transfer(PyObject* fd_object, PyObject* const* objects, Py_ssize_t count, int buffer_flags,
                                Transfer run) {
    const long fd = small_int(fd_object);
    if (fd < 0) {
        return std::nullopt;
    }
    std::vector<BufferView> views(static_cast<std::size_t>(count));
    std::vector<iovec> buffers;
    for (Py_ssize_t index = 0; index < count; ++index) {
        BufferView& view = views[static_cast<std::size_t>(index)];
        if (!view.try_acquire(objects[index], buffer_flags)) {
            return std::nullopt;
        }
        buffers.push_back(view.bytes());
    }
    return run(static_cast<int>(fd), std::move(buffers));
}

PyObject* write(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_write);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const auto size = transfer(args[0], args + 1, 1, PyBUF_SIMPLE, [&](int fd, std::vector<iovec> buffers) {
            return write_or_park(*hub, fd, std::move(buffers), "os.write");
        });
        return size ? PyLong_FromSsize_t(*size) : original(module, args, count);
    });
}

PyObject* readinto(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_readinto);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const auto size = transfer(
            args[0], args + 1, 1, PyBUF_WRITABLE,
            [&](int fd, const std::vector<iovec>& buffers) { return read_or_park(*hub, fd, buffers, "os.readinto"); });
        return size ? PyLong_FromSsize_t(*size) : original(module, args, count);
    });
}

PyObject* readv(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_readv);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2 || !(PyList_Check(args[1]) || PyTuple_Check(args[1]))) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Ref objects = steal(PySequence_Tuple(args[1]));
        const auto size = transfer(
            args[0], &PyTuple_GET_ITEM(objects.ptr(), 0), PyTuple_GET_SIZE(objects.ptr()), PyBUF_WRITABLE,
            [&](int fd, const std::vector<iovec>& buffers) { return read_or_park(*hub, fd, buffers, "os.readv"); });
        return size ? PyLong_FromSsize_t(*size) : original(module, args, count);
    });
}

PyObject* writev(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_writev);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2 || !(PyList_Check(args[1]) || PyTuple_Check(args[1]))) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Ref objects = steal(PySequence_Tuple(args[1]));
        const auto size = transfer(args[0], &PyTuple_GET_ITEM(objects.ptr(), 0), PyTuple_GET_SIZE(objects.ptr()),
                                   PyBUF_SIMPLE, [&](int fd, std::vector<iovec> buffers) {
                                       return write_or_park(*hub, fd, std::move(buffers), "os.writev");
                                   });
        return size ? PyLong_FromSsize_t(*size) : original(module, args, count);
    });
}

// ---- sendfile ----

/// sendfile(2) has no way to ask it not to wait but the socket's own blocking mode, so to a blocking socket a copy is sent.
/// Returns nothing when the original should be called: it will not wait, or the file cannot be read at an offset.
std::optional<ssize_t> send_copy(Hub& hub, int out, int in, PyObject* offset_object, std::size_t wanted) {
    struct stat status{};
    struct stat in_status{};
    if (wanted == 0 || ::fstat(out, &status) != 0 || !S_ISSOCK(status.st_mode) || ::fstat(in, &in_status) != 0 ||
        !S_ISREG(in_status.st_mode) || is_non_blocking(out)) {
        return std::nullopt;
    }
    const bool uses_position = offset_object == Py_None;
    const long long offset = uses_position ? ::lseek(in, 0, SEEK_CUR) : PyLong_AsLongLong(offset_object);
    if (offset < 0) {
        PyErr_Clear();
        return std::nullopt;
    }
    constexpr std::size_t kMost = 256 * 1024;
    std::vector<char> copy(wanted < kMost ? wanted : kMost);
    const ssize_t size = ::pread(in, copy.data(), copy.size(), offset);
    if (size <= 0) {
        return size == 0 ? std::optional<ssize_t>(0) : std::nullopt;
    }
    for (;;) {
        const ssize_t sent = ::send(out, copy.data(), static_cast<std::size_t>(size), MSG_DONTWAIT);
        if (sent >= 0) {
            if (uses_position) {
                ::lseek(in, offset + sent, SEEK_SET);
            }
            return sent;
        }
        if (errno == EINTR) {
            cpython::check(PyErr_CheckSignals());
        } else if (errno != EAGAIN) {
            cpython::raise_os_error(errno);
        } else if (!sched::wait_for_fd(hub, out, nullptr, Interest::kWrite, "os.sendfile", core::Deadline::never())) {
            continue;
        }
    }
}

PyObject* sendfile(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<FastKeywordFunction>(original_sendfile);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 4 || names != nullptr || !PyLong_Check(args[3])) {
        return original(module, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const long out = small_int(args[0]);
        const long in = small_int(args[1]);
        const Py_ssize_t wanted = PyLong_AsSsize_t(args[3]);
        std::optional<ssize_t> sent;
        if (out >= 0 && in >= 0 && wanted > 0 && (args[2] == Py_None || PyLong_Check(args[2]))) {
            sent =
                send_copy(*hub, static_cast<int>(out), static_cast<int>(in), args[2], static_cast<std::size_t>(wanted));
        }
        PyErr_Clear();
        return sent ? PyLong_FromSsize_t(*sent) : original(module, args, count, names);
    });
}

// ---- the life of a descriptor ----

/// The argument `name`, which is also the one at `index`; null if it was left out.
PyObject* argument(PyObject* const* args, Py_ssize_t count, PyObject* names, Py_ssize_t index, const char* name) {
    if (index < count) {
        return args[index];
    }
    const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t position = 0; position < keywords; ++position) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, position), name) == 0) {
            return args[count + position];
        }
    }
    return nullptr;
}

PyObject* close(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    if (PyObject* fd = argument(args, count, names, 0, "fd"); fd != nullptr) {
        forget_descriptor(static_cast<int>(small_int(fd)));
    }
    return as<FastKeywordFunction>(original_close)(module, args, count, names);
}

PyObject* closerange(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    Hub* hub = Hub::current();
    if (hub != nullptr && count == 2) {
        const long first = small_int(args[0]);
        const long end = small_int(args[1]);
        hub->reactor().forget_range(static_cast<int>(first < 0 ? 0 : first), static_cast<int>(end));
    }
    return as<FastFunction>(original_closerange)(module, args, count);
}

PyObject* dup2(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    PyObject* from = argument(args, count, names, 0, "fd");
    PyObject* to = argument(args, count, names, 1, "fd2");
    if (from != nullptr && to != nullptr && small_int(from) != small_int(to)) {
        forget_descriptor(static_cast<int>(small_int(to)));
    }
    return as<FastKeywordFunction>(original_dup2)(module, args, count, names);
}

// ---- children ----

/// Which children, in waitid(2)'s terms.
struct Children {
    idtype_t type;
    id_t id;
    int options;  // WUNTRACED (WSTOPPED), WCONTINUED, __WALL ...

    bool is_for_end_only() const noexcept { return (options & (WUNTRACED | WCONTINUED)) == 0; }
};

Children children_of_pid(long pid, int options) noexcept {
    if (pid > 0) {
        return {P_PID, static_cast<id_t>(pid), options};
    }
    if (pid == -1) {
        return {P_ALL, 0, options};
    }
    return {P_PGID, static_cast<id_t>(pid == 0 ? ::getpgrp() : -pid), options};
}

/// On a thread of the pool: waits and leaves the child as it is. An error is left for the original to meet.
PyObject* wait_on_pool(PyObject*, PyObject* args, PyObject*) {
    int type = 0;
    long id = 0;
    int options = 0;
    if (!PyArg_ParseTuple(args, "ili", &type, &id, &options)) {
        return nullptr;
    }
    int result = 0;
    siginfo_t info{};
    Py_BEGIN_ALLOW_THREADS do {
        result = ::waitid(static_cast<idtype_t>(type), static_cast<id_t>(id), &info, options | WEXITED | WNOWAIT);
    }
    while (result != 0 && errno == EINTR);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

/// Parks until one of `children` may have changed its state.
void park_for_child(Hub& hub, const Children& children, const char* what) {
    if (children.is_for_end_only() && children.type == P_PIDFD) {
        (void)sched::wait_for_fd(hub, static_cast<int>(children.id), nullptr, Interest::kRead, what,
                                 core::Deadline::never());
        return;
    }
    if (children.is_for_end_only() && children.type == P_PID) {
        const core::FileDescriptor pidfd(static_cast<int>(::syscall(SYS_pidfd_open, children.id, 0)));
        if (pidfd.get() >= 0) {
            struct Forget {
                ~Forget() { hub.reactor().forget(fd); }
                Hub& hub;
                int fd;
            } forget{hub, pidfd.get()};
            (void)sched::wait_for_fd(hub, pidfd.get(), nullptr, Interest::kRead, what, core::Deadline::never());
            return;
        }
        if (errno == ESRCH) {
            return;  // gone: the original says so
        }
    }
    const Ref args =
        steal(Py_BuildValue("(ili)", static_cast<int>(children.type), static_cast<long>(children.id),
                            children.options & (WUNTRACED | WCONTINUED | __WALL | __WCLONE | __WNOTHREAD)));
    sched::call_on_pool(hub, what, wait_on_pool, Py_None, args.ptr(), nullptr);
}

/// Calls `look(flags)`, an original with WNOHANG, until `is_found(result)`, parking between.
template <typename Look, typename IsFound>
PyObject* wait_for_child(Hub& hub, const Children& children, const char* what, Look look, IsFound is_found) {
    for (;;) {
        const Ref options = steal(PyLong_FromLong(children.options | WNOHANG));
        Ref result = steal(look(options.ptr()));
        if (is_found(result.ptr())) {
            return result.release();
        }
        park_for_child(hub, children, what);
    }
}

/// Whether the first item of the result, the pid, says that a child was found.
bool has_pid(PyObject* result) noexcept { return PyLong_AsLong(PyTuple_GET_ITEM(result, 0)) != 0; }

PyObject* waitpid(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_waitpid);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 2 || !PyLong_Check(args[0]) || !PyLong_Check(args[1]) ||
        (small_int(args[1]) & WNOHANG) != 0) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Children children = children_of_pid(PyLong_AsLong(args[0]), static_cast<int>(small_int(args[1])));
        PyErr_Clear();
        return wait_for_child(
            *hub, children, "os.waitpid",
            [&](PyObject* options) {
                PyObject* const arguments[] = {args[0], options};
                return original(module, arguments, 2);
            },
            has_pid);
    });
}

PyObject* wait(PyObject* module, PyObject* unused) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return original_wait(module, unused);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Ref any = steal(PyLong_FromLong(-1));
        return wait_for_child(
            *hub, children_of_pid(-1, 0), "os.wait",
            [&](PyObject* options) {
                PyObject* const arguments[] = {any.ptr(), options};
                return as<FastFunction>(original_waitpid)(module, arguments, 2);
            },
            has_pid);
    });
}

PyObject* wait3(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<FastKeywordFunction>(original_wait3);
    Hub* hub = Hub::current();
    PyObject* options_object = argument(args, count, names, 0, "options");
    if (hub == nullptr || options_object == nullptr || !PyLong_Check(options_object) ||
        (small_int(options_object) & WNOHANG) != 0) {
        return original(module, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        return wait_for_child(
            *hub, children_of_pid(-1, static_cast<int>(small_int(options_object))), "os.wait3",
            [&](PyObject* options) { return original(module, &options, 1, nullptr); }, has_pid);
    });
}

PyObject* wait4(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<FastKeywordFunction>(original_wait4);
    Hub* hub = Hub::current();
    PyObject* pid = argument(args, count, names, 0, "pid");
    PyObject* options_object = argument(args, count, names, 1, "options");
    if (hub == nullptr || pid == nullptr || options_object == nullptr || !PyLong_Check(pid) ||
        !PyLong_Check(options_object) || (small_int(options_object) & WNOHANG) != 0) {
        return original(module, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Children children = children_of_pid(PyLong_AsLong(pid), static_cast<int>(small_int(options_object)));
        PyErr_Clear();
        return wait_for_child(
            *hub, children, "os.wait4",
            [&](PyObject* options) {
                PyObject* const arguments[] = {pid, options};
                return original(module, arguments, 2, nullptr);
            },
            has_pid);
    });
}

PyObject* waitid(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_waitid);
    Hub* hub = Hub::current();
    if (hub == nullptr || count != 3 || small_int(args[0]) < 0 || small_int(args[1]) < 0 || small_int(args[2]) < 0 ||
        (small_int(args[2]) & WNOHANG) != 0) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&] {
        const Children children{static_cast<idtype_t>(small_int(args[0])), static_cast<id_t>(small_int(args[1])),
                                static_cast<int>(small_int(args[2]))};
        return wait_for_child(
            *hub, children, "os.waitid",
            [&](PyObject* options) {
                PyObject* const arguments[] = {args[0], args[1], options};
                return original(module, arguments, 3);
            },
            [](PyObject* result) { return result != Py_None; });
    });
}

}  // namespace

void plan_os() {
    constexpr int kFastKeywords = METH_FASTCALL | METH_KEYWORDS;
    const Ref module = steal(PyImport_ImportModule("posix"));
    plan_swap(module.ptr(), "read", {{METH_FASTCALL, read}}, original_read);
    plan_swap(module.ptr(), "readinto", {{METH_FASTCALL, readinto}}, original_readinto, true);
    plan_swap(module.ptr(), "write", {{METH_FASTCALL, write}}, original_write);
    plan_swap(module.ptr(), "readv", {{METH_FASTCALL, readv}}, original_readv);
    plan_swap(module.ptr(), "writev", {{METH_FASTCALL, writev}}, original_writev);
    plan_swap(module.ptr(), "sendfile", {{kFastKeywords, sendfile}}, original_sendfile);
    plan_swap(module.ptr(), "close", {{kFastKeywords, close}}, original_close);
    plan_swap(module.ptr(), "closerange", {{METH_FASTCALL, closerange}}, original_closerange);
    plan_swap(module.ptr(), "dup2", {{kFastKeywords, dup2}}, original_dup2);
    plan_swap(module.ptr(), "waitpid", {{METH_FASTCALL, waitpid}}, original_waitpid);
    plan_swap(module.ptr(), "wait", {{METH_NOARGS, wait}}, original_wait);
    plan_swap(module.ptr(), "wait3", {{kFastKeywords, wait3}}, original_wait3);
    plan_swap(module.ptr(), "wait4", {{kFastKeywords, wait4}}, original_wait4);
    plan_swap(module.ptr(), "waitid", {{METH_FASTCALL, waitid}}, original_waitid);
}

}  // namespace gossamer::interpose
