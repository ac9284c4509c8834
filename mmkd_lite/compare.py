"""Compare methods fairly: the same start, data, steps and seeds, one result file a run.

`python -m mmkd_lite compare shre shre:contrast_only shre:kl_only --seeds 5` trains every variant
from every seed, scores it, and writes `data/results/compare/<variant>__<scale>__seed<k>.json`.
A file made with the same settings on the same data is kept, so an interrupted comparison goes on
where it stopped; `comparison.py` reads the files back.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmkd_lite.comparison import ALL, FOLDER, Comparison, comparison_tables, file_stem
from mmkd_lite.config import RunConfig, differing_fields, parse_overrides, resolve, to_dict
from mmkd_lite.methods import METHODS
from mmkd_lite.results import RESULTS_FOLDER, configuration_hash, read_result, write_result
from mmkd_lite.runs import Run, effective_settings
from mmkd_lite.scoring import evaluate_run, gallery_checksum, score_run
from mmkd_lite.step_bar import duration
from mmkd_lite.train import fit

__all__ = ["Variant", "compare", "compare_command", "evaluate_run", "parse_variant"]

Measure = Callable[[Run], Mapping[str, Any]]
SHARED = ("data", "train.steps", "train.batch_size")


@dataclass(frozen=True)
class Variant:
    """A method with named changes, such as "shre:kl_only".

    Attributes:
        label: What the user wrote.
        method: Name in `METHODS`.
        overrides: Dotted settings of the variant.
    """

    label: str
    method: str
    overrides: Mapping[str, Any]


def parse_variant(label: str) -> Variant:
    """Read "method" or "method:variant".

    Raises:
        ValueError: Unknown method or variant; the valid ones are listed.
    """
    method, _, name = label.partition(":")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid methods: {', '.join(METHODS)}")
    variants = METHODS[method].variants
    if name and name not in variants:
        listed = ", ".join(f"{method}:{known}" for known in variants) or "none"
        raise ValueError(f"unknown variant {label!r}; valid variants: {listed}")
    return Variant(label, method, variants[name] if name else {})


def compare(
    variants: Sequence[str],
    seeds: int | Sequence[int] = 5,
    scale: str = "laptop",
    overrides: str | Mapping[str, Any] = "",
    *,
    device: str = "cpu",
    data_dir: str = "",
    out: str | Path | None = None,
    measure: Measure = score_run,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Train and score every variant from every seed, seed by seed.

    Args:
        variants: Such as ["shre", "shre:kl_only"]; the first is what the others are compared with.
        seeds: How many (0, 1, ...) or which.
        scale: "tiny", "laptop" or "full".
        overrides: Dotted settings for all variants, before each variant's own.
        device: A torch device name.
        data_dir: Folder of real data.
        out: Folder of result files, `data/results` by default.
        measure: Scores a finished run; nested numbers.
        say: Told about progress and the time left, one line at a time.

    Returns:
        What `comparison.read_comparison` would read. Diverged runs are reported, not included.

    Raises:
        ValueError: Unknown names, or variants that differ in data, steps or batch size.
    """
    chosen = [parse_variant(label) for label in dict.fromkeys(variants)]
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not chosen or not numbers:
        raise ValueError("a comparison needs at least one variant and one seed")
    shared = parse_overrides(overrides)
    jobs = []
    for seed in numbers:
        for variant in chosen:
            settings = {**shared, **variant.overrides}
            config = resolve(
                variant.method, scale, settings, seed=seed, device=device, data_dir=data_dir
            )
            jobs.append((variant, config))
    _require_equal_budgets(jobs)
    folder = Path(out or RESULTS_FOLDER)
    records: dict[str, list[dict[str, Any]]] = {variant.label: [] for variant in chosen}
    clock = _Clock(len(jobs), say)
    for variant, config in jobs:
        record = _one_run(variant, config, folder, measure, clock)
        if record is not None:
            records[variant.label].append(record)
    return Comparison(jobs[0][1].scale, records)


