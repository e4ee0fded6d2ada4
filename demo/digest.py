# SPDX-License-Identifier: Apache-2.0
"""One number for all that a crawl stored.

The site computes it over the pages that it serves, the runner over the rows in a crawl's database: equal digests mean
that no page was lost, made up, cut short or stored twice.
"""

import hashlib
from collections.abc import Iterable

type Row = tuple[str, int, int, str, int]
"""Path of the page, HTTP status, size of the body in bytes, SHA-256 of the body, number of links."""


def digest_of_rows(rows: Iterable[Row]) -> str:
    """Returns the SHA-256, in hexadecimal, over the rows in sorted order; the order they come in does not matter."""
    result = hashlib.sha256()
    for row in sorted(rows):
        result.update(("\t".join(map(str, row)) + "\n").encode())
    return result.hexdigest()
