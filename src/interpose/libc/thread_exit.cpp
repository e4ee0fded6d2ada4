// SPDX-License-Identifier: Apache-2.0
// What becomes of a carrier that wants to attach to an interpreter at its end.
//
// 3.12 and the first releases of 3.13 end such a daemon OS thread by pthread_exit(3), which unwinds its stack: on a carrier
// that of a fiber, whose destructors would give references back without being attached. Later versions let it hang
// (PyThread_hang_thread); so does this.
#include "cpython/api.hpp"

#include <pthread.h>
#include <unistd.h>

#include "interpose/libc/redirected_calls.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

namespace {

[[noreturn]] void exit_thread(void* result) {
    while (sched::Hub::is_carrier()) {
        ::pause();
    }
    ::pthread_exit(result);
}

}  // namespace

SymbolRedirection& thread_exit_redirection() noexcept {
    static SymbolRedirection redirection("pthread_exit", reinterpret_cast<void*>(&::pthread_exit),
                                         reinterpret_cast<void*>(&exit_thread));
    return redirection;
}

}  // namespace gossamer::interpose
