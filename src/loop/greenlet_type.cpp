// SPDX-License-Identifier: Apache-2.0
#include "cpython/api.hpp"

#include "loop/greenlet_type.hpp"

#include <cstddef>
#include <new>
#include <utility>

#include "cpython/error.hpp"
#include "cpython/frames.hpp"
#include "cpython/module_state.hpp"
#include "cpython/ref.hpp"
#include "loop/greenlet_thread.hpp"

namespace gossamer::loop {

using cpython::borrow;
using cpython::check;
using cpython::guarded;
using cpython::ModuleState;
using cpython::Ref;
using cpython::steal;

namespace {

Greenlet& as_greenlet(PyObject* self) noexcept { return *reinterpret_cast<Greenlet*>(self); }

ModuleState& state_of(PyTypeObject* type) {
    PyObject* module = PyType_GetModuleByDef(type, &cpython::core_module);
    return cpython::state_of_module(steal(Py_XNewRef(module)).ptr());  // the type keeps it alive
}

bool is_running(Greenlet& greenlet) noexcept {
    return greenlet.status == GreenletStatus::kStarted && (greenlet.is_main || greenlet.main != nullptr);
}

/// Whether the calling code runs in `greenlet`. Throws ErrorSet.
bool is_current(Greenlet& greenlet) {
    return greenlet.thread != nullptr && &GreenletThread::current(*greenlet.thread->module) == greenlet.thread &&
           &greenlet.thread->running() == &greenlet;
}

/// What switch() returns: one argument as it is, several as a tuple, with keywords a pair.
PyObject* unpacked(Parcel parcel) {
    const bool has_keywords = parcel.kwargs && PyDict_GET_SIZE(parcel.kwargs.ptr()) > 0;
    if (!has_keywords) {
        return PyTuple_GET_SIZE(parcel.args.ptr()) == 1 ? Py_NewRef(PyTuple_GET_ITEM(parcel.args.ptr(), 0))
                                                        : parcel.args.release();
    }
    return PyTuple_GET_SIZE(parcel.args.ptr()) == 0 ? parcel.kwargs.release()
                                                    : PyTuple_Pack(2, parcel.args.ptr(), parcel.kwargs.ptr());
}

PyObject* switch_to(PyObject* self, PyObject* args, PyObject* kwargs) {
    return guarded<PyObject*>(nullptr, [&] {
        GreenletThread& thread = GreenletThread::current(state_of(Py_TYPE(self)));
        Parcel parcel;
        parcel.args = borrow(args);
        parcel.kwargs = borrow(kwargs);
        return unpacked(thread.switch_to(as_greenlet(self), std::move(parcel)));
    });
}

/// The exception of raise TYPE(VALUE).with_traceback(TRACEBACK), in the old three parts. Throws ErrorSet: TypeError.
Ref exception_of(PyObject* type, PyObject* value, PyObject* traceback) {
    if (traceback != nullptr && traceback != Py_None && !PyTraceBack_Check(traceback)) {
        cpython::raise(PyExc_TypeError, "throw() third argument must be a traceback object");
    }
    Ref exception;
    if (PyExceptionClass_Check(type)) {
        if (value != nullptr && PyObject_TypeCheck(value, reinterpret_cast<PyTypeObject*>(type))) {
            exception = borrow(value);
        } else if (value == nullptr || value == Py_None) {
            exception = steal(PyObject_CallNoArgs(type));
        } else if (PyTuple_Check(value)) {
            exception = steal(PyObject_CallObject(type, value));
        } else {
            exception = steal(PyObject_CallOneArg(type, value));
        }
    } else if (PyExceptionInstance_Check(type)) {
        if (value != nullptr && value != Py_None) {
            cpython::raise(PyExc_TypeError, "instance exception may not have a separate value");
        }
        exception = borrow(type);
    } else {
        cpython::raise(PyExc_TypeError, "exceptions must be classes, or instances, not %s", Py_TYPE(type)->tp_name);
    }
    if (!PyExceptionInstance_Check(exception.ptr())) {
        cpython::raise(PyExc_TypeError, "calling %R did not give an exception", type);
    }
    if (traceback != nullptr && traceback != Py_None) {
        check(PyException_SetTraceback(exception.ptr(), traceback));
    }
    return exception;
}

PyObject* throw_in(PyObject* self, PyObject* args) {
    return guarded<PyObject*>(nullptr, [&] {
        ModuleState& module = state_of(Py_TYPE(self));
        PyObject* type = module.greenlet_exit;
        PyObject* value = nullptr;
        PyObject* traceback = nullptr;
        check(PyArg_ParseTuple(args, "|OOO:throw", &type, &value, &traceback) - 1);
        Parcel parcel;
        parcel.exception = exception_of(type, value, traceback);
        GreenletThread& thread = GreenletThread::current(module);
        return unpacked(thread.switch_to(as_greenlet(self), std::move(parcel)));
    });
}

// ---- attributes ----

PyObject* get_run(PyObject* self, void*) {
    Greenlet& greenlet = as_greenlet(self);
    if (greenlet.status != GreenletStatus::kNew || greenlet.run == nullptr) {
        PyErr_SetString(PyExc_AttributeError, "run");
        return nullptr;
    }
    return Py_NewRef(greenlet.run);
}

int set_run(PyObject* self, PyObject* value, void*) {
    Greenlet& greenlet = as_greenlet(self);
    if (greenlet.status != GreenletStatus::kNew) {
        PyErr_SetString(PyExc_AttributeError, "run cannot be set after the start of the greenlet");
        return -1;
    }
    Py_XSETREF(greenlet.run, Py_XNewRef(value));
    return 0;
}

PyObject* get_parent(PyObject* self, void*) {
    Greenlet* parent = as_greenlet(self).parent;
    return Py_NewRef(parent == nullptr ? Py_None : &parent->ob_base);
}

int set_parent(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        ModuleState& module = state_of(Py_TYPE(self));
        Greenlet& greenlet = as_greenlet(self);
        if (value == nullptr) {
            cpython::raise(PyExc_AttributeError, "can't delete attribute");
        }
        if (!PyObject_TypeCheck(value, module.greenlet_type)) {
            cpython::raise(PyExc_TypeError, "GreenletChecker: Expected any type of greenlet, not %s",
                           Py_TYPE(value)->tp_name);
        }
        if (greenlet.is_main) {
            cpython::raise(PyExc_AttributeError, "cannot set the parent of a main greenlet");
        }
        for (Greenlet* ancestor = &as_greenlet(value); ancestor != nullptr; ancestor = ancestor->parent) {
            if (ancestor == &greenlet) {
                cpython::raise(PyExc_ValueError, "cyclic parent chain");
            }
        }
        if (as_greenlet(value).thread != greenlet.thread) {
            if (greenlet.status != GreenletStatus::kNew) {
                cpython::raise(PyExc_ValueError, "parent cannot be on a different thread");
            }
            GreenletThread* thread = as_greenlet(value).thread;
            if (thread == nullptr) {
                cpython::raise(module.greenlet_error,
                               "cannot switch to a different thread (which happens to have exited)");
            }
            Py_INCREF(thread->object());
            Py_DECREF(std::exchange(greenlet.thread, thread)->object());
        }
        PyObject* old = &std::exchange(greenlet.parent, &as_greenlet(Py_NewRef(value)))->ob_base;
        Py_XDECREF(old);
        return 0;
    });
}

