# SPDX-License-Identifier: Apache-2.0
"""``python -m gossamer``."""

from gossamer._cli import main

if __name__ == "__main__":
    main()
