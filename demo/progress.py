# SPDX-License-Identifier: Apache-2.0
"""Shows how far a crawl is: one line that changes on a terminal, a line every few seconds elsewhere."""

import re
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from measure import Measurement

TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 5.0
FIRST_SECONDS = 1.0
TAIL_BYTES = 4096


class Progress:
    """The progress of one crawl, on standard error. A context manager: leaving it clears the line on a terminal."""

    def __init__(self, title: str, log: Path, pages: int) -> None:
        """``log`` is where the crawler writes its "1234 pages", ``pages`` how many there will be."""
        self._title = title
        self._log = log
        self._pages = pages
        self._is_terminal = sys.stderr.isatty()
        self._interval = TERMINAL_SECONDS if self._is_terminal else PLAIN_SECONDS
        self._next_line = min(self._interval, FIRST_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def update(self, measurement: Measurement) -> None:
        """Shows the line again if it is time to."""
        seconds = measurement.wall_seconds
        if seconds < self._next_line:
            return
        self._next_line = seconds + self._interval
        usage = f"{measurement.peak_threads:,} OS threads, {measurement.peak_memory_bytes / 1e6:.0f} MB"
        line = f"{self._title}: {seconds:.0f} s, {self._stored():,} of {self._pages:,} pages, {usage}"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be overwritten
            print("\r\x1b[K" + line[:width], end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _stored(self) -> int:
        """Returns the number in the crawler's last report."""
        with self._log.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - TAIL_BYTES))
            reports = re.findall(rb"^(\d+) pages$", log.read(), re.MULTILINE)
        return int(reports[-1]) if reports else 0
