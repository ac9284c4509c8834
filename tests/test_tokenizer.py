"""The committed tokenizer, BERT's behind the same interface, and what both refuse."""

import json
import pickle
import string

import pytest
import torch
import transformers

from mmkd_lite import storage
from mmkd_lite.config import DataConfig
from mmkd_lite.data import emoji, tokenizer
from mmkd_lite.data.scenes import EmojiScenes

CAPTIONS = ["a small red apple left of a dog", "two dogs"]


@pytest.fixture(scope="module")
def committed():
    return tokenizer.load_tokenizer("emoji")


def test_committed_file_has_bert_like_special_tokens_and_a_small_vocabulary(committed):
    assert (committed.pad_id, committed.unknown_id) == (0, 1)
    assert (committed.cls_id, committed.sep_id, committed.mask_id) == (2, 3, 4)
    assert 500 < committed.vocab_size <= 2000
    vocabulary = json.loads(tokenizer.EMOJI_FILE.read_text(encoding="utf-8"))["model"]["vocab"]
    assert committed.vocab_size == len(vocabulary) == max(vocabulary.values()) + 1


def test_layout_is_cls_words_sep_padding(committed):
    tokens = committed.encode(CAPTIONS, 32)
    assert tokens.shape == (2, 32) and tokens.dtype == torch.int64
    for row, caption in zip(tokens.tolist(), CAPTIONS, strict=True):
        length = row.index(committed.sep_id) + 1
        assert row[0] == committed.cls_id and row.count(committed.sep_id) == 1
        assert all(i > committed.mask_id for i in row[1 : length - 1])
        assert row[length:] == [0] * (32 - length)
        assert len(committed.tokens(caption)) == length
    assert committed.decode(tokens) == CAPTIONS
    assert committed.decode(tokens[1]) == committed.decode(tokens[1].tolist()) == "two dogs"
    assert committed.truncated == 0


def test_case_accents_and_spaces_do_not_matter(committed):
    one, two = committed.encode(["A  RED\tÀpple", "a red apple"], 12)
    assert torch.equal(one, two)


def test_every_word_of_the_emoji_world_is_known(committed):
    names = [name for level in ("concept", "fine", "coarse") for name in emoji.class_names(level)]
    assert len(names) > 1200
    world = EmojiScenes(DataConfig())
    captions = [caption for i in range(200) for caption in world.captions(i)]
    texts = [*names, *captions, *string.ascii_lowercase, *string.digits, "zyxwvutsrqponm", "4711"]
    unknown = [text for text in texts if tokenizer.UNKNOWN in committed.tokens(text)]
    assert unknown == []
    assert "[UNK]" in committed.tokens("木")  # the test can see an unknown word


def test_scene_words_are_single_tokens(committed):
    names = [emoji.concepts()[i].name for i in emoji.scene_concepts()]
    words = {word for name in names for word in name.split() if "-" not in word}
    whole = [word for word in words if len(committed.tokens(word)) == 3]
    assert len(whole) >= 0.9 * len(words)


def test_default_captions_fit_into_the_default_length(committed):
    world = EmojiScenes(DataConfig())
    captions = [caption for i in range(400) for caption in world.captions(i)]
    before = committed.truncated
    committed.encode(captions, DataConfig().max_tokens)
    assert committed.truncated - before <= 0.01 * len(captions)


def test_long_captions_are_cut_and_counted():
    cutting = tokenizer.load_tokenizer("emoji")
    texts = ["dog " * 50, "dog", "dog dog dog"]
    tokens = cutting.encode(texts, 5)
    dog = cutting.encode(["dog"], 3)[0, 1].item()
    cls_id, sep_id = cutting.cls_id, cutting.sep_id
    assert tokens.tolist() == [
        [cls_id, dog, dog, dog, sep_id],
        [cls_id, dog, sep_id, 0, 0],
        [cls_id, dog, dog, dog, sep_id],
    ]
    assert cutting.truncated == 1


