"""Retrieval: hand-made galleries, a slow rule, ties, chance, folds, intervals, embedding."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_lite import evaluate
from mmkd_lite.evaluate import ranks
from mmkd_lite.evaluate.granularity import attainable, nearest_hits
from mmkd_lite.results import read_result


def unit(generator, rows, width):
    return nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def gallery(seed=0, images=40, width=16, captions=(5,), signal=1.0):
    """Embeddings with some signal; image i has captions[i % len] captions, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    image = unit(generator, images, width)
    counts = torch.tensor([captions[i % len(captions)] for i in range(images)])
    owner = torch.repeat_interleave(torch.arange(images), counts)
    owner = owner[torch.randperm(len(owner), generator=generator)]
    noise = torch.randn(len(owner), width, generator=generator)
    text = nn.functional.normalize(signal * image[owner] + noise / math.sqrt(width) * 2, dim=1)
    return image, text, owner


def share_of_positives_found(scores, positive, k):
    """CLIP_benchmark's rule as a plain loop: hits among the top k over positives, then > 0."""
    found = []
    for row, own in zip(scores, positive, strict=True):
        top = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        found.append(sum(bool(own[j]) for j in top) / int(own.sum()) > 0)
    return 100 * sum(found) / len(found)


def slow_reference(image, text, owner, ks=(1, 5, 10), relevance=None):
    scores = text.numpy() @ image.numpy().T
    positive = owner.numpy()[:, None] == np.arange(len(image))[None]
    positive = positive if relevance is None else relevance.numpy()
    return {
        f"{d}_r{k}": share_of_positives_found(s, p, k)
        for d, s, p in (("i2t", scores.T, positive.T), ("t2i", scores, positive))
        for k in ks
    }


# ---------------------------------------------------------------- values


def test_three_images_five_captions_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    degrees = torch.tensor([10.0, 105.0, 80.0, 20.0, 170.0])  # of the five captions
    text = torch.stack([torch.cos(degrees.deg2rad()), torch.sin(degrees.deg2rad())], dim=1)
    owner = torch.tensor([0, 0, 1, 2, 2])
    got = evaluate.retrieval(image, text, owner, ks=(1, 2, 3))
    # images at 0, 90, 180 degrees: nearest captions 10, 80, 170, all own
    assert got["i2t_r1"] == pytest.approx(100.0)
    # captions 10, 80, 170 find their image; 105 has images 1 and 2 before its own, 20 has 0 and 1
    assert got["t2i_r1"] == pytest.approx(60.0)
    assert got["t2i_r2"] == pytest.approx(60.0)
    assert got["t2i_r3"] == pytest.approx(100.0)
    assert got["t2i_median_rank"] == 1.0
    assert got["n_images"] == 3 and got["n_texts"] == 5
    assert got["protocol"] == "retrieval/any-hit/images=3/texts=5/ks=1,2,3/ties=against"


@pytest.mark.parametrize("captions", [(1,), (5,), (1, 2, 3, 4, 5, 6, 7), (7, 1)])
@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_equals_the_slow_rule(captions, signal):
    image, text, owner = gallery(3, captions=captions, signal=signal)
    got = evaluate.retrieval(image, text, owner)
    for key, value in slow_reference(image, text, owner).items():
        assert got[key] == pytest.approx(value, abs=1e-6), key


