// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "sched/virtual_thread.hpp"

#include "sched/hub.hpp"

namespace gossamer::sched {

void VirtualThread::wake() noexcept { hub_->post(*this); }

void VirtualThread::unpark() noexcept { hub_->unpark(*this); }

void VirtualThread::time_out(core::Timer& timer) noexcept {
    auto& self = static_cast<VirtualThread&>(timer);
    self.is_timed_out = true;
    self.hub_->unpark(self);
}

void VirtualThread::request_cancellation() noexcept {
    has_cancellation.store(true);
    wake();
}

void VirtualThread::interrupt() noexcept {
    is_interrupted.store(true);
    wake();
}

unsigned VirtualThread::request_scope_cancellation() noexcept {
    ++cancel_requests;
    ++unraised_cancellations;
    wake();
    return cancellations_raised;
}

void VirtualThread::withdraw_scope_cancellation(unsigned stamp) noexcept {
    --cancel_requests;
    if (stamp == cancellations_raised && unraised_cancellations > 0) {
        --unraised_cancellations;
    }
    if (cancel_requests == 0) {
        unraised_cancellations = 0;
    }
}

void VirtualThread::take_cancellation() noexcept {
    cancel_requests += has_cancellation.exchange(false) ? 1 : 0;
    unraised_cancellations = 0;
    ++cancellations_raised;
}

// The letter is left alone: a late wake-up may still be in the mailbox.
void VirtualThread::reset_for_next_tenant() noexcept {
    next_ready = nullptr;
    exceptions = {};
    is_timed_out = is_uninterruptible = is_deadlocked = false;
    has_cancellation.store(false);
    is_interrupted.store(false);
    cancel_requests = unraised_cancellations = 0;
    cancellations_raised = 0;
    is_daemon = true;
    is_scoped = false;
    shield_depth = no_switch_depth = 0;
    wait_note = {};
    object = nullptr;
    end_marker = nullptr;
    inner_waits = nullptr;
}

}  // namespace gossamer::sched
