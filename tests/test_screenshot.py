"""The picture of the page: taken where a browser is, left alone where none is."""

from __future__ import annotations

import pytest
from PIL import Image

from mmkd_lite import demo, screenshot
from mmkd_lite.browser import find_browser
from tests.tiny_student import tiny_run


@pytest.mark.skipif(not find_browser(), reason="no Chromium or Chrome is installed")
def test_a_small_picture_of_the_page_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot, "fit", lambda config: tiny_run())
    monkeypatch.setattr(demo, "GALLERY", 24)
    (tmp_path / "data").mkdir()
    said = screenshot.take_screenshot(tmp_path, "tiny")
    path = tmp_path / screenshot.PICTURE
    assert said.startswith("written") and path.stat().st_size <= screenshot.LARGEST
    with Image.open(path) as picture:
        assert picture.width == screenshot.WIDTH and picture.height > 900
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, "an empty page"


def test_without_a_browser_the_old_picture_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(screenshot, "find_browser", lambda: "")
    assert "stays as it was" in screenshot.take_screenshot(tmp_path)
    assert list(tmp_path.iterdir()) == []