def test_equals_the_slow_rule_by_truth():
    image, text, owner = gallery(4, captions=(2, 3))
    generator = torch.Generator().manual_seed(1)
    relevance = torch.rand(len(text), len(image), generator=generator) < 0.1
    relevance[torch.arange(len(text)), owner] = True
    got = evaluate.retrieval(image, text, owner, relevance=relevance)
    for key, value in slow_reference(image, text, owner, relevance=relevance).items():
        assert got[key] == pytest.approx(value, abs=1e-6), key
    by_id = evaluate.retrieval(image, text, owner)
    assert all(got[f"{d}_r{k}"] >= by_id[f"{d}_r{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10))
    assert got["mean_recall"] > by_id["mean_recall"] + 3
    assert got["protocol"].startswith("retrieval/any-hit-by-truth/")
    own_only = torch.zeros_like(relevance)
    own_only[torch.arange(len(text)), owner] = True
    same = evaluate.retrieval(image, text, owner, relevance=own_only)
    assert {**same, "protocol": ""} == {**by_id, "protocol": ""}


def test_mean_recall_and_median_are_those_of_the_parts():
    image, text, owner = gallery(5, images=11, captions=(2, 4))
    got = evaluate.retrieval(image, text, owner, ks=(1, 3))
    keys = [f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 3)]
    assert got["mean_recall"] == pytest.approx(np.mean([got[key] for key in keys]))
    scores = text.double() @ image.double().T
    own = scores[torch.arange(len(text)), owner]
    rank = 1 + (scores > own[:, None]).sum(1)
    assert got["t2i_median_rank"] == np.median(rank.numpy())


def test_cutoff_beyond_the_gallery_finds_everything():
    image, text, owner = gallery(6, images=4, captions=(2,))
    got = evaluate.retrieval(image, text, owner, ks=(4, 8, 1000))
    assert got["t2i_r4"] == 100 and got["i2t_r8"] == 100 and got["t2i_r1000"] == 100
    assert got["chance_i2t_r1000"] == 100


def test_numpy_and_torch_and_double_agree():
    image, text, owner = gallery(7)
    want = evaluate.retrieval(image, text, owner)
    assert evaluate.retrieval(image.numpy(), text.numpy(), owner.tolist()) == want
    assert evaluate.retrieval(image.double(), text.double(), owner.int()) == want


def test_order_of_captions_and_images_does_not_matter():
    image, text, owner = gallery(8, captions=(1, 5, 7))
    want = evaluate.retrieval(image, text, owner)
    generator = torch.Generator().manual_seed(0)
    shuffle = torch.randperm(len(text), generator=generator)
    assert evaluate.retrieval(image, text[shuffle], owner[shuffle]) == want
    rows = torch.randperm(len(image), generator=generator)
    position = torch.argsort(rows)
    assert evaluate.retrieval(image[rows], text, position[owner]) == want


# ---------------------------------------------------------------- ties and exactness


@pytest.mark.parametrize("captions", [(1,), (5,), (1, 7)])
def test_constant_embeddings_score_nothing(captions):
    image, text, owner = gallery(9, images=30, captions=captions)
    point = image[:1]
    got = evaluate.retrieval(point.expand(30, -1), point.expand(len(text), -1), owner)
    for direction, k in itertools.product(("i2t", "t2i"), (1, 5, 10)):
        assert got[f"{direction}_r{k}"] <= got[f"chance_{direction}_r{k}"]
        assert got[f"{direction}_r{k}"] == 0


def test_a_foreign_tie_costs_one_place_and_an_own_tie_none():
    image = torch.eye(3)
    text = torch.stack([image[0], image[0], image[0], image[1], image[2]])
    got = evaluate.retrieval_ranks(image, text, [0, 0, 1, 1, 2])
    assert got.image_to_text.tolist() == [2, 1, 1]  # caption 2 ties with image 0's own two
    assert got.text_to_image.tolist() == [1, 1, 3, 1, 1]  # caption 2: 0 wins, image 2 ties at 0


@pytest.mark.parametrize("width", [7, 64, 513])
def test_ranks_do_not_depend_on_the_tile(width):
    image, text, owner = gallery(10, images=13, width=width, captions=(1, 2, 3))
    image, owner = torch.cat([image, image, image]), torch.cat([owner, owner + 13, owner + 26])
    text = torch.cat([text, text, text])  # every score three times: ties everywhere
    want = evaluate.retrieval_ranks(image, text, owner, chunk_size=10_000)
    for chunk_size in (1, 2, 5, 16, 31, 64):
        got = evaluate.retrieval_ranks(image, text, owner, chunk_size=chunk_size)
        assert np.array_equal(got.image_to_text, want.image_to_text), chunk_size
        assert np.array_equal(got.text_to_image, want.text_to_image), chunk_size
    assert want.text_to_image.min() >= 3  # three equal images, two of them foreign
    first = want.text_to_image.reshape(3, -1)
    assert np.array_equal(first[0], first[1]) and np.array_equal(first[0], first[2])


def test_plain_float32_products_do_depend_on_the_tile():
    """The trap the fixed grid avoids; if this fails, the exactness is free on this machine."""
    generator = torch.Generator().manual_seed(0)
    image, text = unit(generator, 300, 513), unit(generator, 300, 513)
    whole = text @ image.T
    loops = (text[:, None, :] * image[None]).sum(-1)
    assert not torch.equal(whole, loops)
    exact = ranks._steps(text) @ ranks._steps(image).T
    pieces = (ranks._steps(text)[:, None] * ranks._steps(image)[None]).sum(-1)
    assert torch.equal(exact, pieces)
    assert (exact / 2.0**52 - text.double() @ image.double().T).abs().max() < 1e-6


def test_scores_on_the_grid_equal_integer_arithmetic():
    generator = torch.Generator().manual_seed(2)
    image, text = unit(generator, 4, 512), unit(generator, 3, 512)
    image[1] = 0
    image[1, 0] = 1  # a coordinate of one, the largest there is
    got = ranks._steps(text) @ ranks._steps(image).T
    whole = [[[round(float(x) * 2**26) for x in row] for row in side] for side in (text, image)]
    for t, i in itertools.product(range(3), range(4)):
        product = sum(a * b for a, b in zip(whole[0][t], whole[1][i], strict=True))
        assert int(got[t, i]) == product


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6])
def test_quick_and_exact_scores_rank_alike(spread, monkeypatch):
    """From well spread to almost collapsed: no doubt, few doubts, whole tiles in doubt."""
    image, text, owner = gallery(17, images=150, width=64, captions=(1, 2, 5))
    centre = nn.functional.normalize(torch.ones(1, 64), dim=1)
    image = nn.functional.normalize(centre + spread * image, dim=1)
    text = nn.functional.normalize(centre + spread * text, dim=1)
    exact = ranks._steps(text) @ ranks._steps(image).T
    own = exact[torch.arange(len(text)), owner]
    foreign = torch.arange(150)[None] != owner[:, None]
    want = 1 + ((exact >= own[:, None]) & foreign).sum(1)
    best = torch.stack([exact[owner == i, i].max() for i in range(150)])
    want_image = 1 + ((exact >= best[None]) & foreign).sum(0)
    for threshold in (1, 64, 10**9):  # every doubtful pair, the default, every doubtful tile
        monkeypatch.setattr(ranks, "DOUBTS_WORTH_A_TILE", threshold)
        got = evaluate.retrieval_ranks(image, text, owner, chunk_size=61)
        assert np.array_equal(got.text_to_image, want), threshold
        assert np.array_equal(got.image_to_text, want_image), threshold


