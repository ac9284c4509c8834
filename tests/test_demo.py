"""The demo: its arithmetic, what it answers to hostile input, and the page itself in a headless browser."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmkd_lite import demo
from mmkd_lite.browser import find_browser, open_page
from mmkd_lite.data.tokenizer import load_tokenizer
from mmkd_lite.subject import open_subject
from tests.tiny_student import tiny_run, tiny_subject

CLASSES, PROMPTS = "a cat, a car, a fruit", "{}; a picture of {}"


@pytest.fixture(scope="module")
def shelves():
    return [
        demo.Shelf(tiny_subject(), 24),
        demo.Shelf(open_subject("clip", like=tiny_subject()), 24),
    ]


@pytest.fixture()
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_scores_are_a_softmax_of_100_cosines_with_averaged_prompts(picture):
    subject, names, prompts = tiny_subject(), ["a cat", "a car"], ["{}", "there is {}"]
    found = demo.class_scores(subject, demo.read_picture(picture), names, prompts)
    image = demo.pixels(demo.read_picture(picture), 32).float() / 255
    tokenizer, cosine = load_tokenizer(), []
    with torch.no_grad():
        v = subject.model.encode_image(image)[0].double()
        for name in names:
            mean = torch.zeros_like(v)
            for prompt in prompts:
                tokens = tokenizer.encode([prompt.replace("{}", name)], 32)
                mean += F.normalize(subject.model.encode_text(tokens)[0].double(), dim=0) / 2
            cosine.append(float(v @ mean / mean.norm()))
    odds = np.exp(100 * (np.array(cosine) - max(cosine)))
    assert list(found.values()) == pytest.approx(list(odds / odds.sum()), abs=1e-3)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-5)


def test_the_middle_square_of_a_picture_is_taken(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert demo.pixels(Image.fromarray(wide), 8).min() > 240, "all white but for the soft edge"


@pytest.mark.parametrize(
    ("classes", "prompts", "message"),
    [
        ("", PROMPTS, "at least two classes"),
        ("cat", PROMPTS, "at least two classes"),
        (" , ,cat,", PROMPTS, "at least two classes"),
        ("cat, dog, cat", PROMPTS, "occur twice: cat"),
        (",".join(f"class {i}" for i in range(demo.MAX_CLASSES + 1)), PROMPTS, "at most 100"),
        ("cat, " + "x" * 201, PROMPTS, "200 characters"),
        (CLASSES, "", "at least one prompt"),
        (CLASSES, "a picture", "needs one {}"),
        (CLASSES, "{} and {}", "needs one {}"),
        (CLASSES, "<script>alert(1)</script>", "needs one {}"),
        (CLASSES, ";".join(["{}"] * 51), "at most 50"),
    ],
)
def test_bad_words_are_answered_with_a_message(shelves, picture, classes, prompts, message):
    classify, _ = demo.answers(shelves)
    *scores, near, _, said = classify(str(picture), classes, prompts)
    assert message in said and scores == [None, None] and near == ""


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a huge picture: a decompression bomb."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cut_short() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(buffer, "PNG")
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no picture"),
        (b"<svg onload='alert(1)'/>", "damaged or no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "damaged or no picture"),
        (cut_short(), "damaged or no picture"),
        (png_of(5001, 5000), "too large"),
        (png_of(60_000, 60_000), "too large"),
        (png_of(4, 1000), "too thin"),
        (b"0" * (demo.MAX_BYTES + 1), "larger than 10 MB"),
    ],
    ids=["empty", "svg", "eps", "cut", "large", "bomb", "thin", "heavy"],
)
def test_bad_pictures_are_answered_with_a_message(shelves, tmp_path, content, message):
    path = tmp_path / "upload.png"
    path.write_bytes(content)
    *scores, _, _, said = demo.answers(shelves)[0](str(path), CLASSES, PROMPTS)
    assert message in said and scores == [None, None]


def test_no_picture_and_an_empty_search_are_answered_with_a_message(shelves):
    classify, search = demo.answers(shelves)
    assert classify(None, CLASSES, PROMPTS)[-1] == "choose a picture first"
    assert search("  ") == (None, None, "type a text to search for")


def test_transparency_becomes_white_and_turned_photographs_upright(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert demo.read_picture(path).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (4, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert demo.read_picture(tmp_path / "turned.jpg").size == (8, 4)


def test_the_teacher_finds_a_picture_by_its_caption(shelves):
    teacher = shelves[1]
    found = [teacher.pictures_of(caption)[0][1] for caption in teacher.captions]
    right = sum(a == b for a, b in zip(found, teacher.captions, strict=True))
    assert right > 12, f"{right} of 24 captions found their picture"


def test_unknown_words_are_named(shelves, picture):
    *_, said = demo.answers(shelves)[0](str(picture), "猫, 犬", "{}")
    assert said == "not in the model's vocabulary: 猫, 犬"


def test_a_model_without_two_towers_is_refused():
    with pytest.raises(ValueError, match="cnn has no text tower"):
        demo.build_app([open_subject("cnn", like=tiny_subject())])


def test_student_and_teacher_stand_side_by_side():
    names = [subject.name for subject in demo.subjects_for(str(tiny_run().dir))]
    assert names == [tiny_run().dir.name, "clip"]
    assert len(demo.subjects_for(str(tiny_run().dir), "none")) == 1


NEEDS_BROWSER = pytest.mark.skipif(not find_browser(), reason="no Chromium or Chrome is installed")
BARS = "[...document.querySelectorAll('#scores{0} dt, #scores{0} dd')].map(e => e.innerText)"


@NEEDS_BROWSER
def test_the_page_in_a_browser(picture, monkeypatch):
    monkeypatch.setattr(demo, "GALLERY", 24)
    subjects = demo.subjects_for(str(tiny_run().dir))
    app = demo.build_app(subjects)
    address = demo.launch(app, block=False)
    assert address.startswith("http://127.0.0.1:")
    hostile = "a cat, <img src=x onerror=document.title='hit'>"
    try:
        with open_page(address) as page:
            page.wait("document.querySelector('#classify')")
            page.upload("#picture input[type=file]", picture)
            page.wait("document.querySelector('#picture img')")
            page.type("#classes textarea", hostile)
            page.run("document.querySelector('#classify').click()")
            page.wait("document.querySelectorAll('#scores1 dt').length == 2")
            names, sentences = demo.parse_classes(hostile), demo.parse_prompts(demo.PROMPTS)
            for number, subject in enumerate(subjects):
                scores = demo.class_scores(subject, demo.read_picture(picture), names, sentences)
                shown = " ".join(page.run(BARS.format(number)))
                for name, score in scores.items():
                    assert name in shown and f"{100 * score:.0f}%" in shown
            assert page.run("document.title") == "mmkd-lite"
            assert (
                len(page.run("document.querySelector('#near0 textarea').value").splitlines()) == 4
            )
            page.type("#classes textarea", "a cat")
            page.run("document.querySelector('#classify').click()")
            page.wait("document.querySelector('#message textarea').value.includes('two classes')")
            page.run("document.querySelector('#search').click()")
            page.wait("document.querySelectorAll('#found1 img').length >= 4")
            outside = [
                url for url in page.requested if not url.startswith((address, "data:", "blob:"))
            ]
            assert outside == []
    finally:
        app.close()
