"""Comparisons: equal budgets, resumable run by run, tables with intervals, one real tiny run."""

import json
import shutil

import numpy as np
import pytest
import torch

from mmkd_lite import compare as compare_module
from mmkd_lite import scoring
from mmkd_lite.compare import compare, compare_command, parse_variant
from mmkd_lite.comparison import (
    Comparison,
    accuracy_rows,
    chance_row,
    comparison_tables,
    difference_rows,
    file_stem,
    gallery_names,
    read_comparison,
    score_rows,
)
from mmkd_lite.config import from_dict, resolve
from mmkd_lite.data.scenes import Gallery
from mmkd_lite.evaluate import retrieval
from mmkd_lite.methods import build
from mmkd_lite.results import read_results

VARIANTS = ["shre", "shre:contrast_only", "shre:kl_only"]
TINY = {"teacher": "random-cnn", "data.gallery_images": 12, "image.start": "", "text.start": ""}


class FakeRun:
    """A run whose scores depend on the seed and the weights of the losses."""

    seconds = 2.5

    def __init__(self, config):
        self.config = config

    def metrics(self):
        return [{"step": 1, "loss": 4.0, "kl_text": 1.5}, {"step": 8, "loss": 2.0, "kl_text": 1.0}]


def fake_scores(run):
    level = 10 * run.config.weights["contrast"] + run.config.weights["kl_text"] + run.config.seed
    image = torch.eye(4)
    scores = retrieval(image, image.repeat_interleave(2, 0), [0, 0, 1, 1, 2, 2, 3, 3])
    keys = ("i2t_r1", "t2i_r1", "mean_recall")
    near = {**scores, **{key: level / 2 for key in keys}}
    return {"composition": {**scores, **{key: level for key in keys}}, "near": near}


@pytest.fixture
def faked(monkeypatch):
    """Replace training and drawing; returns the list of configurations that were trained."""
    trained = []

    def fit(config):
        trained.append(config)
        return FakeRun(config)

    monkeypatch.setattr(compare_module, "fit", fit)
    monkeypatch.setattr(compare_module, "gallery_checksum", lambda config: "gallery-1")
    return trained


def run(folder, variants=VARIANTS, seeds=3, **options):
    said = []
    found = compare(
        variants, seeds, "tiny", TINY, out=folder, measure=fake_scores, say=said.append, **options
    )
    return found, said


# ---------------------------------------------------------------- names and budgets


def test_variants_are_methods_with_named_changes():
    plain, changed = parse_variant("shre"), parse_variant("shre:kl_only")
    assert plain.overrides == {} and changed.method == "shre"
    assert changed.overrides == {"weights.contrast": 0.0}
    with pytest.raises(ValueError, match=r"unknown method 'sher'; valid methods: .*shre"):
        parse_variant("sher")
    with pytest.raises(ValueError, match=r"valid variants: .*shre:kl_only"):
        parse_variant("shre:kl")


def test_every_variant_runs_from_every_seed_with_equal_budget(tmp_path, faked):
    run(tmp_path)
    assert [(c.seed, c.weights["contrast"], c.weights["kl_text"]) for c in faked] == [
        (seed, contrast, kl)
        for seed in (0, 1, 2)
        for contrast, kl in ((1.0, 0.5), (1.0, 0.0), (0.0, 0.5))
    ]
    assert len({(c.data, c.train, c.image, c.text, c.teacher) for c in faked}) == 1


def test_settings_for_all_do_not_undo_a_variant(tmp_path, faked):
    settings = {**TINY, "weights.contrast": 2.0, "weights.kl_text": 0.25}
    compare(VARIANTS[::2], 1, "tiny", settings, out=tmp_path, measure=fake_scores, say=len)
    assert [c.weights["contrast"] for c in faked] == [2.0, 0.0]
    assert [c.weights["kl_text"] for c in faked] == [0.25, 0.25]


def test_variants_of_one_seed_start_from_equal_weights(tmp_path, faked):
    run(tmp_path, seeds=2)
    states = [build(config).state_dict() for config in (faked[0], faked[1], faked[3])]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_unequal_budgets_are_refused(tmp_path, faked, monkeypatch):
    variants = {"long": {"train.steps": 99}, "easy": {"data.concepts": 20}}
    monkeypatch.setattr(compare_module.METHODS["shre"], "variants", variants)
    for name, field in (("long", "train.steps"), ("easy", "data.concepts")):
        with pytest.raises(ValueError, match=f"shre:{name} and shre differ in {field}"):
            run(tmp_path, ["shre", f"shre:{name}"])
    assert not faked and not list(tmp_path.iterdir())


