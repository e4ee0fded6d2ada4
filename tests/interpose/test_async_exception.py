# SPDX-License-Identifier: Apache-2.0
"""C code that calls PyThreadState_SetAsyncExc by its name reaches virtual threads, however it was linked."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gossamer as gs
import pytest
from gossamer import _core

SOURCE = r"""
#include <Python.h>

static PyObject *raise_in(PyObject *self, PyObject *args)
{
    unsigned long ident;
    PyObject *exception;
    if (!PyArg_ParseTuple(args, "kO", &ident, &exception)) {
        return NULL;
    }
    return PyLong_FromLong(PyThreadState_SetAsyncExc(ident, exception));
}

static PyMethodDef methods[] = {{"raise_in", raise_in, METH_VARARGS, NULL}, {NULL}};
static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, NAME, NULL, 0, methods, slots};

PyMODINIT_FUNC INIT(void)
{
    return PyModuleDef_Init(&module);
}
"""
LINK_STYLES = {
    "lazy": ["-Wl,-z,lazy"],
    "read_only": ["-Wl,-z,now,-z,relro"],
    "without_stubs": ["-fno-plt", "-Wl,-z,now,-z,relro"],
}


class Raised(Exception):
    pass


def load(folder: Path, style: str) -> ModuleType:
    """Compile the module and import it. Every call makes another one: the linker knows each by its name."""
    name = f"by_name_{style}"
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(SOURCE)
    names = [f'-DNAME="{name}"', f"-DINIT=PyInit_{name}"]
    include = f"-I{sysconfig.get_path('include')}"
    options = ["-shared", "-fPIC", "-O1", include, *names, *LINK_STYLES[style]]
    subprocess.run(["g++", "-x", "c++", *options, str(source), "-o", str(library)], check=True)
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    spec = importlib.util.spec_from_file_location(name, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def raise_in_a_parked_thread(module: ModuleType) -> str:
    """What another virtual thread gets from ``module``, once it goes on."""

    def main() -> str:
        with gs.scope() as scope:
            task = scope.spawn(wait)
            gs.checkpoint()
            assert 1 == module.raise_in(task.ident, Raised)
            return task.result()

    def wait() -> str:
        try:
            for _ in range(100):
                gs.checkpoint()
        except Raised:
            return "raised"
        return "nothing"

    return gs.run(main)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("style", LINK_STYLES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_calls_by_name_of_a_module_that_was_imported(tmp_path: Path, style: str, when: str) -> None:
    """Before Gossamer, or under it."""
    if when == "after":
        result = gs.run(lambda: load(tmp_path, style))
    else:
        _core.uninstall()
        result = load(tmp_path, style)

    assert "raised" == raise_in_a_parked_thread(result)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_call_that_was_redirected_reaches_os_threads_as_ever_when_uninstalled(tmp_path: Path) -> None:
    """The slot has the interpreter's own function again."""
    module = gs.run(lambda: load(tmp_path, "read_only"))

    _core.uninstall()

    with pytest.raises(Raised):
        module.raise_in(threading.get_ident(), Raised)
    assert 0 == module.raise_in(1, Raised)


@pytest.mark.skipif(sys.version_info < (3, 15), reason="a signal raises asynchronous exceptions from 3.15 on")
@pytest.mark.parametrize("wait", [lambda: time.sleep(3600), lambda: queue.SimpleQueue().get(timeout=3600)])
def test_a_signal_to_a_virtual_thread_that_waits_raises_its_asynchronous_exception(wait: Callable[[], object]) -> None:
    """As it interrupts the system call of an OS thread, which then looks."""

    def main() -> None:
        set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc
        with gs.scope() as scope:
            task = scope.spawn(wait)
            gs.checkpoint()
            set_async(ctypes.c_ulong(task.ident), ctypes.py_object(Raised))
            signal.pthread_kill(task.ident, signal.SIGUSR1)
            task.result()

    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with pytest.raises(ExceptionGroup) as failed:
            gs.run(main)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert {Raised} == {type(error) for error in failed.value.exceptions}


def test_a_signal_to_a_virtual_thread_that_waits_ends_no_wait() -> None:
    """The wait goes on, as a system call that is made again."""

    def main() -> str:
        with gs.scope() as scope:
            task = scope.spawn(waiter.get)
            gs.checkpoint()
            signal.pthread_kill(task.ident, signal.SIGUSR1)
            gs.checkpoint()
            assert not task.done()
            waiter.put("served")
            return task.result()

    waiter: queue.SimpleQueue[str] = queue.SimpleQueue()
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert "served" == gs.run(main)
    finally:
        signal.signal(signal.SIGUSR1, previous)
