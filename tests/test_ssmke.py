"""S-SMKE: its terms by loops, the frozen-teacher bank, the limits, exact resume, clear errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd_lite.config import RunConfig, resolve
from mmkd_lite.losses import cosine_distance, mean_squared_error
from mmkd_lite.methods import build
from mmkd_lite.methods.ssmke import SSMKE
from tests.method_checks import cut_and_resumed
from tests.reference_losses import cosine_distance_loop, info_nce_loop, mean_squared_error_loop

TEACHER = {"teacher": "random-vit", "image.start": "", "text.start": ""}
NO_TEACHER = SSMKE.variants["no_teacher"]
BATCH = 6


def tiny(overrides: dict | None = None, **settings: object) -> RunConfig:
    chosen = {**TEACHER, "train.batch_size": BATCH, **(overrides or {})}
    return resolve("ssmke", "tiny", chosen, **settings)


def a_batch(config: RunConfig, first: int = 0, size: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1 + first)
    side, length = config.data.image_size, config.data.max_tokens
    tokens = torch.randint(5, 60, (size, length), generator=generator)
    tokens[:, 9:] = 0
    return {
        "image": torch.rand(size, 3, side, side, generator=generator, dtype=torch.float64),
        "tokens": tokens,
        "image_id": torch.arange(first, first + size),
    }


def predictions(method: SSMKE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The head's vectors of both modalities and the teacher's, by the parts of the method."""
    sequence = method.space.image_encoder(batch["image"])
    image = method.head(method.space.shared(sequence).cls)
    mask = batch["tokens"] != 0
    sequence = method.space.text_encoder(batch["tokens"])
    text = method.head(method.space.shared(sequence, mask).cls)
    return image, text, method.teacher.features(batch["image"])


def gradients(method: SSMKE, value: Tensor) -> Tensor:
    """What reaches the very first layers and the head."""
    tower = method.space.image_encoder.patch_projection.weight
    table = method.space.text_encoder.token_embedding.weight
    found = torch.autograd.grad(value, [tower, table, *method.head.parameters()], retain_graph=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive", "bank"])
def test_terms_and_gradients_equal_the_loops(kind: str) -> None:
    options = {"options.target": "contrastive" if kind == "bank" else kind}
    options |= {"options.bank": 2 * BATCH} if kind == "bank" else {}
    config = tiny(options)
    method = build(config).double()
    batch, past = a_batch(config), None
    batch["image_id"][3] = 1  # the same picture twice: not each other's negative
    if kind == "bank":  # one step has gone by: half of the bank is filled
        earlier = a_batch(config, first=4)  # two of its pictures are in the batch as well
        method.losses(earlier, method.targets(earlier), 0.0)
        method.after_step()
        past = F.normalize(method.teacher.features(earlier["image"]), dim=-1)
        assert int((method.bank.ids >= 0).sum()) == BATCH
    terms = method.losses(batch, method.targets(batch), 0.0)
    image, text, cls = predictions(method, batch)
    ids = batch["image_id"]

    def expected(student: Tensor) -> Tensor:
        if kind == "mse":
            return mean_squared_error_loop(student, cls)
        if kind == "cosine":
            return cosine_distance_loop(student, cls)
        bank = {} if past is None else {"bank": past, "bank_id": torch.arange(4, 4 + BATCH)}
        rows = student / student.norm(dim=1, keepdim=True)
        key = cls / cls.norm(dim=1, keepdim=True)
        return info_nce_loop(rows, key, 1 / 0.07, query_id=ids, key_id=ids, **bank)

    for name, student in (("regression_image", image), ("regression_text", text)):
        wanted = expected(student)
        torch.testing.assert_close(terms[name], wanted, rtol=1e-6, atol=1e-12)
    total, by_hand = terms["regression_image"] + terms["regression_text"], expected(image)
    by_hand = by_hand + expected(text)
    found, wanted = gradients(method, total), gradients(method, by_hand)
    assert wanted.abs().max() > 1e-6
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()


def test_cosine_distance_ignores_length_and_is_half_the_squared_distance_of_unit_rows() -> None:
    prediction, target = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    value = cosine_distance(prediction, target)
    torch.testing.assert_close(value, cosine_distance_loop(prediction, target))
    torch.testing.assert_close(cosine_distance(3 * prediction, target / 7), value)
    a, b = F.normalize(prediction, dim=-1), F.normalize(target, dim=-1)
    torch.testing.assert_close(value, mean_squared_error(a, b) * 4 / 2)
    target.requires_grad_()
    assert not cosine_distance(prediction, target).requires_grad
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 3\)"):
        cosine_distance(prediction, target[:, :3])
    with pytest.raises(ValueError, match=r"floating point \(B, d\)"):
        cosine_distance(prediction[0], target[0])