PyObject* get_dead(PyObject* self, void*) { return PyBool_FromLong(as_greenlet(self).status == GreenletStatus::kDead); }

int is_active(PyObject* self) { return as_greenlet(self).status == GreenletStatus::kStarted ? 1 : 0; }

PyObject* get_frame(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] {
        Greenlet& greenlet = as_greenlet(self);
        if (greenlet.status != GreenletStatus::kStarted || is_running(greenlet)) {
            Py_RETURN_NONE;
        }
        Ref frame =
            cpython::frame_object(*cpython::attached_thread_state(), greenlet.continuation.state.parked_frame());
        return frame ? frame.release() : Py_NewRef(Py_None);
    });
}

PyObject* get_context(PyObject* self, void*) {
    return guarded<PyObject*>(nullptr, [&] {
        Greenlet& greenlet = as_greenlet(self);
        PyObject* context = nullptr;
        if (is_current(greenlet)) {
            context = cpython::attached_thread_state()->context;
        } else if (is_running(greenlet)) {
            cpython::raise(PyExc_ValueError,
                           "cannot get context of a greenlet that is running in a different thread or task");
        } else {
            context = greenlet.status == GreenletStatus::kNew ? greenlet.initial_context
                                                              : greenlet.continuation.state.context();
        }
        return Py_NewRef(context == nullptr ? Py_None : context);
    });
}

