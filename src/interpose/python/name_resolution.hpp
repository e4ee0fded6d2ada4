// SPDX-License-Identifier: Apache-2.0
// Host names in addresses, looked up on the OS-thread pool; numeric addresses never go there.
#pragma once

#include "cpython/api.hpp"

#include "cpython/ref.hpp"
#include "sched/hub.hpp"

namespace gossamer::interpose {

/// `address` with its host name replaced by a numeric one, or `address` itself when there is nothing to look up (numeric,
/// not an Internet family, not well-formed: the caller's original complains). Parks. Throws ErrorSet.
cpython::Ref resolve_address(sched::Hub& hub, int family, int type, PyObject* address);

}  // namespace gossamer::interpose
