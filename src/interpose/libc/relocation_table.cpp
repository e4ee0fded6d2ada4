// SPDX-License-Identifier: Apache-2.0
#include "interpose/libc/relocation_table.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <elf.h>
#include <link.h>
#include <span>
#include <sys/mman.h>
#include <unistd.h>

namespace gossamer::interpose {

namespace {

using Address = std::uintptr_t;

/// What the dynamic section of a loaded object says of its relocations.
class LoadedObject final {
public:
    explicit LoadedObject(const dl_phdr_info& info) noexcept
        : base_(info.dlpi_addr), headers_(info.dlpi_phdr, info.dlpi_phnum) {
        for (const ElfW(Phdr) & header : headers_) {
            if (header.p_type == PT_DYNAMIC) {
                read(reinterpret_cast<const ElfW(Dyn)*>(base_ + header.p_vaddr));
            }
        }
    }

    bool contains(const void* pointer) const noexcept {
        const auto address = reinterpret_cast<Address>(pointer);
        for (const ElfW(Phdr) & header : headers_) {
            if (header.p_type == PT_LOAD && address - (base_ + header.p_vaddr) < header.p_memsz) {
                return true;
            }
        }
        return false;
    }

    /// Writes `target` into each slot for `symbol`.
    void store(const char* symbol, void* target) const noexcept {
        for (const std::span<const ElfW(Rela)> table : {calls_, others_}) {
            for (const ElfW(Rela) & entry : table) {
                const auto type = ELF64_R_TYPE(entry.r_info);
                if ((type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT) && is_for(entry, symbol)) {
                    store(base_ + entry.r_offset, target);
                }
            }
        }
    }

private:
    void read(const ElfW(Dyn) * entry) noexcept {
        std::size_t calls_bytes = 0;
        std::size_t others_bytes = 0;
        for (; entry->d_tag != DT_NULL; ++entry) {
            // Safety: glibc has turned the addresses of all but the vDSO, which has no relocations, into pointers.
            const auto* pointer = reinterpret_cast<const void*>(entry->d_un.d_ptr);
            switch (entry->d_tag) {
                case DT_SYMTAB:
                    symbols_ = static_cast<const ElfW(Sym)*>(pointer);
                    break;
                case DT_STRTAB:
                    names_ = static_cast<const char*>(pointer);
                    break;
                case DT_JMPREL:
                    calls_ = {static_cast<const ElfW(Rela)*>(pointer), 0};
                    break;
                case DT_PLTRELSZ:
                    calls_bytes = entry->d_un.d_val;
                    break;
                case DT_RELA:
                    others_ = {static_cast<const ElfW(Rela)*>(pointer), 0};
                    break;
                case DT_RELASZ:
                    others_bytes = entry->d_un.d_val;
                    break;
                default:
                    break;
            }
        }
        calls_ = {calls_.data(), calls_bytes / sizeof(ElfW(Rela))};
        others_ = {others_.data(), others_bytes / sizeof(ElfW(Rela))};
    }

    bool is_for(const ElfW(Rela) & entry, const char* symbol) const noexcept {
        return std::strcmp(names_ + symbols_[ELF64_R_SYM(entry.r_info)].st_name, symbol) == 0;
    }

    void store(Address slot, void* target) const noexcept {
        const auto page_bytes = static_cast<Address>(::sysconf(_SC_PAGESIZE));
        auto* page = reinterpret_cast<void*>(slot & ~(page_bytes - 1));
        const bool is_read_only = is_in_relro(slot);
        if (is_read_only && ::mprotect(page, page_bytes, PROT_READ | PROT_WRITE) != 0) {
            return;
        }
        // relaxed: a call meanwhile goes to the one or to the other, and both are right.
        __atomic_store_n(reinterpret_cast<void**>(slot), target, __ATOMIC_RELAXED);
        if (is_read_only) {
            ::mprotect(page, page_bytes, PROT_READ);
        }
    }

    bool is_in_relro(Address slot) const noexcept {
        for (const ElfW(Phdr) & header : headers_) {
            if (header.p_type == PT_GNU_RELRO && slot - (base_ + header.p_vaddr) < header.p_memsz) {
                return true;
            }
        }
        return false;
    }

    const Address base_;
    const std::span<const ElfW(Phdr)> headers_;
    const ElfW(Sym) * symbols_ = nullptr;
    const char* names_ = nullptr;
    std::span<const ElfW(Rela)> calls_;
    std::span<const ElfW(Rela)> others_;
};

}  // namespace

/// A walk over the loaded objects. The dynamic linker's lock is held meanwhile: walks exclude each other.
struct ObjectWalk {
    SymbolRedirection& redirection;
    std::size_t number = 0;
    std::size_t first = 0;

    /// Returns 1 to end the walk.
    int redirect(const dl_phdr_info& info) noexcept {
        SymbolRedirection& known = redirection;
        if (number == 0) {
            if (known.known_additions_ == info.dlpi_adds) {
                return 1;
            }
            // New objects come last. After a removal the numbers are others: all are looked at again.
            first = known.known_removals_ == info.dlpi_subs ? known.known_objects_ : 0;
            known.known_additions_ = info.dlpi_adds;
            known.known_removals_ = info.dlpi_subs;
        }
        if (number >= first) {
            store(info, known.replacement_);
        }
        known.known_objects_ = ++number;
        return 0;
    }

    int restore(const dl_phdr_info& info) noexcept {
        redirection.known_additions_ = 0;
        redirection.known_objects_ = 0;
        store(info, redirection.original_);
        return 0;
    }

private:
    void store(const dl_phdr_info& info, void* target) const noexcept {
        const LoadedObject object(info);
        if (!object.contains(&redirection)) {
            object.store(redirection.symbol_, target);
        }
    }
};

namespace {

template <int (ObjectWalk::*Visit)(const dl_phdr_info&) noexcept>
void walk_objects(ObjectWalk walk) noexcept {
    ::dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* walk) { return (static_cast<ObjectWalk*>(walk)->*Visit)(*info); },
        &walk);
}

}  // namespace

void SymbolRedirection::redirect_in_new_objects() noexcept { walk_objects<&ObjectWalk::redirect>({*this}); }

void SymbolRedirection::restore() noexcept { walk_objects<&ObjectWalk::restore>({*this}); }

}  // namespace gossamer::interpose
