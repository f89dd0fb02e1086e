"""A page in a real browser: Debian's Chromium, without a screen, driven by its WebDriver."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import socket
import subprocess
import tempfile
import time
import typing as t
import urllib.error
import urllib.request

#: As root there is no sandbox; the others keep it from calling home.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START = 60.0


class Browser:
    """One browser. `with Browser.open() as browser:`"""

    def __init__(self, session: str) -> None:
        self.session = session

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> t.Iterator[Browser]:
        """Start a browser with a profile of its own, and end it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryDirectory() as profile:
            driver = subprocess.Popen(
                ["chromedriver", f"--port={port}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            session: str | None = None
            try:
                deadline = time.monotonic() + START
                while not cls._ready(base):
                    assert driver.poll() is None and time.monotonic() < deadline, "chromedriver does not answer"
                    time.sleep(0.05)
                options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": "/usr/bin/chromium"}
                wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
                made = cls._call("POST", f"{base}/session", {"capabilities": {"alwaysMatch": wanted}})
                session = f"{base}/session/{made['sessionId']}"
                yield cls(session)
            finally:
                if session:
                    with contextlib.suppress(OSError):
                        cls._call("DELETE", session)
                driver.terminate()
                driver.wait()

    @classmethod
    def _ready(cls, base: str) -> bool:
        try:
            return bool(cls._call("GET", f"{base}/status")["ready"])
        except OSError:
            return False

    @staticmethod
    def _call(method: str, url: str, body: t.Any = None) -> t.Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=START) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode(errors='replace')}") from error

    def _do(self, command: str, parameters: t.Mapping[str, t.Any]) -> t.Any:
        """A command of the DevTools protocol."""
        return self._call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, page: pathlib.Path, width: int, *, dark: bool) -> None:
        """Show a page on a screen so wide, in the light or the dark scheme."""
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self._do("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._do("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def ask(self, script: str) -> t.Any:
        """What a JavaScript expression yields."""
        return self._call("POST", f"{self.session}/execute/sync", {"script": f"return {script}", "args": []})

    def screenshot(self, file: pathlib.Path) -> None:
        """Keep the whole page as a picture."""
        shot = self._do("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What is in the browser's console."""
        return [entry["message"] for entry in self._call("POST", f"{self.session}/se/log", {"type": "browser"})]

    def requested(self, page: pathlib.Path) -> list[str]:
        """Addresses that a page has asked for since the last time, its own among them."""
        entries = self._call("POST", f"{self.session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        asked = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in asked if one["documentURL"] == page.resolve().as_uri()]


#: WCAG 2.1, 1.4.3: the lowest ratio of contrast of any text on the page to what is behind it.
CONTRAST = """(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parts(c).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    const [,,, a = 1] = parts(c); if (a) return c; } return 'rgb(255,255,255)'; };
  let lowest = 99;
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const pair = [light(getComputedStyle(e).color), light(behind(e))].sort((a, b) => b - a);
    lowest = Math.min(lowest, (pair[0] + .05) / (pair[1] + .05));
  }
  return lowest;
})()"""
