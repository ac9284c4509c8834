"""Unimodal distillation and soft labels: losses by loops, starts, full size, scores, clear errors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmkd_lite import one_modality_scores
from mmkd_lite.comparison import Comparison, comparison_tables, difference_rows, score_rows
from mmkd_lite.config import RunConfig, TowerConfig, resolve
from mmkd_lite.evaluate import count_parameters, embed_texts
from mmkd_lite.losses import cross_entropy, hidden_state_distillation, kl_divergence
from mmkd_lite.losses.hidden_states import average_of_layers, instance_norm
from mmkd_lite.methods import METHODS, build
from mmkd_lite.models import ImageEncoder, TextEncoder, load_timm_vit
from mmkd_lite.models.positions import sinusoidal_grid
from mmkd_lite.one_modality_scores import labelled_captions, score_one_modality
from mmkd_lite.optimizer import parameter_groups
from mmkd_lite.scoring import score_run
from mmkd_lite.teachers import Teacher
from mmkd_lite.train import fit
from tests.method_checks import cut_and_resumed
from tests.reference_losses import hidden_states_loop, kl_divergence_loop

RANDOM = {
    "unimodal_image": "random-vit",
    "unimodal_text": "random-text",
    "soft_labels": "random-cnn",
}
SIDES = ("unimodal_image", "unimodal_text")


def tiny(method: str, overrides: dict | None = None) -> RunConfig:
    return resolve(method, "tiny", {"teacher": RANDOM[method], **(overrides or {})})


def a_batch(config: RunConfig, size: int = 4, length: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = config.data.image_size
    tokens = torch.randint(5, 60, (size, length), generator=generator)
    for row in range(size):
        tokens[row, 4 + row :] = 0
    return {
        "image": torch.rand(size, 3, side, side, generator=generator),
        "tokens": tokens,
        "label": torch.arange(size),
    }


def states(seed: int, layers: int = 3, shape: tuple = (2, 5, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(layers)
    ]


MASK = torch.tensor([[True, True, True, True, True], [True, True, True, False, False]])

# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_hidden_states_equal_the_loop_in_value_and_gradient(mask, layer_norm) -> None:
    student, teacher = states(0, 2), states(1, 4)
    averages = [average_of_layers(side, mask, layer_norm) for side in (student, teacher)]
    loss = hidden_state_distillation(*averages, mask)
    expected = hidden_states_loop(student, teacher, mask, layer_norm)
    assert loss.ndim == 0
    assert torch.allclose(loss, expected, rtol=1e-10)
    ours = torch.autograd.grad(loss, student)
    theirs = torch.autograd.grad(expected, student)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_the_teacher_side_gets_no_gradient_and_equal_sides_cost_nothing() -> None:
    student, teacher = states(0), states(1)
    loss = hidden_state_distillation(average_of_layers(student), average_of_layers(teacher))
    loss.backward()
    assert all(state.grad is None for state in teacher)
    same = average_of_layers(student).detach()
    assert float(hidden_state_distillation(same, same)) == 0.0


def test_instance_norm_ignores_scale_shift_and_whatever_lies_at_padding() -> None:
    (state,) = states(0, 1)
    plain = instance_norm(state, MASK, eps=0.0)
    assert torch.allclose(plain, instance_norm(3 * state + 7, MASK, eps=0.0))
    filled = state.detach().clone()
    filled[1, 3:] = 1e6
    assert torch.equal(plain.detach(), instance_norm(filled, MASK, eps=0.0))
    assert torch.equal(plain[1, 3:], torch.zeros(2, 4, dtype=torch.float64))
    cut = instance_norm(state[1:, :3], eps=0.0)
    assert torch.allclose(plain[1:, :3], cut)
    valid = plain[1, :3]
    assert torch.allclose(valid.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(valid.var(0, correction=0), torch.ones(4, dtype=torch.float64))


def test_a_full_mask_is_no_mask_and_one_layer_is_its_own_average() -> None:
    student, teacher = states(0), states(1)
    full = torch.ones(2, 5, dtype=torch.bool)
    a, b = (average_of_layers(side) for side in (student, teacher))
    assert torch.allclose(a, average_of_layers(student, full))
    assert torch.allclose(hidden_state_distillation(a, b), hidden_state_distillation(a, b, full))
    assert torch.equal(average_of_layers(student[:1]), instance_norm(student[0]))


def test_bad_input_of_the_losses_is_named() -> None:
    a = torch.zeros(2, 5, 4)
    with pytest.raises(ValueError, match="at least one layer"):
        average_of_layers([])
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 5, 4\)"):
        instance_norm(a, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no valid token"):
        hidden_state_distillation(a, a, torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="same shape"):
        hidden_state_distillation(a, a[:, :4])
    with pytest.raises(ValueError, match="floating point"):
        hidden_state_distillation(a.long(), a.long())


# ---------------------------------------------------------------- the methods


def all_variants() -> list[tuple[str, str]]:
    return [(name, v) for name in RANDOM for v in METHODS[name].variants]


@pytest.mark.parametrize(("name", "variant"), all_variants())
def test_every_variant_trains_what_it_uses_and_no_teacher(name: str, variant: str) -> None:
    config = tiny(name, METHODS[name].variants[variant])
    method = build(config).train()
    teacher = method.teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    batch = a_batch(config)
    with torch.no_grad():
        targets = method.targets(batch)
    terms = method.losses(batch, targets, progress=0.0)
    assert terms.keys() == config.weights.keys()
    sum(config.weights[key] * term for key, term in terms.items()).backward()
    idle = {key for key, p in method.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {key for key in idle if "key" not in key}
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not any("teacher" in key for key in method.state_dict())
    optimised = {id(p) for group in parameter_groups(method, 0.1) for p in group["params"]}
    assert {id(p) for p in method.parameters()} == optimised


@pytest.mark.parametrize("name", SIDES)
def test_losses_equal_the_loop_over_hidden_states(name: str) -> None:
    config = tiny(name)
    method = build(config).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    batch = {k: v[:2] if method.side == "text" else v[:1] for k, v in batch.items()}
    inputs = batch[method.entry]
    mask = inputs != 0 if name == "unimodal_text" else None
    student, teacher = (
        encoder(inputs, return_hidden=True)[1][1:]
        for encoder in (method.encoder, method.teacher.model.encoder)
    )
    assert (len(student), len(teacher)) == (3, 6)
    loss = method.losses(batch, method.targets(batch), 0.0)["hidden_states"]
    with torch.no_grad():
        expected = hidden_states_loop(student, teacher, mask, name == "unimodal_image")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("name", SIDES)
def test_starts_copy_the_first_or_every_second_layer(name: str) -> None:
    teacher = build(tiny(name)).teacher
    theirs = teacher.model.encoder.transformer.blocks
    for start, layers in (("first_half", (0, 1, 2)), ("every_second", (1, 3, 5))):
        encoder = build(tiny(name, {"options.start": start}), teacher).encoder
        for ours, layer in zip(encoder.transformer.blocks, layers, strict=True):
            for key, value in ours.state_dict().items():
                assert torch.equal(value, theirs[layer].state_dict()[key]), (start, layer, key)
        table = encoder.positions.table
        assert torch.equal(table, teacher.model.encoder.positions.table)
    fresh = build(tiny(name, {"options.start": "random"}), teacher).encoder
    first = fresh.transformer.blocks[0].attention.output.weight
    assert not torch.equal(first, theirs[0].attention.output.weight)


@pytest.mark.parametrize("name", SIDES)
def test_a_student_that_is_its_teacher_has_no_loss(name: str) -> None:
    side = METHODS[name].side
    config = tiny(name, {f"{side}.layers": 6, "options.start": "random"})
    method = build(config)
    method.encoder.load_state_dict(method.teacher.model.encoder.state_dict())
    batch = a_batch(config)
    for target in ("mean", "cls"):
        object.__setattr__(config.options, "target", target)
        loss = method.losses(batch, method.targets(batch), 0.0)["hidden_states"]
        assert float(loss) == pytest.approx(0.0, abs=1e-10)


def test_padding_counts_only_where_the_option_says_so() -> None:
    config = tiny("unimodal_text")
    batch = a_batch(config)
    longer = {**batch, "tokens": torch.nn.functional.pad(batch["tokens"], (0, 6))}

    def loss(settings: dict, batch: dict) -> float:
        method = build(tiny("unimodal_text", {**settings, "options.start": "random"}))
        return float(method.losses(batch, method.targets(batch), 0.0)["hidden_states"])

    assert loss({}, batch) == pytest.approx(loss({}, longer), rel=1e-5)
    counted = {"options.padding": "counted"}
    assert abs(loss(counted, batch) - loss(counted, longer)) > 1e-3 * loss(counted, batch)


def test_embedding_output_counts_as_a_layer_where_asked() -> None:
    config = tiny("unimodal_image", {"options.embedding_output": True, "options.start": "random"})
    method, batch = build(config), a_batch(config)
    _, hidden = method.teacher.model.encoder(batch["image"], return_hidden=True)
    expected = average_of_layers(hidden, layer_norm=True)
    assert len(hidden) == 7 and torch.allclose(method.targets(batch)["hidden"], expected)


def test_an_adapter_bridges_widths_and_is_trained() -> None:
    settings = {"image.width": 32, "options.start": "random", "options.adapter": True}
    config = tiny("unimodal_image", settings)
    method, batch = build(config), a_batch(config)
    method.losses(batch, method.targets(batch), 0.0)["hidden_states"].backward()
    assert tuple(method.adapter.weight.shape) == (96, 32)
    assert method.adapter.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("unimodal_image", {"image.layers": 2}, r"image.layers=2 and a teacher of 6"),
        ("unimodal_text", {"text.layers": 5}, r"text.layers=5 and a teacher of 6"),
        ("unimodal_image", {"image.width": 64}, "image.width=64 but the teacher's width is 96"),
        (
            "unimodal_text",
            {"text.width": 64, "options.adapter": True},
            "text.width=64 cannot start from layers of width 96",
        ),
        ("unimodal_image", {"data.image_size": 32}, "data.image_size is 32 .* 48 for the teacher"),
        ("unimodal_image", {"image.patch": 16}, "image.patch is 16 .* 8 for the teacher"),
        ("unimodal_text", {"data.vocab_size": 99}, "vocabulary size is 99 for the student but"),
        ("unimodal_text", {"data.max_tokens": 40}, "data.max_tokens is 40 .* 32 for the teacher"),
        ("unimodal_image", {"teacher": "random-text"}, "no image encoder with hidden states"),
        ("unimodal_text", {"teacher": "random-vit"}, "no text encoder with hidden states"),
        ("unimodal_image", {"teacher": ""}, "options.teacher_layers >= 1"),
        ("unimodal_image", {"options.start": "last"}, "first_half, every_second, random"),
        ("unimodal_image", {"options.target": "patch"}, "must be one of: mean, cls"),
        ("unimodal_text", {"options.padding": "yes"}, "must be one of: excluded, counted"),
        ("soft_labels", {"teacher": "random-vit", "options.temperature": 0.0}, "must be > 0"),
        ("soft_labels", {"teacher": "random-text"}, "needs a teacher that predicts classes"),
        ("soft_labels", {"options.channels": 12}, "multiple of 8"),
        (
            "soft_labels",
            {"teacher": "timm-random:test_resnet"},
            "has 1000 classes but the pictures have 96",
        ),
    ],
)
def test_bad_settings_are_named(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tiny(name, overrides))


def test_a_teacher_with_an_odd_number_of_layers_cannot_be_halved() -> None:
    config = tiny("unimodal_image", {"teacher": "", "options.teacher_layers": 7})
    with pytest.raises(ValueError, match=r"got image.layers=3 and a teacher of 7"):
        build(config)


# ---------------------------------------------------------------- full size


def test_full_image_student_has_43_1_and_its_teacher_85_6_million_parameters() -> None:
    config = resolve("unimodal_image", "full", {"options.teacher_start": ""})
    assert (config.image.positions, config.image.cls_position) == ("fixed", False)
    with torch.device("meta"):
        method = build(config)
        learned = replace(config.image, positions="learned", cls_position=True, layers=12)
        printed = count_parameters(ImageEncoder(learned, 224))
    student, teacher = count_parameters(method), count_parameters(method.teacher.model.encoder)
    assert [round(count / 1e6, 2) for count in (student, teacher, printed)] == [43.12, 85.65, 85.8]


def test_full_text_student_and_teacher_are_bert_size() -> None:
    config = resolve("unimodal_text", "full")
    with torch.device("meta"):
        counts = [
            count_parameters(
                TextEncoder(replace(config.text, layers=layers), 30522, 512, token_types=2)
            )
            for layers in (config.text.layers, config.options.teacher_layers)
        ]
    assert [round(count / 1e6, 1) for count in counts] == [66.4, 108.9]


def test_fixed_positions_take_a_timm_model_whose_positions_are_the_sinusoids() -> None:
    import timm

    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4
    )
    tower = TowerConfig(32, 2, 4, patch=8, positions="fixed", cls_position=False)
    ours = ImageEncoder(tower, 32).eval()
    with pytest.raises(ValueError, match="positions='learned'"):
        load_timm_vit(ours, theirs.state_dict())
    with torch.no_grad():
        grid = sinusoidal_grid(4, 4, 32)
        theirs.pos_embed.copy_(torch.cat([torch.zeros(1, 32), grid])[None])
    load_timm_vit(ours, theirs.state_dict())
    images = torch.rand(2, 3, 32, 32)
    expected = theirs.eval().forward_features((images - 0.5) / 0.5)
    assert torch.allclose(ours(images), expected, atol=1e-4)


# ---------------------------------------------------------------- soft labels


def test_soft_labels_equal_the_loop_and_the_weights_are_one() -> None:
    config = tiny("soft_labels", {"options.temperature": 4.0})
    method = build(config).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in a_batch(config).items()}
    targets = method.targets(batch)
    terms = method.losses(batch, targets, 0.0)
    logits = method.classify(batch["image"])
    expected = kl_divergence_loop(logits, targets["class_logits"], 4.0)
    assert float(terms["soft"]) == pytest.approx(float(expected), rel=1e-9)
    assert float(terms["hard"]) == pytest.approx(float(cross_entropy(logits, batch["label"])))
    for variant in METHODS["soft_labels"].variants.values():
        assert sum(tiny("soft_labels", variant).weights.values()) == pytest.approx(1.0)


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 8, 10, generator=generator, dtype=torch.float64)
    norms = {}
    for temperature in (50.0, 100.0):
        logits = student.clone().requires_grad_()
        kl_divergence(logits, teacher, temperature).backward()
        norms[temperature] = float(logits.grad.norm())
    assert norms[100.0] == pytest.approx(norms[50.0], rel=0.05)
    difference = student - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / (10 * 8)  # T -> infinity
    assert norms[100.0] == pytest.approx(float(limit.norm()), rel=0.05)


def test_pictures_repeat_in_another_order_each_epoch_and_ranks_share_a_batch() -> None:
    data = METHODS["soft_labels"].open_data(tiny("soft_labels"))
    epochs = [
        torch.cat([data.batch(step, 32)["image"].flatten(1).sum(1) for step in steps])
        for steps in ((0, 1), (2, 3))
    ]
    assert torch.allclose(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(*epochs)
    halves = [data.batch(1, 16, rank, 2)["image"] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), data.batch(1, 32)["image"])
    endless = METHODS["soft_labels"].open_data(tiny("soft_labels", {"options.pictures": 0}))
    assert not torch.equal(endless.batch(0, 64)["image"], endless.batch(1, 64)["image"])


# ---------------------------------------------------------------- runs and scores


@pytest.mark.parametrize("name", list(RANDOM))
def test_an_interrupted_run_ends_with_the_same_bits(name, tmp_path) -> None:
    settings = {"train.steps": 4, "train.checkpoint_every": 2, "train.batch_size": 8}
    configs = [replace(tiny(name, settings), out_dir=str(tmp_path / w)) for w in ("whole", "cut")]
    cut_and_resumed(*configs)


@pytest.mark.parametrize("name", list(RANDOM))
def test_a_run_is_scored_without_retrieval_and_fills_the_tables(name, tmp_path) -> None:
    config = replace(tiny(name, {"train.steps": 2}), out_dir=str(tmp_path))
    run = fit(config)
    scores = score_run(run)
    assert scores["model"]["parameters"] == count_parameters(build(config))
    accuracies = {key: value for key, value in scores.items() if "accuracy" in value}
    ends = {"classes": ("_fine", "_coarse")}.get(METHODS[name].scored_by, ("_mean", "_cls"))
    assert accuracies and all(key.endswith(ends) for key in accuracies)
    assert all(0 <= v["accuracy"] <= 100 and v["majority"] > 0 for v in accuracies.values())
    records = [{"seed": seed, "seconds": 1.0, "metrics": scores} for seed in (0, 1)]
    found = Comparison("tiny", {"a": records, "b": records})
    text = comparison_tables(found)
    assert next(iter(accuracies)).replace("_", " ") in text and "mean recall" not in text
    assert [row["seeds"] for row in score_rows(found)] == [2, 2]
    assert difference_rows(found)[0]["difference"].mean == 0.0


def test_captions_of_a_probe_hold_their_label() -> None:
    from mmkd_lite.data.emoji import class_names, concepts, labels

    config = tiny("unimodal_text")
    texts, classes = labelled_captions(config, "train")
    fine, coarse = labels("fine"), labels("coarse")
    names = class_names("fine")
    assert len(texts) == len(classes["fine"]) == 150 > 20
    for text, label, group in zip(texts, classes["fine"], classes["coarse"], strict=True):
        members = [i for i in range(len(concepts())) if fine[i] == int(label)]
        words = [names[int(label)], *(concepts()[i].name for i in members)]
        assert any(word in text for word in words), (text, names[int(label)])
        assert int(coarse[members[0]]) == int(group)


def test_seeds_of_an_image_student_see_other_scenes() -> None:
    method = METHODS["unimodal_image"]
    first, second = (
        method.open_data(resolve("unimodal_image", "tiny", seed=seed)).batch(0, 16)
        for seed in (0, 1)
    )
    assert first["image_id"].tolist() != second["image_id"].tolist()
    again = method.open_data(resolve("unimodal_image", "tiny", seed=0)).batch(0, 16)
    assert torch.equal(first["image"], again["image"])


def test_a_student_of_short_captions_is_probed_on_whole_ones(monkeypatch) -> None:
    config = tiny("unimodal_text", METHODS["unimodal_text"].variants["short"])
    method, lengths = build(config), []
    assert METHODS["unimodal_text"].open_data(config).batch(0, 4)["tokens"].shape == (4, 8)

    def embed(encode, tokens):
        lengths.append((tokens.shape[1], int(tokens.ne(0).sum(dim=1).max())))
        return embed_texts(encode, tokens)

    monkeypatch.setattr(one_modality_scores, "embed_texts", embed)
    score_one_modality(method.eval(), config)
    assert [length for length, _ in lengths] == [32, 32]
    assert all(longest > 8 for _, longest in lengths)


def test_a_probe_reads_cls_and_mean_apart_and_unknown_scoring_is_refused(monkeypatch) -> None:
    config = tiny("unimodal_text")
    method, batch = build(config).eval(), a_batch(config)
    hidden = method.encoder(batch["tokens"])
    both = method.pooled(batch["tokens"])
    assert torch.equal(both[:, :96], hidden[:, 0])
    assert torch.allclose(both[0, 96:], hidden[0, 1:4].mean(0), atol=1e-6)
    monkeypatch.setattr(type(method), "scored_by", "smell")
    with pytest.raises(ValueError, match="'smell' of UnimodalText must be one of: pictures"):
        score_one_modality(method, config)
    coco = replace(config, data=replace(config.data, source="coco"))
    with pytest.raises(ValueError, match="holds no labels"):
        score_one_modality(method, coco)


def test_teacher_of_the_students_own_kind_is_frozen_and_has_a_fingerprint() -> None:
    config = tiny("unimodal_text", {"teacher": "", "options.teacher_layers": 6})
    method = build(config)
    assert isinstance(method.teacher, Teacher) and len(method.teacher.fingerprint()) > 64
    assert tuple(method.teacher.features(a_batch(config)["tokens"]).shape) == (4, 96)
    assert math.isfinite(float(method.teacher.features(a_batch(config)["tokens"]).sum()))