def test_nothing_to_compare(tmp_path, faked):
    for variants, seeds in (([], 2), (["shre"], 0)):
        with pytest.raises(ValueError, match="at least one variant and one seed"):
            run(tmp_path, variants, seeds)


# ---------------------------------------------------------------- files and resuming


def test_one_file_a_run_holds_what_made_it(tmp_path, faked):
    run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "compare").iterdir())
    assert len(names) == 9 and names[0] == "shre-contrast_only__tiny__seed0.json"
    record = json.loads((tmp_path / "compare" / "shre-kl_only__tiny__seed2.json").read_text())
    assert record["seed"] == 2 and record["seconds"] == 2.5 and record["device"] == "cpu"
    assert record["data_checksum"] == "gallery-1"
    assert record["configuration"]["weights"]["contrast"] == 0
    assert from_dict(record["configuration"]).train.steps == faked[0].train.steps
    assert record["metrics"]["composition"]["protocol"].startswith("retrieval/any-hit/")
    training = record["metrics"]["training"]
    assert training["steps"] == 8 and training["first_kl_text"] == 1.5
    assert training["last_loss"] == 2.0
    assert record["command"] == "python -m mmkd_lite compare shre:kl_only --scale tiny"


def test_an_interrupted_comparison_goes_on(tmp_path, faked, monkeypatch):
    calls = []

    def stop_at_the_fifth(run):
        calls.append(run)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fake_scores(run)

    with pytest.raises(KeyboardInterrupt):
        compare(VARIANTS, 3, "tiny", TINY, out=tmp_path, measure=stop_at_the_fifth, say=len)
    assert len(list((tmp_path / "compare").iterdir())) == 4
    faked.clear()
    found, said = run(tmp_path)
    assert len(faked) == 5 and sum("kept" in line for line in said) == 4
    assert found == read_comparison(VARIANTS, "tiny", tmp_path)
    faked.clear()
    run(tmp_path)
    assert not faked


def test_other_settings_or_other_data_are_run_again(tmp_path, faked, monkeypatch):
    run(tmp_path, ["shre"], 1)
    compare(["shre"], 1, "tiny", {**TINY, "train.steps": 9}, out=tmp_path, measure=fake_scores)
    assert len(faked) == 2
    monkeypatch.setattr(compare_module, "gallery_checksum", lambda config: "gallery-2")
    compare(["shre"], 1, "tiny", {**TINY, "train.steps": 9}, out=tmp_path, measure=fake_scores)
    assert len(faked) == 3
    path = tmp_path / "compare" / "shre__tiny__seed0.json"
    path.write_text(path.read_text()[:100])  # a damaged file
    run(tmp_path, ["shre"], 1)
    assert len(faked) == 4


def test_progress_tells_the_place_and_the_time_left(tmp_path, faked):
    _, said = run(tmp_path, ["shre"], 2)
    assert said[0] == "[1/2] shre, seed 0: training"
    assert said[1].startswith("[1/2] shre, seed 0: done in 2s; about ") and " left" in said[1]
    assert "left" not in said[-1]


def test_a_diverged_run_is_reported_and_the_others_go_on(tmp_path, faked, monkeypatch):
    def fit(config):
        if config.seed == 1:
            raise FloatingPointError("loss is NaN at step 3")
        return FakeRun(config)

    monkeypatch.setattr(compare_module, "fit", fit)
    found, said = run(tmp_path, ["shre", "shre:kl_only"], 3)
    assert [record["seed"] for record in found.records["shre"]] == [0, 2]
    assert any("diverged: loss is NaN at step 3" in line for line in said)
    assert "no run finished" in comparison_tables(Comparison("tiny", {"shre": []}))


# ---------------------------------------------------------------- reading