def test_the_bound_of_quick_scores_holds_and_is_needed():
    generator = torch.Generator().manual_seed(5)
    image, text = unit(generator, 400, 512), unit(generator, 400, 512)
    image[:200] = text[:200]  # scores of 1 err most
    exact = ranks._steps(text) @ ranks._steps(image).T / ranks.GRID**2
    error = (exact - (text @ image.T).double()).abs().max()
    assert 0 < error < ranks._quick_error(512)


def test_reduced_matmul_precision_changes_no_rank():
    image, text, owner = gallery(18, images=90, width=64)
    want = evaluate.retrieval(image, text, owner)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert ranks._quick_error(64) is None
        assert evaluate.retrieval(image, text, owner) == want
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------- chance


def test_chance_levels_of_the_published_galleries():
    coco = [evaluate.chance_recall([5] * 5000, 25_000, k) for k in (1, 5, 10)]
    assert coco == pytest.approx([0.02, 0.09999, 0.19998], abs=2e-4)
    assert [evaluate.chance_recall([1] * 3, 1000, k) for k in (1, 5, 10)] == pytest.approx(
        [0.1, 0.5, 1.0]
    )
    assert evaluate.chance_recall([3], 4, 2) == pytest.approx(100.0)  # one miss only fits once
    assert evaluate.chance_recall([2], 4, 2) == pytest.approx(100 * 5 / 6)


