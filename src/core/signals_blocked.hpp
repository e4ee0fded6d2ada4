// SPDX-License-Identifier: Apache-2.0
// Threads of ours take no signals: a signal is the program's, and its handler belongs on the program's own threads.
#pragma once

#include <csignal>
#include <pthread.h>
#include <initializer_list>

namespace gossamer::core {

/// Blocks the signals of the calling thread for its life, so that a thread started meanwhile has them blocked: all but
/// those that an instruction of the thread itself causes, for which the kernel kills a thread that blocks them, past any
/// handler (faulthandler's, say).
class SignalsBlocked final {
public:
    SignalsBlocked() noexcept {
        sigset_t all;
        sigfillset(&all);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS}) {
            sigdelset(&all, fault);
        }
        pthread_sigmask(SIG_SETMASK, &all, &previous_);
    }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }

private:
    sigset_t previous_{};
};

}  // namespace gossamer::core
