// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "cpython/socket_address.hpp"

#include <arpa/inet.h>
#include <cstddef>
#include <cstring>
#include <netinet/in.h>
#include <sys/un.h>

namespace gossamer::cpython {

namespace {

Ref host_object(int family, const void* address) {
    char text[INET6_ADDRSTRLEN];
    if (::inet_ntop(family, address, text, sizeof text) == nullptr) {
        raise_os_error(errno);
    }
    return steal(PyUnicode_FromString(text));
}

Ref tuple_of(Ref host, std::initializer_list<unsigned long> numbers) {
    Ref tuple = steal(PyTuple_New(static_cast<Py_ssize_t>(1 + numbers.size())));
    PyTuple_SET_ITEM(tuple.ptr(), 0, host.release());
    Py_ssize_t index = 1;
    for (const unsigned long number : numbers) {
        PyTuple_SET_ITEM(tuple.ptr(), index++, steal(PyLong_FromUnsignedLong(number)).release());
    }
    return tuple;
}

Ref path_object(const sockaddr_un& address, socklen_t size) {
    const std::size_t length = size - offsetof(sockaddr_un, sun_path);
    if (length > 0 && address.sun_path[0] == '\0') {  // abstract
        return steal(PyBytes_FromStringAndSize(address.sun_path, static_cast<Py_ssize_t>(length)));
    }
    return steal(PyUnicode_DecodeFSDefaultAndSize(address.sun_path,
                                                  static_cast<Py_ssize_t>(::strnlen(address.sun_path, length))));
}

/// A number of a tuple, if it is an int from 0 to `largest`.
bool take_number(PyObject* tuple, Py_ssize_t index, unsigned long largest, unsigned long& number) noexcept {
    PyObject* item = PyTuple_GET_ITEM(tuple, index);
    if (!PyLong_CheckExact(item)) {
        return false;
    }
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow != 0 || value < 0 || static_cast<unsigned long long>(value) > largest) {
        return false;
    }
    number = static_cast<unsigned long>(value);
    return true;
}

/// The host of a tuple, if it is numeric.
bool take_host(PyObject* tuple, int family, void* address) noexcept {
    PyObject* host = PyTuple_GET_ITEM(tuple, 0);
    if (!PyUnicode_CheckExact(host) || !PyUnicode_IS_COMPACT_ASCII(host)) {
        return false;
    }
    const auto* text = static_cast<const char*>(PyUnicode_DATA(host));
    return std::strlen(text) == static_cast<std::size_t>(PyUnicode_GET_LENGTH(host)) &&
           ::inet_pton(family, text, address) == 1;
}

constexpr unsigned long kLargestPort = 0xffff;
constexpr unsigned long kLargestFlow = 0xfffff;
constexpr unsigned long kLargestScope = 0xffffffff;

bool parse_inet(PyObject* object, SocketAddress& result) noexcept {
    auto& address = reinterpret_cast<sockaddr_in&>(result.storage);
    unsigned long port = 0;
    if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2 || !take_number(object, 1, kLargestPort, port) ||
        !take_host(object, AF_INET, &address.sin_addr)) {
        return false;
    }
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    result.size = sizeof address;
    return true;
}

bool parse_inet6(PyObject* object, SocketAddress& result) noexcept {
    auto& address = reinterpret_cast<sockaddr_in6&>(result.storage);
    const Py_ssize_t count = PyTuple_CheckExact(object) ? PyTuple_GET_SIZE(object) : 0;
    unsigned long port = 0;
    unsigned long flow = 0;
    unsigned long scope = 0;
    if (count < 2 || count > 4 || !take_number(object, 1, kLargestPort, port) ||
        (count > 2 && !take_number(object, 2, kLargestFlow, flow)) ||
        (count > 3 && !take_number(object, 3, kLargestScope, scope)) ||
        !take_host(object, AF_INET6, &address.sin6_addr)) {
        return false;
    }
    address.sin6_family = AF_INET6;
    address.sin6_port = htons(static_cast<std::uint16_t>(port));
    address.sin6_flowinfo = htonl(static_cast<std::uint32_t>(flow));
    address.sin6_scope_id = static_cast<std::uint32_t>(scope);
    result.size = sizeof address;
    return true;
}

bool parse_path(PyObject* object, SocketAddress& result) noexcept {
    auto& address = reinterpret_cast<sockaddr_un&>(result.storage);
    const char* path = nullptr;
    Py_ssize_t length = 0;
    if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
        path = static_cast<const char*>(PyUnicode_DATA(object));
        length = PyUnicode_GET_LENGTH(object);
    } else if (PyBytes_CheckExact(object)) {
        path = PyBytes_AS_STRING(object);
        length = PyBytes_GET_SIZE(object);
    }
    // An empty one, and what is wrong with a long one or one with a zero byte, is the socket's own method's business.
    if (length == 0 || static_cast<std::size_t>(length) >= sizeof address.sun_path ||
        std::memchr(path + 1, '\0', static_cast<std::size_t>(length) - 1) != nullptr) {
        return false;
    }
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path, static_cast<std::size_t>(length));
    // An abstract name is as long as it is; a path ends with a zero, which is there.
    result.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + static_cast<std::size_t>(length) +
                                         (path[0] == '\0' ? 0 : 1));
    return true;
}

}  // namespace

Ref address_object(const SocketAddress& address) {
    if (address.size == 0) {
        return borrow(Py_None);
    }
    switch (address.storage.ss_family) {
        case AF_INET: {
            const auto& inet = reinterpret_cast<const sockaddr_in&>(address.storage);
            return tuple_of(host_object(AF_INET, &inet.sin_addr), {ntohs(inet.sin_port)});
        }
        case AF_INET6: {
            const auto& inet = reinterpret_cast<const sockaddr_in6&>(address.storage);
            return tuple_of(host_object(AF_INET6, &inet.sin6_addr),
                            {ntohs(inet.sin6_port), ntohl(inet.sin6_flowinfo), inet.sin6_scope_id});
        }
        case AF_UNIX:
            return path_object(reinterpret_cast<const sockaddr_un&>(address.storage), address.size);
        default:
            return Ref();
    }
}

bool parse_address(PyObject* object, int family, SocketAddress& address) noexcept {
    switch (family) {
        case AF_INET:
            return parse_inet(object, address);
        case AF_INET6:
            return parse_inet6(object, address);
        case AF_UNIX:
            return parse_path(object, address);
        default:
            return false;
    }
}

}  // namespace gossamer::cpython
