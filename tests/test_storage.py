"""The cache and the atomic writer: whole or absent, whatever happens in between."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from mmkd_lite import storage
from mmkd_lite.config import DataConfig

CONFIG = {"size": 3, "artist": "twemoji"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_arrays():
    generator = np.random.default_rng(0)
    return {
        "pictures": generator.integers(0, 255, (4, 3, 2), dtype=np.uint8).transpose(2, 0, 1),
        "available": np.array([True, False]),
        "mean": np.float32(0.5),
        "none": np.zeros((0, 3), np.int64),
    }


class Builder:
    """Counts how often it is asked to build."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return make_arrays()


def folder_of(kind="sprites", config=CONFIG):
    return storage.cache_root() / kind / storage.artefact_key(kind, config)


def files_below(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_build_once_then_load_the_same_writable_arrays():
    builder = Builder()
    built = storage.load_or_build("sprites", CONFIG, builder)
    loaded = storage.load_or_build("sprites", CONFIG, builder)
    assert builder.calls == 1
    assert list(loaded) == list(built) == sorted(make_arrays())
    for name, expected in make_arrays().items():
        for arrays in (built, loaded):
            np.testing.assert_array_equal(arrays[name], expected)
            assert arrays[name].dtype == expected.dtype and arrays[name].shape == expected.shape
            assert arrays[name].flags.writeable
    assert storage.sha256_of_arrays(built) == storage.sha256_of_arrays(loaded)


def test_key_depends_on_meaning_not_on_spelling():
    key = storage.artefact_key("a", {"x": 1, "y": (1, 2), "d": DataConfig()})
    assert key == storage.artefact_key("a", {"d": DataConfig(), "y": [1, 2], "x": np.int64(1)})
    others = [
        storage.artefact_key("b", {"x": 1, "y": (1, 2), "d": DataConfig()}),
        storage.artefact_key("a", {"x": 1.5, "y": (1, 2), "d": DataConfig()}),
        storage.artefact_key("a", {"x": 1, "y": (2, 1), "d": DataConfig()}),
        storage.artefact_key("a", {"x": 1, "y": (1, 2), "d": DataConfig(noise=0.1)}),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize("value", [float("nan"), object(), lambda: 0])
def test_key_refuses_what_has_no_fixed_spelling(value):
    with pytest.raises(ValueError):
        storage.artefact_key("a", {"x": value})


def test_key_refuses_a_kind_that_would_leave_the_cache():
    with pytest.raises(ValueError, match="kind"):
        storage.artefact_key("../a", {})


def test_arrays_hash_sees_name_type_shape_and_value():
    base = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float32(1)}
    changed = [
        {"c": base["a"], "b": base["b"]},
        {**base, "a": base["a"].astype(np.uint32)},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"][::-1]},
        {**base, "b": np.array([1], np.float32)},
    ]
    hashes = {storage.sha256_of_arrays(arrays) for arrays in [base, *changed]}
    assert len(hashes) == 6
    fortran = {"b": base["b"], "a": np.asfortranarray(base["a"])}
    assert storage.sha256_of_arrays(fortran) == storage.sha256_of_arrays(base)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_manifest(path):
    (path.parent / storage.MANIFEST).write_text("{ not json")


def manifest_without_checksum(path):
    (path.parent / storage.MANIFEST).write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_last_byte, damage_manifest, manifest_without_checksum, os.unlink],
)
def test_damaged_artefact_is_rebuilt_with_a_warning(damage):
    builder = Builder()
    storage.load_or_build("sprites", CONFIG, builder)
    damage(folder_of() / storage.ARRAYS)
    with pytest.warns(UserWarning, match="built again"):
        rebuilt = storage.load_or_build("sprites", CONFIG, builder)
    np.testing.assert_array_equal(rebuilt["pictures"], make_arrays()["pictures"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        storage.load_or_build("sprites", CONFIG, builder)
    assert builder.calls == 2


def count_and_build(folder):
    """In another process: ask for the artefact; leave a file for each time it was built."""
    os.environ["MMKD_CACHE"] = str(folder / "cache")

    def build():
        (folder / f"built-{os.getpid()}").touch()
        time.sleep(0.5)
        return make_arrays()

    arrays = storage.load_or_build("sprites", CONFIG, build)
    (folder / f"{storage.sha256_of_arrays(arrays)}-{os.getpid()}").touch()


def test_two_processes_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_and_build, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("built-*"))) == 1
    expected = storage.sha256_of_arrays(make_arrays())
    assert len(list(tmp_path.glob(f"{expected}-*"))) == 2


