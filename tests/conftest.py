"""What every test, and every kernel that a test starts, finds around it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Kernels start in the notebook's folder; they must import this tree and not an installed copy.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
)
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: a missing file must fail at once

GIVEN_SCALE = os.environ.get("MMKD_SCALE")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the tests below this folder name their own scale; `make test` sets it for the notebooks."""
    os.environ.pop("MMKD_SCALE", None)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Give the notebooks, which run in the same session, their scale back."""
    if GIVEN_SCALE is not None:
        os.environ["MMKD_SCALE"] = GIVEN_SCALE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that need a browser where there is none."""
    from mmkd_lite.browser import find_browser

    if not find_browser():
        terminalreporter.section("not run: no Chromium or Chrome is installed")
        terminalreporter.write_line("tests/test_demo.py::test_the_page_in_a_browser")
        terminalreporter.write_line(
            "tests/test_screenshot.py::test_a_small_picture_of_the_page_is_stored"
        )
        terminalreporter.write_line(
            "Debian: apt-get install chromium; elsewhere set MMKD_BROWSER to its path."
        )
