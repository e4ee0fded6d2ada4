// SPDX-License-Identifier: Apache-2.0
// Bytes that wait to be written, in the order in which they came.
#pragma once

#include "cpython/api.hpp"

#include <algorithm>
#include <cstddef>
#include <sys/uio.h>
#include <utility>
#include <vector>

#include "cpython/error.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

/// A buffer of a Python object.
class View final {
public:
    View(PyObject* object, int flags) { cpython::check(PyObject_GetBuffer(object, &view_, flags)); }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    ~View() { PyBuffer_Release(&view_); }

    char* bytes() const noexcept { return static_cast<char*>(view_.buf); }
    std::size_t size() const noexcept { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};

/// Throws ErrorSet (TypeError) unless it is what may be written.
inline void check_is_bytes_like(PyObject* object) {
    if (!PyBytes_Check(object) && !PyByteArray_Check(object) && !PyMemoryView_Check(object)) {
        cpython::raise(PyExc_TypeError, "data argument must be a bytes-like object, not '%.200s'",
                       Py_TYPE(object)->tp_name);
    }
}

/// `object` itself if its bytes cannot change, else a copy of them. Throws ErrorSet.
inline cpython::Ref as_bytes(PyObject* object, const char* bytes, std::size_t size) {
    return PyBytes_CheckExact(object) ? cpython::borrow(object)
                                      : cpython::steal(PyBytes_FromStringAndSize(bytes, static_cast<Py_ssize_t>(size)));
}

class UnsentBytes final {
public:
    struct Piece {
        cpython::Ref kept;  // a bytes object, which `bytes` are in
        const char* bytes;
        std::size_t size;
    };

    bool is_empty() const noexcept { return first_ == pieces_.size(); }
    std::size_t size() const noexcept { return size_; }

    /// Keeps `size` bytes at `bytes`, which are `object`'s. Throws ErrorSet.
    void keep(PyObject* object, const char* bytes, std::size_t size) {
        cpython::Ref kept = as_bytes(object, bytes, size);
        const char* place = kept.ptr() == object ? bytes : PyBytes_AS_STRING(kept.ptr());
        pieces_.push_back({std::move(kept), place, size});
        size_ += size;
    }

    const Piece& first() const noexcept { return pieces_[first_]; }

    /// Fills in at most `most` pieces for writev(2); returns how many.
    std::size_t fill(iovec* pieces, std::size_t most) const noexcept {
        const std::size_t count = std::min(most, pieces_.size() - first_);
        for (std::size_t index = 0; index < count; ++index) {
            const Piece& piece = pieces_[first_ + index];
            // Safety: writev(2) only reads.
            pieces[index] = {const_cast<char*>(piece.bytes), piece.size};
        }
        return count;
    }

    void drop(std::size_t count) {
        size_ -= count;
        while (count > 0) {
            Piece& first = pieces_[first_];
            if (count < first.size) {
                first.bytes += count;
                first.size -= count;
                return;
            }
            count -= first.size;
            const Piece sent = std::move(first);  // what dies here dies after it has left the queue
            ++first_;
            forget_sent();
        }
    }

    void clear() {
        size_ = 0;
        first_ = 0;
        const std::vector<Piece> dropped = std::exchange(pieces_, {});
    }

private:
    static constexpr std::size_t kSentToKeep = 64;

    /// Makes room where pieces were: what is there refers to nothing any more.
    void forget_sent() {
        if (is_empty() || (first_ >= kSentToKeep && first_ >= pieces_.size() / 2)) {
            pieces_.erase(pieces_.begin(), pieces_.begin() + static_cast<std::ptrdiff_t>(first_));
            first_ = 0;
        }
    }

    // Not a deque: that has memory from the beginning, and most transports never keep anything.
    std::vector<Piece> pieces_;
    std::size_t first_ = 0;  // those before it are sent
    std::size_t size_ = 0;
};

}  // namespace gossamer::loop
