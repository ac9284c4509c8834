"""The text encoder: masks and positions by property, the whole of it against transformers' BERT."""

import pytest
import torch
from transformers import BertConfig, BertModel

from mmkd_lite.config import TowerConfig
from mmkd_lite.models import TextEncoder, load_bert, seeded
from tests.encoder_support import compare_gradients, parameter_count, perturb, relative_error

BASE = TowerConfig(width=768, layers=12, heads=12, norm="post", layer_norm_eps=1e-12)
SMALL = TowerConfig(width=32, layers=3, heads=4)
SMALL_BERT = TowerConfig(width=32, layers=3, heads=4, norm="post", layer_norm_eps=1e-12)
TOKENS = torch.tensor([[2, 7, 8, 9, 3, 0, 0], [2, 5, 6, 7, 8, 9, 3], [2, 9, 3, 0, 0, 0, 0]])


def build(config: TowerConfig = SMALL, **options) -> TextEncoder:
    with seeded(0):
        encoder = TextEncoder(config, vocab_size=20, max_tokens=12, **options)
        perturb(encoder)
    with torch.no_grad():
        encoder.token_embedding.weight[0] = 0.0
    return encoder.eval()


def test_input_of_the_transformer_is_the_sum_of_equations_13_and_14():
    encoder = build(token_types=2)
    types = (torch.arange(7) > 3).long().expand(3, -1)
    states = encoder(TOKENS, return_hidden=True, type_ids=types)[1]
    for row in range(3):
        for place in range(7):
            expected = (
                encoder.token_embedding.weight[TOKENS[row, place]]
                + encoder.positions.table[place]
                + encoder.type_embedding.weight[types[row, place]]
            )
            torch.testing.assert_close(states[0][row, place], expected)
    assert len(states) == 4


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_hidden_states_end_with_the_output(norm):
    encoder = build(TowerConfig(width=32, layers=3, heads=4, norm=norm))
    output, states = encoder(TOKENS, return_hidden=True)
    torch.testing.assert_close(output, encoder(TOKENS))
    torch.testing.assert_close(states[-1], output)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(norm):
    encoder = build(TowerConfig(width=32, layers=3, heads=4, norm=norm))
    together = encoder(TOKENS)
    for row, length in enumerate((5, 7, 3)):
        alone = encoder(TOKENS[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-5, atol=1e-5)


def test_what_stands_at_masked_places_changes_nothing():
    encoder = build()
    mask = TOKENS != 0
    other = torch.where(mask, TOKENS, 11)
    torch.testing.assert_close(encoder(TOKENS)[mask], encoder(other, mask)[mask])
    unmasked = encoder(other)  # now the elevens count as words
    assert (encoder(TOKENS)[0, 0] - unmasked[0, 0]).abs().max() > 1e-3


def test_masked_tokens_get_no_gradient():
    encoder = build()
    mask = TOKENS != 0
    encoder(torch.where(mask, TOKENS, 11), mask)[:, 0].sum().backward()
    gradient = encoder.token_embedding.weight.grad
    assert (gradient[11] == 0).all()
    assert (gradient[9] != 0).any()


def test_a_row_of_padding_is_named():
    tokens = TOKENS.clone()
    tokens[1] = 0
    with pytest.raises(ValueError, match="row 1 is padding"):
        build()(tokens)


def test_bad_tokens_are_refused():
    encoder = build()
    with pytest.raises(ValueError, match=r"M <= 12.*\(1, 13\)"):
        encoder(torch.ones(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(B, M\)"):
        encoder(torch.ones(5, dtype=torch.long))
    with pytest.raises(ValueError, match="token_types=2"):
        encoder(TOKENS, type_ids=torch.zeros_like(TOKENS))
    with pytest.raises(ValueError, match="mask has shape"):
        encoder(TOKENS, mask=torch.ones(3, 6))


def test_order_of_words_matters_through_positions_only():
    encoder = build()
    tokens = TOKENS[1:2]
    swapped = tokens[:, [0, 3, 2, 1, 4, 5, 6]]
    with_positions = (encoder(tokens) - encoder(swapped))[0, 0].abs().max()
    with torch.no_grad():
        encoder.positions.table.zero_()
    without = (encoder(tokens) - encoder(swapped))[0, 0].abs().max()
    assert without < 1e-5 < 1e-3 < with_positions


@pytest.mark.parametrize("positions", ["learned", "fixed"])
def test_zero_position_of_cls(positions):
    encoder = build(TowerConfig(32, 1, 4, positions=positions, cls_position=False))
    first = encoder(TOKENS, return_hidden=True)[1][0][0, 0]
    torch.testing.assert_close(first, encoder.token_embedding.weight[2])
    assert len(encoder.positions.table) == 11


def test_norm_after_the_embeddings_is_berts_only():
    post = build(SMALL_BERT)(TOKENS, return_hidden=True)[1][0]
    assert post.std(dim=-1).min() > 0.5
    pre = build()(TOKENS, return_hidden=True)[1][0]
    assert pre.std(dim=-1).max() < 0.2


def test_parameter_count_of_the_source():
    config = TowerConfig(768, 6, 12, norm="post", layer_norm_eps=1e-12)
    with torch.device("meta"):
        encoder = TextEncoder(config, vocab_size=30_522, max_tokens=512, token_types=2)
    assert parameter_count(encoder) == 66_364_416  # "66.4 M"


def captions_of_16_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(999, 30_522, (3, 16), generator=generator)
    mask = torch.arange(16) < torch.tensor([16, 9, 4])[:, None]
    return tokens * mask, mask


def test_base_model_equals_bert_in_value_and_gradient():
    with seeded(1):
        theirs = perturb(BertModel(BertConfig())).eval()
    with seeded(2), torch.no_grad():
        theirs.embeddings.word_embeddings.weight[0].zero_()
        ours = TextEncoder(BASE, vocab_size=30_522, max_tokens=512, token_types=2).eval()
    tokens, mask = captions_of_16_tokens()
    types = (torch.arange(16) > 6).long().expand(3, -1)
    direction = torch.randn(3, 16, 768, generator=torch.Generator().manual_seed(6))
    expected = theirs(tokens, attention_mask=mask.long(), token_type_ids=types).last_hidden_state
    with torch.no_grad():
        assert relative_error(ours(tokens, type_ids=types), expected) > 0.1, "equal before copying"
    load_bert(ours, theirs.state_dict())
    output = ours(tokens, type_ids=types)
    assert relative_error(output, expected) < 1e-5
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    (output * direction).mean().backward()
    (expected * direction).mean().backward()
    embeddings = theirs.embeddings
    pairs = [
        (ours.token_embedding.weight, embeddings.word_embeddings.weight),
        (ours.positions.table, embeddings.position_embeddings.weight),
        (ours.type_embedding.weight, embeddings.token_type_embeddings.weight),
        (ours.embedding_norm.weight, embeddings.LayerNorm.weight),
    ]
    for own, other in zip(ours.transformer.blocks, theirs.encoder.layer, strict=True):
        attention = other.attention
        query, _, value = own.attention.query_key_value.weight.grad.chunk(3)
        assert relative_error(query, attention.self.query.weight.grad) < 1e-5
        assert relative_error(value, attention.self.value.weight.grad) < 1e-5
        pairs += [
            (own.attention.output.bias, attention.output.dense.bias),
            (own.attention_norm.bias, attention.output.LayerNorm.bias),
            (own.feed_forward.expand.weight, other.intermediate.dense.weight),
            (own.feed_forward.contract.weight, other.output.dense.weight),
            (own.feed_forward_norm.weight, other.output.LayerNorm.weight),
        ]
    compare_gradients(pairs, tolerance=1e-5)


def small_bert() -> BertModel:
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
    )
    with seeded(4):
        return perturb(BertModel(config)).eval()


@pytest.mark.parametrize("cls_position", [True, False])
def test_first_blocks_and_folded_cls_position_come_from_bert(cls_position):
    theirs = small_bert()
    config = TowerConfig(32, 2, 4, norm="post", layer_norm_eps=1e-12, cls_position=cls_position)
    ours = build(config, token_types=2)
    load_bert(ours, theirs.state_dict(), cls_id=2)
    mask = TOKENS != 0
    hidden = theirs(TOKENS, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    states = ours(TOKENS, return_hidden=True)[1]
    for own, other in zip(states, hidden[:3], strict=True):
        torch.testing.assert_close(own[mask], other[mask], rtol=1e-5, atol=1e-5)


def test_weights_of_another_model_are_refused_by_name():
    state = small_bert().state_dict()
    with pytest.raises(ValueError, match="norm='post'"):
        load_bert(build(), state)
    with pytest.raises(ValueError, match=r"layer\.3\."):
        deeper = TowerConfig(32, 4, 4, norm="post")
        load_bert(build(deeper, token_types=2), state)
    with pytest.raises(ValueError, match=r"type_embedding\.weight.*absent"):
        load_bert(build(SMALL_BERT), state)
    with pytest.raises(ValueError, match="cls_id"):
        load_bert(build(TowerConfig(32, 2, 4, norm="post", cls_position=False)), state)
