"""Prompt templates as data: named sets in `data/templates.json`, and the hash that protocol strings carry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmkd_lite.storage import read_json, sha256_of_bytes

TEMPLATES_FILE = Path(__file__).parents[2] / "data" / "templates.json"


def template_set(name: str = "emoji", path: str | Path = TEMPLATES_FILE) -> tuple[str, ...]:
    """Return one named set of templates.

    Args:
        name: A key of "sets" in the file.
        path: Another file of the same form.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown set (the valid ones are listed), or a template without exactly one "{}".
    """
    sets = read_json(path)["sets"]
    if name not in sets:
        raise ValueError(f"no template set {name!r} in {Path(path).name}; sets: {', '.join(sets)}")
    return check_templates(sets[name])


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return the templates, each of which has one "{}" for the class name.

    Raises:
        ValueError: None, one text instead of a list, or a template with no or several "{}"; those are named.
    """
    if isinstance(templates, str):
        raise ValueError(f"templates must be a list of sentences, got one text: {templates!r}")
    broken = [template for template in templates if template.count("{}") != 1]
    if broken or not templates:
        raise ValueError(f"every template needs one '{{}}' for the class name; not so: {broken}")
    return tuple(templates)


def templates_hash(templates: Sequence[str] = ()) -> str:
    """Return "count:first eight digits of the SHA-256", for protocol strings; of the emoji set by default."""
    chosen = templates or template_set()
    return f"{len(chosen)}:{sha256_of_bytes(chr(10).join(chosen).encode())[:8]}"
