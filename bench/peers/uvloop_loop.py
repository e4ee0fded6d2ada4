# SPDX-License-Identifier: Apache-2.0
"""What loop_work.py has, on uvloop."""

import loop_work
import uvloop

loop_work.main(uvloop.new_event_loop)