int set_context(PyObject* self, PyObject* value, void*) {
    return guarded(-1, [&] {
        Greenlet& greenlet = as_greenlet(self);
        if (value == nullptr) {
            cpython::raise(PyExc_AttributeError, "can't delete context attribute");
        }
        PyObject* context = value == Py_None ? nullptr : value;
        if (context != nullptr && !PyContext_CheckExact(context)) {
            cpython::raise(PyExc_TypeError, "greenlet context must be a contextvars.Context or None");
        }
        Ref old;
        if (is_current(greenlet)) {
            PyThreadState& tstate = *cpython::attached_thread_state();
            old = Ref::steal_or_null(std::exchange(tstate.context, Py_XNewRef(context)));
            ++tstate.context_ver;
        } else if (is_running(greenlet)) {
            cpython::raise(PyExc_ValueError,
                           "cannot set context of a greenlet that is running in a different thread or task");
        } else if (greenlet.status == GreenletStatus::kNew) {
            old = Ref::steal_or_null(std::exchange(greenlet.initial_context, Py_XNewRef(context)));
        } else {
            old = Ref::steal_or_null(greenlet.continuation.state.context());
            greenlet.continuation.state.set_context(Py_XNewRef(context));
        }
        return 0;
    });
}

PyObject* describe(PyObject* self) {
    return guarded<PyObject*>(nullptr, [&] {
        Greenlet& greenlet = as_greenlet(self);
        const bool has_exited = greenlet.is_main && greenlet.status == GreenletStatus::kDead;
        const char* status = has_exited                                 ? " (thread exited) dead"
                             : greenlet.status == GreenletStatus::kNew  ? " pending"
                             : greenlet.status == GreenletStatus::kDead ? " dead"
                             : is_current(greenlet)                     ? " current active started"
                                                                        : " suspended active started";
        return PyUnicode_FromFormat("<%s object at %p (otid=%p)%s%s>", Py_TYPE(self)->tp_name, static_cast<void*>(self),
                                    static_cast<void*>(greenlet.thread), status,
                                    greenlet.is_main && !has_exited ? " main" : "");
    });
}

// ---- life ----

PyObject* create(PyTypeObject* type, PyObject*, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        GreenletThread& thread = GreenletThread::current(state_of(type));
        const Ref nothing = steal(PyTuple_New(0));
        Ref self = steal(PyBaseObject_Type.tp_new(type, nothing.ptr(), nullptr));  // which refuses an abstract class
        Greenlet& greenlet = as_greenlet(self.ptr());
        new (&greenlet.continuation) Continuation;
        greenlet.thread = &thread;
        Py_INCREF(thread.object());
        greenlet.parent = &thread.running();
        Py_INCREF(&greenlet.parent->ob_base);
        return self.release();
    });
}

