"""The streaming contrasts: against loops, for every tile size, in their limits, at bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd_lite.losses import image_text_contrast, info_nce
from tests.measure_contrast import two_matrix_contrast
from tests.reference_losses import image_text_contrast_loop, info_nce_loop

B, D, G = 5, 4, 3
IDS = torch.tensor([7, 1, 7, 2, 3])
BANK_IDS = torch.tensor([1, 9, 3])
CHUNKS = [1, 2, 3, 5, 8, None]


def units(rows: int, width: int = D, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return F.normalize(numbers, dim=-1).to(dtype)


def leaves(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def scale_of(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def assert_same_value_and_gradients(value, inputs, expected, expected_inputs, rtol=1e-9):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-12)
    gradients = torch.autograd.grad(value, inputs)
    expected_gradients = torch.autograd.grad(expected, expected_inputs)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=1e-11)


# --- Against the loop versions -----------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_image_text_contrast_equals_the_loop(chunk):
    tensors = units(B), units(B, seed=1), scale_of(6.0)
    inputs, others = leaves(*tensors), leaves(*tensors)
    value = image_text_contrast(*inputs, chunk_size=chunk)
    assert_same_value_and_gradients(value, inputs, image_text_contrast_loop(*others), others)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_image_text_contrast_with_everything_equals_the_loop(chunk):
    weight_image, weight_text = torch.tensor(
        [[1.0, 0.5, 0.1], [0.3, 0.0, 2.0]], dtype=torch.float64
    )
    tensors = units(B), units(B, seed=1), scale_of(6.0), units(G, seed=2), units(G, seed=3)
    inputs, others = leaves(*tensors), leaves(*tensors)
    value = image_text_contrast(
        *inputs[:3],
        bank_image=inputs[3],
        bank_text=inputs[4],
        bank_bias_image=weight_image.log(),
        bank_bias_text=weight_text.log(),
        image_id=IDS,
        bank_id=BANK_IDS,
        chunk_size=chunk,
    )
    expected = image_text_contrast_loop(
        *others[:3],
        bank_image=others[3],
        bank_text=others[4],
        bank_weight_image=weight_image,
        bank_weight_text=weight_text,
        image_id=IDS,
        bank_id=BANK_IDS,
    )
    assert_same_value_and_gradients(value, inputs, expected, others)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_info_nce_with_everything_equals_the_loop(chunk):
    weight = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    tensors = units(B), units(B, seed=1), scale_of(6.0), units(G, seed=2), weight
    inputs, others = leaves(*tensors), leaves(*tensors)
    ids = {"query_id": IDS, "key_id": IDS.flip(0), "bank_id": BANK_IDS}
    value = info_nce(
        *inputs[:3], bank=inputs[3], bank_bias=inputs[4].log(), **ids, chunk_size=chunk
    )
    expected = info_nce_loop(*others[:3], bank=others[3], bank_weight=others[4], **ids)
    assert_same_value_and_gradients(value, inputs, expected, others)


def test_ids_may_concern_the_bank_or_the_batch_only():
    image, text, bank = units(B), units(B, seed=1), units(G, seed=2)
    for ids in ({"query_id": IDS, "bank_id": BANK_IDS}, {"query_id": IDS, "key_id": IDS}):
        value = info_nce(image, text, 6.0, bank=bank, **ids)
        torch.testing.assert_close(value, info_nce_loop(image, text, 6.0, bank=bank, **ids))


def test_numerical_gradients_agree():
    ids, bank_ids = torch.tensor([0, 1, 0]), torch.tensor([5, 1])

    def loss(image, text, log_scale, bank_image, bank_text, bias):
        sides = [F.normalize(side, dim=-1) for side in (image, text, bank_image, bank_text)]
        return image_text_contrast(
            sides[0], sides[1], log_scale.exp(), bank_image=sides[2], bank_text=sides[3],
            bank_bias_image=bias, bank_bias_text=2 * bias, image_id=ids, bank_id=bank_ids,
            chunk_size=2,
        )  # fmt: skip

    inputs = leaves(units(3), units(3, seed=1), scale_of(1.1), units(2, seed=2), units(2, seed=3),
                    torch.tensor([-0.3, 0.2], dtype=torch.float64))  # fmt: skip
    assert torch.autograd.gradcheck(loss, inputs)


def test_each_input_may_be_the_only_one_with_a_gradient():
    tensors = [units(B), units(B, seed=1), scale_of(6.0)]
    together = leaves(*tensors)
    wanted = torch.autograd.grad(image_text_contrast(*together, chunk_size=2), together)
    for position, expected in enumerate(wanted):
        inputs = [tensor.clone() for tensor in tensors]
        inputs[position].requires_grad_()
        (alone,) = torch.autograd.grad(image_text_contrast(*inputs, chunk_size=2), inputs[position])
        assert torch.equal(alone, expected)


# --- Against the plain implementation, in float32 ----------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_float32_is_as_exact_as_the_two_matrix_implementation(scale):
    image = units(300, 64)
    text = F.normalize(image + 2.2 * units(300, 64, seed=1), dim=-1)
    exact = leaves(image, text, scale_of(scale))
    inputs = leaves(*(tensor.float() for tensor in exact))
    others = leaves(*inputs)
    value, plain = image_text_contrast(*inputs, chunk_size=128), two_matrix_contrast(*others)
    expected = two_matrix_contrast(*exact)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients, rivals = torch.autograd.grad(value, inputs), torch.autograd.grad(plain, others)
    for gradient, rival, right in zip(
        gradients, rivals, torch.autograd.grad(expected, exact), strict=True
    ):
        allowed = max(1e-5 * right.norm(), 2 * (rival - right).norm())
        assert (gradient - right).norm() <= allowed


@pytest.mark.parametrize("chunk", [3, None])
def test_the_largest_scale_with_partners_that_point_away_from_each_other(chunk):
    image = units(12, 16, dtype=torch.float32)
    inputs = leaves(image, -image, torch.tensor(100.0))
    others = leaves(image.double(), -image.double(), scale_of(100.0))
    value, expected = image_text_contrast(*inputs, chunk_size=chunk), two_matrix_contrast(*others)
    assert value.item() > 100
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients, wanted = torch.autograd.grad(value, inputs), torch.autograd.grad(expected, others)
    for gradient, right in zip(gradients, wanted, strict=True):
        assert (gradient - right).norm() <= 1e-5 * right.norm()


def test_no_tensor_ever_holds_all_pairs():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return result

    inputs = leaves(units(64), units(64, seed=1), scale_of(6.0), units(96, seed=2))
    with Largest() as streaming:
        image_text_contrast(*inputs[:3], bank_text=inputs[3], image_id=torch.arange(64),
                            chunk_size=8).backward()  # fmt: skip
    assert streaming.elements == 96 * D
    with Largest() as plain:
        two_matrix_contrast(*inputs[:3]).backward()
    assert plain.elements == 64 * 64


# --- Limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [info_nce, image_text_contrast])
def test_a_single_pair_costs_nothing(function):
    inputs = leaves(units(1), units(1, seed=1), scale_of(50.0))
    value = function(*inputs)
    assert value.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(value, inputs))


@pytest.mark.parametrize("function", [info_nce, image_text_contrast])
def test_equal_embeddings_cost_the_log_of_the_batch_size(function):
    same = units(1).expand(9, D)
    assert function(same, same, 20.0, chunk_size=4).item() == pytest.approx(math.log(9))


@pytest.mark.parametrize("function", [info_nce, image_text_contrast])
def test_pairs_may_be_permuted_together(function):
    image, text, order = units(B), units(B, seed=1), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(function(image[order], text[order], 6.0), function(image, text, 6.0))
    assert abs(function(image[order], text, 6.0) - function(image, text, 6.0)) > 1e-3


def test_the_two_directions_are_the_softmax_over_texts_and_over_images():
    image, text = units(B), units(B, seed=1)
    logits, own = 6.0 * image @ text.T, torch.arange(B)
    to_text, to_image = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
    assert abs(to_text - to_image) > 1e-2
    torch.testing.assert_close(info_nce(image, text, 6.0), to_text)
    torch.testing.assert_close(info_nce(text, image, 6.0), to_image)
    both = image_text_contrast(image, text, 6.0)
    torch.testing.assert_close(both, (to_text + to_image) / 2)
    torch.testing.assert_close(image_text_contrast(text, image, 6.0), both)


def test_the_scale_is_the_exponentiated_one():
    image, text = units(B), units(B, seed=1)
    log_scale = math.log(1 / 0.07)
    expected = F.cross_entropy(image @ text.T / 0.07, torch.arange(B))
    torch.testing.assert_close(info_nce(image, text, math.exp(log_scale)), expected)
    assert abs(info_nce(image, text, log_scale) - expected) > 0.1


def test_scale_may_be_a_number_or_a_tensor_of_another_dtype():
    image, text = units(B, dtype=torch.float32), units(B, seed=1, dtype=torch.float32)
    scale = scale_of(6.0).requires_grad_()
    value = image_text_contrast(image, text, scale)
    assert value.item() == image_text_contrast(image, text, 6.0).item()
    value.backward()
    assert scale.grad is not None and scale.grad.dtype == torch.float64


def test_the_order_in_a_tile_does_not_matter_where_all_share_one_id():
    image, text = units(B), units(B, seed=1)
    everyone = torch.zeros(B, dtype=torch.int64)
    value = image_text_contrast(image, text, 6.0, image_id=everyone, chunk_size=2)
    assert value.item() == 0
    distinct = image_text_contrast(image, text, 6.0, image_id=torch.arange(B), chunk_size=2)
    assert distinct == image_text_contrast(image, text, 6.0, chunk_size=2)


# --- Banks -------------------------------------------------------------------------------------


def test_an_empty_bank_is_no_bank_exactly():
    tensors = units(B), units(B, seed=1), scale_of(6.0)
    nothing = torch.full((G,), -torch.inf, dtype=torch.float64)
    stale = torch.zeros(G, D, dtype=torch.float64)  # an empty slot need not be of unit length
    inputs, others = leaves(*tensors), leaves(*tensors)
    value = image_text_contrast(*inputs, bank_image=stale, bank_text=stale, bank_bias_image=nothing,
                                bank_bias_text=nothing)  # fmt: skip
    expected = image_text_contrast(*others)
    assert value == expected
    for gradient, wanted in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(expected, others), strict=True
    ):
        assert torch.equal(gradient, wanted)
    absent = units(0), torch.zeros(0, dtype=torch.float64)
    assert info_nce(*others, bank=absent[0], bank_bias=absent[1]) == info_nce(*others)


def test_an_empty_bank_gives_its_slots_a_zero_gradient():
    bank, bias = leaves(units(G), torch.full((G,), -torch.inf, dtype=torch.float64))
    info_nce(units(B), units(B, seed=1), 6.0, bank=bank, bank_bias=bias).backward()
    assert bank.grad is not None and not bank.grad.any()
    assert bias.grad is not None and not bias.grad.any()


def test_unfilled_slots_equal_absent_slots():
    image, text, bank = units(B), units(B, seed=1), units(6, seed=2)
    bias = torch.tensor([0.0, 0.0, -torch.inf, 0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    filled = bank[bias == 0]
    torch.testing.assert_close(
        info_nce(image, text, 6.0, bank=bank, bank_bias=bias),
        info_nce(image, text, 6.0, bank=filled),
    )


def test_a_bank_that_repeats_the_batch_doubles_the_negatives():
    image, text = units(B), units(B, seed=1)
    logits = 6.0 * image @ text.T
    by_hand = torch.log(2 * logits.exp().sum(dim=1)) - logits.diagonal()
    torch.testing.assert_close(info_nce(image, text, 6.0, bank=text), by_hand.mean())


def test_decay_joins_the_plain_bank_and_no_bank_and_only_grows_between():
    image, text, bank = units(B), units(B, seed=1), units(G, seed=2)
    age = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)

    def decayed(rate: float) -> float:
        return info_nce(image, text, 6.0, bank=bank, bank_bias=age * math.log(rate)).item()

    values = [decayed(rate) for rate in (1e-12, 0.2, 0.5, 0.9, 0.99, 1.0)]
    assert values == sorted(values) and len(set(values)) == len(values)
    assert values[-1] == info_nce(image, text, 6.0, bank=bank).item()
    assert values[0] == pytest.approx(info_nce(image, text, 6.0).item(), abs=1e-9)
    expected = info_nce_loop(image, text, 6.0, bank=bank, bank_weight=0.9**age)
    assert decayed(0.9) == pytest.approx(expected.item(), rel=1e-12)


# --- Precision and use -------------------------------------------------------------------------


def test_half_precision_is_computed_in_float32():
    image, text = units(40, 32, dtype=torch.float32), units(40, 32, seed=1, dtype=torch.float32)
    exact = image_text_contrast(image, text, 30.0)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = leaves(image, text)
        inside = image_text_contrast(*inputs, 30.0)
    assert inside == exact
    inside.backward()
    low = leaves(image.bfloat16(), text.bfloat16())
    value = image_text_contrast(*low, 30.0)
    value.backward()
    assert value.dtype == torch.float32 and low[0].grad.dtype == torch.bfloat16
    assert value.item() == pytest.approx(exact.item(), rel=0.01)


def test_a_second_derivative_is_refused():
    inputs = leaves(units(B), units(B, seed=1))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(image_text_contrast(*inputs, 6.0), inputs, create_graph=True)


# --- Bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [info_nce, image_text_contrast])
class TestBadInput:
    def test_lengths_other_than_one(self, function):
        longer = units(B).clone()
        longer[2] *= 1.25
        with pytest.raises(ValueError, match=r"row 2 .*max deviation 0\.25.*normalize"):
            function(longer, units(B), 6.0)

    def test_nan(self, function):
        broken = units(B).clone()
        broken[1, 0] = torch.nan
        with pytest.raises(ValueError, match="row 1"):
            function(units(B), broken, 6.0)

    def test_shapes(self, function):
        with pytest.raises(ValueError, match=r"\(5, 4\) and \(3, 4\)"):
            function(units(5), units(3), 6.0)
        with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 6\)"):
            function(units(5), units(5, 6), 6.0)
        with pytest.raises(ValueError, match="empty"):
            function(units(0), units(0), 6.0)
        with pytest.raises(ValueError, match=r"\(N, D\)"):
            function(units(B)[None], units(B)[None], 6.0)

    @pytest.mark.parametrize("scale", [0.0, -2.0, math.inf, math.nan, torch.ones(2)])
    def test_scale(self, function, scale):
        with pytest.raises(ValueError, match="scale"):
            function(units(B), units(B), scale)

    @pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
    def test_chunk_size(self, function, chunk):
        with pytest.raises(ValueError, match="chunk_size"):
            function(units(B), units(B), 6.0, chunk_size=chunk)


def test_banks_and_ids_that_do_not_fit_are_refused():
    image, text, bank = units(B), units(B, seed=1), units(G)
    bias = torch.zeros(G)
    for message, options in {
        r"bank must be \(G, 4\)": {"bank": units(G, 6)},
        r"length 1": {"bank": 2 * bank},
        r"row 2 has length inf": {
            "bank": bank / torch.tensor([[1.0], [1.0], [0.0]]),
            "bank_bias": torch.tensor([0.0, 0.0, -torch.inf]),
        },
        r"bias of bank must be \(3,\)": {"bank": bank, "bank_bias": torch.zeros(4)},
        r"needs the bank": {"bank_bias": bias},
        r"-inf for an empty slot": {"bank": bank, "bank_bias": bias + torch.inf},
        r"query_id must be \(5,\)": {"query_id": IDS[:3], "key_id": IDS},
        r"pass query_id together": {"query_id": IDS},
        r"ids are compared": {"key_id": IDS},
        r"bank_id must be \(3,\)": {"bank": bank, "query_id": IDS, "bank_id": IDS},
        r"bank_id needs a bank": {"query_id": IDS, "bank_id": BANK_IDS},
    }.items():
        with pytest.raises(ValueError, match=message):
            info_nce(image, text, 6.0, **options)
    with pytest.raises(ValueError, match="together with image_id"):
        image_text_contrast(image, text, 6.0, bank_text=bank, bank_id=BANK_IDS)
    with pytest.raises(ValueError, match="bank_id needs a bank"):
        image_text_contrast(image, text, 6.0, image_id=IDS, bank_id=BANK_IDS)
