"""`python -m mmkd_lite data build | tokenizer | export`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mmkd_lite import storage
from mmkd_lite.config import DataConfig
from mmkd_lite.data import export, sprites, tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one data command.

    Args:
        argv: Words after `python -m mmkd_lite data`; default those of the command line.

    Returns:
        Exit status, 0 if all went well.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    """Options of the three commands."""
    parser = argparse.ArgumentParser(prog="python -m mmkd_lite data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="build | tokenizer | export")
    build = commands.add_parser("build", help="draw the sprites into the cache")
    build.set_defaults(run=_build)
    words = commands.add_parser("tokenizer", help="train the WordPiece of the emoji world again")
    words.add_argument("--out", default="", help="file to write; default: in the cache")
    words.add_argument("--size", type=int, default=tokenizer.VOCABULARY_SIZE, help="most ids")
    words.add_argument(
        "--replace",
        action="store_true",
        help="replace the committed file; then train the shipped text teachers again",
    )
    words.set_defaults(run=_tokenizer)
    coco = commands.add_parser("export", help="write emoji scenes as a real data set")
    coco.add_argument("--format", choices=("coco",), default="coco", help="layout to write")
    coco.add_argument("--out", required=True, help="new folder")
    for split, count in zip(export.SPLITS, (512, 64, 100, 100), strict=True):
        coco.add_argument(f"--{split}", type=int, default=count, help=f"images (default {count})")
    coco.add_argument("--image-size", type=int, default=64, help="side in pixels (default 64)")
    coco.add_argument("--world-seed", type=int, default=0, help="seed of the world (default 0)")
    coco.set_defaults(run=_export)
    return parser


def _build(_: argparse.Namespace) -> int:
    """Draw every artist's sprites (or load them) and print their checksums."""
    for artist in sprites.ARTISTS:
        start = time.perf_counter()
        try:
            pixels, available = sprites.sprites(artist)
        except ModuleNotFoundError as error:
            print(f"{artist:<10} missing: {error}")
            continue
        checksum = storage.sha256_of_arrays({"pixels": pixels, "available": available})
        seconds = time.perf_counter() - start
        print(f"{artist:<10} {available.sum():5d} concepts  {seconds:5.1f} s  sha256 {checksum}")
    return 0


def _tokenizer(arguments: argparse.Namespace) -> int:
    """Train a tokenizer on the captions of the emoji world."""
    default = storage.cache_root() / "tokenizer.json"
    path = tokenizer.EMOJI_FILE if arguments.replace else Path(arguments.out or default)
    trained = tokenizer.train_tokenizer(path, tokenizer.caption_corpus(), arguments.size)
    print(f"{path}: {trained.vocab_size} ids, sha256 {trained.fingerprint}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    """Write emoji scenes in the layout of a real data set."""
    config = DataConfig(image_size=arguments.image_size, world_seed=arguments.world_seed)
    counts = {split: getattr(arguments, split) for split in export.SPLITS}
    path = export.export_coco(arguments.out, config, counts)
    print(f"{path}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    return 0
