"""What is evaluated, described and shown: a trained run, one of its checkpoints, or a shipped teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkd_lite.checkpoint import DamagedCheckpoint, load_checkpoint
from mmkd_lite.config import DataConfig, RunConfig, from_dict, resolve, to_dict
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.evaluate import embed_images, embed_texts
from mmkd_lite.methods import METHODS, Method, build
from mmkd_lite.runs import Run
from mmkd_lite.storage import read_json, sha256_of_arrays, sha256_of_file
from mmkd_lite.teachers import SHIPPED, Teacher, load_teacher, manifest

KEPT = 128
"""How many sets of inputs a subject remembers the embeddings of."""

TEACHER_KINDS = ("timm", "timm-random", "transformers", "transformers-random")


class LacksTower(ValueError):
    """A model without the tower that a task needs."""


@dataclass
class Subject:
    """A frozen model that is scored, with everything needed to feed it; embeddings are computed once.

    Attributes:
        name: What the user wrote, or the name of the run's folder.
        model: `Method` or `Teacher`, in eval mode.
        config: The run's; a teacher's is that of the data it is scored on.
        checksum: Of the weights.
        folder: The run's folder; None for a teacher.
    """

    name: str
    model: Method | Teacher
    config: RunConfig
    checksum: str
    folder: Path | None = None
    _embedded: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def data(self) -> DataConfig:
        """The world that it is scored on."""
        return self.config.data

    def has(self, side: str) -> bool:
        """Tell whether there is an "image" or a "text" tower."""
        if isinstance(self.model, Teacher):
            texts_only = self.model.name.removeprefix("random-") == "text"
            return hasattr(self.model.model, "encode_text") or (side == "text") == texts_only
        own, base = (getattr(kind, f"encode_{side}") for kind in (type(self.model), Method))
        return own is not base

    def need(self, *sides: str) -> None:
        """Stop where a tower is missing.

        Raises:
            LacksTower: Names it.
        """
        missing = [side for side in sides if not self.has(side)]
        if missing:
            raise LacksTower(f"{self.name} has no {' and no '.join(missing)} tower")

    def encode_image(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to vectors (B, D); a teacher resizes them to its own size."""
        if isinstance(self.model, Method):
            return self.model.encode_image(images)
        inner = getattr(self.model.model, "encode_image", None)
        return inner(self.model.fit_size(images)) if inner else self.model.features(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, M) to vectors (B, D)."""
        if isinstance(self.model, Method):
            return self.model.encode_text(tokens)
        inner = getattr(self.model.model, "encode_text", None)
        return inner(tokens) if inner else self.model.features(tokens)

    def image_vectors(self, images: Any) -> Tensor:
        """Embed pictures (N, 3, H, W), uint8 or in [0, 1]; the same pictures only once.

        Raises:
            LacksTower: No image tower.
            ValueError: The vectors are NaN, infinite, or all the same.
        """
        self.need("image")
        return self._once(torch.as_tensor(images), lambda x: embed_images(self._on("image"), x))

    def text_vectors(self, texts: list[str]) -> Tensor:
        """Embed sentences, tokenised as in training; the same sentences only once.

        Raises:
            LacksTower: No text tower.
            ValueError: An empty sentence, or vectors that are NaN, infinite, or all the same.
        """
        self.need("text")
        tokens = load_tokenizer(self.data.tokenizer).encode(texts, self.data.max_tokens)
        return self._once(tokens, lambda x: embed_texts(self._on("text"), x))

    def _on(self, side: str) -> Any:
        """Return the encoder, which moves a batch to wherever the weights are."""
        encode = self.encode_image if side == "image" else self.encode_text
        return lambda batch: encode(batch.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.model.state_dict().values())).device

    def _once(self, inputs: Tensor, embed: Any) -> Tensor:
        key = sha256_of_arrays({"inputs": inputs.numpy()})
        if key not in self._embedded:
            with torch.no_grad():
                vectors = embed(inputs)
            check_vectors(vectors, self.name, alike=bool((inputs == inputs[:1]).all()))
            while (
                len(self._embedded) >= KEPT
            ):  # a page that is open for days must not fill the memory
                self._embedded.pop(next(iter(self._embedded)))
            self._embedded[key] = vectors
        return self._embedded[key]


def check_vectors(vectors: Tensor, name: str, alike: bool = False) -> None:
    """Stop at embeddings (N, D) that no score can be read from.

    Args:
        vectors: The embeddings.
        name: Of the model, for the message.
        alike: The inputs were all the same.

    Raises:
        ValueError: NaN or infinite numbers, or the same vector for every input.
    """
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"the embeddings of {name} hold NaN or infinite numbers; it did not train")
    if len(vectors) > 1 and not alike and bool((vectors == vectors[:1]).all()):
        raise ValueError(f"{name} gives every input the same embedding: it has collapsed")


def open_subject(which: str | Path, scale: str = "laptop", like: Subject | None = None) -> Subject:
    """Open what a command line names.

    Args:
        which: A run's folder, its `model.safetensors`, one of its checkpoint folders, or the name of a teacher.
        scale: Of the data that a teacher is scored on.
        like: A teacher is scored on the data of this subject instead.

    Raises:
        FileNotFoundError: No such run, or training is not over.
        ValueError: The weights are of another architecture than the configuration, or are damaged.
    """
    name, path = str(which), Path(which).expanduser()
    if name.removeprefix("random-") in SHIPPED or name.partition(":")[0] in TEACHER_KINDS:
        teacher = load_teacher(name)
        config = like.config if like else resolve("distill_clip", scale)
        return Subject(name, teacher, config, teacher.fingerprint())
    if path.name.startswith("step-") and path.is_dir():
        return _from_checkpoint(path)
    run = Run.open(path.parent if path.name == "model.safetensors" else path)
    method = _fitting(run.config, lambda empty: run.load_method(empty))
    checksum = sha256_of_file(run.dir / "model.safetensors")
    return Subject(run.dir.name, method, run.config, checksum, run.dir)


def _from_checkpoint(path: Path) -> Subject:
    """Open one checkpoint of a run that may still be under way."""
    try:
        found = load_checkpoint(path)
    except DamagedCheckpoint as damage:
        raise ValueError(f"this checkpoint cannot be used: {damage}") from None
    weights = {
        name.removeprefix("method/"): value
        for name, value in found.tensors.items()
        if name.startswith("method/")
    }
    config = from_dict(found.state["config"])

    def load(method: Method) -> Method:
        method.load_state_dict(weights)
        return method.eval()

    checksum = sha256_of_arrays({name: value.numpy() for name, value in weights.items()})
    name = f"{path.parent.parent.name}-{path.name}"
    return Subject(name, _fitting(config, load), config, checksum, path)


def _fitting(config: RunConfig, load: Any) -> Method:
    """Build the configured method and load its weights, in words where they do not fit."""
    try:
        return load(build(config))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the weights are not those of the configured {config.method} (another architecture?): {first}"
        ) from None


def recorded_config(name: str) -> dict[str, Any]:
    """Return how a shipped teacher was made: its configuration as JSON; {} for other names."""
    return manifest()[name]["config"] if name in SHIPPED else {}


def description(subject: Subject) -> dict[str, Any]:
    """Return as JSON how a subject was made, with the data it is scored on; what is not recorded is left as it is."""
    values = to_dict(subject.config) | {"out_dir": "", "data_dir": ""}
    if isinstance(subject.model, Teacher):
        unknown = {"method": subject.name, "teacher": "", "weights": {}}
        made = recorded_config(subject.name) or unknown
        values |= {key: value for key, value in made.items() if key not in ("data", "scale")}
    return values


def ancestors(config: RunConfig | dict[str, Any]) -> list[str]:
    """Return every teacher that a model's weights come from: its teacher's and starts' too, nearest first."""
    values = to_dict(config) if isinstance(config, RunConfig) else json.loads(json.dumps(config))
    named = [values.get("teacher"), *(values.get(s, {}).get("start") for s in ("image", "text"))]
    found: list[str] = []
    if METHODS.get(values.get("method", ""), Method).continues:
        start = values["options"]["start"]
        if (Path(start).expanduser() / "config.json").exists():
            found += ancestors(read_json(Path(start).expanduser() / "config.json"))
        elif start in SHIPPED or start.startswith("transformers:"):
            named.append(start)
        elif (method := start.partition(":")[0]) in METHODS:
            changes = METHODS[method].variants.get(start.partition(":")[2], {})
            found += ancestors(resolve(method, values["scale"], changes))
    for name in filter(None, named):
        found += [name, *ancestors(recorded_config(name))]
    return list(dict.fromkeys(found))


def modules_of(subject: Subject) -> nn.Module:
    """Return the module whose parameters are counted: a method without its teacher, or a teacher's model."""
    return subject.model.model if isinstance(subject.model, Teacher) else subject.model
