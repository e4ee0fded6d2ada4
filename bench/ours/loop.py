# SPDX-License-Identifier: Apache-2.0
"""What loop_work.py has, on Gossamer's event loop."""

import gossamer
import loop_work

loop_work.main(gossamer.new_event_loop)
