"""Files that are either whole or absent: atomic writes and the content-addressed cache.

An artefact is a dictionary of arrays that is costly to make and cheap to keep (drawn sprites, a
teacher's targets). Its address is the SHA-256 of the configuration that makes it, so a changed
configuration never meets an old file:

    data/cache/<kind>/<key>/arrays.safetensors    the arrays
    data/cache/<kind>/<key>/manifest.json         their SHA-256, shapes and the configuration

The manifest is written last. A process killed at any moment therefore leaves either the old
artefact, the new one, or something that does not load, never a half of each.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

ARRAYS = "arrays.safetensors"
MANIFEST = "manifest.json"
TEMPORARY = ".partial"
Arrays = dict[str, np.ndarray]


class DamagedArtefact(Exception):
    """An artefact is there but is not what its manifest promises."""


def cache_root() -> Path:
    """Folder of the cache: environment variable MMKD_CACHE, else `data/cache` of the project."""
    chosen = os.environ.get("MMKD_CACHE", "")
    return Path(chosen).expanduser() if chosen else Path(__file__).parents[1] / "data" / "cache"


def sha256_of_bytes(content: bytes | bytearray | memoryview) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal SHA-256 of named arrays: names, types, shapes and values, in order of name.

    Args:
        arrays: Any number of arrays of any shape; memory layout does not matter.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        header = json.dumps([name, array.dtype.str, list(np.shape(arrays[name]))])
        digest.update(header.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, dataclasses as objects.

    Args:
        value: Mappings, sequences, dataclasses, paths, NumPy scalars and plain JSON values.

    Raises:
        ValueError: The value holds something that has no fixed spelling, or a NaN.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Plain JSON form of the few other types that configurations hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise ValueError(
        f"a configuration cannot hold a {type(value).__name__} ({value!r}): it has no fixed "
        "spelling to make a key from; use numbers, strings, lists and mappings"
    )


def artefact_key(kind: str, config: Mapping[str, Any]) -> str:
    """Address of an artefact: SHA-256 over its kind and the canonical JSON of its configuration.

    Args:
        kind: Family of the artefact, which is also its folder, as "sprites" or "targets".
        config: Everything the arrays depend on, versions of packages included.
    """
    if not kind or not all(letter.isalnum() or letter in "-_" for letter in kind):
        raise ValueError(f"kind must be made of letters, digits, - and _, got {kind!r}")
    return sha256_of_bytes(f"{kind}:{canonical_json(config)}".encode())


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; on success it is flushed to disk and renamed.

    On any exception, Ctrl-C included, the partial file is removed and `path` is what it was.

    Args:
        path: The file to make or replace; its folder is made if need be.

    Raises:
        OSError: No space or no right to write; the message names the folder and the remedy.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        _flush(path.parent)  # the new name itself survives a power cut


def _flush(path: Path) -> None:
    """Force a file or (POSIX) a folder from the system's memory to the disk."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: OSError, path: Path) -> OSError:
    """The same error with the folder and what to do in its message.

    Args:
        error: What the system said while `path` was written.
        path: The file or folder that was to be made.
    """
    where = f"{path.name} in {path.parent}"
    remedy = "point MMKD_CACHE (cache) or OUT_DIR (runs) to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next((p for p in path.absolute().parents if p.is_dir()), Path.cwd())
        free = shutil.disk_usage(there).free / 1e6
        text = f"no space left to write {where} ({free:.0f} MB free): free some"
        text = f"{text}, or {remedy} another disk"
        return OSError(error.errno, text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = f"no right to write {where}: {remedy} a folder of your own"
        return OSError(error.errno, text)
    return error


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Write a whole file or nothing: beside it first, flushed to disk, then renamed.

    Args:
        path: The file to make or replace.
        content: Bytes, or text that is written as UTF-8 without changing line ends.
    """
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as partial, open(partial, "wb") as file:
        file.write(data)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as indented JSON, atomically; keys keep their order.

    Raises:
        ValueError: The value holds a NaN, an infinity or a type without a JSON form.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return write_atomic(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message names the file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make or download it again") from None


def load_or_build(kind: str, config: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """Arrays of an artefact: from the cache if they are there and whole, else built and stored.

    Two processes that ask at once build once: the second waits for the first. The checksum is
    verified on every load; a damaged artefact is rebuilt with a warning.

    Args:
        kind: Family of the artefact.
        config: Everything the arrays depend on; see `artefact_key`.
        build: Makes the arrays; called at most once, in this process.

    Raises:
        OSError: The cache cannot be written (no space, no right).
    """
    folder = cache_root() / kind / artefact_key(kind, config)
    with contextlib.suppress(DamagedArtefact):  # looked at again below, alone with the files
        if (found := _load(folder)) is not None:
            return found
    with _locked(folder):
        try:
            if (found := _load(folder)) is not None:
                return found
        except DamagedArtefact as damage:
            warnings.warn(f"cached {kind} is built again: {damage}", stacklevel=2)
        return _store(folder, kind, config, build())


def load_cached(folder: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of the artefact in a folder, verified, and the configuration that made it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    try:
        found = _load(folder)
    except DamagedArtefact as damage:
        raise ValueError(f"{damage}; make it again") from None
    if found is None:
        raise FileNotFoundError(f"{folder} holds no cached arrays (no {MANIFEST})")
    return found, dict(read_json(folder / MANIFEST)["config"])


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of one artefact; another process or thread that wants it waits."""
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise explained(error, folder) from error
    try:
        yield
    finally:
        lock.release()


def _load(folder: Path) -> Arrays | None:
    """Arrays of a stored artefact after checking them; None where none was ever finished."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
        content = (folder / ARRAYS).read_bytes()
        expected = manifest["sha256"]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DamagedArtefact(f"{folder} cannot be read ({error})") from None
    if sha256_of_bytes(content) != expected:
        raise DamagedArtefact(f"the checksum of {folder / ARRAYS} is not the one in its manifest")
    try:
        return dict(sorted(arrays_from_bytes(content).items()))
    except SafetensorError as error:
        raise DamagedArtefact(f"{folder / ARRAYS} is not a safetensors file ({error})") from None


def _store(folder: Path, kind: str, config: Mapping[str, Any], arrays: Arrays) -> Arrays:
    """Write arrays, then the manifest that makes them valid; return the arrays."""
    for left_over in folder.glob(f".*{TEMPORARY}"):  # of killed writers: we hold the lock
        left_over.unlink(missing_ok=True)
    arrays = {name: np.array(array, order="C", copy=None) for name, array in sorted(arrays.items())}
    content = arrays_to_bytes(arrays)
    manifest = {
        "kind": kind,
        "config": json.loads(canonical_json(config)),
        "sha256": sha256_of_bytes(content),
        "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
    }
    write_atomic(folder / ARRAYS, content)
    write_json(folder / MANIFEST, manifest)
    return arrays
