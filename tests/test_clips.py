"""EmojiCrash: what a clip is a function of, what its label changes, and how clips become files and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmkd_lite.data.clips import BLOCK, CRASHES, FRAMES, VISIBLE, WINDOW, EmojiCrash
from mmkd_lite.data.videos import (
    SAMPLINGS,
    VideoFolder,
    by_stride,
    last_frames,
    sampled,
    shrink_and_pad,
)
from tests.clip_writer import export_clips

SIZE = 32
ROWS = np.arange(24)


@pytest.fixture(scope="module")
def crashes():
    return EmojiCrash(SIZE, "test")


def test_a_clip_depends_on_seed_split_and_number_only(crashes):
    frames = [3, 94, 40]
    alone = np.concatenate([crashes.clips([i], frames) for i in (7, 2)])
    assert np.array_equal(alone, EmojiCrash(SIZE, "test").clips([7, 2], frames))
    assert np.array_equal(alone[:, [1]], crashes.clips([7, 2], [94]))
    for other in (EmojiCrash(SIZE, "train"), EmojiCrash(SIZE, "test", seed=1)):
        assert not np.array_equal(alone, other.clips([7, 2], frames))


def test_every_split_crashes_in_35_per_cent(crashes):
    for split in ("train", "validation", "test"):
        labels = EmojiCrash(SIZE, split).labels(np.arange(2000))
        assert labels.mean() == 0.35
        assert (labels.reshape(-1, BLOCK).sum(axis=1) == CRASHES).all()
        per_place = labels.reshape(-1, BLOCK).mean(axis=0)  # the order within 20 is drawn anew
        assert 0.15 < per_place.min() and per_place.max() < 0.55
    assert crashes.labels([40, 3]).tolist() == [
        *crashes.labels([40]),
        *crashes.labels([3]),
    ]


def test_the_label_changes_the_frames_of_the_collision_and_no_other(crashes):
    with_crash = crashes.clips(ROWS, crash=np.ones(len(ROWS)))
    without = crashes.clips(ROWS, crash=np.zeros(len(ROWS)))
    differs = (with_crash != without).any(axis=(2, 3, 4))  # (B, 100)
    first = crashes.contact(ROWS)
    expected = (np.arange(FRAMES) >= first[:, None]) & (
        np.arange(FRAMES) < first[:, None] + VISIBLE
    )
    assert np.array_equal(differs, expected)
    assert not differs[:, : FRAMES - WINDOW].any()
    own = np.where(crashes.labels(ROWS)[:, None, None, None, None] == 1, with_crash, without)
    assert np.array_equal(own, crashes.clips(ROWS))


@pytest.mark.parametrize("frame", [0, 45, 89])
def test_frames_before_the_window_are_distributed_alike_in_both_classes(crashes, frame):
    from scipy.stats import ks_2samp

    layout = crashes.layout(np.arange(4000), [frame])
    crash = crashes.labels(np.arange(4000)) == 1
    apart = np.linalg.norm(layout.centre[:, 0] - layout.centre[:, 1], axis=1)
    for value in (apart, layout.centre[:, 0, 0], layout.concept[:, 1], layout.background):
        assert ks_2samp(value[crash], value[~crash]).pvalue > 0.001
    assert (layout.concept[:, 2] == -1).all()


def test_the_check_of_the_distribution_can_fail(crashes):
    from scipy.stats import ks_2samp

    layout = crashes.layout(np.arange(4000), [94])
    crash = crashes.labels(np.arange(4000)) == 1
    apart = np.linalg.norm(layout.centre[:, 0] - layout.centre[:, 1], axis=1)
    assert ks_2samp(apart[crash], apart[~crash]).pvalue < 1e-6


def test_vehicles_touch_in_a_collision_and_only_there(crashes):
    rows = np.arange(200)
    layout = crashes.layout(rows, np.arange(90, 100))
    apart = np.linalg.norm(layout.centre[:, 0] - layout.centre[:, 1], axis=1)
    radii = layout.diameter[:, :2].mean(axis=1)
    shown = layout.concept[:, 2] >= 0
    assert shown.reshape(200, 10).any(axis=1).tolist() == (crashes.labels(rows) == 1).tolist()
    assert (apart[shown] < radii[shown]).all()
    assert (apart[~shown] > radii[~shown]).all()
    half = layout.diameter[:, :2, None] / 2
    assert (layout.centre[:, :2] >= half - 1e-9).all() and (
        layout.centre[:, :2] <= 1 - half + 1e-9
    ).all()


def test_motion_is_smooth_but_for_the_collision(crashes):
    layout = crashes.layout(ROWS, np.arange(FRAMES), crash=np.zeros(len(ROWS)))
    step = np.diff(layout.centre.reshape(len(ROWS), FRAMES, 3, 2)[:, :, :2], axis=1)
    assert np.linalg.norm(step, axis=-1).max() < 0.0141
    assert np.linalg.norm(step, axis=-1).mean() > 0.005


def test_a_collision_that_lasts_to_the_end():
    lasting = EmojiCrash(SIZE, "test", visible=WINDOW)
    rows = np.flatnonzero(lasting.labels(ROWS))
    assert (lasting.contact(rows) == FRAMES - WINDOW).all()
    assert (lasting.layout(rows, [98]).concept[:, 2] >= 0).all()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: EmojiCrash(SIZE, "dev"), "dev"),
        (lambda: EmojiCrash(SIZE, visible=11), "11"),
        (lambda: EmojiCrash(4), "4"),
        (lambda: EmojiCrash(SIZE).clips([0], [100]), "100"),
        (lambda: EmojiCrash(SIZE).clips([0], []), "one or more"),
        (lambda: EmojiCrash(SIZE).clips([-1], [0]), ">= 0"),
        (lambda: sampled("every"), "every"),
        (lambda: last_frames(5), "10 of 5"),
        (lambda: by_stride(100, 0), "stride=0"),
    ],
)
def test_bad_requests_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# ---------------------------------------------------------------- sampling and size


def test_every_14th_of_100_frames_is_8_frames():
    assert by_stride().tolist() == list(range(0, 100, 14)) == [0, 14, 28, 42, 56, 70, 84, 98]
    assert by_stride(wanted=10).tolist() == [*range(0, 100, 14), 99, 99]
    assert by_stride(wanted=3).tolist() == [0, 14, 28]
    window = range(FRAMES - WINDOW, FRAMES)
    seen = {name: {*sampled(name).tolist()} & {*window} for name in SAMPLINGS}
    assert seen == {"stride14": {98}, "stride14_padded": {98, 99}, "last10": {*window}}


def test_shrink_and_pad_keeps_everything_and_the_shape():
    wide = torch.zeros(2, 3, 72, 128, dtype=torch.uint8)
    wide[:, :, :, :2] = 255  # a line at the very edge that a centre crop would cut off
    small = shrink_and_pad(wide, 32)
    assert small.shape == (2, 3, 32, 32) and small.dtype == torch.uint8
    assert small[:, :, :7].max() == 0 and small[:, :, 25:].max() == 0  # 18 rows, 7 above and below
    assert small[:, :, 7:25, 0].min() > 100
    turned = shrink_and_pad(wide.transpose(2, 3).contiguous(), 32)
    assert torch.equal(turned, small.transpose(2, 3))
    same = torch.randint(0, 255, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(shrink_and_pad(same, 32), same)
    assert shrink_and_pad(wide[:, :, :1, :3], 16).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "4, 8, 8"),
        (torch.zeros(2, 3, 8, 8), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "3, 8, 8"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), "0, 8"),
    ],
)
def test_frames_of_another_kind_are_refused(frames, words):
    with pytest.raises(ValueError, match=words):
        shrink_and_pad(frames, 16)


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("packed", [False, True])
def test_exported_clips_come_back_bit_by_bit(tmp_path, crashes, packed):
    rows = [3, 0, 5]
    folder = export_clips(crashes, rows, tmp_path / "videos", packed)
    read = VideoFolder(folder, SIZE)
    assert len(read) == 3 and read.length == FRAMES
    assert np.array_equal(read.labels(range(3)), crashes.labels(rows))
    assert np.array_equal(read.clips([2, 0], [98, 98, 0]), crashes.clips([5, 3], [98, 98, 0]))
    smaller = VideoFolder(folder, 16).clips([0], [50])
    whole = torch.from_numpy(crashes.clips([3], [50])[0])
    assert np.array_equal(smaller[0], shrink_and_pad(whole, 16).numpy())


def folder_with(path, label_lines, pictures=(), **arrays):
    path.mkdir(exist_ok=True)
    (path / "labels.csv").write_text("\n".join(label_lines) + "\n", encoding="utf-8")
    for name, array in arrays.items():
        np.savez(path / f"{name}.npz", frames=array)
    for time, (mode, size) in enumerate(pictures):
        (path / "a").mkdir(exist_ok=True)
        Image.new(mode, size).save(path / "a" / f"{time:03d}.png")
    return path


HEAD = "clip,label"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([HEAD], "line 1"),
        ([HEAD, "a,1", "b,2"], "line 3"),
        ([HEAD, "a,1", ",0"], "columns clip and label"),
        (["name,label", "a,1"], "columns clip and label"),
        ([HEAD, "a,1", "a,0"], "1 names occur twice"),
        ([HEAD, "../a,1"], "names with folders"),
    ],
)
def test_label_files_that_cannot_be_read(tmp_path, lines, words):
    with pytest.raises(ValueError, match=words):
        VideoFolder(folder_with(tmp_path, lines), SIZE)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": np.zeros((90, 8, 8, 3), np.uint8)}, "clip a has 90 frames, expected 100"),
        ({"a": np.zeros((100, 8, 8, 1), np.uint8)}, r"\(100, 8, 8, 1\) uint8"),
        ({"a": np.zeros((100, 8, 8, 3))}, "float64"),
        ({"pictures": [("RGB", (8, 6))] * 3}, "clip a has 3 frames, expected 100"),
        ({"pictures": [("L", (8, 6))] * 100}, "1 channels"),
        ({"pictures": [("RGBA", (8, 6))] * 100}, "4 channels"),
        ({"pictures": [("RGB", (8, 6 + i // 99)) for i in range(100)]}, "differ in size"),
    ],
)
def test_clips_that_are_not_what_they_should_be(tmp_path, files, words):
    folder = VideoFolder(folder_with(tmp_path, [HEAD, "a,1"], **files), SIZE)
    with pytest.raises(ValueError, match=words):
        folder.clips([0], [0, 99])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        VideoFolder(tmp_path, SIZE)
    with pytest.raises(FileNotFoundError, match="names a"):
        VideoFolder(folder_with(tmp_path, [HEAD, "a,1"]), SIZE).clips([0], [0])
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match="other"):
        VideoFolder(tmp_path, SIZE).clips([0], [0])


def test_the_share_seen_is_what_the_clips_show(crashes):
    assert crashes.share_seen(by_stride()) == 0.25
    assert crashes.share_seen(by_stride(wanted=10)) == 0.25
    assert crashes.share_seen(last_frames()) == crashes.share_seen([92, 95, 98]) == 1.0
    assert crashes.share_seen(range(90)) == 0.0
    assert EmojiCrash(SIZE, visible=WINDOW).share_seen([98]) == 1.0
    rows = np.flatnonzero(crashes.labels(np.arange(4000)))
    seen = (crashes.layout(rows, [96, 99]).concept[:, 2] >= 0).reshape(-1, 2).any(axis=1).mean()
    assert abs(seen - crashes.share_seen([96, 99])) < 0.05
