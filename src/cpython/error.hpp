// SPDX-License-Identifier: Apache-2.0
// Errors between C++ and Python. Inside, a failed call of the C API throws ErrorSet with the error indicator already
// set; at the boundary one template turns every exception of ours into the indicator and a null result.
#pragma once

#include "cpython/api.hpp"

#include <cerrno>
#include <new>
#include <system_error>

namespace gossamer::cpython {

/// The error indicator is set; the C++ exception carries nothing.
struct ErrorSet final {};

/// Throws ErrorSet when `status` is negative.
inline void check(int status) {
    if (status < 0) {
        throw ErrorSet{};
    }
}

/// Sets `type` with a formatted message and throws ErrorSet.
template <typename... Args>
[[noreturn]] void raise(PyObject* type, const char* format, Args... args) {
    PyErr_Format(type, format, args...);
    throw ErrorSet{};
}

/// Sets OSError from `number` and throws ErrorSet.
[[noreturn]] inline void raise_os_error(int number) {
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    throw ErrorSet{};
}

/// On 3.12 a daemon OS thread that attaches while the process ends is unwound through here by pthread_exit(3).
/// Runs `body`, which returns what `on_error` is of; turns exceptions into the error indicator and `on_error`.
template <typename Result, typename Body>
Result guarded(Result on_error, Body body) noexcept(kPython313) {
    try {
        return body();
    } catch (const ErrorSet&) {  // the error indicator is already set
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::system_error& error) {
        errno = error.code().value();
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return on_error;
}

}  // namespace gossamer::cpython