int initialise(PyObject* self, PyObject* args, PyObject* kwargs) {
    return guarded(-1, [&] {
        PyObject* run = nullptr;
        PyObject* parent = nullptr;
        const char* names[] = {"run", "parent", nullptr};
        check(PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:greenlet", const_cast<char**>(names), &run, &parent) - 1);
        if (run != nullptr) {
            check(set_run(self, run, nullptr));
        }
        if (parent != nullptr && parent != Py_None) {
            check(set_parent(self, parent, nullptr));
        }
        return 0;
    });
}

int traverse(PyObject* self, visitproc visit, void* arg) {
    Greenlet& greenlet = as_greenlet(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(greenlet.dictionary);
    Py_VISIT(greenlet.run);
    Py_VISIT(greenlet.initial_context);
    Py_VISIT(reinterpret_cast<PyObject*>(greenlet.parent));
    if (!greenlet.is_main && greenlet.thread != nullptr) {
        Py_VISIT(greenlet.thread->object());
    }
    return 0;
}

int clear(PyObject* self) {
    Greenlet& greenlet = as_greenlet(self);
    Py_CLEAR(greenlet.dictionary);
    Py_CLEAR(greenlet.run);
    Py_CLEAR(greenlet.initial_context);
    return 0;  // a greenlet needs its parent until it is dead; a cycle of parents cannot be made
}

/// Nobody refers to it any more: one that has started ends by GreenletExit, on its own thread while there is one.
void finalise(PyObject* self) {
    Greenlet& greenlet = as_greenlet(self);
    if (greenlet.is_main || greenlet.status != GreenletStatus::kStarted) {
        return;
    }
    PyObject* error = PyErr_GetRaisedException();
    guarded(0, [&] {
        if (&GreenletThread::current(*greenlet.thread->module) == greenlet.thread) {
            greenlet.thread->end(greenlet);
        } else if (!greenlet.thread->condemn(greenlet)) {
            greenlet.thread->forget(greenlet);
        }
        return 0;
    });
    if (PyErr_Occurred() != nullptr) {
        PyErr_WriteUnraisable(self);
    }
    PyErr_SetRaisedException(error);
}

void deallocate(PyObject* self) {
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyTypeObject* type = Py_TYPE(self);
    Greenlet& greenlet = as_greenlet(self);
    PyObject_GC_UnTrack(self);
    if (greenlet.weak_references != nullptr) {
        PyObject_ClearWeakRefs(self);
    }
    clear(self);
    Py_XDECREF(reinterpret_cast<PyObject*>(std::exchange(greenlet.parent, nullptr)));
    if (!greenlet.is_main && greenlet.thread != nullptr) {
        Py_DECREF(std::exchange(greenlet.thread, nullptr)->object());
    }
    if (!greenlet.is_main) {
        Py_XDECREF(greenlet.continuation.state.context());
    }
    greenlet.continuation.~Continuation();
    type->tp_free(self);
    Py_DECREF(type);
}

PyMethodDef methods[] = {{"switch", _PyCFunction_CAST(switch_to), METH_VARARGS | METH_KEYWORDS,
                          "switch(*args, **kwargs)\n--\n\nGo on with this greenlet, which is given the arguments; "
                          "return what is given to the caller's "
                          "greenlet when\nsomebody switches back to it."},
                         {"throw", throw_in, METH_VARARGS,
                          "throw(type=GreenletExit, value=None, traceback=None, /)\n--\n\nGo on with this greenlet, in "
                          "which the exception is "
                          "raised."},
                         {}};

PyGetSetDef attributes[] = {
    {"run", get_run, set_run, "What it calls; until it starts.", nullptr},
    {"parent", get_parent, set_parent, "The greenlet that goes on when this one ends.", nullptr},
    {"dead", get_dead, nullptr, "Whether it has ended.", nullptr},
    {"gr_frame", get_frame, nullptr, "Its innermost frame while it is suspended.", nullptr},
    {"gr_context", get_context, set_context, "Its contextvars.Context, or None.", nullptr},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {}};

PyMemberDef members[] = {
    {"__dictoffset__", Py_T_PYSSIZET, offsetof(Greenlet, dictionary), Py_READONLY, nullptr},
    {"__weaklistoffset__", Py_T_PYSSIZET, offsetof(Greenlet, weak_references), Py_READONLY, nullptr},
    {}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(create)},
    {Py_tp_init, reinterpret_cast<void*>(initialise)},
    {Py_tp_dealloc, reinterpret_cast<void*>(deallocate)},
    {Py_tp_finalize, reinterpret_cast<void*>(finalise)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_repr, reinterpret_cast<void*>(describe)},
    {Py_nb_bool, reinterpret_cast<void*>(is_active)},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {Py_tp_getset, attributes},
    {Py_tp_doc, const_cast<char*>("greenlet(run=None, parent=None)\n--\n\nA coroutine that any call may leave.")},
    {0, nullptr}};

PyType_Spec spec = {"greenlet.greenlet", sizeof(Greenlet), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};

PyType_Slot token_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(GreenletThread::free_token)}, {0, nullptr}};

PyType_Spec token_spec = {"gossamer._core.GreenletToken", sizeof(PyObject) + sizeof(void*), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, token_slots};