def test_tables_hold_intervals_chance_and_differences(tmp_path, faked):
    found, _ = run(tmp_path)
    assert gallery_names(found) == ["composition", "near"]
    assert found.values("shre", "composition.mean_recall") == {0: 10.5, 1: 11.5, 2: 12.5}
    rows = {row["variant"]: row for row in score_rows(found)}
    mean = rows["shre"]["mean recall"]
    assert mean.mean == 11.5 and mean.high - mean.mean == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert score_rows(found, "near")[0]["mean recall"].mean == 5.75
    own = found.difference_of_keys("shre", "composition.i2t_r1", "near.i2t_r1")
    assert own.mean == pytest.approx(5.75) and own.n == 3
    assert chance_row(found)["t2i R@1"] == pytest.approx(25.0)
    against = {row["variant"]: row for row in difference_rows(found)}
    assert against["shre:kl_only"]["difference"].mean == pytest.approx(-10.0)
    assert against["shre:kl_only"]["verdict"] == "lower"
    assert against["shre:contrast_only"]["difference"].mean == pytest.approx(-0.5)
    text = comparison_tables(found)
    for words in ("| shre:kl_only |", "| chance |", "smallest detectable", "[", "| near |"):
        assert words in text, words
    assert comparison_tables(found, kind="html").count("<table>") == 3


def test_committed_comparison_names_its_command(tmp_path, faked):
    run(tmp_path)
    found = read_comparison(VARIANTS[:2], "tiny", tmp_path)
    assert found.source == (
        "committed, 3 seeds, python -m mmkd_lite compare shre shre:contrast_only "
        "--seeds 3 --scale tiny"
    )
    with pytest.raises(FileNotFoundError, match="make them with: python -m mmkd_lite compare"):
        read_comparison(["shre:one_layer"], "tiny", tmp_path)
    some = read_comparison(["shre:one_layer", *VARIANTS[:1]], "tiny", tmp_path, partial=True)
    assert list(some.records) == VARIANTS[:1]
    with pytest.raises(FileNotFoundError, match="no results of 'shre:one_layer'"):
        read_comparison(["shre:one_layer"], "tiny", tmp_path, partial=True)
    with pytest.raises(ValueError, match=r"no 'middle' on the way to 'middle\.i2t_r1'"):
        found.values("shre", "middle.i2t_r1")
    with pytest.raises(ValueError, match="no runs of 'psd'; there are: shre, shre:contrast_only"):
        found.values("psd", "seconds")


def test_one_variant_does_not_read_the_files_of_another(tmp_path, faked):
    run(tmp_path)
    assert len(read_comparison(["shre"], "tiny", tmp_path).records["shre"]) == 3
    assert file_stem("shre:kl_only", "laptop", 4) == "compare/shre-kl_only__laptop__seed4"


def test_command_fails_when_a_run_diverged(tmp_path, monkeypatch):
    def fit(config):
        raise FloatingPointError("loss is NaN")

    monkeypatch.setattr(compare_module, "fit", fit)
    monkeypatch.setattr(compare_module, "gallery_checksum", lambda config: "")
    words = ["shre", "--seeds=1", "--scale=tiny", "--set=teacher=random-cnn"]
    assert compare_command([*words, f"--out={tmp_path}"]) == 1


# ---------------------------------------------------------------- scoring, for real


class Perfect:
    """A method whose two encoders agree about the pictures of a made-up gallery."""

    def __init__(self, width):
        self.basis = torch.eye(width)

    def encode_image(self, images):
        return self.basis[(images[:, 0, 0, 0] * 255).round().long()]

    def encode_text(self, tokens):
        return self.basis[tokens[:, 1]]


def made_up_gallery(monkeypatch):
    """Four pictures, two captions each; caption 0 is also true of picture 1."""
    images = np.zeros((4, 3, 2, 2), dtype=np.uint8)
    images[:, 0] = np.arange(4)[:, None, None]
    owner = np.repeat(np.arange(4), 2)
    relevance = owner[:, None] == np.arange(4)
    relevance[0, 1] = True
    shown = Gallery(images, [f"{o}" for o in owner], owner, relevance, "toy")
    monkeypatch.setattr(scoring, "galleries", lambda config: {"toy": shown, "toy_far": shown})

    class Pairs:
        class tokenizer:
            @staticmethod
            def encode(captions, length):
                first = [1 if row == 0 else int(c) for row, c in enumerate(captions)]
                return torch.tensor([[2, token] for token in first])  # caption 0 reads like 1

    monkeypatch.setattr(scoring, "open_pairs", lambda config: Pairs)