KILLED_WRITER = """
import os, signal, sys
import numpy as np
from mmkd_lite import storage
stage, calls, flush = sys.argv[1], [0], storage._flush
def dying_flush(path):
    calls[0] += 1
    if calls[0] == {"arrays": 1, "manifest": 3}[stage]:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)
storage._flush = dying_flush
storage.load_or_build("sprites", {"size": 3, "artist": "twemoji"}, lambda: {"x": np.ones(1000)})
"""


@pytest.mark.parametrize("stage", ["arrays", "manifest"])
def test_killed_in_the_middle_of_a_write_leaves_nothing_that_loads(stage, cache):
    run = subprocess.run([sys.executable, "-c", KILLED_WRITER, stage], timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    left = files_below(folder_of())
    assert any(name.endswith(storage.TEMPORARY) for name in left)
    assert storage.MANIFEST not in left
    builder = Builder()
    arrays = storage.load_or_build("sprites", CONFIG, builder)
    assert builder.calls == 1 and "pictures" in arrays
    assert files_below(folder_of()) == sorted([storage.ARRAYS, storage.MANIFEST])


def test_killed_while_replacing_a_file_leaves_the_old_one(tmp_path):
    target = storage.write_atomic(tmp_path / "weights.bin", b"old")
    code = (
        "import os, signal, sys\nfrom mmkd_lite import storage\n"
        "storage._flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_atomic(sys.argv[1], b'new' * 1000)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(target)], timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_no_space_left_names_the_folder_and_leaves_no_partial_file(monkeypatch, cache):
    def full_disk(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_flush", full_disk)
        with pytest.raises(OSError, match="no space left") as caught:
            storage.load_or_build("sprites", CONFIG, make_arrays)
    assert caught.value.errno == errno.ENOSPC
    assert str(folder_of()) in str(caught.value) and "MMKD_CACHE" in str(caught.value)
    assert [name for name in files_below(cache) if not name.endswith(".lock")] == []
    assert "pictures" in storage.load_or_build("sprites", CONFIG, make_arrays)


def test_interrupted_write_keeps_the_old_file_and_cleans_up(tmp_path):
    target = tmp_path / "notes.txt"
    storage.write_atomic(target, "first\n")
    with pytest.raises(KeyboardInterrupt), storage.atomic_file(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "first\n"
    assert files_below(tmp_path) == ["notes.txt"]


def test_a_build_that_fails_stores_nothing_and_frees_the_lock():
    def failing():
        raise RuntimeError("no artist")

    with pytest.raises(RuntimeError, match="no artist"):
        storage.load_or_build("sprites", CONFIG, failing)
    assert not folder_of().exists()
    assert "pictures" in storage.load_or_build("sprites", CONFIG, make_arrays)


def test_a_cache_that_cannot_be_made_says_what_to_do(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage.Path, "mkdir", refused)
    with pytest.raises(OSError, match=r"no right to write.*MMKD_CACHE"):
        storage.load_or_build("sprites", CONFIG, make_arrays)


def test_json_goes_round_and_refuses_nan(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü", "size": np.float32(0.5)}
    path = storage.write_json(tmp_path / "deep" / "value.json", value)
    assert storage.read_json(path) == {"b": [1, 2.5, None], "a": "ü", "size": 0.5}
    assert list(storage.read_json(path)) == ["b", "a", "size"]
    with pytest.raises(ValueError):
        storage.write_json(path, {"loss": float("nan")})
    assert storage.read_json(path)["a"] == "ü"


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        storage.read_json(path)


def test_file_hash_is_that_of_its_bytes(tmp_path):
    path = storage.write_atomic(tmp_path / "a", b"abc")
    # FIPS 180-2, appendix B.1: SHA-256 of "abc".
    assert storage.sha256_of_file(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