@pytest.mark.parametrize("bad", ["", "   ", "\n\t", "\u200b"])
def test_empty_captions_are_refused_by_number(committed, bad):
    with pytest.raises(ValueError, match="caption 1 is empty"):
        committed.encode(["a dog", bad, ""], 8)


def test_wrong_arguments_are_refused(committed):
    with pytest.raises(ValueError, match=r"write \[caption\]"):
        committed.encode("a dog", 8)
    with pytest.raises(ValueError, match="caption 0 must be a text, got int"):
        committed.encode([3], 8)
    with pytest.raises(ValueError, match="at least 3"):
        committed.encode(["a dog"], 2)
    assert committed.encode([], 8).shape == (0, 8)


def test_fingerprint_is_the_hash_of_the_committed_file(committed):
    assert committed.fingerprint == storage.sha256_of_file(tokenizer.EMOJI_FILE)


def test_training_writes_a_tokenizer_that_anyone_can_load(tmp_path):
    path = tmp_path / "tokenizer.json"
    trained = tokenizer.train_tokenizer(path, ["a red apple", "a dog"] * 3, vocabulary_size=300)
    again = tokenizer.load_tokenizer(str(path))
    assert trained.fingerprint == again.fingerprint == storage.sha256_of_file(path)
    assert trained.vocab_size <= 300
    assert torch.equal(trained.encode(CAPTIONS, 40), again.encode(CAPTIONS, 40))
    assert again.tokens("A dog!") == ["[CLS]", "a", "dog", "!", "[SEP]"]
    assert tokenizer.UNKNOWN not in again.tokens("quixotic jukebox 42")


def test_survives_the_way_to_another_process(committed):
    copy = pickle.loads(pickle.dumps(committed))
    assert torch.equal(copy.encode(CAPTIONS, 12), committed.encode(CAPTIONS, 12))


@pytest.fixture
def bert_folder(tmp_path):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words += ["red", "apple", "dog", "##s", "left", "of", "small", "two", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_bert_folder_agrees_with_transformers(bert_folder):
    ours = tokenizer.load_tokenizer(str(bert_folder))
    theirs = transformers.BertTokenizer.from_pretrained(str(bert_folder))
    texts = [*CAPTIONS, "Two DOGS! " * 9, "éclair"]
    for length in (4, 9, 40):
        expected = theirs(
            texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        assert torch.equal(ours.encode(texts, length), expected["input_ids"])
    assert (ours.pad_id, ours.cls_id) == (theirs.pad_token_id, theirs.cls_token_id) == (0, 3)
    assert ours.vocab_size == len(theirs)


def test_unreachable_tokenizer_says_what_to_download(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(ValueError, match=r"(?s)couldn't connect.*vocab.txt.*data.tokenizer=FOLDER"):
        tokenizer.load_tokenizer("bert-base-uncased")


def test_missing_or_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*absent.json"):
        tokenizer.load_tokenizer(str(tmp_path / "absent.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not a tokenizer file"):
        tokenizer.load_tokenizer(str(broken))
    trained = tokenizer.train_tokenizer(tmp_path / "t.json", ["a dog"], 200)
    content = json.loads((tmp_path / "t.json").read_text())
    assert trained.mask_id == content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "[MASK]"]
    (tmp_path / "no_mask.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks \[MASK\]"):
        tokenizer.load_tokenizer(str(tmp_path / "no_mask.json"))


def test_clips_tokenizer_from_a_folder_starts_and_ends_texts_its_own_way(tmp_path):
    letters = list("abcdefghijklmnopqrstuvwxyz")
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(tmp_path)
    clip = tokenizer.load_tokenizer(str(tmp_path))
    tokens = clip.encode(["a dog", "cat"], 10)
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    assert (clip.cls_id, clip.sep_id, clip.pad_id) == (start, end, end)
    expected = [start, *(vocabulary[x] for x in ("a</w>", "d", "o", "g</w>")), end, end, end, end]
    assert tokens[0, :9].tolist() == expected
    assert tokens[1, -1] == end and clip.vocab_size == len(names)
