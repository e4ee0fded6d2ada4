// SPDX-License-Identifier: Apache-2.0
// Swaps in extension modules that most programs never import, planned when the program imports them.
//
// Importing `_ssl` at start-up only to swap four of its functions would cost every program some milliseconds. An
// extension module's body runs in `_imp.exec_dynamic`, or in `_imp.exec_builtin` when it is linked into the
// interpreter, and those are in a method table like any other: they are swapped, and plan what is due once the original
// has run. Neither sys.meta_path nor a module's loader is touched, and it does not matter who imports the module, nor
// how.
//
// The first interpreter that imports the module plans, for all of them; what each interpreter has of its own (a heap type)
// is adopted in each.
// Source: Python/import.c, ExtensionFileLoader.exec_module and BuiltinImporter.exec_module in Lib/importlib.
#pragma once

#include "cpython/api.hpp"

namespace gossamer::interpose {

/// Remembers to call `plan(module)` once the extension module `name`, a literal, is imported.
/// Thread: any. Python: attached.
void plan_when_imported(const char* name, void (*plan)(PyObject* module));

/// Remembers to call `adopt(module)` in every interpreter that imports the extension module `name`, a literal, and
/// `release(module)` when it uninstalls. Thread: any. Python: attached.
void adopt_when_imported(const char* name, void (*adopt)(PyObject* module), void (*release)(PyObject* module));

/// Plans the swap of `_imp`'s two functions. Throws ErrorSet.
void plan_late_imports();

/// Plans and swaps for the modules that are imported already; the tables are swapped. Throws ErrorSet.
void plan_imported();

/// Releases what the calling interpreter has adopted. Throws ErrorSet.
void release_imported();

}  // namespace gossamer::interpose
