// SPDX-License-Identifier: Apache-2.0
// Redirects what other loaded objects call by a symbol's name: the swap behind a C function that has no method table.
//
// An object calls a function of another through a slot that the dynamic linker fills, and its relocation table says which
// slot is whose. Ours is written into the slots of every loaded object but our own. Where the linker has made the slots
// read-only (RELRO) they are made writable for the moment; where that is refused the call goes to the original.
// Not reached: an address that was looked up before (dlsym), and calls inside the object that has the function.
//
// Objects may be loaded at any time, so whoever notices that calls redirect_in_new_objects(): 0.1 µs if there are none.
// Sources: elf(5), dl_iterate_phdr(3), the x86-64 ABI supplement (relocation types).
#pragma once

#include <cstddef>
#include <cstdint>

namespace gossamer::interpose {

/// One redirected function. Static storage; `symbol` is a literal.
class SymbolRedirection final {
public:
    SymbolRedirection(const char* symbol, void* original, void* replacement) noexcept
        : symbol_(symbol), original_(original), replacement_(replacement) {}
    SymbolRedirection(const SymbolRedirection&) = delete;
    SymbolRedirection& operator=(const SymbolRedirection&) = delete;

    /// Redirects in the objects that were loaded since the last call. Thread: any. Python: not needed.
    void redirect_in_new_objects() noexcept;

    /// Makes every call go to the original again. Thread: any. Python: not needed.
    void restore() noexcept;

private:
    friend struct ObjectWalk;

    const char* const symbol_;
    void* const original_;
    void* const replacement_;

    // any thread, under the dynamic linker's lock
    std::uint64_t known_additions_ = 0;
    std::uint64_t known_removals_ = 0;
    std::size_t known_objects_ = 0;
};

}  // namespace gossamer::interpose
