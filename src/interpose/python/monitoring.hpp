// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace gossamer::interpose {

/// Instruments the code that parked virtual threads run, as the interpreter has just done for the code that threads run.
/// Throws ErrorSet. Parks: no. Thread: any. Python: attached.
void instrument_parked_code();

}  // namespace gossamer::interpose
