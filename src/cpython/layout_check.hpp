// SPDX-License-Identifier: Apache-2.0
// At import: is this the interpreter that the extension was compiled for? Its structures may change in a patch release.
#pragma once

namespace gossamer::cpython {

/// Throws ErrorSet, ImportError that says how to build, when what we read of the running interpreter's thread state and
/// runtime is not where the compiler saw it. Thread: any. Python: attached.
void check_layout();

}  // namespace gossamer::cpython
