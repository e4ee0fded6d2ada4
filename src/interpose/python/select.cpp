// SPDX-License-Identifier: Apache-2.0
// select.select, poll objects and epoll objects; the selectors module stands on them.
//
// Each looks with its original and a time-out of 0, parks until one of its descriptors changes, and looks again: which
// events count, and how they are reported, stays the original's affair. An epoll object is itself a descriptor that is
// readable when it has events. A time-out that the original would refuse is left to it.
//
// Sources: Modules/selectmodule.c (3.12 to 3.15), select(2), "Correspondence between select() and poll()", epoll(7).
#include "cpython/api.hpp"

#include <climits>
#include <cmath>
#include <cstdint>
#include <optional>
#include <poll.h>
#include <vector>

#include "cpython/args.hpp"
#include "cpython/ref.hpp"
#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/wait.hpp"

namespace gossamer::interpose {

using core::Interest;
using cpython::ErrorSet;
using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_select = nullptr;
PyCFunction original_poll = nullptr;
PyCFunction original_epoll_poll = nullptr;

// A poll object, the same in 3.12 to 3.15. Checked by find_poll_words().
struct PollWords {
    PyObject ob_base;
    PyObject* masks;  // a dict: descriptor to events
    int is_array_current;
    int array_size;
    pollfd* array;
    int is_running;  // "concurrent poll() invocation"
};

struct EpollWords {
    PyObject ob_base;
    int fd;
};

PollWords& words_of_poll(PyObject* poll) noexcept { return *reinterpret_cast<PollWords*>(poll); }
int fd_of_epoll(PyObject* epoll) noexcept { return reinterpret_cast<EpollWords*>(epoll)->fd; }

constexpr std::uint32_t bits(Interest interest) noexcept { return static_cast<std::uint32_t>(interest); }

struct Timeout {
    bool is_zero = false;
    core::Deadline deadline = core::Deadline::never();
};

/// A loop that is never idle looks with a time-out of 0 and never parks: the steps that are parked on its carrier must be
/// woken all the same.
void look_around_for_steps(Hub& hub) noexcept {
    if (hub.parked_steps() > 0) {
        hub.look_around();
    }
}

/// What negative time-outs mean.
enum class Negative { kForever, kRefused };

/// Reads a time-out in units of `unit_nanoseconds`; nothing for one that the original must judge (a wrong type, NaN, out
/// of range). Throws ErrorSet.
std::optional<Timeout> parse_timeout(Hub& hub, PyObject* timeout, double unit_nanoseconds, Negative negative) {
    if (timeout == Py_None) {
        return Timeout{};
    }
    double value = 0;
    if (PyFloat_Check(timeout)) {
        value = PyFloat_AS_DOUBLE(timeout);
    } else if (PyIndex_Check(timeout)) {
        const Ref index = steal(PyNumber_Index(timeout));
        value = PyLong_AsDouble(index.ptr());
        if (value == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();  // OverflowError, which the original words
            return std::nullopt;
        }
    } else {
        return std::nullopt;
    }
    const double nanoseconds = std::ceil(value * unit_nanoseconds);
    // poll(2) and epoll_wait(2) take an int of milliseconds, select(2) less than a time_t.
    const double largest = negative == Negative::kForever ? INT_MAX * 1e6 : 9.2e18;
    if (std::isnan(nanoseconds) || nanoseconds >= largest || nanoseconds <= -largest) {
        return std::nullopt;
    }
    if (value < 0) {
        return negative == Negative::kForever ? std::optional(Timeout{}) : std::nullopt;
    }
    return Timeout{.is_zero = value == 0,
                   .deadline = hub.deadline_after(core::Nanoseconds(static_cast<std::int64_t>(nanoseconds)))};
}

Ref zero() { return steal(PyLong_FromLong(0)); }

// ---- select.select ----

constexpr Py_ssize_t kSets = 3;

bool is_nothing_selected(PyObject* result) noexcept {
    for (Py_ssize_t set = 0; set < kSets; ++set) {
        if (PyList_GET_SIZE(PyTuple_GET_ITEM(result, set)) != 0) {
            return false;
        }
    }
    return true;
}

std::vector<sched::FdInterest> interests_of_sets(const Ref (&sets)[kSets]) {
    constexpr Interest kInterests[kSets] = {Interest::kRead, Interest::kWrite, Interest::kException};
    std::vector<sched::FdInterest> interests;
    for (Py_ssize_t set = 0; set < kSets; ++set) {
        // The size is read each time: a fileno() may change the list.
        for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(sets[set].ptr()); ++index) {
            const Ref item = cpython::borrow(PySequence_Fast_GET_ITEM(sets[set].ptr(), index));
            const int fd = PyObject_AsFileDescriptor(item.ptr());
            cpython::check(fd);
            interests.push_back({fd, bits(kInterests[set])});
        }
    }
    return interests;
}