def test_random_embeddings_score_chance():
    scores = []
    for seed in range(60):
        image, text, owner = gallery(seed, images=20, captions=(1, 3), signal=0.0)
        scores.append(evaluate.retrieval(image, text, owner, ks=(1, 5)))
    for key in ("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"):
        values = [score[key] for score in scores]
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values) - scores[0][f"chance_{key}"]) < 4 * error, key


# ---------------------------------------------------------------- folds and protocols


def test_wrong_image_ids_give_the_published_signature():
    image, text, owner = gallery(11, images=120, captions=(5,), signal=1.2)
    right = evaluate.retrieval(image, text, owner)
    wrong = evaluate.retrieval(image[owner], text, torch.arange(len(text)))
    assert wrong["t2i_r5"] == pytest.approx(right["t2i_r1"])
    assert wrong["i2t_r1"] == pytest.approx(right["i2t_r1"] / 5)


def test_one_caption_each():
    owner = [2, 0, 1, 0, 2, 2]
    assert evaluate.one_caption_each(owner).tolist() == [1, 2, 0]
    picks = {tuple(evaluate.one_caption_each(owner, seed=seed).tolist()) for seed in range(60)}
    assert picks == set(itertools.product((1, 3), (2,), (0, 4, 5)))
    again = [evaluate.one_caption_each(owner, seed=4).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_folds_average_the_folds():
    image, text, owner = gallery(12, images=30, captions=(1, 4))
    got = evaluate.folds_1k(image, text, owner, folds=3, fold_size=10)
    parts = []
    for start in (0, 10, 20):
        keep = [row for row, own in enumerate(owner.tolist()) if start <= own < start + 10]
        parts.append(
            slow_reference(image[start : start + 10], text[keep], owner[keep] - start)["i2t_r1"]
        )
    assert got["i2t_r1"] == pytest.approx(np.mean(parts))
    assert got["protocol"] == "retrieval/any-hit/folds=3x10/ks=1,5,10/ties=against"
    assert got["i2t_r1"] > evaluate.retrieval(image, text, owner)["i2t_r1"]


def test_average_median_rank():
    image, text, owner = gallery(13, images=50, captions=(2, 5), signal=0.4)
    got = evaluate.average_median_rank(image, text, owner, folds=5, fold_size=10, seed=3)
    assert got == evaluate.average_median_rank(image, text, owner, folds=5, fold_size=10, seed=3)
    assert 1 < got["i2t_average_median_rank"] < 10
    perfect = evaluate.average_median_rank(image, image[owner], owner, folds=5, fold_size=10)
    assert perfect["i2t_average_median_rank"] == perfect["t2i_average_median_rank"] == 1
    single = evaluate.average_median_rank(
        image, image, torch.arange(50), folds=1, fold_size=50, seed=0
    )
    assert single["protocol"] == "average-median-rank/one-caption/folds=1x50/seed=0/ties=against"
    with pytest.raises(ValueError, match="5 folds of 1000 need 5000 images, the gallery has 50"):
        evaluate.average_median_rank(image, text, owner)


# ---------------------------------------------------------------- intervals


def test_wilson_interval_against_the_textbook():
    low, high = evaluate.recall_interval([1] * 8 + [9] * 2, k=1)
    assert (low, high) == pytest.approx((49.02, 94.33), abs=0.01)
    low, high = evaluate.recall_interval([9] * 10, k=1)
    assert low == 0 and high == pytest.approx(27.75, abs=0.01)


def test_grouped_interval_covers_and_the_plain_one_does_not():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 5)
    covered = {"plain": 0, "grouped": 0}
    for _ in range(400):
        easy = rng.random(100) < 0.4
        hits = rng.random(500) < np.where(easy, 0.95, 0.05)[groups]
        found, truth = np.where(hits, 1, 99), 100 * (0.4 * 0.95 + 0.6 * 0.05)
        for name, group in (("plain", None), ("grouped", groups)):
            low, high = evaluate.recall_interval(found, 1, group)
            covered[name] += low <= truth <= high
    assert covered["grouped"] / 400 > 0.92
    assert covered["plain"] / 400 < 0.75


