// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "interpose/python/descriptor_io.hpp"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

namespace gossamer::interpose {

using core::Interest;
using sched::Hub;
using sched::Wake;

namespace {

// Where only poll(2) can be asked: a pipe that is writable has room for PIPE_BUF bytes (pipe(7)), a terminal for 256
// (WAKEUP_CHARS in Linux's n_tty.c).
constexpr std::size_t kPipeChunk = 4096;
constexpr std::size_t kTerminalChunk = 256;

/// Whether reads and writes of it may wait for somebody.
bool may_wait(const struct stat& status) noexcept {
    return !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode) && !S_ISBLK(status.st_mode);
}

bool is_ready_now(int fd, short events) noexcept {
    pollfd descriptor{.fd = fd, .events = events, .revents = 0};
    return ::poll(&descriptor, 1, 0) != 0;  // an error is for the call itself to report
}

/// Whether the call with RWF_NOWAIT failed because the file or the kernel cannot do it.
bool is_unsupported(int error) noexcept { return error == EOPNOTSUPP || error == ENOSYS; }

std::size_t total_size(const std::vector<iovec>& buffers) noexcept {
    std::size_t size = 0;
    for (const iovec& buffer : buffers) {
        size += buffer.iov_len;
    }
    return size;
}

/// Takes the first `size` bytes off.
void drop_front(std::vector<iovec>& buffers, std::size_t size) noexcept {
    auto first = buffers.begin();
    while (first != buffers.end() && size >= first->iov_len) {
        size -= first->iov_len;
        ++first;
    }
    buffers.erase(buffers.begin(), first);
    if (size > 0) {
        buffers.front().iov_base = static_cast<char*>(buffers.front().iov_base) + size;
        buffers.front().iov_len -= size;
    }
}

/// Runs a system call that may take long although it does not wait for anybody, detached.
template <typename Call>
ssize_t detached(Call call) noexcept {
    PyThreadState* tstate = PyEval_SaveThread();
    const ssize_t result = call();
    const int error = errno;
    PyEval_RestoreThread(tstate);
    errno = error;
    return result;
}

/// One try to write without waiting: a count, or -1 and errno.
ssize_t try_write(int fd, const std::vector<iovec>& buffers, mode_t mode) noexcept {
    const ssize_t written = ::pwritev2(fd, buffers.data(), static_cast<int>(buffers.size()), -1, RWF_NOWAIT);
    if (written >= 0 || !is_unsupported(errno)) {
        return written;
    }
    if (!is_ready_now(fd, POLLOUT)) {
        errno = EAGAIN;
        return -1;
    }
    const std::size_t chunk = S_ISFIFO(mode) ? kPipeChunk : kTerminalChunk;
    const iovec& first = buffers.front();
    return detached([&] { return ::write(fd, first.iov_base, std::min(first.iov_len, chunk)); });
}

}  // namespace

bool is_non_blocking(int fd) noexcept {
    const int flags = ::fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_NONBLOCK) != 0;
}

std::optional<ssize_t> read_or_park(Hub& hub, int fd, const std::vector<iovec>& buffers, const char* what) {
    if (buffers.empty() || buffers.size() > IOV_MAX || total_size(buffers) == 0) {
        return std::nullopt;
    }
    const int count = static_cast<int>(buffers.size());
    for (;;) {
        struct stat status{};
        if (::fstat(fd, &status) != 0 || !may_wait(status)) {
            return std::nullopt;
        }
        ssize_t size = ::preadv2(fd, buffers.data(), count, -1, RWF_NOWAIT);
        if (size < 0 && is_unsupported(errno)) {
            errno = EAGAIN;
            if (is_ready_now(fd, POLLIN)) {
                size = detached([&] { return ::readv(fd, buffers.data(), count); });
            }
        }
        if (size >= 0) {
            return size;
        }
        if (errno == EINTR) {
            cpython::check(PyErr_CheckSignals());
        } else if (errno != EAGAIN) {
            cpython::raise_os_error(errno);
        } else if (is_non_blocking(fd)) {
            return std::nullopt;
        } else if (!sched::wait_for_fd(hub, fd, nullptr, Interest::kRead, what, core::Deadline::never())) {
            continue;
        }
    }
}

std::optional<ssize_t> write_or_park(Hub& hub, int fd, std::vector<iovec> buffers, const char* what) {
    const std::size_t wanted = total_size(buffers);
    if (buffers.empty() || buffers.size() > IOV_MAX || wanted == 0 || wanted > SSIZE_MAX) {
        return std::nullopt;
    }
    drop_front(buffers, 0);  // empty ones in front
    std::size_t done = 0;
    for (;;) {
        struct stat status{};
        if (::fstat(fd, &status) != 0 || !may_wait(status)) {
            return done > 0 ? std::optional(static_cast<ssize_t>(done)) : std::nullopt;
        }
        const ssize_t size = try_write(fd, buffers, status.st_mode);
        if (size > 0) {
            done += static_cast<std::size_t>(size);
            if (done >= wanted) {
                return static_cast<ssize_t>(done);
            }
            drop_front(buffers, static_cast<std::size_t>(size));
            continue;
        }
        if (size < 0 && errno == EINTR) {
            cpython::check(PyErr_CheckSignals());
            continue;
        }
        if (size < 0 && errno != EAGAIN) {
            if (done > 0) {
                return static_cast<ssize_t>(done);
            }
            cpython::raise_os_error(errno);
        }
        if (is_non_blocking(fd)) {
            return done > 0 ? std::optional(static_cast<ssize_t>(done)) : std::nullopt;
        }
        const Wake wake = sched::try_wait_for_fd(hub, fd, nullptr, Interest::kWrite, what, core::Deadline::never());
        if (wake == Wake::kCancelled && done > 0) {
            return static_cast<ssize_t>(done);  // the cancellation stays for the next park
        }
        if (wake != Wake::kReady) {
            sched::raise_wake(hub, wake);
        }
    }
}

void forget_descriptor(int fd) noexcept {
    Hub* hub = Hub::current();
    if (hub != nullptr && fd >= 0) {
        hub->reactor().forget(fd);
    }
}

}  // namespace gossamer::interpose
