// SPDX-License-Identifier: Apache-2.0
// The five entries through which everyone steps a coroutine: `am_send`, `send`, `throw`, `close` and the finaliser.
//
// They are static, serve every interpreter of the process, and nothing caches them; awaits inside of a coroutine do not
// go through them. Replaced when asyncio is imported, so that a program without it pays nothing. Off a carrier each does
// what the original does.
#pragma once

#include "cpython/api.hpp"

#include <cstddef>

namespace gossamer::loop {

/// Replaces the entries, unless they are. Throws ErrorSet, ImportError, when this Python's are not understood.
void install_slots();

/// Puts the originals back; no coroutine is parked.
void uninstall_slots();

/// Throws ErrorSet, RuntimeError, while a coroutine of the process is parked.
void require_none_parked();

bool are_slots_installed() noexcept;

/// Whether steps run on stacks of their own also where blocking calls do not park them: a plain function in there may then
/// await. Returns what held before. Thread: any.
bool let_plain_functions_await(bool is_wanted) noexcept;

/// Sends into, or throws into, what `await` iterates over, on the caller's stack: a coroutine begins no step. `exception`
/// is owned. As am_send.
PySendResult send_here(PyObject* iterator, PyObject* value, PyObject** result);
PySendResult throw_here(PyObject* iterator, PyObject* exception, PyObject** result);

}  // namespace gossamer::loop