PyObject* select(PyObject* module, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_select);
    Hub* hub = Hub::current();
    if (hub == nullptr || count < kSets || count > kSets + 1) {
        return original(module, args, count);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const std::optional<Timeout> timeout =
            parse_timeout(*hub, count > kSets ? args[kSets] : Py_None, 1e9, Negative::kRefused);
        if (!timeout || timeout->is_zero) {
            look_around_for_steps(*hub);
            return original(module, args, count);
        }
        Ref sets[kSets];
        for (Py_ssize_t set = 0; set < kSets; ++set) {
            // An iterator can be read once, and there may be several looks.
            sets[set] = steal(PySequence_Fast(args[set], "arguments 1-3 must be sequences"));
        }
        const Ref no_time = zero();
        PyObject* const arguments[] = {sets[0].ptr(), sets[1].ptr(), sets[2].ptr(), no_time.ptr()};
        const auto look = [&] { return steal(original(module, arguments, kSets + 1)); };
        Ref result = look();
        if (!is_nothing_selected(result.ptr())) {
            return result.release();
        }
        sched::AnyFdWait wait(*hub, {.what = "select.select"}, interests_of_sets(sets));
        for (bool has_time = true; has_time && is_nothing_selected(result.ptr());) {
            has_time = wait.wait(timeout->deadline);
            result = look();
        }
        return result.release();
    });
}

// ---- poll objects ----

std::uint32_t interest_of_mask(long mask) noexcept {
    std::uint32_t interest = 0;
    interest |= (mask & (POLLIN | POLLRDNORM | POLLRDBAND)) != 0 ? bits(Interest::kRead) : 0;
    interest |= (mask & (POLLOUT | POLLWRNORM | POLLWRBAND)) != 0 ? bits(Interest::kWrite) : 0;
    interest |= (mask & POLLRDHUP) != 0 ? bits(Interest::kPeerClosed) : 0;
    // Errors and hang-ups are reported whatever was asked for; they end a wait for an exception.
    return interest | ((mask & POLLPRI) != 0 || interest == 0 ? bits(Interest::kException) : 0);
}

std::vector<sched::FdInterest> interests_of_poll(PyObject* self) {
    std::vector<sched::FdInterest> interests;
    PyObject* fd = nullptr;
    PyObject* mask = nullptr;
    Py_ssize_t position = 0;
    while (PyDict_Next(words_of_poll(self).masks, &position, &fd, &mask)) {
        interests.push_back({static_cast<int>(PyLong_AsLong(fd)), interest_of_mask(PyLong_AsLong(mask))});
    }
    return interests;
}

/// Says that poll() runs, as the original does while it waits: a second call at the same time is an error.
class PollRuns final {
public:
    explicit PollRuns(PyObject* self) noexcept : words_(words_of_poll(self)) { words_.is_running = 1; }
    PollRuns(const PollRuns&) = delete;
    PollRuns& operator=(const PollRuns&) = delete;
    ~PollRuns() { words_.is_running = 0; }

private:
    PollWords& words_;
};

PyObject* poll(PyObject* self, PyObject* const* args, Py_ssize_t count) {
    const auto original = as<FastFunction>(original_poll);
    Hub* hub = Hub::current();
    if (hub == nullptr || count > 1) {
        return original(self, args, count);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        const std::optional<Timeout> timeout =
            parse_timeout(*hub, count > 0 ? args[0] : Py_None, 1e6, Negative::kForever);
        if (!timeout || timeout->is_zero) {
            look_around_for_steps(*hub);
            return original(self, args, count);
        }
        const Ref no_time = zero();
        PyObject* const arguments[] = {no_time.ptr()};
        const auto look = [&] { return steal(original(self, arguments, 1)); };
        Ref result = look();
        if (PyList_GET_SIZE(result.ptr()) != 0) {
            return result.release();
        }
        sched::AnyFdWait wait(*hub, {.what = "poll", .object = self}, interests_of_poll(self));
        for (bool has_time = true; has_time && PyList_GET_SIZE(result.ptr()) == 0;) {
            {
                const PollRuns runs(self);
                has_time = wait.wait(timeout->deadline);
            }
            result = look();
        }
        return result.release();
    });
}

// ---- epoll objects ----

