// SPDX-License-Identifier: Apache-2.0
// Whoever can be woken: a fiber or an OS thread.
//
// A wake-up may always be spurious: it says "look again", never "you have it". The waiter checks its own condition
// after each one. That makes a late wake-up, one meant for an earlier wait, harmless.
#pragma once

namespace gossamer::core {

class Wakeable {
public:
    /// Makes the waiter look again. Parks: no. Thread: any. Python: not needed.
    virtual void wake() noexcept = 0;

protected:
    Wakeable() noexcept = default;
    ~Wakeable() = default;
};

}  // namespace gossamer::core
