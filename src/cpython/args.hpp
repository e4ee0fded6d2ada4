// SPDX-License-Identifier: Apache-2.0
// Arguments that several functions take, checked before anything has happened.
#pragma once

#include "cpython/api.hpp"

#include <cmath>
#include <cstdint>
#include <optional>

#include "cpython/error.hpp"

namespace gossamer::cpython {

/// Seconds as nanoseconds, rounded up as CPython's timeouts are (_PyTime_ROUND_CEILING in pycore_time.h). Accepts int,
/// float and what has __index__ or __float__. Throws ErrorSet: TypeError, ValueError for NaN, OverflowError.
inline std::int64_t nanoseconds_from_seconds(PyObject* seconds) {
    constexpr double kTwoTo63 = 9223372036854775808.0;
    constexpr long long kLargestWhole = 9'223'372'036LL;
    if (PyLong_Check(seconds)) {
        const long long whole = PyLong_AsLongLong(seconds);
        if (whole == -1 && PyErr_Occurred()) {
            if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
                PyErr_SetString(PyExc_OverflowError, "timestamp out of range for platform time_t");
            }
            throw ErrorSet{};
        }
        if (whole > kLargestWhole || whole < -kLargestWhole) {
            raise(PyExc_OverflowError, kPython314 ? "timestamp out of range for C PyTime_t"
                                                  : "timestamp too large to convert to C PyTime_t");
        }
        return whole * 1'000'000'000LL;
    }
    double value = 0;
    if (PyFloat_Check(seconds)) {
        value = PyFloat_AS_DOUBLE(seconds);
    } else if (PyIndex_Check(seconds)) {
        PyObject* index = PyNumber_Index(seconds);
        if (index == nullptr) {
            throw ErrorSet{};
        }
        value = PyLong_AsDouble(index);
        Py_DECREF(index);
    } else if (kPython315) {
        value = PyFloat_AsDouble(seconds);  // any real number; says "must be real number, not ..."
    } else {
        raise(PyExc_TypeError,
              kPython314 ? "'%.200s' object cannot be interpreted as an integer or float"
                         : "'%.200s' object cannot be interpreted as an integer",
              Py_TYPE(seconds)->tp_name);
    }
    if (value == -1.0 && PyErr_Occurred()) {
        throw ErrorSet{};
    }
    if (std::isnan(value)) {
        raise(PyExc_ValueError, "Invalid value NaN (not a number)");
    }
    const double nanoseconds = std::ceil(value * 1e9);
    if (nanoseconds >= kTwoTo63 || nanoseconds < -kTwoTo63) {
        raise(PyExc_OverflowError,
              kPython314 ? "timestamp out of range for C PyTime_t" : "timestamp out of range for platform time_t");
    }
    return static_cast<std::int64_t>(nanoseconds);
}

/// The argument of the method `method(parameter)`, which may be given by its name. Throws ErrorSet.
inline PyObject* only_argument(const char* method, const char* parameter, PyObject* const* args, Py_ssize_t count,
                               PyObject* names) {
    const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    if (count + named != 1) {
        raise(PyExc_TypeError, "%s() takes 1 argument (%zd given)", method, count + named);
    }
    if (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), parameter) != 0) {
        raise(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", method, PyTuple_GET_ITEM(names, 0));
    }
    return args[0];
}

struct BlockAndTimeout {
    bool blocks = true;
    PyObject* timeout = nullptr;  // null: none, or None
};

/// The arguments `(block=True, timeout=None)` of a function that is replaced; nothing: they are not these, and the original
/// refuses them. Throws ErrorSet.
inline std::optional<BlockAndTimeout> block_and_timeout(PyObject* const* args, Py_ssize_t count, PyObject* names) {
    PyObject* block = count > 0 ? args[0] : nullptr;
    PyObject* timeout = count > 1 ? args[1] : nullptr;
    const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t index = 0; index < keywords; ++index) {
        PyObject* name = PyTuple_GET_ITEM(names, index);
        PyObject** argument = PyUnicode_CompareWithASCIIString(name, "block") == 0     ? &block
                              : PyUnicode_CompareWithASCIIString(name, "timeout") == 0 ? &timeout
                                                                                       : nullptr;
        if (argument == nullptr || *argument != nullptr) {
            return std::nullopt;
        }
        *argument = args[count + index];
    }
    if (count > 2) {
        return std::nullopt;
    }
    const int blocks = block == nullptr ? 1 : PyObject_IsTrue(block);
    check(blocks);
    return BlockAndTimeout{.blocks = blocks != 0, .timeout = timeout == Py_None ? nullptr : timeout};
}

}  // namespace gossamer::cpython
