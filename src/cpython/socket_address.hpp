// SPDX-License-Identifier: Apache-2.0
// Addresses between the kernel and Python, as Modules/socketmodule.c has them: of AF_INET, AF_INET6 and AF_UNIX. For every
// other family, and for a host that is a name, the caller asks the socket's own method.
#pragma once

#include "cpython/api.hpp"

#include <sys/socket.h>

#include "cpython/ref.hpp"

namespace gossamer::cpython {

struct SocketAddress {
    sockaddr_storage storage{};
    socklen_t size = sizeof(sockaddr_storage);

    sockaddr* ptr() noexcept { return reinterpret_cast<sockaddr*>(&storage); }
    const sockaddr* ptr() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// The Python object for an address that the kernel has filled in; null without an error for another family. Throws
/// ErrorSet.
Ref address_object(const SocketAddress& address);

/// The address that a Python object says; false, without an error, if it is not of the simple kind: a tuple with a numeric
/// host and an int, or the path of a Unix socket.
bool parse_address(PyObject* object, int family, SocketAddress& address) noexcept;

}  // namespace gossamer::cpython
