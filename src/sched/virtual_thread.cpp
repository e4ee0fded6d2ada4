// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/virtual_thread.hpp"

#include "sched/hub.hpp"

namespace gossamer::sched {

void VirtualThread::wake() noexcept { hub_->post(*this); }

void VirtualThread::time_out(core::Timer& timer) noexcept {
    auto& self = static_cast<VirtualThread&>(timer);
    self.is_timed_out = true;
    self.hub_->unpark(self);
}

void VirtualThread::request_cancellation() noexcept {
    has_cancellation.store(true);
    wake();
}

void VirtualThread::request_scope_cancellation() noexcept {
    ++scope_cancellations;
    hub_->unpark(*this);
}

void VirtualThread::withdraw_scope_cancellation() noexcept { scope_cancellations -= scope_cancellations > 0 ? 1 : 0; }

void VirtualThread::take_cancellation() noexcept {
    was_cancelled_from_outside = has_cancellation.exchange(false);
    if (!was_cancelled_from_outside) {
        withdraw_scope_cancellation();
    }
}

// The letter is left alone: a late wake-up may still be in the mailbox.
void VirtualThread::reset_for_next_tenant() noexcept {
    next_ready = nullptr;
    exceptions = {};
    is_timed_out = is_uninterruptible = is_deadlocked = was_cancelled_from_outside = false;
    has_cancellation.store(false);
    scope_cancellations = 0;
    is_daemon = true;
    is_scoped = false;
    shield_depth = no_switch_depth = 0;
    wait_note = {};
    object = nullptr;
    end_marker = nullptr;
}

}  // namespace gossamer::sched