PyType_Slot thread_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(GreenletThread::free)},
                              {Py_tp_traverse, reinterpret_cast<void*>(GreenletThread::traverse)},
                              {Py_tp_clear, reinterpret_cast<void*>(GreenletThread::clear)},
                              {0, nullptr}};

PyType_Spec thread_spec = {"gossamer._core.GreenletThread", sizeof(GreenletThread), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, thread_slots};

// ---- the module's functions; `self` is gossamer._core ----

PyObject* getcurrent(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        return Py_NewRef(&GreenletThread::current(cpython::state_of_module(module)).running().ob_base);
    });
}

PyObject* settrace(PyObject* module, PyObject* callback) {
    return guarded<PyObject*>(nullptr, [&] {
        GreenletThread& thread = GreenletThread::current(cpython::state_of_module(module));
        PyObject* old = std::exchange(thread.trace, callback == Py_None ? nullptr : Py_NewRef(callback));
        return old == nullptr ? Py_NewRef(Py_None) : old;
    });
}

PyObject* gettrace(PyObject* module, PyObject*) {
    return guarded<PyObject*>(nullptr, [&] {
        PyObject* trace = GreenletThread::current(cpython::state_of_module(module)).trace;
        return Py_NewRef(trace == nullptr ? Py_None : trace);
    });
}

PyMethodDef functions[] = {
    {"getcurrent", getcurrent, METH_NOARGS, "getcurrent()\n--\n\nReturn the greenlet that runs."},
    {"settrace", settrace, METH_O,
     "settrace(callback, /)\n--\n\nHave callback(event, (origin, target)) called at each switch of this thread; return "
     "the one "
     "before."},
    {"gettrace", gettrace, METH_NOARGS, "gettrace()\n--\n\nReturn what settrace() was given, or None."},
    {}};

void create_types(PyObject* core_module, ModuleState& state) {
    const Ref thread = steal(PyType_FromModuleAndSpec(core_module, &thread_spec, nullptr));
    const Ref token = steal(PyType_FromModuleAndSpec(core_module, &token_spec, nullptr));
    const Ref exit = steal(PyErr_NewExceptionWithDoc("greenlet.GreenletExit", "Ends the greenlet that it is raised in.",
                                                     PyExc_BaseException, nullptr));
    const Ref error =
        steal(PyErr_NewExceptionWithDoc("greenlet.error", "A switch that cannot be.", PyExc_Exception, nullptr));
    const Ref type = steal(PyType_FromModuleAndSpec(core_module, &spec, nullptr));
    check(PyObject_SetAttrString(type.ptr(), "GreenletExit", exit.ptr()));
    check(PyObject_SetAttrString(type.ptr(), "error", error.ptr()));
    for (PyMethodDef* function = functions; function->ml_name != nullptr; ++function) {
        const Ref object = steal(PyCFunction_New(function, core_module));
        const Ref shared = steal(PyStaticMethod_New(object.ptr()));
        check(PyObject_SetAttrString(type.ptr(), function->ml_name, shared.ptr()));
    }
    state.greenlet_thread_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(thread.ptr()));
    state.greenlet_token_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(token.ptr()));
    state.greenlet_exit = Py_NewRef(exit.ptr());
    state.greenlet_error = Py_NewRef(error.ptr());
    state.greenlet_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(type.ptr()));
}

}  // namespace

PyObject* create_greenlet_names(PyObject* core_module) {
    ModuleState& state = cpython::state_of_module(core_module);
    if (state.greenlet_type == nullptr) {
        create_types(core_module, state);
    }
    Ref names = steal(PyDict_New());
    check(PyDict_SetItemString(names.ptr(), "greenlet", reinterpret_cast<PyObject*>(state.greenlet_type)));
    check(PyDict_SetItemString(names.ptr(), "GreenletExit", state.greenlet_exit));
    check(PyDict_SetItemString(names.ptr(), "error", state.greenlet_error));
    for (PyMethodDef* function = functions; function->ml_name != nullptr; ++function) {
        const Ref object = steal(PyCFunction_New(function, core_module));
        check(PyDict_SetItemString(names.ptr(), function->ml_name, object.ptr()));
    }
    return names.release();
}

}  // namespace gossamer::loop