def test_scores_by_id_by_truth_and_with_one_caption(monkeypatch):
    made_up_gallery(monkeypatch)
    monkeypatch.setattr(scoring, "score_look_alikes", lambda method, config: {"within_pairs": 7})
    config = resolve("shre", "tiny", TINY)
    scores = scoring.score_method(Perfect(4), config)
    names = ["toy", "toy_by_truth", "toy_one_caption", "toy_far", "look_alikes"]
    assert list(scores) == names and scores["look_alikes"]["within_pairs"] == 7
    assert scores["toy"]["t2i_r1"] == pytest.approx(87.5)  # caption 0 finds picture 1: wrong by id
    assert scores["toy_by_truth"]["t2i_r1"] == 100  # and right by truth
    assert scores["toy_one_caption"]["n_texts"] == 4
    assert scores["toy_one_caption"]["t2i_r1"] == 75
    run = type("R", (), {"config": config, "load_method": lambda self: Perfect(4)})()
    assert scoring.evaluate_run(run) == scores["toy"] == scoring.evaluate_run(run, "toy_far")
    with pytest.raises(ValueError, match="unknown gallery 'near'; valid here: toy, toy_far"):
        scoring.evaluate_run(run, "near")


def test_real_comparison_at_tiny_scale(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMKD_RUNS", str(tmp_path / "runs"))
    settings = ",".join(f"{key}={value}" for key, value in TINY.items()) + ",train.steps=2"
    words = ["shre", "shre:kl_only", "--seeds=1", "--scale=tiny", f"--set={settings}"]
    assert compare_command([*words, f"--out={tmp_path}"]) == 0
    assert "| shre:kl_only |" in capsys.readouterr().out
    found = read_comparison(["shre", "shre:kl_only"], "tiny", tmp_path)
    names = ["composition", "composition_by_truth", "composition_one_caption", "near", "far"]
    assert gallery_names(found) == names
    scores = found.records["shre"][0]["metrics"]
    assert scores["look_alikes"]["within_pairs"] > 0
    assert all(scores[name]["n_images"] == 12 for name in names)
    assert scores["composition_by_truth"]["i2t_r10"] >= scores["composition"]["i2t_r10"]
    assert scores["composition"]["chance_t2i_r1"] == pytest.approx(100 / 12)
    before = found.records
    shutil.rmtree(tmp_path / "compare")  # made again from the finished runs: the same scores
    assert compare_command([*words, f"--out={tmp_path}"]) == 0
    after = read_comparison(["shre", "shre:kl_only"], "tiny", tmp_path).records
    for label in before:
        assert {**before[label][0]["metrics"], "training": 0} == {
            **after[label][0]["metrics"],
            "training": 0,
        }


def test_accuracies_stand_beside_chance_majority_and_parameters():
    def record(seed, accuracy):
        scores = {"accuracy": accuracy, "chance": 10.0, "majority": 30.0}
        metrics = {"probe_fine": scores, "model": {"parameters": 7}}
        return {"seed": seed, "seconds": 1.0, "metrics": metrics}

    found = Comparison("tiny", {"a": [record(0, 40.0), record(1, 60.0)], "b": []})
    first, chance, majority = accuracy_rows(found)
    assert first["accuracy of"] == "a" and first["probe fine"].mean == 50.0
    assert first["parameters"] == 7
    assert (chance["probe fine"], majority["probe fine"]) == (10.0, 30.0)
    found.records["b"].append({"seed": 0, "seconds": 1.0, "metrics": {"model": {}}})
    assert accuracy_rows(found) == []  # a score that some record lacks would compare nothing


def test_committed_seeds_are_runs_of_their_own():
    """Two seeds that end at the same loss to the last bit are one run, counted twice."""
    ends: dict[str, list[float]] = {}
    for record in read_results("compare/*"):
        ends.setdefault(record["name"].rpartition("__seed")[0], []).append(
            record["metrics"]["training"]["last_loss"]
        )
    same = [name for name, losses in ends.items() if len(set(losses)) < len(losses)]
    assert len(ends) > 50 and not same, same
