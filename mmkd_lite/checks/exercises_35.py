"""Checkers of notebook 35: what a stride sees, the fewest frames that see everything, and enough clips."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from mmkd_lite.checks import expect
from mmkd_lite.data.clips import FRAMES, EmojiCrash
from mmkd_lite.data.videos import by_stride
from mmkd_lite.evaluate.video import wilson

FEWEST = 3  # every run of 3 frames within 90..99 holds one of 92, 95, 98


def exercise_1(answer: Callable[[int, int], float]) -> None:
    """Check the share, in [0, 1], of collisions of v frames that every s-th frame sees."""
    expect(abs(answer(3, 14) - 0.25) < 1e-9, "the notebook's own case, v = 3 and s = 14, is 0.25")
    expect(abs(answer(10, 14) - 1) < 1e-9, "v = 10 has one possible start, 90, and 98 lies in it")
    expect(abs(answer(1, 1) - 1) < 1e-9, "a stride of 1 sees every frame")
    for visible in (1, 2, 3, 5, 9):
        clips = EmojiCrash(visible=visible)
        for stride in (2, 3, 7, 11, 14, 50):
            right = clips.share_seen(by_stride(FRAMES, stride))
            hint = (
                f"v = {visible}, s = {stride}: starts are 90 to {FRAMES - visible}, all as likely"
            )
            expect(abs(answer(visible, stride) - right) < 1e-9, f"{hint}; the share is {right:.3f}")


def exercise_2(answer: Collection[int]) -> None:
    """Check the fewest frames that see every collision of 3 frames."""
    frames = sorted({int(frame) for frame in answer})
    expect(frames and 0 <= frames[0] and frames[-1] < FRAMES, "frames are numbered 0 to 99")
    seen = EmojiCrash().share_seen(frames)
    expect(seen == 1, f"{frames} see {100 * seen:.1f} % of the collisions")
    expect(len(frames) == FEWEST, f"{frames} see them all, but {FEWEST} frames are enough")


def exercise_3(answer: Callable[[int, int], int]) -> None:
    """Check the fewest right answers of n whose Wilson interval lies above the majority class."""
    for n, majority in ((466, 301), (200, 130), (100, 65), (4660, 3010)):
        right = next(
            hits
            for hits in range(majority, n + 1)
            if wilson(np.arange(n) < hits)[0] > 100 * majority / n
        )
        found = answer(n, majority)
        expect(found != right - 1, "the lower end must lie above the majority's share, not on it")
        hint = (
            f"n = {n}, majority {majority}: the lower end of `wilson` first exceeds it at {right}"
        )
        expect(found == right, f"{hint}, not at {found}")
