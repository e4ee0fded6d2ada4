// SPDX-License-Identifier: Apache-2.0
// Who owns a Python object is in the type: Handle borrows, Ref owns. A null result of the C API becomes ErrorSet at once.
#pragma once

#include "cpython/api.hpp"

#include <span>
#include <type_traits>
#include <utility>

#include "cpython/error.hpp"

namespace gossamer::cpython {

/// A borrowed reference; valid as long as its lender keeps the object.
class Handle {
public:
    Handle() noexcept = default;
    explicit Handle(PyObject* object) noexcept : object_(object) {}

    PyObject* ptr() const noexcept { return object_; }
    explicit operator bool() const noexcept { return object_ != nullptr; }

private:
    PyObject* object_ = nullptr;
};

/// An owned reference. Its death may run Python code, and so may park.
class Ref final {
public:
    Ref() noexcept = default;
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
        PyObject* old = std::exchange(object_, std::exchange(other.object_, nullptr));
        Py_XDECREF(old);
        return *this;
    }
    Ref(const Ref&) = delete;
    Ref& operator=(const Ref&) = delete;
    ~Ref() { Py_XDECREF(object_); }

    static Ref steal_or_null(PyObject* object) noexcept { return Ref(object); }
    static Ref borrow(PyObject* object) noexcept { return Ref(Py_XNewRef(object)); }

    PyObject* ptr() const noexcept { return object_; }
    PyObject* release() noexcept { return std::exchange(object_, nullptr); }
    void reset() noexcept { Ref().swap(*this); }
    void swap(Ref& other) noexcept { std::swap(object_, other.object_); }
    /// Exchanges what it owns with what a plain word owns.
    void swap_with(PyObject*& word) noexcept { std::swap(object_, word); }
    explicit operator bool() const noexcept { return object_ != nullptr; }

private:
    explicit Ref(PyObject* object) noexcept : object_(object) {}

    PyObject* object_ = nullptr;
};

/// Owns the new reference `object`; null means that the error indicator is set, and throws ErrorSet.
inline Ref steal(PyObject* object) {
    if (object == nullptr) {
        throw ErrorSet{};
    }
    return Ref::steal_or_null(object);
}

inline Ref borrow(PyObject* object) noexcept { return Ref::borrow(object); }

/// The words of a struct that has nothing but owned references, as one list: to traverse and to clear.
template <typename T>
std::span<PyObject*> references_in(T& owned) noexcept {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(PyObject*) == 0);
    // Safety: each is a pointer to an object, whatever its type; the compiler is told not to tell them apart by that.
    return {reinterpret_cast<PyObject**>(&owned), sizeof(T) / sizeof(PyObject*)};
}

}  // namespace gossamer::cpython
