// SPDX-License-Identifier: Apache-2.0
// The transports of the two ends of a pipe: gossamer._core.ReadPipeTransportBase and WritePipeTransportBase. A pipe may be a
// FIFO, a socket or a terminal too; asyncio's subprocesses talk through these.
//
// The writing end of a FIFO or a socket is watched for the reader's end, which closes it.
#pragma once

#include "cpython/api.hpp"

#include "loop/sending_transport.hpp"
#include "loop/transport_base.hpp"

namespace gossamer::loop {

enum class PipeKind : std::uint8_t { kFifo, kSocket, kTerminal };  // kTerminal: any character device

class ReadPipeTransport final : public Transport {
public:
    ReadPipeTransport(EventLoop& loop, PyObject* self, PyObject* pipe, int fd, PipeKind kind)
        : Transport(loop, self, pipe, fd, nullptr), kind_(kind) {}

private:
    void take_turn() override;
    bool has_work() const noexcept override { return can_read(); }
    void reach_eof();

    // never changes
    const PipeKind kind_;
};

class WritePipeTransport final : public SendingTransport {
public:
    WritePipeTransport(EventLoop& loop, PyObject* self, PyObject* pipe, int fd, PipeKind kind)
        : SendingTransport(loop, self, pipe, fd, nullptr), kind_(kind) {}

private:
    void start_reading() override;
    void take_turn() override;
    bool has_work() const noexcept override { return has_lost_reader() || has_to_flush(); }
    bool is_idle() const noexcept override { return (!is_started() || !is_reading()) && unsent_bytes() == 0; }

    bool has_lost_reader() const noexcept { return can_read() && (is_hung_up_ || kind_ == PipeKind::kSocket); }

    ssize_t send(const char* bytes, std::size_t size) noexcept override;
    ssize_t send(iovec* pieces, std::size_t count) noexcept override;
    bool drops_writes(const char*) override { return is_closing; }
    void become_empty() override;
    const char* write_error() const noexcept override { return "Fatal write error on pipe transport"; }

    // never changes
    const PipeKind kind_;
};

/// Creates the classes. Throws ErrorSet.
void create_pipe_transport_types(PyObject* module, const Parts& parts);

}  // namespace gossamer::loop
