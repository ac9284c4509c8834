"""Captions to token ids: the small WordPiece of the emoji world, or BERT's, behind one interface.

The vocabulary of the emoji world was trained once by `python -m mmkd_lite data tokenizer` and is
committed as `data/tokenizer.json`. Training it again gives an equally good but not an equal file
(ties between pairs are broken by hash order), so the committed file is the reference and its
SHA-256 is every tokenizer's `fingerprint`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from mmkd_lite import storage

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_SPECIAL = (CLIP_END, CLIP_END, CLIP_START, CLIP_END, CLIP_END)
"""CLIP's tokens in these five roles: its end of text is also its padding, and it never masks."""

EMOJI_FILE = Path(__file__).parents[2] / "data" / "tokenizer.json"
VOCABULARY_SIZE = 2000


class Tokenizer:
    """Turns captions into `[CLS] w1 ... wM [SEP] [PAD] ...` and back (seed 001, eq. 13).

    Attributes:
        vocab_size: Number of ids; a text encoder has that many embeddings.
        pad_id, unknown_id, cls_id, sep_id, mask_id: Ids of the special tokens.
        truncated: How many captions this object has cut so far.
        fingerprint: SHA-256 of the vocabulary file; belongs in every cache key and run.
    """

    def __init__(self, backend: tokenizers.Tokenizer, fingerprint: str = "") -> None:
        """Wrap a trained tokenizer.

        Args:
            backend: Anything that `tokenizers` can run and that adds [CLS] and [SEP] itself.
            fingerprint: SHA-256 of its file; "" takes that of its JSON form.

        Raises:
            ValueError: One of the five special tokens is missing.
        """
        known = backend.get_vocab()
        special = CLIP_SPECIAL if CLIP_START in known else SPECIAL
        missing = [token for token in special if token not in known]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {', '.join(missing)}; a BERT-like WordPiece with "
                f"{', '.join(SPECIAL)} is needed"
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
            known[token] for token in special
        )
        self.fingerprint = fingerprint or hashlib.sha256(backend.to_str().encode()).hexdigest()
        self.truncated = 0

    def encode(self, captions: Sequence[str], max_tokens: int) -> Tensor:
        """Token ids of captions, padded or cut to one length.

        A caption that is too long keeps its first words and its final [SEP]; `truncated` counts it.

        Args:
            captions: B texts.
            max_tokens: M, [CLS] and [SEP] included; at least 3.

        Returns:
            int64 (B, M).

        Raises:
            ValueError: A caption is empty (its index is named), or `max_tokens` is too small.
        """
        if isinstance(captions, str):
            raise ValueError("captions must be a list of texts, got one text; write [caption]")
        if max_tokens < 3:
            raise ValueError(
                f"max_tokens must be at least 3 ([CLS], a word, [SEP]), got {max_tokens}"
            )
        tokens = torch.full((len(captions), max_tokens), self.pad_id, dtype=torch.int64)  # (B, M)
        for row, caption in enumerate(captions):
            ids = self._ids(row, caption)
            if len(ids) > max_tokens:
                self.truncated += 1
                ids = [*ids[: max_tokens - 1], self.sep_id]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def _ids(self, row: int, caption: str) -> list[int]:
        """Ids of one caption with [CLS] and [SEP], of whatever length."""
        if not isinstance(caption, str):
            raise ValueError(f"caption {row} must be a text, got {type(caption).__name__}")
        # One by one: `encode_batch` starts threads, which do not survive a fork of a data worker.
        ids: list[int] = self._backend.encode(caption).ids
        if len(ids) <= 2:
            raise ValueError(f"caption {row} is empty ({caption!r}); give it a word or drop it")
        return ids

    def tokens(self, caption: str) -> list[str]:
        """The word pieces of one caption as text, [CLS] and [SEP] included."""
        self._ids(0, caption)  # refuses an empty caption
        return list(self._backend.encode(caption).tokens)

    def decode(self, tokens: Tensor | Sequence[int]) -> str | list[str]:
        """Text of token ids without the special ones: one text for (M,), a list for (B, M)."""
        ids = torch.as_tensor(tokens)
        if ids.dim() == 1:
            return self._backend.decode(ids.tolist())
        return [self._backend.decode(row) for row in ids.tolist()]


def load_tokenizer(name: str = "emoji") -> Tokenizer:
    """The tokenizer of a run.

    Args:
        name: "emoji" for the committed one; a `tokenizer.json`; or what transformers calls a
            model, as "bert-base-uncased", or a local folder with its tokenizer files.

    Raises:
        ValueError: The files are neither here nor to be had; the message says how to pass them.
    """
    if name == "emoji":
        return _from_file(EMOJI_FILE)
    if name.endswith(".json"):
        return _from_file(Path(name).expanduser())
    return _from_transformers(name)


def _from_file(path: Path) -> Tokenizer:
    """Tokenizer of a `tokenizer.json`."""
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}: restore the committed file, or train one with "
            "`python -m mmkd_lite data tokenizer`"
        )
    content = path.read_bytes()
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise ValueError(f"{path} is not a tokenizer file ({error}); restore it") from None
    return Tokenizer(backend, storage.sha256_of_bytes(content))


def _from_transformers(name: str) -> Tokenizer:
    """Tokenizer of a transformers model, by name or by local folder."""
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(str(Path(name).expanduser()))
        backend = fast.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded ({reason}). Offline, download vocab.txt and "
            f"tokenizer_config.json (or tokenizer.json) of {name!r} from its model page elsewhere, "
            "put them in one folder and pass that folder: data.tokenizer=FOLDER"
        ) from None
    return Tokenizer(backend)


def train_tokenizer(
    path: str | Path, captions: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE
) -> Tokenizer:
    """Train a lower-case WordPiece on captions, write it to `path` and return it.

    Every letter and digit becomes a token at the start and inside of a word, so that no
    caption in plain English can meet [UNK].

    Args:
        path: The `tokenizer.json` to write (atomically).
        captions: Texts to learn from.
        vocabulary_size: Upper limit on the number of ids, special tokens included.
    """
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL),
        show_progress=False,
        continuing_subword_prefix="##",
    )
    backend.train_from_iterator([*captions, *_alphabet()], trainer)
    ids = backend.get_vocab()
    backend.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    storage.write_atomic(path, backend.to_str(pretty=True) + "\n")
    return _from_file(Path(path))


def _alphabet() -> list[str]:
    """Texts in which each letter and digit starts a word and continues one, and punctuation."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [f"{letter} {letter}{letter}" for letter in letters] + list(".,:;!?'\"-()&#*/“”’+%")


def caption_corpus(scenes: int = 2000, weight: int = 3) -> list[str]:
    """What the emoji world says: captions of scenes, and each concept's and group's own words.

    Names and labels are repeated so that words which scenes never show (concepts held out from
    them) still become whole tokens where the vocabulary has room.

    Args:
        scenes: Number of training scenes whose five captions are used.
        weight: How often each name and label is repeated.
    """
    from mmkd_lite.config import DataConfig
    from mmkd_lite.data import emoji
    from mmkd_lite.data import scenes as worlds

    world = worlds.EmojiScenes(DataConfig())
    captions = [caption for texts in world.texts(range(scenes)) for caption in texts]
    levels = ("concept", "fine", "coarse")
    labels = [name for level in levels for name in emoji.class_names(level, article=True)]
    return captions + weight * labels
