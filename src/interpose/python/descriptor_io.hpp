// SPDX-License-Identifier: Apache-2.0
// Reading and writing pipes, sockets, terminals and whatever else makes a plain read(2) or write(2) wait.
//
// The descriptor's own blocking mode is never touched: it belongs to the open file, which other processes may share. What
// the kernel can try without waiting (RWF_NOWAIT: pipes and sockets) is tried; for the rest poll(2) says whether a call
// would wait. Nothing about a number is remembered, for it may be another file at the next call.
#pragma once

#include "cpython/api.hpp"

#include <optional>
#include <sys/uio.h>
#include <vector>

#include "sched/wait.hpp"

namespace gossamer::interpose {

/// Reads into `buffers` as readv(2) does, parking while there is nothing to read. Returns nothing when the original should
/// be called instead: the descriptor never waits (a regular file) or says EAGAIN because it is non-blocking. Throws ErrorSet:
/// OSError, EBADF also when it was closed meanwhile. Parks: yes. Thread: carrier. Python: attached.
std::optional<ssize_t> read_or_park(sched::Hub& hub, int fd, const std::vector<iovec>& buffers, const char* what);

/// Writes `buffers` whole, as a blocking writev(2) does, parking while there is no room. What was written before an error
/// or a cancellation is returned as a short count, and the error comes at the next call. Otherwise as above.
std::optional<ssize_t> write_or_park(sched::Hub& hub, int fd, std::vector<iovec> buffers, const char* what);

/// Wakes who waits for the descriptor, before it is closed or replaced. Does nothing on an ordinary OS thread.
void forget_descriptor(int fd) noexcept;

/// Whether calls on the descriptor fail with EAGAIN instead of waiting.
bool is_non_blocking(int fd) noexcept;

/// A buffer of a Python object, released at the end.
class BufferView final {
public:
    BufferView() noexcept = default;
    BufferView(BufferView&& other) noexcept : view_(std::exchange(other.view_, {})) {}
    BufferView& operator=(BufferView&&) = delete;
    ~BufferView() {
        if (view_.obj != nullptr) {
            PyBuffer_Release(&view_);
        }
    }

    /// Returns whether `object` has a contiguous buffer (PyBUF_SIMPLE or PyBUF_WRITABLE); the error indicator stays clear.
    [[nodiscard]] bool try_acquire(PyObject* object, int flags) noexcept {
        if (PyObject_GetBuffer(object, &view_, flags) == 0 && PyBuffer_IsContiguous(&view_, 'C')) {
            return true;
        }
        PyErr_Clear();
        return false;
    }
    iovec bytes() const noexcept { return {view_.buf, static_cast<std::size_t>(view_.len)}; }

private:
    Py_buffer view_{};
};

}  // namespace gossamer::interpose
