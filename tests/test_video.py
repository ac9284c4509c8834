"""Video scores against scikit-learn, the trainer's accumulation, and the whole path on clips and folders."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score

from mmkd_lite import video_training
from mmkd_lite.config import TowerConfig
from mmkd_lite.data.clips import EmojiCrash
from mmkd_lite.data.videos import VideoFolder, last_frames, sampled
from mmkd_lite.evaluate.video import METRICS, average_precision, binary_scores, wilson
from mmkd_lite.models import ImageEncoder, seeded
from mmkd_lite.models.evl import FrameBackbone, decoder_for
from mmkd_lite.results import read_result
from mmkd_lite.teachers import load_teacher
from mmkd_lite.video_training import (
    LAPTOP,
    PAPER,
    VideoRecipe,
    accumulate_gradient,
    crash_scores,
    score_video,
    train_decoder,
    video_features,
)
from tests.clip_writer import export_clips
from tests.encoder_support import perturb

SIZE = 32


@pytest.fixture(scope="module")
def backbone():
    with seeded(0):
        return FrameBackbone(ImageEncoder(TowerConfig(width=16, layers=2, heads=2, patch=8), SIZE))


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("ties", [False, True])
def test_scores_agree_with_scikit_learn(ties):
    generator = np.random.default_rng(0)
    for n in (5, 40, 301):
        labels = (np.arange(n) % 3 == 0).astype(int)
        scores = generator.normal(size=n) + labels
        scores = scores.round() if ties else scores
        found = binary_scores(labels, torch.from_numpy(scores), resamples=20)
        said = scores > 0
        assert found["accuracy"] == pytest.approx(100 * accuracy_score(labels, said))
        expected = balanced_accuracy_score(labels, said)
        assert found["balanced_accuracy"] == pytest.approx(100 * expected)
        expected = average_precision_score(labels, scores)
        assert found["average_precision"] == pytest.approx(100 * expected)
        assert average_precision(labels, scores) == found["average_precision"]


def test_average_precision_by_hand():
    # ranks of the two positives: 1 and 3, so (1/1 + 2/3) / 2
    assert average_precision([1, 0, 1, 0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(100 * 5 / 6)
    assert average_precision([1, 0, 1, 0], [1.0, 1.0, 1.0, 1.0]) == pytest.approx(50.0)
    assert average_precision([0, 0, 1], [3.0, 2.0, 1.0]) == pytest.approx(100 / 3)
    assert average_precision([0, 1, 1], [1.0, 2.0, 3.0]) == 100.0


def test_a_constant_answer_is_what_the_source_published():
    labels = np.repeat([1, 0], [165, 301])
    found = binary_scores(labels, np.full(466, -1.0))
    assert round(found["accuracy"], 2) == round(found["majority"], 2) == 64.59
    assert found["balanced_accuracy"] == 50.0 and found["predicted_positive"] == 0.0
    assert found["average_precision"] == pytest.approx(100 * 165 / 466)
    assert found["average_precision_chance"] == pytest.approx(100 * 165 / 466)
    assert (found["recall"], found["specificity"]) == (0.0, 100.0)
    assert found["balanced_accuracy_low"] < 50.0 < found["balanced_accuracy_high"]
    published = read_result("published_video")["metrics"]
    assert published["DistillCLIP"]["accuracy"] == round(found["majority"], 2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    labels = np.repeat([1, 0], [35, 65])
    truth = {"accuracy": 0.35 * 0.7 + 0.65 * 0.9, "balanced_accuracy": 0.8}
    inside = dict.fromkeys(truth, 0)
    for _ in range(400):
        right = generator.random(100) < np.where(labels == 1, 0.7, 0.9)
        found = binary_scores(labels, np.where(right == (labels == 1), 1.0, -1.0), resamples=1)
        for key, value in truth.items():
            inside[key] += found[f"{key}_low"] <= 100 * value <= found[f"{key}_high"]
    for key, count in inside.items():
        assert 0.92 <= count / 400 <= 0.985, (key, count)


def test_the_bootstrap_of_the_average_precision():
    generator = np.random.default_rng(2)
    labels = np.repeat([1, 0], [70, 130])
    scores = generator.normal(size=200) + labels
    found = binary_scores(labels, scores, seed=1)
    again = [
        average_precision_score(labels[rows], scores[rows])
        for rows in (
            np.append(generator.integers(0, 70, 70), generator.integers(70, 200, 130))
            for _ in range(600)
        )
    ]
    low, high = 100 * np.quantile(again, [0.025, 0.975])
    assert found["average_precision_low"] == pytest.approx(low, abs=1.5)
    assert found["average_precision_high"] == pytest.approx(high, abs=1.5)
    assert found == binary_scores(labels, scores, seed=1)


def test_wilson_of_301_in_466():
    low, high = wilson(np.arange(466) < 301)
    # by the formula with z = 1.959964
    assert low == pytest.approx(60.15, abs=0.01) and high == pytest.approx(68.80, abs=0.01)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 0, 0], [1.0, 2.0, 3.0], "one class only"),
        ([0, 1, 2], [1.0, 2.0, 3.0], "0 or 1"),
        ([0, 1], [1.0, 2.0, 3.0], r"\(2,\) and \(3,\)"),
        ([0, 1], [1.0, float("nan")], "1 of 2 scores"),
        ([], [], "one class only"),
    ],
)
def test_labels_and_scores_that_do_not_fit(labels, scores, words):
    with pytest.raises(ValueError, match=words):
        binary_scores(labels, scores)
    with pytest.raises(ValueError, match="level"):
        binary_scores([0, 1], [0.0, 1.0], level=1.0)


# ---------------------------------------------------------------- training


def features_of(backbone, count, dtype=torch.float64):
    clips = EmojiCrash(SIZE, "train")
    found = video_features(backbone, clips, range(count), [92, 95, 98], batch_size=7, dtype=dtype)
    return found, torch.from_numpy(clips.labels(range(count)))


def gradients(decoder):
    return {name: p.grad.clone() for name, p in decoder.named_parameters()}


def test_sixteen_parts_of_eight_give_the_gradient_of_128(backbone):
    features, labels = features_of(backbone, 128)
    with seeded(1):
        decoder = perturb(decoder_for(backbone, 3, dropout=0.0)).double()
    rows = torch.randperm(128)
    loss = F.cross_entropy(decoder(features.take(rows)), labels[rows])
    loss.backward()
    whole = gradients(decoder)
    decoder.zero_grad()
    total = accumulate_gradient(decoder, features, labels, rows, 8)
    assert total == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in gradients(decoder).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-13)
    assert (PAPER.batch_size, PAPER.accumulation) == (8, 16)


def test_a_last_part_that_is_smaller_counts_less(backbone):
    features, labels = features_of(backbone, 13)
    with seeded(1):
        decoder = perturb(decoder_for(backbone, 3, dropout=0.0)).double()
    rows = torch.arange(13)
    F.cross_entropy(decoder(features), labels).backward()
    whole = gradients(decoder)
    decoder.zero_grad()
    accumulate_gradient(decoder, features, labels, rows, 8)  # 8 and 5
    for name, gradient in gradients(decoder).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-13)


def test_accumulated_training_is_large_batch_training(backbone):
    features, labels = features_of(backbone, 24)
    trained = []
    for batch_size, accumulation in ((4, 3), (12, 1)):
        with seeded(1):
            decoder = decoder_for(backbone, 3, dropout=0.0).double()
        recipe = VideoRecipe(3, batch_size, accumulation, learning_rate=1e-3)
        losses = train_decoder(decoder, features, labels, recipe, seed=5)
        trained.append((losses, decoder))
    assert len(trained[0][0]) == 3 * 2
    assert trained[0][0] == pytest.approx(trained[1][0], rel=1e-9)
    for a, b in zip(trained[0][1].parameters(), trained[1][1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert not trained[0][1].training


def test_half_precision_features_are_those_of_the_videos(backbone):
    clips = EmojiCrash(SIZE, "train")
    stored, _ = features_of(backbone, 9, torch.float16)
    direct = backbone.features(torch.from_numpy(clips.clips(range(9), [92, 95, 98])))
    for name in ("hidden", "previous", "following"):
        kept = getattr(stored, name)
        assert kept.dtype == torch.float16
        torch.testing.assert_close(kept.float(), getattr(direct, name), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="indices is empty"):
        video_features(backbone, clips, [], [0])
    with pytest.raises(ValueError, match=r"3, 48, 48\)"):
        video_features(backbone, EmojiCrash(48), [0], [0])


def test_training_learns_what_the_window_shows_and_repeats_itself(backbone):
    features, labels = features_of(backbone, 40, torch.float32)
    recipe = VideoRecipe(40, 8, 1, learning_rate=3e-3, dropout=0.0)
    runs = []
    for _ in range(2):
        with seeded(1):
            decoder = decoder_for(backbone, 3, dropout=0.0)
        before = torch.random.get_rng_state()
        losses = train_decoder(decoder, features, labels, recipe, seed=3)
        assert torch.equal(torch.random.get_rng_state(), before)
        runs.append((losses, crash_scores(decoder, features, batch_size=11)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert np.mean(runs[0][0][-5:]) < 0.5 * np.mean(runs[0][0][:5])
    assert binary_scores(labels, runs[0][1])["balanced_accuracy"] > 80


def test_recipes_and_labels_that_do_not_fit(backbone):
    with pytest.raises(ValueError, match="at least 1"):
        VideoRecipe(epochs=0)
    features, _ = features_of(backbone, 3)
    with pytest.raises(ValueError, match="3 videos need as many labels"):
        train_decoder(decoder_for(backbone, 3), features, torch.zeros(4, dtype=torch.int64))


# ---------------------------------------------------------------- the whole path

SHORT = VideoRecipe(2, 8, 1, learning_rate=1e-3)


def test_score_video_returns_rows_with_their_protocol(backbone):
    weights = {k: v.clone() for k, v in backbone.encoder.state_dict().items()}
    found = score_video(backbone, train_rows=16, test_rows=20, recipe=SHORT, sampling="stride14")
    assert [row["metric"] for row in found["rows"]] == list(METRICS)
    keys = ("task", "metric", "protocol", "value", "n", "chance", "majority", "low", "high")
    for row in found["rows"]:
        assert tuple(row) == keys
        assert row["n"] == 20 and row["low"] <= row["value"] <= row["high"]
    accuracy, balanced, precision = found["rows"]
    assert (accuracy["majority"], balanced["chance"], precision["chance"]) == (65.0, 50.0, 35.0)
    for part in ("sampling=stride14", "frames=8of100", "train=16", "test=20", "positives=7"):
        assert f"/{part}/" in accuracy["protocol"]
    again = score_video(backbone, train_rows=16, test_rows=20, recipe=SHORT, sampling="stride14")
    assert torch.equal(found["scores"], again["scores"])
    assert found["losses"] == again["losses"] and len(found["losses"]) == 4
    after = backbone.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())


def test_score_video_reads_a_folder_of_real_videos(backbone, tmp_path):
    for split in ("train", "test"):
        export_clips(EmojiCrash(48, split), range(10), tmp_path / split, packed=split == "test")
    sets = [VideoFolder(tmp_path / split, SIZE) for split in ("train", "test")]
    found = score_video(
        backbone, train=sets[0], test=sets[1], train_rows=10, test_rows=10, recipe=SHORT
    )
    assert found["labels"].tolist() == EmojiCrash(48, "test").labels(range(10)).tolist()
    assert "/data=folder/" in found["rows"][0]["protocol"]
    assert "/sampling=last10/frames=10of100/" in found["rows"][0]["protocol"]


def test_full_scale_settings_read_folders_and_use_the_papers_recipe(tmp_path):
    for split in ("train", "test"):
        export_clips(EmojiCrash(16, split), range(2), tmp_path / split, packed=True)
    found = video_training.setting("full", tmp_path, model="random-vit")
    assert found["recipe"] == PAPER and found["test"].image_size == 48
    assert (found["train_rows"], found["test_rows"]) == (2, 2)
    with pytest.raises(ValueError, match="DATA_DIR"):
        video_training.setting("full", None, model="random-vit")
    laptop = video_training.setting("laptop")
    assert laptop["recipe"] == LAPTOP and isinstance(laptop["train"], EmojiCrash)


def test_shipped_teachers_have_met_the_vehicles_and_the_sign():
    clips = EmojiCrash(48)
    from mmkd_lite.data.emoji import concept_split

    assert set(clips.pool) <= set(concept_split("seen").tolist())
    features = FrameBackbone(load_teacher("vit")).features(
        torch.from_numpy(clips.clips([0], sampled("last10")))
    )
    assert features.hidden.shape == (4, 1, len(last_frames()), 37, 96)


def test_a_comparison_keeps_what_is_done_and_stores_every_score_at_once(tmp_path, monkeypatch):
    made = []

    def fast(**asked):
        if len(made) == 3:
            raise InterruptedError
        made.append((asked["sampling"], asked["temporal"], asked["seed"]))
        return {"details": dict.fromkeys(METRICS, 50.0)}

    monkeypatch.setattr(video_training, "score_video", fast)
    monkeypatch.setattr(video_training, "_features", lambda settings, sampling: {})
    ask = {"folder": tmp_path, "scale": "tiny", "say": lambda text: None}
    with pytest.raises(InterruptedError):
        video_training.compare(["random-clip"], ["last10"], 2, **ask)
    assert len(read_result(video_training.RESULT, tmp_path)["metrics"]["rows"]) == 3
    made.clear()
    rows = video_training.compare(["random-clip"], ["last10"], 2, **ask)
    assert made == [("last10", False, 1)]  # the one that was missing
    assert [(r["temporal"], r["seed"]) for r in rows] == [
        (True, 0),
        (True, 1),
        (False, 0),
        (False, 1),
    ]