PyObject* epoll_poll(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
    const auto original = as<FastKeywordFunction>(original_epoll_poll);
    Hub* hub = Hub::current();
    const Py_ssize_t given = count + (names == nullptr ? 0 : PyTuple_GET_SIZE(names));
    if (hub == nullptr || given > 2) {
        return original(self, args, count, names);
    }
    return guarded<PyObject*>(nullptr, [&]() -> PyObject* {
        // The arguments as they came, with 0 for the time-out: what is wrong with them the original says.
        PyObject* arguments[3] = {};
        Py_ssize_t timeout_index = count > 0 ? 0 : -1;
        for (Py_ssize_t index = 0; index < given; ++index) {
            arguments[index] = args[index];
            if (index >= count &&
                PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, index - count), "timeout") == 0) {
                timeout_index = index;
            }
        }
        const std::optional<Timeout> timeout =
            parse_timeout(*hub, timeout_index < 0 ? Py_None : arguments[timeout_index], 1e9, Negative::kForever);
        if (!timeout || timeout->is_zero || fd_of_epoll(self) < 0) {
            look_around_for_steps(*hub);
            return original(self, args, count, names);
        }
        const Ref no_time = zero();
        Ref names_with_timeout;
        if (timeout_index >= 0) {
            arguments[timeout_index] = no_time.ptr();
        } else if (names == nullptr) {
            arguments[count++] = no_time.ptr();
        } else {
            const Ref name = steal(Py_BuildValue("(s)", "timeout"));
            names_with_timeout = steal(PySequence_Concat(names, name.ptr()));
            names = names_with_timeout.ptr();
            arguments[given] = no_time.ptr();
        }
        const auto look = [&] { return steal(original(self, arguments, count, names)); };
        Ref result = look();
        if (PyList_GET_SIZE(result.ptr()) != 0) {
            return result.release();
        }
        const sched::FdInterest interest{fd_of_epoll(self), bits(Interest::kRead)};
        sched::AnyFdWait wait(*hub, {.what = "epoll.poll", .object = self, .fd = interest.fd}, {&interest, 1});
        for (bool has_time = true; has_time && PyList_GET_SIZE(result.ptr()) == 0;) {
            has_time = wait.wait(timeout->deadline);
            result = look();
        }
        return result.release();
    });
}

/// Before an epoll object's descriptor goes: wakes who waits for it.
PyCFunction original_epoll_close = nullptr;

PyObject* epoll_close(PyObject* self, PyObject* unused) {
    if (Hub* hub = Hub::current(); hub != nullptr && fd_of_epoll(self) >= 0) {
        hub->reactor().forget(fd_of_epoll(self));
    }
    return original_epoll_close(self, unused);
}

// ---- installation ----

void find_poll_words(PyObject* poll_object) {
    constexpr long kFd = 12345;
    steal(PyObject_CallMethod(poll_object, "register", "li", kFd, POLLPRI));
    const PollWords& words = words_of_poll(poll_object);
    bool is_known = Py_TYPE(poll_object)->tp_basicsize == Py_ssize_t{sizeof(PollWords)} && words.is_running == 0 &&
                    words.masks != nullptr && PyDict_CheckExact(words.masks);
    if (is_known) {
        const Ref key = steal(PyLong_FromLong(kFd));
        PyObject* mask = PyDict_GetItemWithError(words.masks, key.ptr());
        is_known = mask != nullptr && PyLong_AsLong(mask) == POLLPRI && PyDict_GET_SIZE(words.masks) == 1;
    }
    if (is_known) {
        const PollRuns runs(poll_object);
        const Ref result = Ref::steal_or_null(PyObject_CallMethod(poll_object, "poll", "i", 0));
        is_known = !result && PyErr_ExceptionMatches(PyExc_RuntimeError);
        PyErr_Clear();
    }
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of poll objects in this Python");
    }
}

void find_epoll_words(PyObject* epoll_object) {
    const Ref fileno = steal(PyObject_CallMethod(epoll_object, "fileno", nullptr));
    const bool is_known = Py_TYPE(epoll_object)->tp_basicsize >= Py_ssize_t{sizeof(EpollWords)} &&
                          fd_of_epoll(epoll_object) == PyLong_AsLong(fileno.ptr());
    steal(PyObject_CallMethod(epoll_object, "close", nullptr));
    if (!is_known) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the layout of epoll objects in this Python");
    }
}

}  // namespace

void plan_select() {
    const Ref module = steal(PyImport_ImportModule("select"));
    plan_swap(module.ptr(), "select", {{METH_FASTCALL, select}}, original_select);

    const Ref poll_object = steal(PyObject_CallMethod(module.ptr(), "poll", nullptr));
    find_poll_words(poll_object.ptr());
    plan_swap(reinterpret_cast<PyObject*>(Py_TYPE(poll_object.ptr())), "poll", {{METH_FASTCALL, poll}}, original_poll);

    const Ref epoll_type = steal(PyObject_GetAttrString(module.ptr(), "epoll"));
    const Ref epoll_object = steal(PyObject_CallNoArgs(epoll_type.ptr()));
    find_epoll_words(epoll_object.ptr());
    plan_swap(epoll_type.ptr(), "poll", {{METH_FASTCALL | METH_KEYWORDS, epoll_poll}}, original_epoll_poll);
    plan_swap(epoll_type.ptr(), "close", {{METH_NOARGS, epoll_close}}, original_epoll_close);
}

}  // namespace gossamer::interpose