def test_intervals_of_a_gallery_hold_their_recalls():
    image, text, owner = gallery(14, captions=(5,))
    scores = evaluate.retrieval(image, text, owner)
    intervals = evaluate.recall_intervals(evaluate.retrieval_ranks(image, text, owner), owner)
    assert set(intervals) == {f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)}
    assert all(low <= scores[key] <= high for key, (low, high) in intervals.items())
    perfect = evaluate.recall_interval([1] * 50, 1, np.repeat(np.arange(10), 5))
    assert perfect == evaluate.recall_interval([1] * 10, 1)  # ten groups, not fifty queries


# ---------------------------------------------------------------- granularity


def test_granularity_of_the_printed_cells():
    for cell in (26.18, 8.08, 7.36, 4.88):
        assert not attainable(cell, 1000)
        assert attainable(cell, 5000)
    assert attainable(7.7, 1000) and attainable(17.02, 5000) and not attainable(17.01, 5000)
    assert attainable(0.22, 5000) and not attainable(0.19, 5000)
    assert nearest_hits(33.33, 3) == 1 and nearest_hits(100.0, 7) == 7
    with pytest.raises(ValueError, match="at least one query"):
        attainable(10.0, 0)


def test_granularity_accepts_every_printed_share():
    for n in (7, 277, 1000, 1284):
        assert all(attainable(round(100 * h / n, 2), n) for h in range(n + 1))


# ---------------------------------------------------------------- bad input


def broken(**changes):
    image, text, owner = gallery(15, images=6, captions=(2,))
    return {"image": image, "text": text, "image_of_text": owner, **changes}


def replaced(rows, row, value):
    rows = rows.clone()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda b: {"image": b["image"] * 2}, "image row 0 has norm 2.0000"),
        (lambda b: {"text": replaced(b["text"], 3, 0.0)}, "text row 3 has norm 0.0000"),
        (lambda b: {"text": replaced(b["text"], 3, float("nan"))}, "text row 3 is not finite"),
        (lambda b: {"image": replaced(b["image"], 1, float("inf"))}, "image row 1 is not finite"),
        (lambda b: {"image": b["image"][:, :8]}, "image row 0 has norm"),
        (lambda b: {"image": b["image"][0]}, r"image has shape \(16,\)"),
        (lambda b: {"text": b["text"][:0]}, r"text has shape \(0, 16\)"),
        (lambda b: {"image": (b["image"] * 9).long()}, "image holds torch.int64"),
        (lambda b: {"image_of_text": b["image_of_text"][:-1]}, "for 12 texts"),
        (lambda b: {"image_of_text": b["image_of_text"].float()}, "holds torch.float32"),
        (lambda b: {"image_of_text": replaced(b["image_of_text"], 2, 6)}, r"\[2\] is 6, outside"),
        (lambda b: {"image_of_text": replaced(b["image_of_text"], 2, -1)}, r"\[2\] is -1, outside"),
        (lambda b: {"image_of_text": b["image_of_text"].clamp(max=4)}, "image 5 has no caption"),
        (lambda b: {"ks": (0, 5)}, "whole cut-offs of at least 1"),
        (lambda b: {"ks": ()}, "whole cut-offs of at least 1"),
        (lambda b: {"chunk_size": 0}, "chunk_size is 0"),
        (lambda b: {"relevance": torch.ones(6, 12, dtype=torch.bool)}, "caption by image"),
        (lambda b: {"relevance": torch.ones(12, 6)}, "give booleans"),
        (
            lambda b: {"relevance": torch.eye(6).bool().repeat(2, 1)[:, [0, 1, 2, 3, 4, 4]]},
            "nothing true of caption 5",
        ),
    ],
)
def test_bad_input_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate.retrieval(**broken(**changes(broken())))