@pytest.mark.parametrize("variant", list(SSMKE.variants))
def test_every_variant_trains_what_it_uses_and_never_the_teacher(variant: str) -> None:
    small = {"options.bank": 2 * BATCH} if variant == "contrastive_bank" else {}
    replaced = {} if variant == "no_teacher" else {"teacher": "random-vit"}
    wide = {"image.width": 96, "text.width": 96} if variant == "shared_output" else {}
    config = tiny({**SSMKE.variants[variant], **small, **replaced, **wide})
    method = build(config).double().train()
    batch = a_batch(config)
    before = {} if method.teacher is None else dict(method.teacher.state_dict())
    before = {name: value.clone() for name, value in before.items()}
    terms = method.losses(batch, method.targets(batch), 0.0)
    assert terms.keys() == config.weights.keys()
    sum(config.weights[name] * term for name, term in terms.items()).backward()
    method.after_step()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and "attention.key.bias" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    fixed = {n for n, p in method.named_parameters() if not p.requires_grad}
    assert fixed == ({"target_scale.log_scale"} if variant.startswith("contrastive") else set())
    if method.teacher is not None:
        assert not any(module.training for module in method.teacher.modules())
        for name, value in method.teacher.state_dict().items():
            assert torch.equal(value, before[name]) and not value.requires_grad
    assert not any("teacher" in name for name in method.state_dict())


def test_an_empty_bank_is_no_bank_and_a_filled_one_only_adds() -> None:
    plain = build(tiny({"options.target": "contrastive"}))
    banked = build(tiny({"options.target": "contrastive", "options.bank": BATCH}))
    batch = {k: v.float() if v.is_floating_point() else v for k, v in a_batch(tiny()).items()}
    targets = plain.targets(batch)
    first, without = (m.losses(batch, targets, 0.0) for m in (banked, plain))
    assert first["regression_text"] == without["regression_text"]
    banked.after_step()  # the bank now holds this very batch
    key = F.normalize(targets["cls"], dim=-1)
    assert torch.equal(banked.bank.rows, key)
    again = banked.losses(batch, targets, 0.0)["regression_text"]
    predicted = banked.head(banked.space.encode_text(batch["tokens"]).shared)
    logits = F.normalize(predicted, dim=-1) @ key.T / 0.07
    twice = 2 * logits.exp().sum(1) - logits.diagonal().exp()  # every negative, the own key once
    torch.testing.assert_close(again, (twice.log() - logits.diagonal()).mean())
    other = {**batch, "image_id": batch["image_id"] + 100}
    assert banked.losses(other, targets, 0.0)["regression_text"] > again


def test_a_perfect_student_pays_nothing_and_without_a_teacher_only_the_contrast_is_left() -> None:
    method = build(tiny()).double()
    batch = a_batch(tiny())
    image = method.space.encode_image(batch["image"]).shared
    terms = method.losses(batch, {"cls": method.head(image).detach()}, 0.0)
    assert terms["regression_image"] < 1e-20 < terms["regression_text"]
    alone = build(tiny(NO_TEACHER)).double()
    alone.load_state_dict(method.state_dict(), strict=False)
    nothing = alone.losses(batch, alone.targets(batch), 0.0)
    assert nothing["regression_image"] == nothing["regression_text"] == 0
    assert nothing["contrast"] == terms["contrast"]


def test_the_learnable_scale_learns_and_stays_in_bounds() -> None:
    config = tiny({"options.target": "contrastive", "options.target_scale_learnable": True})
    method = build(config).double()
    batch = a_batch(config)
    method.losses(batch, method.targets(batch), 0.0)["regression_text"].backward()
    assert method.target_scale.log_scale.grad.abs() > 0
    with torch.no_grad():
        method.target_scale.log_scale.fill_(9.0)
    method.after_step()
    assert method.target_scale.value().item() == pytest.approx(100.0)


def test_an_interrupted_run_with_a_bank_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"options.target": "contrastive", "options.bank": 12, "train.steps": 5,
                "train.checkpoint_every": 2}  # fmt: skip

    again = cut_and_resumed(
        *(tiny(settings, out_dir=str(tmp_path / name)) for name in ("whole", "cut"))
    )
    loaded = again.load_method()
    assert int(loaded.bank.pointer) == 5 * BATCH % 12 and int(loaded.bank.ids.max()) == 29


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"options.target": "l1"}, "must be 'mse', 'cosine' or 'contrastive'"),
        ({"options.head": "none"}, "must be 'separate' or 'shared'"),
        ({"options.head": "shared"}, "width 96 and the student's 32"),
        ({"options.bank": 12}, "options.bank=12 needs options.target='contrastive', not 'mse'"),
        ({"options.target": "contrastive", "options.bank": 8}, "bank of 8 slots .* 6 rows"),
        ({"options.target": "contrastive", "options.bank": 3}, "bank of 3 slots .* 6 rows"),
        ({"options.target": "contrastive", "options.target_scale": 200.0}, "must lie in"),
        ({"teacher": "random-text"}, "reads texts; use an image teacher"),
    ],
)
def test_bad_settings_are_named(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(overrides))


def test_full_size_has_117_million_parameters() -> None:
    config = resolve(
        "ssmke", "full", {"teacher": "timm-random:vit_base_patch16_224.dino", "text.start": ""}
    )
    with torch.device("meta"):
        method = build(config)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(method.head) == 768 * 768 + 768 + 2 * 768
    assert round(count(method.space.shared) / 1e6, 2) == 7.09
    assert round(count(method) / 1e6) == 117
    assert math.isclose(count(method), 43.1e6 + 66.4e6 + 7.09e6 + 0.59e6, rel_tol=2e-3)
