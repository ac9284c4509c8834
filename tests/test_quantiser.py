"""The codebook and the image quantiser, and S-SMKE on codes: loops, limits, resume, clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.methods import build
from mmkd_lite.methods.quantised_targets import QuantisedTargets
from mmkd_lite.methods.quantiser import quantizer_terms
from mmkd_lite.models.quantizer import (
    Codebook,
    ImageQuantizer,
    hide,
    perplexity,
    spherical_k_means,
    usage,
)
from mmkd_lite.train import fit
from tests.method_checks import cut_and_resumed
from tests.reference_losses import (
    cosine_distance_loop,
    cross_entropy_loop,
    image_text_contrast_loop,
)

BATCH = 6
COMMON = {"teacher": "random-vit", "image.start": "", "text.start": "", "train.batch_size": BATCH}


def unit(rows: int, width: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator).double(), dim=-1)


def tiny(method: str, overrides: dict | None = None, **settings: object) -> RunConfig:
    return resolve(method, "tiny", {**COMMON, **(overrides or {})}, **settings)


def a_batch(config: RunConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side, length = config.data.image_size, config.data.max_tokens
    tokens = torch.randint(5, 60, (BATCH, length), generator=generator)
    tokens[:, 9:] = 0
    images = torch.rand(BATCH, 3, side, side, generator=generator, dtype=torch.float64)
    return {"image": images, "tokens": tokens, "image_id": torch.arange(BATCH)}


# --- The codebook ------------------------------------------------------------------------------


def test_the_nearest_code_has_the_largest_cosine_and_the_smallest_distance() -> None:
    book = Codebook(7, 4).double()
    vectors = 3 * unit(20, seed=1)
    index = book(vectors).index
    for row, chosen in zip(vectors, index, strict=True):
        cosines = [float(F.cosine_similarity(row, code, dim=0)) for code in book.vectors]
        distances = [float((row / row.norm() - code).norm()) for code in book.vectors]
        assert cosines[chosen] == max(cosines) and distances[chosen] == min(distances)
        assert cosines[chosen] != min(cosines)  # what the printed arg-min would give (ET-21)


def test_the_gradient_passes_straight_through_the_code() -> None:
    book = Codebook(5, 4).double()
    vectors = unit(6, seed=2).requires_grad_()
    weight = unit(6, seed=3)
    result = book(vectors)
    torch.testing.assert_close(result.vectors, book.vectors[result.index])
    (result.vectors * weight).sum().backward()
    plain = vectors.detach().clone().requires_grad_()
    (F.normalize(plain, dim=-1) * weight).sum().backward()
    torch.testing.assert_close(vectors.grad, plain.grad)
    assert not list(book.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_codes_follow_the_means_of_their_vectors(decay: float) -> None:
    book = Codebook(3, 4, decay).double()
    before, rows = book.vectors.clone(), unit(5, seed=4)
    index = torch.tensor([0, 0, 2, 0, 2])
    book.update(rows, index)
    for code in range(3):
        members = [row for row, own in zip(rows, index, strict=True) if own == code]
        wanted = before[code]
        if members:
            mean = sum(members) / len(members)
            wanted = decay * wanted + (1 - decay) * mean / mean.norm()
        torch.testing.assert_close(book.vectors[code], wanted / wanted.norm())
    assert book.idle.tolist() == [0, 1, 0]
    assert torch.equal(book.vectors[1], before[1])  # a dead code keeps its value


def test_a_dead_code_is_revived_on_the_worst_represented_vector() -> None:
    kept, revived = (Codebook(3, 2, 0.9, after).double() for after in (0, 2))
    codes = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]], dtype=torch.float64)
    rows = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.05], [0.0, 1.0]]).double(), dim=-1)
    for book in (kept, revived):
        book.vectors.copy_(F.normalize(codes, dim=-1))
        for _ in range(3):
            book.update(rows, torch.tensor([0, 0, 1]))
    assert kept.idle.tolist() == [0, 0, 3] and kept.vectors[2].tolist() == [-1.0, 0.0]
    fit = (rows @ kept.vectors.T).amax(1)
    assert torch.equal(revived.vectors[2], rows[fit.argmin()])
    assert revived.idle.tolist() == [0, 0, 0]


def test_k_means_finds_separate_clusters_and_random_starts_do_not_move() -> None:
    centres = torch.eye(4)
    noise = 0.05 * torch.randn(4, 25, 4, generator=torch.Generator().manual_seed(0))
    data = F.normalize(centres[:, None] + noise, dim=-1).flatten(0, 1)
    found = max(
        (spherical_k_means(data, 4, seed=seed) for seed in range(20)),
        key=lambda c: float((data @ c.T).amax(1).sum()),
    )
    assert (centres @ found.T).amax(1).min() > 0.99
    book = Codebook(4, 4)
    drawn = book.vectors.clone()
    book.start(data, "random")
    assert torch.equal(book.vectors, drawn) and bool(book.started)
    book.start(data, "kmeans")
    assert not torch.equal(book.vectors, drawn)
    torch.testing.assert_close(book.vectors.norm(dim=1), torch.ones(4))


def test_usage_and_perplexity_by_hand() -> None:
    index = torch.tensor([0, 0, 1, 1])
    assert usage(index, 4) == 0.5
    assert perplexity(index, 4).item() == pytest.approx(2.0)
    assert perplexity(torch.zeros(9, dtype=torch.int64), 4).item() == pytest.approx(1.0)
    assert perplexity(torch.arange(8), 8).item() == pytest.approx(8.0)


# --- The image quantiser -----------------------------------------------------------------------


def test_every_picture_loses_the_same_share_of_patches() -> None:
    patches, token = torch.randn(4, 20, 3), torch.full((3,), 7.0)
    hidden = (hide(patches, 0.9, token) == 7).all(-1)
    assert hidden.sum(1).tolist() == [18] * 4 and not torch.equal(hidden[0], hidden[1])
    assert torch.equal(hide(patches, 0.0, token), patches)


@pytest.mark.parametrize("layers", [0, 1])
def test_terms_and_gradients_equal_the_loops(layers: int) -> None:
    torch.manual_seed(0)
    model = ImageQuantizer(8, Codebook(5, 4), 2, 0.0, layers).double()
    cls, patches = torch.randn(6, 8).double(), torch.randn(6, 3, 8).double()
    terms, quantized = quantizer_terms(model, cls, patches)
    z = model.down(cls)
    index = model.codes(cls)
    assert torch.equal(index, quantized.index)
    lengths = z.norm(dim=1, keepdim=True)
    straight = z / lengths + (model.codebook.vectors[index] - z / lengths).detach()
    restored = model.up(straight)
    if model.decoder is not None:
        restored = model.decoder(torch.cat([restored[:, None], patches], 1)).cls
    commitment = sum(
        ((row / row.norm() - model.codebook.vectors[m]) ** 2).sum()
        for row, m in zip(z, index, strict=True)
    ) / len(z)
    by_hand = {"reconstruction": cosine_distance_loop(restored, cls), "commitment": commitment}
    used = [p for n, p in model.named_parameters() if n != "mask_token"]
    for name, wanted in by_hand.items():
        torch.testing.assert_close(terms[name], wanted)
        pair = [
            torch.autograd.grad(value, used, allow_unused=True, retain_graph=True)
            for value in (terms[name], wanted)
        ]
        for found, right in zip(*pair, strict=True):
            assert (found is None) == (right is None)
            if found is not None:
                torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-12)


def test_the_quantiser_trains_every_parameter_and_neither_teacher_nor_codes_by_gradient() -> None:
    config = tiny("quantiser")
    method = build(config).train()
    batch = a_batch(config)
    batch["image"] = batch["image"].float()
    before = {n: v.clone() for n, v in method.teacher.state_dict().items()}
    terms = method.losses(batch, method.targets(batch), 0.0)
    assert terms.keys() == config.weights.keys()
    sum(config.weights[n] * t for n, t in terms.items()).backward()
    codes = method.quantizer.codebook.vectors.clone()
    method.after_step()
    assert not torch.equal(codes, method.quantizer.codebook.vectors)
    for name, p in method.named_parameters():
        assert p.grad is not None and ("key.bias" in name or p.grad.abs().sum() > 0), name
    assert all(torch.equal(v, before[n]) for n, v in method.teacher.state_dict().items())


@pytest.mark.parametrize("method", ["quantiser", "quantised_targets"])
def test_an_interrupted_run_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    settings = {"train.steps": 5, "train.checkpoint_every": 2}
    cut_and_resumed(
        *(tiny(method, settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    )


# --- S-SMKE on codes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared() -> QuantisedTargets:
    """One method whose quantiser is fitted; its state is loaded into others."""
    config = tiny("quantised_targets")
    method = build(config)
    assert isinstance(method, QuantisedTargets)
    with torch.no_grad():
        method.targets({"image": a_batch(config)["image"].float()})
    return method


@pytest.mark.parametrize("variant", ["codes", "code_4"])
def test_corrected_code_4_pair_by_pair(variant: str, prepared: QuantisedTargets) -> None:
    config = tiny("quantised_targets", QuantisedTargets.variants[variant])
    method = build(config)
    method.load_state_dict(prepared.state_dict(), strict=variant == "code_4")
    method.double().train()
    batch = a_batch(config)
    quantizer = {n: v.clone() for n, v in method.quantizer.state_dict().items()}
    targets = method.targets(batch)
    vectors = method.teacher.features(batch["image"])
    z = method.quantizer.down(vectors)
    assert torch.equal(targets["code"], (z @ method.quantizer.codebook.vectors.T).argmax(1))
    terms = method.losses(batch, targets, 0.0)
    space, mask = method.space, batch["tokens"] != 0
    image = space.shared(space.image_encoder(batch["image"]))
    text = space.shared(space.text_encoder(batch["tokens"]), mask)
    layers = [(image.intermediate, text.intermediate), (image.cls, text.cls)]
    layers = layers[-config.options.contrast_layers :]
    contrasts = [
        image_text_contrast_loop(
            v / v.norm(dim=1, keepdim=True), w / w.norm(dim=1, keepdim=True), s.value()
        )
        for (v, w), s in zip(layers, method.scales, strict=True)
    ]
    by_hand = {
        "codes_image": cross_entropy_loop(method.head(image.cls), targets["code"]),
        "codes_text": cross_entropy_loop(method.head(text.cls), targets["code"]),
        "contrast": sum(contrasts) / len(contrasts),
    }
    for name, wanted in by_hand.items():
        torch.testing.assert_close(terms[name], wanted, rtol=1e-6, atol=0)
    total, wanted = (sum(config.weights[n] * part[n] for n in by_hand) for part in (terms, by_hand))
    first = [space.image_encoder.patch_projection.weight, space.text_encoder.token_embedding.weight]
    for found, right in zip(
        torch.autograd.grad(total, first, retain_graph=True),
        torch.autograd.grad(wanted, first),
        strict=True,
    ):
        assert (found - right).norm() <= 1e-6 * right.norm()
    total.backward()
    method.after_step()
    for name, p in method.named_parameters():
        if name.startswith("quantizer."):
            assert not p.requires_grad and p.grad is None
        else:
            assert p.grad is not None and ("key.bias" in name or p.grad.abs().sum() > 0), name
    assert all(torch.equal(v, quantizer[n]) for n, v in method.quantizer.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_the_fit_depends_on_the_seed_alone_and_helps(prepared: QuantisedTargets) -> None:
    state = prepared.quantizer.state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = build(tiny("quantised_targets"))
    with torch.no_grad():
        again.targets({"image": a_batch(again.config)["image"].float()})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[n]) for n, v in again.quantizer.state_dict().items())
    assert bool(state["codebook.started"]) and "quantizer.codebook.vectors" in again.state_dict()


def test_a_finished_quantiser_serves_as_it_is_or_is_refused(tmp_path: Path) -> None:
    run = fit(tiny("quantiser", {"train.steps": 2}, out_dir=str(tmp_path)))
    config = tiny("quantised_targets", {"options.quantiser_run": str(tmp_path)})
    method = build(config)
    with torch.no_grad():
        method.targets({"image": a_batch(config)["image"].float()})
    theirs = run.load_method().quantizer.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in method.quantizer.state_dict().items())
    other = build(
        tiny("quantised_targets", {"options.quantiser_run": str(tmp_path), "options.codes": 8})
    )
    with pytest.raises(ValueError, match=r"options.codes=16, this run asks for 8"):
        other.targets({"image": a_batch(config)["image"].float()})


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("quantiser", {"options.codes": 65}, "options.codes=65 is larger than the data"),
        ("quantised_targets", {"options.codes": 65}, "options.codes=65 is larger than the data"),
        ("quantiser", {"options.start": "zeros"}, "must be one of: kmeans, random"),
        ("quantiser", {"options.decay": 1.0}, r"must lie in \[0, 1\)"),
        ("quantiser", {"options.masked": 1.5}, r"masked=1.5 must lie in \[0, 1\]"),
        ("quantiser", {"teacher": ""}, "needs an image teacher"),
        ("quantiser", {"teacher": "random-text"}, "reads texts"),
        ("quantised_targets", {"teacher": ""}, "needs an image teacher"),
        ("quantised_targets", {"options.contrast_layers": 3}, "must be 1 or 2"),
        ("quantised_targets", {"options.layout": "vlmo"}, "'vlmo' have a single contrast"),
    ],
)
def test_bad_settings_are_named(method: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(method, overrides))


def test_a_codebook_larger_than_its_vectors_and_a_teacher_without_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="codebook of 9 codes is larger than the data, 8 vectors"):
        Codebook(9, 4).start(torch.randn(8, 4))
    config = tiny("quantiser", {"teacher": "random-cnn"})
    with pytest.raises(ValueError, match="has no patch vectors"):
        build(config).targets({"image": a_batch(config)["image"].float()})
    bare = build(tiny("quantiser", {"teacher": "random-cnn", "options.decoder_layers": 0}))
    assert bare.targets({"image": a_batch(config)["image"].float()})["cls"].shape == (BATCH, 96)


def test_full_size_head_and_quantiser() -> None:
    settings = {"teacher": "timm-random:vit_base_patch16_224.dino", "text.start": ""}
    with torch.device("meta"):
        method = build(resolve("quantised_targets", "full", settings))
    assert sum(p.numel() for p in method.head.parameters()) == 768 * 1024 + 1024 + 2 * 768
    assert method.quantizer.codebook.vectors.shape == (1024, 16)
    assert len(method.scales) == 2