def test_two_encoders_of_different_width_are_refused():
    image, text, owner = gallery(16)
    with pytest.raises(ValueError, match="image has width 8 and text 16"):
        evaluate.retrieval(nn.functional.normalize(image[:, :8], dim=1), text, owner)


# ---------------------------------------------------------------- embedding


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop, self.seen = nn.Linear(12, 4), nn.Dropout(0.5), []

    def encode_image(self, images):
        assert not torch.is_grad_enabled() and not self.training
        self.seen.append((len(images), images.dtype, float(images.max())))
        return self.drop(self.linear(images.flatten(1)))

    def encode_text(self, tokens):
        assert tokens.dtype == torch.int64 and not self.drop.training
        return nn.functional.one_hot(tokens, 12).float().sum(1) @ self.linear.weight.T

    forward = encode_image


def test_embed_images_in_batches_without_gradient_or_dropout():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 3, 2, 2), dtype=torch.uint8, generator=generator)
    images[0, 0, 0, 0] = 255
    tower = Tower().train()
    tower.drop.eval()  # a mixed state has to come back as it was
    got = evaluate.embed_images(tower.encode_image, images, batch_size=3)
    assert [seen[0] for seen in tower.seen] == [3, 3, 1]
    assert tower.seen[0][2] == 1.0 and tower.seen[0][1] == torch.float32
    assert tower.training and not tower.drop.training and not got.requires_grad
    want = tower.linear((images.double() / 255).float().flatten(1))
    torch.testing.assert_close(got, want.detach())
    torch.testing.assert_close(evaluate.embed_images(tower, images.float() / 255), got)
    torch.testing.assert_close(evaluate.embed_images(tower, images.numpy()), got)


def test_embed_restores_the_mode_after_an_error():
    tower = Tower().train()
    with pytest.raises(RuntimeError):
        evaluate.embed_images(tower, torch.zeros(2, 3, 5, 5))
    assert tower.training and tower.drop.training


def test_embed_texts():
    tokens = torch.randint(0, 12, (9, 5), generator=torch.Generator().manual_seed(1))
    tower = Tower()
    got = evaluate.embed_texts(tower.encode_text, tokens.int(), batch_size=4)
    assert got.shape == (9, 4) and tower.training
    torch.testing.assert_close(got, evaluate.embed_texts(tower.encode_text, tokens.numpy()))
    plain = evaluate.embed_texts(lambda rows: rows.float(), tokens)  # a function has no mode
    assert torch.equal(plain, tokens.float())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: evaluate.embed_images(t, torch.zeros(3, 2, 2)), "give \\(N, 3, H, W\\)"),
        (lambda t: evaluate.embed_images(t, torch.ones(1, 3, 2, 2) * 9), "floats in \\[0, 1\\]"),
        (lambda t: evaluate.embed_images(t, torch.zeros(1, 3, 2, 2).long()), "give uint8"),
        (lambda t: evaluate.embed_texts(t, torch.zeros(2, 3)), "give integers"),
        (lambda t: evaluate.embed_texts(t, torch.zeros(0, 3).long()), "T >= 1"),
        (lambda t: evaluate.embed_images(t, torch.zeros(1, 3, 2, 2), 0), "batch_size is 0"),
    ],
)
def test_embed_refuses_what_it_cannot_scale(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tower())


# ---------------------------------------------------------------- benchmark


def test_benchmark_compares_two_rules_that_agree(tmp_path, capsys):
    from tests.measure_retrieval import main

    assert (
        main(["--images=40", "--width=8", "--threads=1", "--repeats=1", f"--out={tmp_path}"]) == 0
    )
    metrics = read_result("retrieval_benchmark", tmp_path)["metrics"]
    assert metrics["largest_difference"] == 0 and metrics["times_as_fast"] > 0
    assert 0 < metrics["streamed"]["recalls"]["t2i_r1"] < 100
    assert "| one_hot |" in capsys.readouterr().out
