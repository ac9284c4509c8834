"""Drive a Chromium that is installed here through its own debugging protocol: for the demo's test and picture."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the page must need nothing from outside
)
START_SECONDS = 120.0


def find_browser() -> str:
    """Return the path of an installed Chromium or Chrome: MMKD_BROWSER, else one on the path; "" if there is none."""
    chosen = os.environ.get("MMKD_BROWSER", "")
    return chosen or next(filter(None, map(shutil.which, NAMES)), "")


class Page:
    """One page of a headless browser.

    Args:
        socket: A connection to the page's debugger.

    Attributes:
        requested: Address of every request that the page made.
    """

    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0
        self.requested: list[str] = []
        for domain in ("Page", "Network", "DOM", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result.

        Raises:
            RuntimeError: The browser refused it.
        """
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def run(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page and return its value.

        Raises:
            RuntimeError: The script failed.
        """
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(f"{script}: {done['exceptionDetails'].get('text')}")
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = 180.0) -> None:
        """Evaluate an expression until it is true.

        Raises:
            TimeoutError: It stayed false.
        """
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                text = str(self.run("document.body.innerText"))[:500]
                raise TimeoutError(f"still false after {seconds:.0f} s: {script}; page: {text}")
            time.sleep(0.2)

    def upload(self, selector: str, path: str | Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in a text field, as typing does."""
        chosen = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{chosen}.focus(), {chosen}.select()")
        self.call("Input.insertText", text=text)

    def picture(self) -> bytes:
        """Return the whole page, as high as it is, as PNG."""
        box = {**self.call("Page.getLayoutMetrics")["cssContentSize"], "scale": 1}
        whole = {"format": "png", "captureBeyondViewport": True, "clip": box}
        return base64.b64decode(self.call("Page.captureScreenshot", **whole)["data"])


@contextlib.contextmanager
def open_page(address: str, width: int = 1100, height: int = 900) -> Iterator[Page]:
    """Start a headless browser with an empty profile, open an address, and end the browser afterwards.

    Raises:
        FileNotFoundError: No browser is installed.
        TimeoutError: It did not start.
    """
    from websocket import create_connection

    browser = find_browser()
    if not browser:
        raise FileNotFoundError(
            "no Chromium or Chrome found; install one (Debian: apt-get install chromium), or set MMKD_BROWSER"
        )
    flags = [*FLAGS, f"--window-size={width},{height}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium's sandbox refuses to work for root
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [browser, *flags, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            socket = create_connection(_debugger(Path(profile), process), timeout=START_SECONDS)
            page = Page(socket)
            page.call("Page.navigate", url=address)
            yield page
            socket.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _debugger(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the page's debugger, once the browser has written its port."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            port = int((profile / "DevToolsActivePort").read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                pages = [t for t in json.load(answer) if t["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.2)
    raise TimeoutError(f"the browser did not start (exit status {process.poll()})")
