"""`setup`, the first cell of every notebook."""

import re

import pytest
import torch

from mmkd_lite.notebook import LIBRARIES, device_line, repository_root, setup, versions


@pytest.fixture(autouse=True)
def no_scale_in_the_environment(monkeypatch):
    monkeypatch.delenv("MMKD_SCALE", raising=False)


@pytest.fixture(autouse=True)
def printing_as_before():
    yield
    torch.set_printoptions(profile="default")


def test_it_resolves_settings_and_seeds(tmp_path, capsys):
    context = setup("tiny", 3, "cpu", str(tmp_path), "", "train.steps=2")
    first = torch.rand(2)
    assert (context.scale, context.seed, context.device) == ("tiny", 3, "cpu")
    assert context.out_dir == tmp_path and context.data_dir is None
    assert context.overrides == "train.steps=2"
    setup("tiny", 3, "cpu")
    assert torch.equal(torch.rand(2), first)
    printed = capsys.readouterr().out
    assert all(name in printed for name in LIBRARIES)
    assert not re.search(r"/\w+/", printed)


def test_the_environment_beats_the_parameter(monkeypatch):
    monkeypatch.setenv("MMKD_SCALE", "tiny")
    assert setup("laptop").scale == "tiny"


def test_full_scale_stops_with_the_missing_loader():
    with pytest.raises(ValueError, match="lacks the CIFAR-10 loader"):
        setup("full", full_scale_needs="CIFAR-10 loader")
    assert setup("full").scale == "full"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_device_is_named():
    with pytest.raises(ValueError, match="'cuda' is not available here; use DEVICE=cpu"):
        setup("tiny", 0, "cuda")


def test_the_root_holds_the_project():
    assert all((repository_root() / name).is_dir() for name in ("mmkd_lite", "notebooks", "data"))


def test_versions_and_device_name_no_machine():
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    assert re.fullmatch(r"cpu \(\d+ threads?\)", device_line("cpu"))
