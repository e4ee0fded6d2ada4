// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/future_wait.hpp"

#include "cpython/error.hpp"
#include "cpython/ref.hpp"

namespace gossamer::loop {

using cpython::Ref;
using cpython::steal;

PyGetSetDef* future_blocking_of(const Parts& parts) {
    const Ref descriptor =
        steal(PyObject_GetAttr(reinterpret_cast<PyObject*>(parts.future_type), parts.future_blocking_name));
    if (!Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) {
        cpython::raise(PyExc_ImportError, "gossamer does not know the fields of asyncio.Future in this Python");
    }
    return reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
}

void mark_awaited(const Parts& parts, PyObject* future) {
    cpython::check(parts.future_blocking->set(future, Py_True, parts.future_blocking->closure));
}

}  // namespace gossamer::loop
