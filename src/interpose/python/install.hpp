// SPDX-License-Identifier: Apache-2.0
// Everything of the standard library that is made to park, one function a module. Each plans its swaps and checks the
// layout of the objects that it reads; nothing changes before all of them have succeeded.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::interpose {

void plan_time();
void plan_thread();
void plan_threading();
void plan_queue();
void plan_sys();
void plan_monitoring();
void plan_profiler();
void plan_async_exception();
void plan_socket();
void plan_name_resolution();
void plan_select();
void plan_os();
void plan_file_io();
void plan_buffered_io();
void plan_input();
void plan_signal();
void plan_ssl();
void plan_multiprocessing();

/// In a forked child: nobody waits for one of multiprocessing's semaphores.
void forget_semaphores_after_fork() noexcept;

/// The parts that are not shared by interpreters, which each adopts when it installs and releases when it uninstalls: the
/// descriptors of its _socket.socket type, the `__next__` of its buffered files, its OS threads that run already (3.12).
void adopt_socket_type();
void release_socket_type();
void adopt_buffered_types();
void release_buffered_types();
void adopt_thread_ends();
void release_thread_ends() noexcept;

/// Swaps the tables, which serve every interpreter, unless they are swapped already, and adopts what this interpreter has of
/// its own. Throws ErrorSet. Python: attached.
void install();

/// Puts back the tables, for every interpreter, and what the calling interpreter has of its own. Another interpreter's own
/// slots stay ours until it uninstalls: they find no virtual thread and call the originals. Throws ErrorSet, RuntimeError
/// while virtual threads run. Python: attached.
void uninstall();

/// Whether a default `threading.excepthook` reported an error that nobody else took.
bool was_error_lost() noexcept;

/// Gives the calling OS thread a virtual clock, which starts at the real time and stands still; `time`'s clocks follow it.
/// Throws ErrorSet.
void start_virtual_clock();
void stop_virtual_clock() noexcept;

/// Counts an error as lost that was told in another way: a coroutine that was never awaited. Thread: any.
void note_lost_error() noexcept;

}  // namespace gossamer::interpose
