# SPDX-License-Identifier: Apache-2.0
"""The memory that decides which C function a call reaches, read word by word: for comparing before and after.

It covers what the interpreter dispatches through: the method tables behind every C function and method descriptor, the
descriptors' own words, the function slots of every type, and what a thread state calls when its thread ends (3.12).
"""

from __future__ import annotations

import ctypes
import sys
from types import BuiltinFunctionType, MethodDescriptorType, ModuleType, WrapperDescriptorType

# The fields of a PyTypeObject: where each is, in words.
WORD = ctypes.sizeof(ctypes.c_void_p)
OBJECT_BYTES = object.__basicsize__
VAR_OBJECT_WORDS = OBJECT_BYTES // WORD + 1
SLOTS = {
    name: VAR_OBJECT_WORDS + index
    for index, name in enumerate(
        [
            "name",
            "basicsize",
            "itemsize",
            "dealloc",
            "vectorcall_offset",
            "getattr",
            "setattr",
            "as_async",
            "repr",
            "as_number",
            "as_sequence",
            "as_mapping",
            "hash",
            "call",
            "str",
            "getattro",
            "setattro",
            "as_buffer",
            "flags",
            "doc",
            "traverse",
            "clear",
            "richcompare",
            "weaklistoffset",
            "iter",
            "iternext",
            "methods",
            "members",
            "getset",
            "base",
            "dict",
            "descr_get",
            "descr_set",
            "dictoffset",
            "init",
            "alloc",
            "new",
            "free",
            "is_gc",
            "bases",
            "mro",
            "cache",
            "subclasses",
            "weaklist",
            "del",
            "version_tag",
            "finalize",
            "vectorcall",
        ]
    )
}
# What the interpreter's own bookkeeping changes.
NO_FUNCTIONS = {"flags", "dict", "bases", "mro", "cache", "subclasses", "weaklist", "version_tag"}


def words(address: int, count: int) -> tuple[int, ...]:
    """The words at an address."""
    return tuple((ctypes.c_size_t * count).from_address(address))


def definition_at(address: int) -> tuple[int, ...]:
    """A PyMethodDef's function and flags."""
    return words(address + WORD, 2)


def words_of(thing: object) -> dict[str, tuple[int, ...]]:
    """The words of an object through which calls go; empty for one that has none."""
    own = id(thing) + OBJECT_BYTES
    if isinstance(thing, type):
        slots = words(id(thing), max(SLOTS.values()) + 1)
        return {"type": tuple(slots[at] for name, at in SLOTS.items() if name not in NO_FUNCTIONS)}
    if isinstance(thing, BuiltinFunctionType):
        definition, *_ = words(own, 1)
        vectorcall = words(own + 4 * WORD, 1)
        return {"definition": definition_at(definition), "function": (definition, *vectorcall)}
    if isinstance(thing, MethodDescriptorType):  # type, name, qualified name; then the definition and the function
        definition, vectorcall = words(own + 3 * WORD, 2)
        return {"definition": definition_at(definition), "descriptor": (definition, vectorcall)}
    if isinstance(thing, WrapperDescriptorType):
        return {"wrapper": words(own + 3 * WORD, 2)}
    return {}


def things() -> dict[str, object]:
    """Every function, descriptor and type that can be found, by a name."""
    found: dict[str, object] = {}
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and not name.startswith("gossamer"):
            found |= {
                f"{name}.{key}": value for key, value in vars(module).items() if isinstance(value, BuiltinFunctionType)
            }
    for kind in all_types(object, set()):
        name = f"{kind.__module__}.{kind.__qualname__}#{id(kind):#x}"
        if not name.startswith("gossamer"):
            found[name] = kind
            found |= {f"{name}.{key}": value for key, value in type.__dict__["__dict__"].__get__(kind).items()}
    return found


def all_types(kind: type, seen: set[type]) -> set[type]:
    """A type and all its subclasses."""
    if kind not in seen:
        seen.add(kind)
        for subclass in type.__subclasses__(kind):
            all_types(subclass, seen)
    return seen


def slot(kind: type, name: str) -> int:
    """The function in a slot of a type."""
    return words(id(kind), SLOTS[name] + 1)[-1]


def snapshot() -> dict[str, dict[str, tuple[int, ...]]]:
    """The words of everything."""
    found = {name: words_of(thing) for name, thing in things().items()}
    return {name: content for name, content in found.items() if content}


def changes(before: dict, after: dict) -> list[str]:
    """Names of what is in both and differs."""
    return sorted(name for name in before if name in after and before[name] != after[name])
