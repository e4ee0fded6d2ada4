// SPDX-License-Identifier: Apache-2.0
// socket.getaddrinfo and its family: the C library's resolver reads files and sockets of its own, so only an OS thread can
// wait for it.
#include "cpython/api.hpp"

#include "interpose/python/name_resolution.hpp"

#include <arpa/inet.h>
#include <cstring>
#include <sys/socket.h>

#include "interpose/python/install.hpp"
#include "interpose/python/method_table.hpp"
#include "sched/offload.hpp"

namespace gossamer::interpose {

using cpython::guarded;
using cpython::Ref;
using cpython::steal;
using sched::Hub;

namespace {

PyCFunction original_getaddrinfo = nullptr;
PyCFunction original_gethostbyname = nullptr;
PyCFunction original_gethostbyname_ex = nullptr;
PyCFunction original_gethostbyaddr = nullptr;
PyCFunction original_getnameinfo = nullptr;

/// Whether looking `host` up asks nobody: None, empty, a broadcast or a numeric address.
bool is_local_answer(PyObject* host) noexcept {
    const char* text = nullptr;
    if (host == Py_None) {
        return true;
    }
    if (PyUnicode_Check(host)) {
        text = PyUnicode_AsUTF8(host);
        if (text == nullptr) {
            PyErr_Clear();  // not encodable: the original complains, without asking anybody
            return true;
        }
    } else if (PyBytes_Check(host)) {
        text = PyBytes_AS_STRING(host);
    } else {
        return true;
    }
    if (*text == '\0' || std::strcmp(text, "<broadcast>") == 0) {
        return true;
    }
    unsigned char address[sizeof(in6_addr)];
    if (inet_pton(AF_INET, text, address) == 1 || inet_pton(AF_INET6, text, address) == 1) {
        return true;
    }
    const char* zone = std::strchr(text, '%');  // fe80::1%eth0
    char bare[INET6_ADDRSTRLEN];
    if (zone == nullptr || static_cast<std::size_t>(zone - text) >= sizeof bare) {
        return false;
    }
    std::memcpy(bare, text, static_cast<std::size_t>(zone - text));
    bare[zone - text] = '\0';
    return inet_pton(AF_INET6, bare, address) == 1;
}

template <PyCFunction& Original>
PyObject* call_positional(PyObject* module, PyObject* args, PyObject*) {
    return Original(module, args);
}

PyObject* call_getaddrinfo(PyObject* module, PyObject* args, PyObject* kwargs) {
    return as<KeywordFunction>(original_getaddrinfo)(module, args, kwargs);
}

PyObject* getaddrinfo(PyObject* module, PyObject* args, PyObject* kwargs) {
    Hub* hub = Hub::current();
    PyObject* host = PyTuple_GET_SIZE(args) > 0 ? PyTuple_GET_ITEM(args, 0)
                     : kwargs != nullptr        ? PyDict_GetItemString(kwargs, "host")
                                                : nullptr;
    if (hub == nullptr || host == nullptr || is_local_answer(host)) {
        return call_getaddrinfo(module, args, kwargs);
    }
    return guarded<PyObject*>(
        nullptr, [&] { return call_on_pool(*hub, "getaddrinfo", &call_getaddrinfo, module, args, kwargs).release(); });
}

template <PyCFunction& Original>
PyObject* by_first_argument(PyObject* module, PyObject* args) {
    Hub* hub = Hub::current();
    if (hub == nullptr || PyTuple_GET_SIZE(args) == 0 || is_local_answer(PyTuple_GET_ITEM(args, 0))) {
        return Original(module, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        return call_on_pool(*hub, "gethostbyname", &call_positional<Original>, module, args, nullptr).release();
    });
}

/// gethostbyaddr and getnameinfo turn numbers into names, which asks others.
template <PyCFunction& Original>
PyObject* always_on_pool(PyObject* module, PyObject* args) {
    Hub* hub = Hub::current();
    if (hub == nullptr) {
        return Original(module, args);
    }
    return guarded<PyObject*>(nullptr, [&] {
        return call_on_pool(*hub, "name lookup", &call_positional<Original>, module, args, nullptr).release();
    });
}

}  // namespace

Ref resolve_address(Hub& hub, int family, int type, PyObject* address) {
    const bool has_host = (family == AF_INET || family == AF_INET6) && PyTuple_Check(address) &&
                          PyTuple_GET_SIZE(address) >= 2 && !is_local_answer(PyTuple_GET_ITEM(address, 0));
    if (!has_host) {
        return cpython::borrow(address);
    }
    const Ref module = steal(PyImport_ImportModule("_socket"));
    const Ref args = steal(Py_BuildValue("(OOii)", PyTuple_GET_ITEM(address, 0), Py_None, family, type));
    const Ref found = call_on_pool(hub, "getaddrinfo", &call_getaddrinfo, module.ptr(), args.ptr(), nullptr);
    PyObject* first = PyTuple_GET_ITEM(PyList_GET_ITEM(found.ptr(), 0), 4);
    Ref result = steal(PyTuple_New(PyTuple_GET_SIZE(address)));
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(address); ++index) {
        PyObject* item = index == 0 ? PyTuple_GET_ITEM(first, 0) : PyTuple_GET_ITEM(address, index);
        PyTuple_SET_ITEM(result.ptr(), index, Py_NewRef(item));
    }
    return result;
}

void plan_name_resolution() {
    const Ref module = steal(PyImport_ImportModule("_socket"));
    plan_swap(module.ptr(), "getaddrinfo", {{METH_VARARGS | METH_KEYWORDS, getaddrinfo}}, original_getaddrinfo);
    plan_swap(module.ptr(), "gethostbyname", {{METH_VARARGS, by_first_argument<original_gethostbyname>}},
              original_gethostbyname);
    plan_swap(module.ptr(), "gethostbyname_ex", {{METH_VARARGS, by_first_argument<original_gethostbyname_ex>}},
              original_gethostbyname_ex);
    plan_swap(module.ptr(), "gethostbyaddr", {{METH_VARARGS, always_on_pool<original_gethostbyaddr>}},
              original_gethostbyaddr);
    plan_swap(module.ptr(), "getnameinfo", {{METH_VARARGS, always_on_pool<original_getnameinfo>}},
              original_getnameinfo);
}

}  // namespace gossamer::interpose
