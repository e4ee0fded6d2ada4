// SPDX-License-Identifier: Apache-2.0
// A transport that writes a stream of bytes: it tries the system call first, and keeps what the kernel does not take.
#pragma once

#include "cpython/api.hpp"

#include "loop/transport_base.hpp"
#include "loop/unsent.hpp"

namespace gossamer::loop {

class SendingTransport : public Transport {
public:
    using Transport::Transport;

    /// Writes, or keeps for later, what has a buffer. Throws ErrorSet.
    void write(PyObject* object);
    void write_several(PyObject* objects);

    std::size_t unsent_bytes() const noexcept override { return unsent_.size(); }
    void clear() override;

protected:
    /// One system call.
    virtual ssize_t send(const char* bytes, std::size_t size) noexcept = 0;
    virtual ssize_t send(iovec* pieces, std::size_t count) noexcept = 0;

    /// Whether a write now goes nowhere. Throws ErrorSet if it is not allowed.
    virtual bool drops_writes(const char* method) = 0;
    /// Everything is sent.
    virtual void become_empty() = 0;
    virtual const char* write_error() const noexcept = 0;

    bool has_to_flush() const noexcept { return can_write() && !unsent_.is_empty(); }
    void flush();
    void drop_unsent() override { unsent_.clear(); }

private:
    UnsentBytes unsent_;
};

}  // namespace gossamer::loop
