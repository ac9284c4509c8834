"""First weights: reproducible, and copied from a teacher's first layers."""

import pytest
import torch

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import (
    ImageEncoder,
    TextEncoder,
    copy_first_layers,
    initialise_weights,
    seeded,
)

TEACHER = TowerConfig(width=32, layers=3, heads=4, patch=8)
STUDENT = TowerConfig(width=32, layers=2, heads=4, patch=8)


def image(config: TowerConfig, seed: int, size: int = 32) -> ImageEncoder:
    with seeded(seed):
        return ImageEncoder(config, size)


def text(config: TowerConfig, seed: int, vocab: int = 20, max_tokens: int = 12) -> TextEncoder:
    with seeded(seed):
        return TextEncoder(config, vocab, max_tokens)


CUT = 0.8796  # standard deviation of a unit normal that is cut at two of them


def test_first_weights_are_normal_and_biases_zero():
    encoder = text(TowerConfig(width=96, layers=2), 0, vocab=2000)
    weight = encoder.token_embedding.weight.detach()
    assert (weight[0] == 0).all()
    assert weight[1:].std().item() == pytest.approx(0.02 * CUT, rel=0.01)
    assert weight.abs().max().item() <= 0.04
    assert encoder.positions.table.std().item() == pytest.approx(0.02 * CUT, rel=0.05)
    network = encoder.transformer.blocks[1].feed_forward
    for layer, inputs in ((network.expand, 96), (network.contract, 384)):
        assert layer.weight.std().item() == pytest.approx(CUT * inputs**-0.5, rel=0.02)
        assert (layer.bias == 0).all()
    norm = encoder.transformer.blocks[1].attention_norm
    assert (norm.weight == 1).all()
    assert (norm.bias == 0).all()


def test_a_generator_decides_the_weights():
    encoder = image(TEACHER, 0)
    initialise_weights(encoder, torch.Generator().manual_seed(7))
    first = encoder.cls.detach().clone()
    initialise_weights(encoder, torch.Generator().manual_seed(7))
    assert torch.equal(first, encoder.cls)
    assert not torch.equal(first, image(TEACHER, 0).cls)


def test_seeds_differ():
    assert not torch.equal(image(TEACHER, 0).cls, image(TEACHER, 1).cls)


def test_student_starts_as_the_first_layers_of_the_teacher():
    teacher, student = image(TEACHER, 0), image(STUDENT, 1)
    report = copy_first_layers(student, teacher.state_dict(), layers=2)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    theirs = teacher(pictures, return_hidden=True)[1]
    ours = student(pictures, return_hidden=True)[1]
    for own, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert report.fresh == ("transformer.final_norm.weight", "transformer.final_norm.bias")
    assert "positions.table" in report.copied
    assert not report.cut
    assert str(report) == "copied 30 tensors (0 cut to length), 2 left fresh"


def test_all_layers_make_a_copy():
    teacher, student = image(TEACHER, 0), image(TEACHER, 1)
    with torch.no_grad():
        teacher.transformer.final_norm.weight.fill_(1.5)
    report = copy_first_layers(student, teacher.state_dict(), layers=3)
    assert not report.fresh
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)


def test_no_layers_copies_the_embeddings_alone():
    teacher, student = text(TEACHER, 0), text(STUDENT, 1)
    fresh = student.transformer.blocks[0].feed_forward.expand.weight.clone()
    report = copy_first_layers(student, teacher.state_dict(), layers=0)
    assert report.copied == ("token_embedding.weight", "positions.table")
    assert torch.equal(student.transformer.blocks[0].feed_forward.expand.weight, fresh)


def test_longer_text_positions_are_cut_and_reported():
    teacher, student = text(TEACHER, 0, max_tokens=40), text(STUDENT, 1, max_tokens=12)
    report = copy_first_layers(student, teacher.state_dict(), layers=2)
    assert report.cut == ("positions.table",)
    assert torch.equal(student.positions.table, teacher.positions.table[:12])


def test_a_prefix_is_stripped():
    teacher, student = image(TEACHER, 0), image(STUDENT, 1)
    state = {f"encoder.{name}": tensor for name, tensor in teacher.state_dict().items()}
    state["head.weight"] = torch.zeros(3)
    copy_first_layers(student, state, layers=1, prefix="encoder.")
    assert torch.equal(student.cls, teacher.cls)


def test_misfits_are_named_and_change_nothing():
    student = image(STUDENT, 1)
    before = student.cls.detach().clone()
    with pytest.raises(ValueError, match="the student has 2, the teacher 3"):
        copy_first_layers(student, image(TEACHER, 0).state_dict(), layers=3)
    wide = image(TowerConfig(width=64, layers=3, heads=4, patch=8), 0)
    with pytest.raises(ValueError, match=r"cls has shape \(64,\)"):
        copy_first_layers(student, wide.state_dict(), layers=1)
    larger = image(TEACHER, 0, size=48)  # 36 places in a 6 x 6 grid are not 16 in a 4 x 4 one
    with pytest.raises(ValueError, match=r"positions\.table has shape \(37, 32\)"):
        copy_first_layers(student, larger.state_dict(), layers=1)
    with pytest.raises(ValueError, match=r"lack .*patch_projection"):
        copy_first_layers(student, text(TEACHER, 0).state_dict(), layers=1)
    assert torch.equal(student.cls, before)
