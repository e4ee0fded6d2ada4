// SPDX-License-Identifier: Apache-2.0
// What the kernel alone takes for a new stack: guard one page and touch another, in slots as far apart as ours are.
//
// Prints one JSON object: slots and the CPU time of all.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <sys/mman.h>

namespace {

constexpr std::size_t kSlots = 1000;
constexpr int kRuns = 12;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kStackBytes = 512 * 1024;
constexpr std::size_t kSlotBytes = kPage + kStackBytes + 16 * 1024;
constexpr int kMadvGuardInstall = 102;

std::int64_t cpu_now() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec;
}

/// CPU nanoseconds of one fresh slab.
std::int64_t one_slab() {
    void* slab = mmap(nullptr, kSlots * kSlotBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (slab == MAP_FAILED) {
        std::perror("mmap");
        std::exit(1);
    }
    madvise(slab, kSlots * kSlotBytes, MADV_NOHUGEPAGE);
    const std::int64_t start = cpu_now();
    for (std::size_t slot = 0; slot < kSlots; ++slot) {
        char* base = static_cast<char*>(slab) + slot * kSlotBytes;
        if (madvise(base, kPage, kMadvGuardInstall) != 0 && mprotect(base, kPage, PROT_NONE) != 0) {
            std::perror("mprotect");
            std::exit(1);
        }
        *static_cast<volatile char*>(base + kStackBytes) = 1;
    }
    const std::int64_t cpu = cpu_now() - start;
    munmap(slab, kSlots * kSlotBytes);
    return cpu;
}

}  // namespace

int main() {
    std::int64_t cpu = 0;
    for (int run = 0; run < kRuns; ++run) {
        cpu += one_slab();
    }
    std::printf("{\"operations\": %zu, \"cpu_ns\": %lld}\n", kRuns * kSlots, static_cast<long long>(cpu));
}
