// SPDX-License-Identifier: Apache-2.0
// Everything of the standard library that is made to park, one function a module. Each plans its swaps and checks the
// layout of the objects that it reads; nothing changes before all of them have succeeded.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::interpose {

void plan_time();
void plan_thread();
void plan_queue();
void plan_socket();
void plan_name_resolution();

/// Installs once for the process; later calls do nothing. Throws ErrorSet. Python: attached, main interpreter.
void install();

/// Whether a default `threading.excepthook` reported an error that nobody else took.
bool was_error_lost() noexcept;

}  // namespace gossamer::interpose
