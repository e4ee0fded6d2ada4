# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: what greenlet's own tests ask of its extension module, which ours does not have.

It counts what it keeps of threads that have ended, and the time that it takes to tidy up; ours does neither.
"""

import ctypes
import sys
import types

import greenlet

NAME = "greenlet._greenlet"


def set_thread_local(key: object, value: object) -> None:
    """Put it into the dictionary that the interpreter has for the running thread."""
    get_words = ctypes.pythonapi.PyThreadState_GetDict
    get_words.restype = ctypes.c_void_p  # a borrowed reference
    ctypes.cast(get_words(), ctypes.py_object).value[key] = value


if NAME not in sys.modules:
    extension = types.ModuleType(NAME)
    extension.get_pending_cleanup_count = lambda: 0
    extension.get_total_main_greenlets = lambda: 0
    extension.CLOCKS_PER_SEC = 1_000_000
    extension.enable_optional_cleanup = lambda is_on: None
    extension.get_clocks_used_doing_optional_cleanup = lambda: 0
    extension.set_thread_local = set_thread_local
    greenlet._greenlet = sys.modules[NAME] = extension
