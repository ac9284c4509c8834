"""A progress bar over items of known expected length, with the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from mmkd_lite.step_bar import duration

TICK_SECONDS = 1.0


class Progress:
    """Bar over expected seconds; the time left is corrected by how long the items really took.

    Args:
        expected: Expected seconds of each item, in the order in which they will come.

    On a terminal the bar moves every second; elsewhere only the lines of `say` appear.
    """

    def __init__(self, expected: Sequence[float]) -> None:
        self.expected = list(expected)
        self.taken: list[float] = []
        self.bar = tqdm(
            total=max(1.0, sum(self.expected)),
            disable=None,
            bar_format="{desc} |{bar}| {percentage:3.0f} %{postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()

    @contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Let the bar move while the next item is under way.

        Args:
            name: Shown before the bar.
        """
        start, stop = time.perf_counter(), threading.Event()
        self.bar.set_description_str(name)
        ticker = threading.Thread(target=self._tick, args=(start, stop), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()
            self.taken.append(time.perf_counter() - start)
            self._show(0.0)

    def seconds_left(self, elapsed: float = 0.0) -> float:
        """Return the expected seconds to the end of the last item.

        Args:
            elapsed: Seconds since the current item began.
        """
        done = len(self.taken)
        foreseen = sum(self.expected[:done])
        pace = sum(self.taken) / foreseen if foreseen else 1.0
        return max(0.0, pace * sum(self.expected[done:]) - elapsed)

    def say(self, line: str) -> None:
        """Print a line above the bar, with the time left."""
        left = self.seconds_left()
        self.bar.write(line + (f"   about {duration(left)} left" if left else ""))

    def _tick(self, start: float, stop: threading.Event) -> None:
        while not stop.wait(TICK_SECONDS):
            self._show(time.perf_counter() - start)

    def _show(self, elapsed: float) -> None:
        done = len(self.taken)
        current = self.expected[done] if done < len(self.expected) else 0.0
        self.bar.n = sum(self.expected[:done]) + min(elapsed, current)
        self.bar.set_postfix_str(f"{duration(self.seconds_left(elapsed))} left")
