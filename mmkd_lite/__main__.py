"""The command line: `python -m mmkd_lite COMMAND ...`; modules are imported when called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "reproduce": ("mmkd_lite.reproduce", "reproduce_command", "run the notebooks, report scores"),
    "train": ("mmkd_lite.train", "train_command", "train one method, or resume it"),
    "compare": ("mmkd_lite.compare", "compare_command", "same start, data, steps; several seeds"),
    "teachers": (
        "mmkd_lite.teacher_training",
        "teachers_command",
        "train the shipped teachers again",
    ),
    "baselines": (
        "mmkd_lite.standard_baselines",
        "baselines_command",
        "train what robustness is measured against",
    ),
    "evaluate": ("mmkd_lite.suite", "evaluate_command", "score one checkpoint on every task"),
    "card": ("mmkd_lite.card", "card_command", "write the model card of a checkpoint"),
    "demo": ("mmkd_lite.demo", "demo_command", "show a checkpoint at work in the browser"),
    "data": ("mmkd_lite.data.commands", "main", "build the emoji world, export it"),
    "refresh": ("mmkd_lite.refresh", "refresh_command", "run notebooks, store their outputs"),
}
"""Command name to the module and function behind it, which takes the remaining arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        arguments: The words after `python -m mmkd_lite`; those of this process when left out.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[name]
    try:
        return int(getattr(import_module(module), function)(rest) or 0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def usage() -> str:
    """Return the list of commands."""
    rows = "\n".join(f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items())
    return (
        f"usage: python -m mmkd_lite COMMAND ...\n\n{rows}\n\n"
        "python -m mmkd_lite COMMAND --help says more."
    )


if __name__ == "__main__":
    sys.exit(main())
