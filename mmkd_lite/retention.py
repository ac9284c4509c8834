"""The retention table: how much of the teacher's score a student keeps, task by task (seed 003, Table 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmkd_lite.results import results_table
from mmkd_lite.storage import write_atomic
from mmkd_lite.subject import Subject, open_subject
from mmkd_lite.suite import evaluate, rows_of

TEACHER_NAME = "teacher_evaluation"
FLOOR = "teacher at floor"
AVERAGED = ("zero-shot", "probe")
COLUMNS = (
    "task", "metric", "teacher", "student", "retention", "low", "high",
    "corrected", "corrected low", "corrected high", "remark",
)  # fmt: skip


def ratio_interval(
    student: float,
    student_ends: tuple[float, float],
    teacher: float,
    teacher_ends: tuple[float, float],
) -> tuple[float, float]:
    r"""Return an interval of student / teacher from the interval of each (MOVER, independent errors).

    .. math:: L = \frac{st - \sqrt{(st)^2 - l_s u_t (2s - l_s)(2t - u_t)}}{u_t (2t - u_t)}, \qquad
              U = \frac{st + \sqrt{(st)^2 - u_s l_t (2s - u_s)(2t - l_t)}}{l_t (2t - l_t)}

    Both models answer the same items and mostly fail on the same ones, so the true interval is narrower.

    Args:
        student: s, the numerator.
        student_ends: Its interval.
        teacher: t > 0, the denominator.
        teacher_ends: Its interval; the upper end is infinite unless all of it lies above 0.

    Returns:
        Lower and upper end of the ratio.

    Raises:
        ValueError: t is not above 0.

    Source: Donner and Zou 2012. Used in notebooks/42_demo_and_model_card.ipynb.
    """
    s, t, (low_s, high_s), (low_t, high_t) = student, teacher, student_ends, teacher_ends
    if not t > 0:
        raise ValueError(f"a ratio needs a teacher above 0, got {t}")

    def end(own: float, other: float, sign: int) -> float:
        below = other * (2 * t - other)
        if below <= 0:
            return sign * math.inf
        inside = (s * t) ** 2 - own * (2 * s - own) * below
        return (s * t + sign * math.sqrt(max(inside, 0.0))) / below

    return end(low_s, high_t, -1), end(high_s, low_t, 1)


def retention_rows(
    teacher: Sequence[Mapping[str, Any]], student: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Set a student's rows beside its teacher's: retention, and retention of what lies above chance.

    `retention` is 100 s / t and `corrected` is 100 (s - c) / (t - c), both with intervals. Where the teacher's own
    interval reaches chance or the majority class there is nothing to retain: `corrected` is left out, with a remark.

    Args:
        teacher: Rows of `suite.evaluate`.
        student: The same; tasks that only one of them has are left out.

    Returns:
        One row a task and metric, without ends that are unbounded, and the averages of zero-shot and probe rows.

    Raises:
        ValueError: No common row, or a row whose number of items or chance differs.

    Source: seed 003, Table 5.1; chance correction as in the course plan. See notebooks/42_demo_and_model_card.ipynb.
    """
    theirs = {(row["task"], row["metric"]): row for row in teacher}
    pairs = [(theirs[k], r) for r in student if (k := (r["task"], r["metric"])) in theirs]
    if not pairs:
        raise ValueError(
            "teacher and student have no task in common; evaluate both on the same tasks"
        )
    for t, s in pairs:
        if t["n"] != s["n"] or not math.isclose(t["chance"], s["chance"], abs_tol=1e-9):
            raise ValueError(
                f"{s['task']}: teacher and student were scored on different data "
                f"(n {t['n']} and {s['n']}, chance {t['chance']} and {s['chance']}); evaluate both again"
            )
    rows = [_row(t, s) for t, s in pairs]
    return rows + _averages(rows)


def size_rows(teacher: Mapping[str, float], student: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the rows of size, where less is better: parameters and FLOPs, in millions."""
    return [
        {
            "task": "size", "metric": f"million {name}", "teacher": teacher[name] / 1e6,
            "student": student[name] / 1e6, "retention": 100 * student[name] / teacher[name],
        }
        for name in ("parameters", "flops")
    ]  # fmt: skip


def _row(t: Mapping[str, Any], s: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "task": s["task"], "metric": s["metric"], "teacher": t["value"], "student": s["value"],
    }  # fmt: skip
    for prefix, chance in (("", 0.0), ("corrected ", s["chance"])):
        name = prefix.strip() or "retention"
        ours, his = ([r[k] - chance for k in ("value", "low", "high")] for r in (s, t))
        if prefix and t["low"] <= max(chance, t.get("majority") or 0.0):
            row["remark"] = FLOOR
        elif his[0] > 0:
            low, high = ratio_interval(ours[0], (ours[1], ours[2]), his[0], (his[1], his[2]))
            ends = {f"{prefix}low": 100 * low, f"{prefix}high": 100 * high}
            row |= {name: 100 * ours[0] / his[0]}
            row |= {key: end for key, end in ends.items() if math.isfinite(end)}
    return row


def _averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean of the ratios of classification rows, as the source averages; those at floor are left out."""
    averages = []
    for kind in AVERAGED:
        own = [row for row in rows if str(row["task"]).split()[0] == kind]
        kept = [row for row in own if "corrected" in row and "retention" in row]
        if len(own) > 1 and kept:
            means = {k: sum(r[k] for r in kept) / len(kept) for k in ("retention", "corrected")}
            averages.append(
                {"task": f"average {kind}", "metric": f"{len(kept)} of {len(own)} rows", **means}
            )
    return averages


def retention_table(rows: Sequence[Mapping[str, Any]], kind: str = "markdown") -> str:
    """Lay out the rows of `retention_rows`; unbounded ends are left empty."""
    return results_table(rows, [c for c in COLUMNS if any(c in row for row in rows)], kind=kind)


def compare_with_teacher(
    student: Subject, teacher: str, tasks: Sequence[str], folder: Path, again: bool = False
) -> str:
    """Score the teacher on the student's data and return the retention table, which is written too.

    Args:
        student: Already scored into `folder`.
        teacher: As `open_subject` takes it; "" for the one that the student's configuration names.
        tasks: Keys of `suite.TASKS`.
        folder: Where `evaluation.json` lies; gets `teacher_evaluation.json` and `retention.md`.
        again: Score again what is there.

    Raises:
        ValueError: The student has no teacher and none is named.
    """
    name = teacher or student.config.teacher
    if not name:
        raise ValueError(f"{student.name} was trained without a teacher; name one: --teacher clip")
    guide = open_subject(name, like=student)
    own = evaluate(student, tasks, folder, say=lambda line: None)
    his = evaluate(guide, tasks, folder, name=TEACHER_NAME, again=again)
    rows = size_rows(his["metrics"], own["metrics"]) + retention_rows(rows_of(his), rows_of(own))
    text = f"teacher {guide.name}, student {student.name}; per cent\n\n{retention_table(rows)}"
    write_atomic(folder / "retention.md", (text + "\n").encode())
    return text
