// SPDX-License-Identifier: Apache-2.0
// Threads of ours take no signals: a signal is the program's, and its handler belongs on the program's own threads.
#pragma once

#include <csignal>
#include <pthread.h>

namespace gossamer::core {

/// Blocks every signal of the calling thread for its life, so that a thread started meanwhile has them blocked.
class AllSignalsBlocked final {
public:
    AllSignalsBlocked() noexcept {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &previous_);
    }
    AllSignalsBlocked(const AllSignalsBlocked&) = delete;
    AllSignalsBlocked& operator=(const AllSignalsBlocked&) = delete;
    ~AllSignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }

private:
    sigset_t previous_{};
};

}  // namespace gossamer::core
