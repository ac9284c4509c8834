"""Train and score an EVL decoder on the frozen frame features of any image encoder.

`python -m mmkd_lite.video_training --seeds 5` compares backbones and samplings on EmojiCrash.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd_lite.data.clips import EmojiCrash
from mmkd_lite.data.videos import VideoFolder, Videos, sampled
from mmkd_lite.evaluate.embed import evaluation_mode
from mmkd_lite.evaluate.video import METRICS, binary_scores
from mmkd_lite.models.evl import EVLDecoder, FrameBackbone, FrameFeatures, decoder_for
from mmkd_lite.models.initialise import seeded
from mmkd_lite.optimizer import parameter_groups
from mmkd_lite.results import configuration_hash, read_result, write_result
from mmkd_lite.short_training import descend
from mmkd_lite.teachers import load_teacher


@dataclass(frozen=True)
class VideoRecipe:
    """How a decoder is trained; the defaults are the source's, epochs and levels EVL's.

    The source names AdamW, learning rate 4e-4, weight decay 0.05, cosine decay, batches of 8 and 16 accumulated;
    it does not name the number of steps, dropout or warm-up (errata E003-12).
    """

    epochs: int = 30
    batch_size: int = 8
    accumulation: int = 16
    learning_rate: float = 4e-4
    weight_decay: float = 0.05
    warmup_fraction: float = 0.0
    dropout: float = 0.5
    levels: int = 4
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size, self.accumulation, self.levels)
        if min(counts) < 1 or self.learning_rate <= 0:
            raise ValueError(
                "epochs, batch_size, accumulation and levels must be at least 1 and the learning rate above 0, "
                f"got {counts} and {self.learning_rate}"
            )


RESULT = "video_comparison"
PAPER = VideoRecipe()
LAPTOP = VideoRecipe(
    epochs=8,
    batch_size=16,
    accumulation=1,
    learning_rate=2e-3,
    warmup_fraction=0.1,
    dropout=0.1,
)
TINY = VideoRecipe(epochs=2, accumulation=2, learning_rate=2e-3, dropout=0.0)


def video_features(
    backbone: FrameBackbone,
    videos: Videos,
    indices: Sequence[int] | np.ndarray,
    frames: Sequence[int] | np.ndarray,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
) -> FrameFeatures:
    """Compute a backbone's features of some videos once and keep them in memory, in half precision.

    Args:
        backbone: The frozen encoder.
        videos: Where they come from.
        indices: (N,) which ones.
        frames: (T,) which frames of each.
        batch_size: Videos a forward pass.
        dtype: Of the stored features.

    Returns:
        Features of N videos on the CPU.

    Raises:
        ValueError: No video, or videos of another size than the backbone's.
    """
    rows = np.asarray(indices, dtype=np.int64)
    if not len(rows):
        raise ValueError("no video to compute features of: indices is empty")
    parts = [
        backbone.features(torch.from_numpy(videos.clips(part, frames))).to("cpu", dtype)
        for part in np.array_split(rows, -(-len(rows) // batch_size))
    ]
    return FrameFeatures.join(parts)


def accumulate_gradient(
    decoder: nn.Module, features: FrameFeatures, labels: Tensor, rows: Tensor, batch_size: int
) -> float:
    """Add the gradient of the mean cross-entropy over `rows`, `batch_size` videos at a time.

    Each part counts by its number of videos, so that the sum is the gradient of one large batch (dropout draws
    other masks), whatever the size of the last part.

    Args:
        decoder: Maps features to logits.
        features: Of all videos.
        labels: (N,) int64.
        rows: Which videos form this update.
        batch_size: Videos a backward pass.

    Returns:
        The mean loss.
    """
    own = next(decoder.parameters())
    total = 0.0
    for part in rows.split(batch_size):
        logits = decoder(features.take(part).to(own.device, own.dtype))
        target = labels[part].to(own.device)
        loss = F.cross_entropy(logits, target, reduction="sum") / len(rows)
        loss.backward()
        total += loss.item()
    return total


def train_decoder(
    decoder: EVLDecoder,
    features: FrameFeatures,
    labels: Tensor,
    recipe: VideoRecipe = PAPER,
    seed: int = 0,
) -> list[float]:
    """Train a decoder in place on cached features.

    Args:
        decoder: On the device where it is trained.
        features: Of N videos.
        labels: (N,) int64.
        recipe: How.
        seed: Of the order of the videos and of dropout.

    Returns:
        The loss of every update.

    Raises:
        ValueError: Another number of labels than videos.
    """
    if labels.shape != (len(features),):
        raise ValueError(f"{len(features)} videos need as many labels, got {tuple(labels.shape)}")
    group = recipe.batch_size * recipe.accumulation
    steps = recipe.epochs * -(-len(labels) // group)
    optimizer = torch.optim.AdamW(
        parameter_groups(decoder, recipe.weight_decay), lr=recipe.learning_rate
    )
    decoder.train()
    with seeded(seed):
        orders = (torch.randperm(len(labels)).split(group) for _ in range(recipe.epochs))
        rows_of = itertools.chain.from_iterable(orders)
        losses = descend(
            decoder,
            optimizer,
            lambda _: accumulate_gradient(
                decoder, features, labels, next(rows_of), recipe.batch_size
            ),
            steps,
            recipe.learning_rate,
            warmup_fraction=recipe.warmup_fraction,
            clip_norm=recipe.clip_norm,
            what="the video decoder",
        )
    decoder.eval()
    return losses


def crash_scores(decoder: nn.Module, features: FrameFeatures, batch_size: int = 32) -> Tensor:
    """Return the logit of "accident" minus that of "no accident", (N,) on the CPU; above 0 means accident."""
    own = next(decoder.parameters())
    with evaluation_mode(decoder):
        logits = [
            decoder(features.take(rows).to(own.device, own.dtype)).float().cpu()
            for rows in torch.arange(len(features)).split(batch_size)
        ]
    return torch.cat(logits).diff(dim=1)[:, 0]


def score_video(
    model: nn.Module | FrameBackbone,
    *,
    train: Videos | None = None,
    test: Videos | None = None,
    train_rows: Sequence[int] | int = 320,
    test_rows: Sequence[int] | int = 200,
    sampling: str = "last10",
    recipe: VideoRecipe = LAPTOP,
    temporal: bool = True,
    device: str = "cpu",
    seed: int = 0,
    shown: Mapping[str, FrameFeatures] | None = None,
) -> dict[str, Any]:
    """Train an EVL decoder on a frozen backbone and score it: accident or not.

    Args:
        model: Backbone, or a model with one image Transformer (see `FrameBackbone`).
        train: Videos to train on; EmojiCrash at the backbone's size by default, world seed 0 for every `seed`.
        test: Videos to score.
        train_rows: Which training videos, or how many from the first.
        test_rows: Which test videos, or how many from the first.
        sampling: A key of `mmkd_lite.data.videos.SAMPLINGS`.
        recipe: How the decoder is trained.
        temporal: False reads the frames as a bag.
        device: Where the decoder is trained; the backbone stays where it is.
        seed: Of the decoder's start and training.
        shown: Features of "train" and "test", where they are known already.

    Returns:
        `rows`: a row for each of accuracy, balanced accuracy and average precision with task, metric, protocol,
        value, n, chance, majority, low and high (per cent but n; intervals over the test videos); `scores` and
        `labels` (N,) of the test videos, `losses` of the updates, `decoder`, and `details` from `binary_scores`.

    Raises:
        ValueError: Unknown sampling, videos or model that do not fit.

    Source: seed 003, section 3.3.5 and Table 4.4. Derived in notebooks/35_video.ipynb.
    """
    backbone = model if isinstance(model, FrameBackbone) else FrameBackbone(model, recipe.levels)
    train = train or EmojiCrash(backbone.image_size, "train")
    test = test or EmojiCrash(backbone.image_size, "test")
    used, scored = (range(r) if isinstance(r, int) else r for r in (train_rows, test_rows))
    frames = sampled(sampling, train.length)
    shown = shown or {
        "train": video_features(backbone, train, used, frames),
        "test": video_features(backbone, test, scored, frames),
    }
    with seeded(seed):
        decoder = decoder_for(backbone, len(frames), recipe.dropout, temporal).to(device)
    answers = torch.from_numpy(train.labels(used))
    losses = train_decoder(decoder, shown["train"], answers, recipe, seed)
    scores, labels = crash_scores(decoder, shown["test"]), test.labels(scored)
    details = binary_scores(labels, scores, seed=seed)
    protocol = (
        f"video/evl/data={'emoji' if isinstance(test, EmojiCrash) else 'folder'}/"
        f"sampling={sampling}/frames={len(frames)}of{test.length}/levels={backbone.levels}/"
        f"temporal={'yes' if temporal else 'no'}/train={len(used)}/test={len(labels)}/"
        f"positives={details['positives']}/updates={len(losses)}/seed={seed}"
    )
    rows = score_rows(details, protocol)
    own = {"rows": rows, "scores": scores, "labels": labels, "losses": losses}
    return {**own, "details": details, "decoder": decoder}


def score_rows(details: dict[str, Any], protocol: str) -> list[dict[str, Any]]:
    """Return one row a metric from what `binary_scores` returned."""
    return [
        {
            "task": "video accident recognition",
            "metric": metric,
            "protocol": protocol,
            "value": details[metric],
            "n": details["n"],
            "chance": details[f"{metric}_chance"],
            "majority": details["majority"]
            if metric == "accuracy"
            else details[f"{metric}_chance"],
            "low": details[f"{metric}_low"],
            "high": details[f"{metric}_high"],
        }
        for metric in METRICS
    ]


def setting(scale: str, data_dir: str | Path | None = None, model: str = "") -> dict[str, Any]:
    """Return what `score_video` takes at a scale: model, train, test, their rows and the recipe.

    Args:
        scale: "tiny" and "laptop" use EmojiCrash and the shipped `clip` teacher, "full" CLIP-ViT-B/32 and
            the folders `train` and `test` of `data_dir`, each as `VideoFolder` reads it.
        data_dir: For "full".
        model: Another teacher's name.

    Raises:
        ValueError: "full" without a folder.
    """
    full = scale == "full"
    if full and data_dir is None:
        raise ValueError(
            "full scale reads dashcam clips: set DATA_DIR to a folder with train/ and test/, each with labels.csv "
            "(see mmkd_lite/data/videos.py)"
        )
    recipe = {"tiny": TINY, "laptop": LAPTOP, "full": PAPER}[scale]
    name = model or ("transformers:openai/clip-vit-base-patch32" if full else "clip")
    backbone = FrameBackbone(load_teacher(name), recipe.levels)
    found: dict[str, Any] = {"model": backbone, "recipe": recipe}
    for split, count in (("train", 320), ("test", 200)):
        if full:
            found[split] = VideoFolder(Path(data_dir or "") / split, backbone.image_size)
            found[f"{split}_rows"] = len(found[split])
        else:
            found[split] = EmojiCrash(backbone.image_size, split)
            found[f"{split}_rows"] = 40 if scale == "tiny" else count
    return found


def compare(
    names: Sequence[str],
    samplings: Sequence[str],
    seeds: int,
    *,
    folder: str | Path | None = None,
    scale: str = "laptop",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Score backbones, samplings and seeds; each score is stored at once, and none is made twice.

    Args:
        names: Backbones, as `load_teacher` takes them.
        samplings: Keys of `mmkd_lite.data.videos.SAMPLINGS`.
        seeds: How many, from 0.
        folder: Of `video_comparison.json`; `data/results` by default.
        scale: "laptop" or "tiny".
        say: Told about each score.

    Returns:
        One row a backbone, sampling, temporal or not, and seed.
    """
    configuration = {"recipe": asdict(setting(scale)["recipe"]), "scale": scale}
    rows, before = _stored(configuration, folder)
    start = time.perf_counter()
    for name, sampling in itertools.product(names, samplings):
        known = {(row["temporal"], row["seed"]) for row in rows
                 if (row["backbone"], row["sampling"]) == (name, sampling)}  # fmt: skip
        wanted = [k for k in itertools.product((True, False), range(seeds)) if k not in known]
        settings = setting(scale, model=name)
        shown = _features(settings, sampling) if wanted else {}
        for temporal, seed in wanted:
            found = score_video(
                **settings, sampling=sampling, temporal=temporal, seed=seed, shown=shown
            )
            own = {"backbone": name, "sampling": sampling, "temporal": temporal, "seed": seed}
            rows.append(own | {metric: found["details"][metric] for metric in METRICS})
            write_result(
                RESULT, configuration=configuration, metrics={"rows": rows}, seed=0, folder=folder,
                seconds=before + time.perf_counter() - start,
                command=f"python -m mmkd_lite.video_training --seeds {seeds}",
            )  # fmt: skip
            say(str(rows[-1]))
    return rows


def _stored(
    configuration: dict[str, Any], folder: str | Path | None
) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of an earlier, perhaps interrupted, comparison and the seconds they took."""
    try:
        record = read_result(RESULT, folder)
    except FileNotFoundError:
        return [], 0.0
    same = record["configuration_hash"] == configuration_hash(configuration)
    return (record["metrics"]["rows"], record["seconds"]) if same else ([], 0.0)


def _features(settings: dict[str, Any], sampling: str) -> dict[str, FrameFeatures]:
    """Return the backbone's features of all training and test videos."""
    frames = sampled(sampling)
    return {
        split: video_features(
            settings["model"], settings[split], range(settings[f"{split}_rows"]), frames
        )
        for split in ("train", "test")
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare backbones and samplings on EmojiCrash into `data/results/video_comparison.json`."""
    parser = argparse.ArgumentParser(prog="python -m mmkd_lite.video_training")
    parser.add_argument("--backbones", nargs="+", default=["clip", "vit", "random-clip"])
    parser.add_argument("--samplings", nargs="+", default=["stride14", "last10"])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--out", default=None, help="folder of the result file")
    asked = parser.parse_args(arguments)
    compare(asked.backbones, asked.samplings, asked.seeds, folder=asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
