// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/sending_transport.hpp"

#include <cerrno>
#include <optional>

#include "cpython/error.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

namespace {

constexpr std::size_t kMostPieces = 64;  // of one system call
constexpr int kMostFlushes = 8;          // of one turn

}  // namespace

void SendingTransport::write(PyObject* object) {
    check_is_bytes_like(object);
    const bool is_lost = drops_writes("write");
    const bool is_bytes = PyBytes_CheckExact(object);
    std::optional<View> view;
    if (!is_bytes) {
        view.emplace(object, PyBUF_SIMPLE);
    }
    const char* bytes = is_bytes ? PyBytes_AS_STRING(object) : view->bytes();
    std::size_t size = is_bytes ? static_cast<std::size_t>(PyBytes_GET_SIZE(object)) : view->size();
    if (size == 0) {
        return;
    }
    if (is_lost) {
        warn_of_lost_write();
        return;
    }
    if (unsent_.is_empty()) {
        const ssize_t sent = send(bytes, size);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            fail_with_errno(errno, write_error());
            return;
        }
        if (sent > 0) {
            bytes += sent;
            size -= static_cast<std::size_t>(sent);
        }
        if (size == 0) {
            return;
        }
        is_writable_ = sent < 0 && errno == EINTR;
    }
    unsent_.keep(object, bytes, size);
    want_to_write();
    pause_protocol();
}

void SendingTransport::write_several(PyObject* objects) {
    const bool is_lost = drops_writes("writelines");
    const Ref sequence = steal(PySequence_Fast(objects, "writelines() takes an iterable of bytes-like objects"));
    if (PySequence_Fast_GET_SIZE(sequence.ptr()) == 0) {
        return;
    }
    if (is_lost) {
        ++lost_count;
        return;
    }
    const bool was_empty = unsent_.is_empty();
    // A buffer may be Python's, which may change the list.
    for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(sequence.ptr()); ++index) {
        const Ref object = cpython::borrow(PySequence_Fast_GET_ITEM(sequence.ptr(), index));
        const View view(object.ptr(), PyBUF_SIMPLE);
        if (view.size() > 0) {
            unsent_.keep(object.ptr(), view.bytes(), view.size());
        }
    }
    if (was_empty && !unsent_.is_empty()) {
        flush();
    }
    if (!unsent_.is_empty()) {
        want_to_write();
        pause_protocol();
    }
}

void SendingTransport::flush() {
    for (int round = 0; round < kMostFlushes && !unsent_.is_empty(); ++round) {
        iovec pieces[kMostPieces];
        const ssize_t sent = send(pieces, unsent_.fill(pieces, kMostPieces));
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0 && errno == EAGAIN) {
            is_writable_ = false;
            break;
        }
        if (sent < 0) {
            const int error = errno;
            unsent_.clear();
            fail_with_errno(error, write_error());
            return;
        }
        unsent_.drop(static_cast<std::size_t>(sent));
    }
    resume_protocol();  // which may write
    if (!unsent_.is_empty()) {
        return;
    }
    if (is_idle()) {
        const Ref kept = cpython::borrow(owner());
        loop().release(*this);
    }
    become_empty();
}

void SendingTransport::clear() {
    Transport::clear();
    unsent_.clear();
}

}  // namespace gossamer::loop
