// SPDX-License-Identifier: Apache-2.0
#include "interpose/libc/redirected_calls.hpp"

namespace gossamer::interpose {

void redirect_calls_in_new_objects() noexcept {
    async_exception_redirection().redirect_in_new_objects();
    thread_exit_redirection().redirect_in_new_objects();
}

void restore_calls() noexcept {
    async_exception_redirection().restore();
    thread_exit_redirection().restore();
}

}  // namespace gossamer::interpose
