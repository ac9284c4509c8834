"""The training loop's progress bar, silent where nobody watches."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TextIO


def duration(seconds: float) -> str:
    """Spell a duration as 42s, 3m05s or 2h07m.

    Args:
        seconds: A non-negative number of seconds.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


class StepBar:
    """Count finished steps on standard error: share done, time spent, time left and one remark.

    On a terminal one line is rewritten. Elsewhere (a log file, a notebook) nothing is written,
    unless the environment variable MMKD_PROGRESS is 1: then a line every ten seconds.

    Args:
        total: Steps in all, at least 1.
        label: What is going on.
        done: Steps that were done before; the time left is foreseen from the others.
        stream: Where to write; standard error by default.
        silent: Write nothing in any case, as in all processes but the first.
    """

    def __init__(
        self,
        total: int,
        label: str,
        done: int = 0,
        *,
        stream: TextIO | None = None,
        silent: bool = False,
    ) -> None:
        self.total, self.label, self.first, self.done = total, label, done, done
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        wanted = self.terminal or os.environ.get("MMKD_PROGRESS", "") == "1"
        self.silent = silent or not wanted
        self.every = 0.2 if self.terminal else 10.0
        self.started = time.monotonic()
        self.shown = self.started
        self.width = 0

    def __enter__(self) -> StepBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, done: int, remark: str = "") -> None:
        """Say that `done` steps are finished; writes at most five times a second.

        Args:
            done: Finished steps, earlier ones included.
            remark: A few words, as "loss 3.21".
        """
        self.done = done
        if self.silent:
            return
        now = time.monotonic()
        if now - self.shown >= self.every or done >= self.total:
            self.shown = now
            self._write(self.line(now - self.started, remark))

    def line(self, seconds: float, remark: str = "") -> str:
        """Return the line for the state after `seconds` of work."""
        filled = 20 * self.done // self.total
        new = self.done - self.first
        left = duration(seconds / new * (self.total - self.done)) if new else "?"
        bar = "#" * filled + "." * (20 - filled)
        count = f"{self.label} [{bar}] {self.done}/{self.total}"
        return "  ".join(
            part for part in (count, f"{duration(seconds)}, {left} left", remark) if part
        )

    def _write(self, line: str) -> None:
        if self.terminal:
            self.stream.write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line on a terminal."""
        if self.width:
            self.stream.write("\n")
            self.stream.flush()
            self.width = 0
