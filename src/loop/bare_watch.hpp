// SPDX-License-Identifier: Apache-2.0
// A descriptor with a reader, a writer or both: what add_reader and add_writer make.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "loop/watch.hpp"

namespace gossamer::loop {

class BareWatch final : public LoopWatch {
public:
    BareWatch(EventLoop& loop, int fd) noexcept : LoopWatch(loop, fd, &serve) {}
    ~BareWatch() = default;

    cpython::Ref file;    // what it was given as, which may be its number: found by it when it has been closed
    cpython::Ref reader;  // handles, or null
    cpython::Ref writer;
    std::uint64_t reader_turn =
        0;  // the loop's turn that each was last queued for: an edge and poll(2) may tell the same
    std::uint64_t writer_turn = 0;
    bool is_to_recheck = false;

private:
    static void serve(LoopWatch& watch, std::uint32_t events);
};

}  // namespace gossamer::loop
