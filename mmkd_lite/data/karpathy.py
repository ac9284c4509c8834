"""Karpathy's JSON of COCO and Flickr30k, and the pictures that it names.

`dataset_coco.json` lists every image with its folder, file name, split and five to seven captions.
The split "train" of the papers is "train" and "restval" together: 113,287 images. The pictures lie
in COCO's own folders, `train2014` and `val2014`; Flickr30k's JSON names no folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from mmkd_lite import storage

JSON_NAMES = {"coco": "dataset_coco.json", "flickr30k": "dataset_flickr30k.json"}
TRAIN_SPLITS = ("train", "restval")
PICTURE_FOLDERS = ("", "images", "flickr30k-images", "flickr30k_images")
CROP_RATIO = (3 / 4, 4 / 3)
CROP_DRAWS = 10 * 4 + 1  # ten tries at area, ratio, top and left; then the mirror


@dataclass(frozen=True)
class Entry:
    """One image of the JSON.

    Attributes:
        file: Path of the picture below the picture folder.
        image_id: COCO's id, else the JSON's `imgid`.
        captions: Its texts, usually five.
        caption_ids: The id of each text.
    """

    file: str
    image_id: int
    captions: tuple[str, ...]
    caption_ids: tuple[int, ...]


def read_entries(path: Path) -> dict[str, list[Entry]]:
    """Images of a Karpathy JSON, by split, in the order of the file.

    Args:
        path: `dataset_coco.json`, `dataset_flickr30k.json` or one of the same layout.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or lacks images, a split, captions or a caption's text.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: download Karpathy's caption_datasets.zip there, or "
            "make a small stand-in with `python -m mmkd_lite data export --format coco --out DIR`"
        )
    content = storage.read_json(path)
    images = content.get("images") if isinstance(content, Mapping) else None
    if not isinstance(images, list) or not images:
        raise ValueError(f"{path} has no images: a Karpathy JSON has a list 'images'")
    splits: dict[str, list[Entry]] = {}
    running = 0
    for number, image in enumerate(images):
        split, entry = _entry(image, f"{path}: image {number}", running)
        running += len(entry.captions)
        splits.setdefault(split, []).append(entry)
    return splits


def _entry(image: Mapping[str, Any], where: str, running: int) -> tuple[str, Entry]:
    """Split and contents of one image of the JSON; `running` counts captions without an id."""
    for field in ("filename", "split", "sentences"):
        if not isinstance(image, Mapping) or not image.get(field):
            raise ValueError(f"{where} lacks {field!r}; download the JSON again")
    where = f"{where} ({image['filename']})"
    if "cocoid" not in image and "imgid" not in image:
        raise ValueError(f"{where} lacks 'cocoid' and 'imgid'; download the JSON again")
    captions, caption_ids = [], []
    for number, sentence in enumerate(image["sentences"]):
        if not isinstance(sentence, Mapping):
            raise ValueError(f"{where}: caption {number} is not an object with 'raw'")
        text = str(sentence.get("raw") or " ".join(sentence.get("tokens", ()))).strip()
        if not text:
            raise ValueError(f"{where} has an empty caption, number {number}; remove it")
        captions.append(text)
        caption_ids.append(int(sentence.get("sentid", running + number)))
    file = Path(image.get("filepath") or "", image["filename"]).as_posix()
    image_id = int(image.get("cocoid", image.get("imgid", -1)))
    return image["split"], Entry(file, image_id, tuple(captions), tuple(caption_ids))


def picture_folder(data_dir: Path, entries: Sequence[Entry]) -> Path:
    """The folder below which pictures lie; the first one of each of its folders must be there.

    Raises:
        FileNotFoundError: One is in none of the usual places, which are listed.
    """
    tried = [data_dir / name for name in PICTURE_FOLDERS]
    found = [folder for folder in tried if (folder / entries[0].file).is_file()]
    first_of: dict[Path, str] = {}
    for entry in entries:
        first_of.setdefault(Path(entry.file).parent, entry.file)
    for file in first_of.values():
        if not found or not (found[0] / file).is_file():
            raise FileNotFoundError(
                f"picture {file} is missing below "
                f"{', '.join(str(folder) for folder in found or tried)}: unpack the pictures "
                "there (COCO: both train2014.zip and val2014.zip)"
            )
    return found[0]


def read_picture(path: Path) -> Image.Image:
    """Decode a picture to RGB, whatever its mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a picture, or damaged; the message names the file.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {path} is missing; unpack it again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"picture {path} is damaged ({error}); download it again") from None


def centre_square(picture: Image.Image, size: int) -> Tensor:
    """For evaluation: resize the short side to `size` (bicubic) and cut out the centre.

    Returns:
        uint8 (3, size, size).
    """
    resized = transforms.resize(picture, [size], interpolation=InterpolationMode.BICUBIC)
    return transforms.pil_to_tensor(transforms.center_crop(resized, [size, size]))


def random_square(
    picture: Image.Image,
    size: int,
    uniforms: np.ndarray,
    scale: tuple[float, float],
    flip: float,
) -> Tensor:
    """For training: a random part of the picture, resized (bicubic), perhaps mirrored.

    Args:
        picture: RGB, any size.
        size: Side of the result in pixels.
        uniforms: (CROP_DRAWS,) numbers in [0, 1), the source of all randomness.
        scale: Smallest and largest share of the picture's area; the thesis takes 0.9 to 1.
        flip: Probability of mirroring left and right.

    Returns:
        uint8 (3, size, size).
    """
    top, left, height, width = _crop_box(picture.height, picture.width, uniforms, scale)
    cut = transforms.resized_crop(
        picture, top, left, height, width, [size, size], interpolation=InterpolationMode.BICUBIC
    )
    square = transforms.pil_to_tensor(cut)
    return square.flip(-1) if uniforms[-1] < flip else square


def _crop_box(
    height: int, width: int, uniforms: np.ndarray, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with random area and ratio; the centre if none fits."""
    low, high = np.log(CROP_RATIO)
    for size, shape, down, right in uniforms[:-1].reshape(-1, 4):
        area = height * width * (scale[0] + size * (scale[1] - scale[0]))
        ratio = np.exp(low + shape * (high - low))
        cut_width, cut_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < cut_width <= width and 0 < cut_height <= height:
            top = int(down * (height - cut_height + 1))
            left = int(right * (width - cut_width + 1))
            return top, left, cut_height, cut_width
    cut_width = min(width, round(height * CROP_RATIO[1]))
    cut_height = min(height, round(width / CROP_RATIO[0]))
    return (height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width


def centre_squares(folder: Path, entries: Sequence[Entry], size: int) -> Tensor:
    """Evaluation pictures of some images, uint8 (N, 3, size, size)."""
    pictures = torch.empty(len(entries), 3, size, size, dtype=torch.uint8)
    for row, entry in enumerate(entries):
        pictures[row] = centre_square(read_picture(folder / entry.file), size)
    return pictures
