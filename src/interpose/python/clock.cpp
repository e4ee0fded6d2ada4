// SPDX-License-Identifier: Apache-2.0
// The clocks of the `time` module under a virtual clock (gossamer.testing). They are replaced only while some OS thread has
// one, and call the original on every other.
#include "cpython/api.hpp"

#include <mutex>
#include <time.h>

#include "core/deadline.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

using cpython::Ref;
using cpython::steal;

namespace {

enum Clock : std::size_t { kMonotonic, kMonotonicNs, kPerfCounter, kPerfCounterNs, kTime, kTimeNs, kClocks };

struct Entry {
    const char* name;
    PyCFunction replacement;
    PyMethodDef* definition = nullptr;
    PyCFunction original = nullptr;
};

Entry& entry(Clock clock) noexcept;

/// The virtual clock if the caller runs in a virtual thread under one.
const core::VirtualClock* clock_of_caller() noexcept {
    return sched::Hub::current() == nullptr ? nullptr : core::virtual_clock();
}

template <Clock kClock>
PyObject* read_clock(PyObject* module, PyObject* unused) {
    const core::VirtualClock* clock = clock_of_caller();
    if (clock == nullptr) {
        return entry(kClock).original(module, unused);
    }
    constexpr bool kIsWall = kClock == kTime || kClock == kTimeNs;
    constexpr bool kIsInteger = kClock == kMonotonicNs || kClock == kPerfCounterNs || kClock == kTimeNs;
    const core::Nanoseconds now = clock->monotonic + (kIsWall ? clock->wall_offset : core::Nanoseconds{});
    return kIsInteger ? PyLong_FromLongLong(now.count()) : PyFloat_FromDouble(static_cast<double>(now.count()) * 1e-9);
}

Entry& entry(Clock clock) noexcept {
    static Entry entries[kClocks] = {{"monotonic", read_clock<kMonotonic>},
                                     {"monotonic_ns", read_clock<kMonotonicNs>},
                                     {"perf_counter", read_clock<kPerfCounter>},
                                     {"perf_counter_ns", read_clock<kPerfCounterNs>},
                                     {"time", read_clock<kTime>},
                                     {"time_ns", read_clock<kTimeNs>}};
    return entries[clock];
}

// The tables serve every interpreter of the process, so what is below is the process's too.
std::mutex mutex;
int users = 0;  // OS threads that have a virtual clock; under mutex

/// Finds the tables and the originals; the same every time. Throws ErrorSet.
void find_clocks() {
    const Ref module = steal(PyImport_ImportModule("time"));
    for (std::size_t index = 0; index < kClocks; ++index) {
        Entry& clock = entry(static_cast<Clock>(index));
        PyMethodDef& definition = method_of(module.ptr(), clock.name);
        if (definition.ml_flags != METH_NOARGS) {
            cpython::raise(PyExc_ImportError, "gossamer does not know the calling convention of time.%s", clock.name);
        }
        const std::lock_guard lock(mutex);
        clock.definition = &definition;
        if (definition.ml_meth != clock.replacement) {
            clock.original = definition.ml_meth;
        }
    }
}

void add_user() noexcept {
    const std::lock_guard lock(mutex);
    ++users;
    for (std::size_t index = 0; index < kClocks; ++index) {
        Entry& clock = entry(static_cast<Clock>(index));
        clock.definition->ml_meth = clock.replacement;
    }
}

void remove_user() noexcept {
    const std::lock_guard lock(mutex);
    if (--users > 0) {
        return;
    }
    for (std::size_t index = 0; index < kClocks; ++index) {
        Entry& clock = entry(static_cast<Clock>(index));
        clock.definition->ml_meth = clock.original;
    }
}

}  // namespace

void start_virtual_clock() {
    if (core::virtual_clock() != nullptr) {
        cpython::raise(PyExc_RuntimeError, "this OS thread has a virtual clock already");
    }
    find_clocks();
    timespec wall{};
    clock_gettime(CLOCK_REALTIME, &wall);
    const core::Nanoseconds now = core::monotonic_now();
    const core::Nanoseconds time_of_day = std::chrono::seconds(wall.tv_sec) + core::Nanoseconds(wall.tv_nsec);
    core::set_virtual_clock(new core::VirtualClock{.monotonic = now, .wall_offset = time_of_day - now});
    add_user();
}

void stop_virtual_clock() noexcept {
    core::VirtualClock* clock = core::virtual_clock();
    if (clock == nullptr) {
        return;
    }
    core::set_virtual_clock(nullptr);
    delete clock;
    remove_user();
}

}  // namespace gossamer::interpose
