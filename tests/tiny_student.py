"""One tiny student of the shipped `clip` teacher, trained once a test session, and a cheap suite for it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mmkd_lite.config import resolve
from mmkd_lite.runs import Run
from mmkd_lite.subject import Subject, open_subject
from mmkd_lite.train import fit

CHEAP = ("zero_shot", "probe", "retrieval", "look_alikes")
"""Tasks that train nothing but linear probes."""


@functools.cache
def tiny_run(method: str = "distill_clip", overrides: str = "") -> Run:
    folder = Path(tempfile.mkdtemp(prefix="mmkd-tiny-")) / method
    return fit(resolve(method, "tiny", overrides, out_dir=str(folder)))


def tiny_subject() -> Subject:
    return open_subject(tiny_run().dir)
