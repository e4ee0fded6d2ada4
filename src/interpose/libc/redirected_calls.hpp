// SPDX-License-Identifier: Apache-2.0
// Every function that C code calls by name and that is redirected.
#pragma once

#include "interpose/libc/relocation_table.hpp"

namespace gossamer::interpose {

/// PyThreadState_SetAsyncExc (python/async_exception.cpp).
SymbolRedirection& async_exception_redirection() noexcept;

/// pthread_exit (thread_exit.cpp).
SymbolRedirection& thread_exit_redirection() noexcept;

/// Redirects them in the objects that have been loaded since the last time. Thread: any.
void redirect_calls_in_new_objects() noexcept;

/// Every such call goes to the original again. Thread: any.
void restore_calls() noexcept;

}  // namespace gossamer::interpose
