// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/preemption.hpp"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "core/assert.hpp"
#include "cpython/error.hpp"
#include "cpython/frames.hpp"
#include "cpython/runtime.hpp"
#include "sched/hub.hpp"

namespace gossamer::sched {

namespace {

using Check = cpython::PendingCalls::Check;

constexpr core::Nanoseconds kDefaultSlice = std::chrono::milliseconds(10);
constexpr std::size_t kSlots = 1024;

std::atomic<std::int64_t> slice_nanoseconds{kDefaultSlice.count()};

/// One carrier's place in the table that requests refer to. Its word is a generation, raised when the carrier leaves, and
/// the state of its request: one number, so that a late request cannot change the next carrier's state.
struct alignas(64) Slot {
    enum State : std::uint64_t { kFree, kIdle, kAsked };
    static constexpr std::uint64_t kStateBits = 2;

    bool change(std::uint64_t generation, State from, State to) noexcept {
        std::uint64_t expected = (generation << kStateBits) | from;
        return word.compare_exchange_strong(expected, (generation << kStateBits) | to);
    }
    std::uint64_t generation() const noexcept { return word.load() >> kStateBits; }

    std::atomic<std::uint64_t> word{kFree};
    std::atomic<std::uint32_t> watch_number{0};
    std::atomic<int> misses{0};  // requests that other threads popped since the last period
};

std::array<Slot, kSlots> slots;

int take_slot() noexcept {
    for (std::size_t index = 0; index < kSlots; ++index) {
        Slot& slot = slots[index];
        if (slot.change(slot.generation(), Slot::kFree, Slot::kIdle)) {
            return static_cast<int>(index);
        }
    }
    return -1;
}

void give_slot_back(int index) noexcept {
    Slot& slot = slots[static_cast<std::size_t>(index)];
    slot.watch_number.store(0);
    // Whatever its state: the owner alone changes the generation, and a request of the old one finds a new number.
    slot.word.store(((slot.generation() + 1) << Slot::kStateBits) | Slot::kFree);
}

/// A ticket is (generation, slot) in the bits of a pointer: 2^54 generations.
constexpr std::uint64_t kSlotBits = 10;
static_assert(kSlots == 1U << kSlotBits);

void* ticket_of(int index) noexcept {
    const auto slot = static_cast<std::uint64_t>(index);
    return reinterpret_cast<void*>((slots[slot].generation() << kSlotBits) | slot);
}

Slot& slot_of_ticket(const void* ticket) noexcept { return slots[reinterpret_cast<std::uintptr_t>(ticket) % kSlots]; }

std::uint64_t generation_of_ticket(const void* ticket) noexcept {
    return reinterpret_cast<std::uintptr_t>(ticket) >> kSlotBits;
}

/// A request came to a thread that is not its carrier: it is asked for again soon.
void miss(const void* ticket, int most) noexcept {
    Slot& slot = slot_of_ticket(ticket);
    if (slot.change(generation_of_ticket(ticket), Slot::kAsked, Slot::kIdle) && slot.misses.fetch_add(1) < most) {
        core::Watchdog::instance().tick_again_soon(slot.watch_number.load());
    }
}

/// The code of a signal handler that is a Python function or method; null otherwise. Borrowed.
PyObject* code_of_handler(PyObject* handler) noexcept {
    if (handler != nullptr && PyMethod_Check(handler)) {
        handler = PyMethod_GET_FUNCTION(handler);
    }
    return handler != nullptr && PyFunction_Check(handler) ? PyFunction_GET_CODE(handler) : nullptr;
}

bool is_code_of_signal_handler(const PyCodeObject* code) noexcept {
    if (code == nullptr) {
        return false;
    }
    for (int number = 1; number < Py_NSIG; ++number) {
        if (code_of_handler(cpython::signal_handler(number)) == reinterpret_cast<const PyObject*>(code)) {
            return true;
        }
    }
    return false;
}

bool is_import_machinery(const PyCodeObject* code) noexcept {
    return code != nullptr && PyUnicode_CompareWithASCIIString(code->co_filename, "<frozen importlib._bootstrap>") == 0;
}

/// Whether the environment asks for another way than the usual one, as tests do.
bool is_asked_for(const char* variable, const char* value) noexcept {
    const char* given = std::getenv(variable);
    return given != nullptr && std::strcmp(given, value) == 0;
}

core::WatchStart wanted_start() noexcept {
    return is_asked_for("GOSSAMER_WATCH_CLOCK", "wall") ? core::WatchStart::kWallTime : core::WatchStart::kCpuTime;
}

}  // namespace

Preemption::Preemption(Hub& hub) noexcept : Watch(&tick), hub_(hub), pending_calls_(*hub.tstate().interp) {}

Preemption::~Preemption() { stop(); }

void Preemption::prepare() {
    // Another OS thread may be inside a pending call, or pop ours. If we are inside one ourselves it stays like that.
    constexpr int kTries = 100;
    constexpr timespec kPause{.tv_sec = 0, .tv_nsec = 100'000};
    check_ = pending_calls_.verify(hub_.tstate());
    for (int tries = 1; check_ == Check::kBusy && tries < kTries; ++tries) {
        PyThreadState* tstate = PyEval_SaveThread();
        ::nanosleep(&kPause, nullptr);
        PyEval_RestoreThread(tstate);
        check_ = pending_calls_.verify(hub_.tstate());
    }
    if (is_asked_for("GOSSAMER_PREEMPTION", "monitoring")) {
        check_ = Check::kFailed;
    }
    if (!raw_io_type_) {
        const cpython::Ref io = cpython::steal(PyImport_ImportModule("_io"));
        const cpython::Ref imp = cpython::steal(PyImport_ImportModule("_imp"));
        raw_io_type_ = cpython::steal(PyObject_GetAttrString(io.ptr(), "_RawIOBase"));
        import_lock_held_ = cpython::steal(PyObject_GetAttrString(imp.ptr(), "lock_held"));
    }
}

bool Preemption::can_preempt() const noexcept { return check_ == Check::kPassed || monitoring_.has_begun(); }

void Preemption::start() noexcept {
    was_started_ = true;
    if (check_ == Check::kFailed && !cpython::guarded(false, [this] {
            monitoring_.begin(event_callback);
            return true;
        })) {
        PyErr_Clear();  // status() tells that there is none
    }
    const core::Nanoseconds slice(slice_nanoseconds.load());
    if (!can_preempt() || slice.count() <= 0) {
        return;
    }
    slot_ = take_slot();
    if (slot_ < 0) {
        return;
    }
    seen_switches_ = ~std::uint64_t{0};
    // Without an OS thread there is no preemption; the program runs on.
    if (!core::Watchdog::instance().add(*this, slice / 2, wanted_start(), hub_.tstate().interp)) {
        give_slot_back(std::exchange(slot_, -1));
        return;
    }
    slots[static_cast<std::size_t>(slot_)].watch_number.store(Watch::number());
}

void Preemption::stop() noexcept {
    core::Watchdog::instance().remove(*this);
    if (slot_ >= 0) {
        give_slot_back(std::exchange(slot_, -1));
    }
    was_started_ = false;
    if (monitoring_.has_begun()) {
        bool is_shared = false;
        Hub::for_each(hub_.tstate().interp, [this, &is_shared](Hub& hub) {
            is_shared |= &hub != &hub_ && hub.preemption().monitoring_.has_begun();
        });
        monitoring_.end(is_shared);
    }
}

void Preemption::reset_after_fork() noexcept {
    Watch::abandon();
    stop();
}

void Preemption::tick(core::Watch& watch, core::TickKind kind) noexcept {
    auto& self = static_cast<Preemption&>(watch);
    if (kind == core::TickKind::kPeriod) {
        // relaxed: a clock, read by the carrier alone.
        self.ticks_.fetch_add(1, std::memory_order_relaxed);
        self.hub_.look_soon();
        slots[static_cast<std::size_t>(self.slot_)].misses.store(0);
    }
    const std::uint64_t switches = self.hub_.switch_count();
    if (switches != self.seen_switches_) {
        self.seen_switches_ = switches;
        return;
    }
    self.ask();
}

void Preemption::ask() noexcept {
    Slot& slot = slots[static_cast<std::size_t>(slot_)];
    if (!slot.change(slot.generation(), Slot::kIdle, Slot::kAsked)) {
        cpython::PendingCalls::remind(hub_.tstate());  // one is in the queue
        return;
    }
    asked_at_switches_.store(seen_switches_);
    if (!cpython::PendingCalls::add(*hub_.tstate().interp, &run_request, ticket_of(slot_))) {
        slot.change(slot.generation(), Slot::kAsked, Slot::kIdle);  // the queue is full: at the next tick
    }
}

int Preemption::run_request(void* ticket) noexcept {
    Hub* hub = Hub::current();
    if (hub == nullptr || hub->preemption().slot_ < 0 || ticket_of(hub->preemption().slot_) != ticket) {
        miss(ticket, kMisses);
        return 0;
    }
    return hub->preemption().serve_request();
}

int Preemption::serve_request() noexcept {
    Slot& slot = slots[static_cast<std::size_t>(slot_)];
    const std::uint64_t asked_at = asked_at_switches_.load();
    if (!slot.change(slot.generation(), Slot::kAsked, Slot::kIdle) || asked_at != hub_.switch_count() || !may_park(0)) {
        return 0;
    }
    PyThreadState& tstate = hub_.tstate();
    if (check_ != Check::kPassed) {
        monitoring_.arm(reinterpret_cast<PyObject*>(cpython::code_of(*cpython::running_frame(tstate))), asked_at);
        return 0;
    }
    pending_calls_.give_up_mark(tstate);
    park();
    take_mark_back();
    return 0;
}

void Preemption::park() noexcept {
    const int saved_errno = errno;  // as where the interpreter gives up the GIL
    hub_.preempt_running();
    errno = saved_errno;
}

PyMethodDef Preemption::event_callback = {"preempt", _PyCFunction_CAST(&Preemption::run_event), METH_FASTCALL, nullptr};

/// An event of sys.monitoring: in code that some carrier of the interpreter has armed, or in any.
PyObject* Preemption::run_event(PyObject*, PyObject* const*, Py_ssize_t) noexcept {
    Hub* hub = Hub::current();
    if (hub != nullptr) {
        Preemption& self = hub->preemption();
        if (self.monitoring_.disarm(hub->switch_count()) && self.may_park(1)) {
            self.park();
        }
    }
    Py_RETURN_NONE;
}

void Preemption::take_mark_back() noexcept {
    // While another OS thread runs pending calls we wait for it; not for ever, for it may wait for us.
    for (int tries = 0; !pending_calls_.try_take_mark(hub_.tstate()) && tries < kMarkTries; ++tries) {
        hub_.let_others_run();
    }
}

/// Looked at only when a request has come. That C functions are between (a sort key, a generator under sum()) is no reason
/// to wait: an OS thread is switched there too.
bool Preemption::may_park(int callbacks) noexcept {
    const PyThreadState& tstate = hub_.tstate();
    return hub_.is_on_virtual_thread() && hub_.live_count() > 1 && hub_.running().no_switch_depth == 0 &&
           tstate.tracing == callbacks &&  // else inside a trace or monitoring callback that is not ours
           tstate.current_exception == nullptr &&
           tstate.interp->gc.collecting == 0 &&  // a finaliser that parks would park the collector
           !is_in_bad_place();
}

/// Whether something is in use that knows its user by OS thread, so that another virtual thread of this carrier would be
/// taken for the same: the import lock, or a buffered object whose raw object is written in Python. And signal handlers,
/// which interrupt C functions that may be in such a state.
bool Preemption::is_in_bad_place() noexcept {
    const _PyInterpreterFrame* frame = cpython::running_frame(hub_.tstate());
    if (frame == nullptr || is_import_machinery(cpython::code_of(*frame))) {
        return true;
    }
    const bool may_be_in_handler = hub_.running().is_main();
    auto* raw_type = reinterpret_cast<PyTypeObject*>(raw_io_type_.ptr());
    const _PyInterpreterFrame* called = nullptr;
    for (; frame != nullptr; called = frame, frame = frame->previous) {
        if (!cpython::is_entry_from_c(*frame) || called == nullptr) {
            continue;
        }
        PyObject* self = cpython::first_argument(*called);
        if ((self != nullptr && PyObject_TypeCheck(self, raw_type)) ||
            (may_be_in_handler && is_code_of_signal_handler(cpython::code_of(*called)))) {
            return true;
        }
    }
    PyObject* is_importing = PyObject_CallNoArgs(import_lock_held_.ptr());
    GS_ASSERT(is_importing != nullptr);  // a function without arguments that returns a constant
    const bool is_held = is_importing == Py_True;
    Py_DECREF(is_importing);
    return is_held;
}

void Preemption::set_slice(core::Nanoseconds slice) noexcept {
    slice_nanoseconds.store(slice.count());
    Hub* hub = Hub::current();
    if (hub != nullptr) {
        hub->preemption().stop();
        hub->preemption().start();
    }
}

const char* Preemption::status() {
    if (slice_nanoseconds.load() <= 0) {
        return "off: no slice is set";
    }
    Hub* hub = Hub::current();
    Check check = Check::kBusy;
    if (hub == nullptr) {
        PyThreadState& tstate = *PyThreadState_Get();
        check = cpython::PendingCalls(*tstate.interp).verify(tstate);
    } else {
        check = hub->preemption().check_;
    }
    const bool has_events = hub != nullptr && hub->preemption().monitoring_.has_begun();
    switch (check) {
        case Check::kFailed:
            if (hub == nullptr || has_events || !hub->preemption().was_started_) {
                break;
            }
            return "off: this interpreter keeps its pending calls elsewhere than the one Gossamer was built for, "
                   "and other tools have taken what sys.monitoring leaves free";
        case Check::kBusy:
            return "off: a pending call of others was running when Gossamer was entered";
        case Check::kPassed:
            break;
    }
    if (hub == nullptr) {
        return "available";
    }
    const Preemption& self = hub->preemption();
    if (self.Watch::number() == 0) {
        return self.was_started_ ? "off: no OS thread could be started for the watchdog"
                                 : "ready: starts with the first spawn";
    }
    if (has_events) {
        return "on, by sys.monitoring: this interpreter keeps its pending calls elsewhere than the one Gossamer was "
               "built for";
    }
    return self.Watch::start() == core::WatchStart::kCpuTime
               ? "on"
               : "on, with wake-ups while anything runs: this system has no timers on a thread's CPU clock";
}

}  // namespace gossamer::sched