def _one_run(
    variant: Variant, config: RunConfig, folder: Path, measure: Measure, clock: _Clock
) -> dict[str, Any] | None:
    """Return the stored result of a run, or train, score and store it; None if it diverged."""
    stem = file_stem(variant.label, config.scale, config.seed)
    settings, checksum = effective_settings(config), gallery_checksum(config)
    stored = _stored(stem, folder)
    known = (stored.get("configuration_hash"), stored.get("data_checksum"))
    if known == (configuration_hash(settings), checksum):
        clock.tick(variant, config, "kept", worked=False)
        return stored
    clock.say(f"{clock.place} {variant.label}, seed {config.seed}: training")
    try:
        run = fit(config)
    except FloatingPointError as error:
        clock.tick(variant, config, f"diverged: {error}")
        return None
    started = time.perf_counter()
    metrics = {**measure(run), "training": _training_summary(run)}
    metrics["training"]["scoring_seconds"] = time.perf_counter() - started
    write_result(
        stem,
        configuration=settings,
        metrics=metrics,
        seed=config.seed,
        seconds=run.seconds,
        device="cuda" if config.device.startswith("cuda") else config.device,
        command=f"python -m mmkd_lite compare {variant.label} --scale {config.scale}",
        data_checksum=checksum,
        folder=folder,
    )
    clock.tick(variant, config, f"done in {duration(run.seconds)}")
    return read_result(stem, folder)


def _stored(stem: str, folder: Path) -> dict[str, Any]:
    """Return an earlier result; nothing where there is none or it cannot be read."""
    try:
        return read_result(stem, folder)
    except (FileNotFoundError, ValueError):
        return {}


def _training_summary(run: Run) -> dict[str, float]:
    """Return the first and last logged value of every loss term, and the number of steps."""
    rows = run.metrics()
    if not rows:
        return {}
    terms = [key for key, value in rows[0].items() if isinstance(value, float)]
    ends = {
        f"{end}_{term}": row[term]
        for end, row in (("first", rows[0]), ("last", rows[-1]))
        for term in terms
        if term in row
    }
    return {"steps": rows[-1]["step"], **ends}


def _require_equal_budgets(jobs: Sequence[tuple[Variant, RunConfig]]) -> None:
    """Refuse variants that see other data, or more of it, than the first one."""
    first_variant, first = jobs[0]
    for variant, config in jobs:
        fields = differing_fields({**to_dict(first), "seed": 0}, {**to_dict(config), "seed": 0})
        unfair = [field for field in fields if field.startswith(SHARED)]
        if unfair:
            raise ValueError(
                f"{variant.label} and {first_variant.label} differ in {', '.join(unfair)}, which "
                "would decide the comparison; set these for all with --set KEY=VALUE"
            )


class _Clock:
    """Counts runs and tells how long the remaining ones will take."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.done, self.say = total, 0, say
        self.worked, self.seconds, self.since = 0, 0.0, time.perf_counter()

    @property
    def place(self) -> str:
        """Number of the current run, as "[3/15]"."""
        return f"[{self.done + 1}/{self.total}]"

    def tick(self, variant: Variant, config: RunConfig, text: str, worked: bool = True) -> None:
        """Count a run as over and say so."""
        now = time.perf_counter()
        if worked:
            self.worked, self.seconds = self.worked + 1, self.seconds + now - self.since
        self.since = now
        line = f"{self.place} {variant.label}, seed {config.seed}: {text}"
        self.done += 1
        left = self.total - self.done
        if left and self.worked:
            line += f"; about {duration(self.seconds / self.worked * left)} left"
        self.say(line)


def compare_command(arguments: Sequence[str]) -> int:
    """Compare methods: `python -m mmkd_lite compare METHOD[:VARIANT] ... --seeds N`.

    Returns:
        0; 1 if a run diverged.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mmkd_lite compare",
        description="Train and score methods from the same start, data, steps and seeds.",
    )
    parser.add_argument(
        "variants",
        nargs="+",
        metavar="METHOD[:VARIANT]",
        help=f"or 'all', one table of every method: {' '.join(ALL)}",
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds: 0, 1, ...")
    parser.add_argument("--scale", default="laptop", help="tiny, laptop or full")
    parser.add_argument("--set", default="", metavar="KEY=VALUE,...", help="settings for all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", default="", help="folder of real data")
    parser.add_argument("--out", default=None, help=f"folder of results; {FOLDER}/ below it")
    asked = parser.parse_args(list(arguments))
    if asked.variants == ["all"]:
        asked.variants = list(ALL)
    found = compare(
        asked.variants,
        asked.seeds,
        asked.scale,
        asked.set,
        device=asked.device,
        data_dir=asked.data_dir,
        out=asked.out,
    )
    print("\n" + comparison_tables(found))
    expected = len(dict.fromkeys(asked.variants)) * asked.seeds
    return 0 if sum(map(len, found.records.values())) == expected else 1
