"""A real JupyterLab in a real browser without a window, for the tests and the benchmarks of the widgets.

    with lab_server() as lab, chromium() as browser:
        page = lab.open(browser, ["import blockkit as bk", "bk.SliceViewer(...)"])
        page.locator(".blockkit-viewer").wait_for()

The browser is the one named by the variable BROWSER_PATH, a chromium or chrome found on PATH, or playwright's own.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Error, Page, sync_playwright

START_S, RUN_MS = 90, 180_000
HEIGHT = 1300
# No news and no check for updates: nothing but the notebook asks for attention, and nothing leaves the machine.
# Every cell is in the page, also those out of sight.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
# What JupyterLab itself may log without harm, when a page closes or a server has no such extension.
HARMLESS = ("favicon", "/lsp/status", "WebSocket is closed before the connection")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


@dataclass
class Lab:
    """A running JupyterLab: where it is and where its notebooks lie."""

    url: str
    folder: Path
    count: int = 0
    logged: list[str] = field(default_factory=list)

    def open(self, browser: Browser, cells: Sequence[str], *, width: int = 1400, dark: bool = False) -> Page:
        """Return a page with a new notebook of these ``cells``, all of them run; ``logged`` begins anew."""
        self.count += 1
        name = f"page{self.count}"
        made = new_notebook(cells=[new_code_cell(cell) for cell in cells], metadata={"kernelspec": KERNEL})
        nbformat.write(made, self.folder / f"{name}.ipynb")
        self.logged = []
        page = browser.new_page(viewport={"width": width, "height": HEIGHT})
        page.on("console", lambda message: self._note(message.type, f"{message.text} {message.location}"))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.goto(f"{self.url}/lab/workspaces/{name}/tree/{name}.ipynb")
        page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook')", timeout=1000 * START_S)
        page.evaluate("window.jupyterapp.restored.then(() => null)")
        self.paint(page, width=width, dark=dark)
        with contextlib.suppress(Error):
            page.evaluate("() => { window.jupyterapp.shell.collapseLeft(); }")
        page.wait_for_function(READY, timeout=1000 * START_S)
        run_all(page)
        return page

    def paint(self, page: Page, *, width: int, dark: bool) -> None:
        """Give a page another width in pixels, and the light or the dark theme."""
        page.set_viewport_size({"width": width, "height": HEIGHT})
        page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme}).then(() => null)",
            THEMES[dark],
        )
        page.wait_for_function(PAINTED, arg=THEMES[dark])
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and not any(word in text for word in HARMLESS):
            self.logged.append(text)


READY = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
PAINTED = "theme => document.body.dataset.jpThemeName === theme && !document.querySelector('#jupyterlab-splash')"
THEMES = {False: "JupyterLab Light", True: "JupyterLab Dark"}


def run_all(page: Page) -> None:
    """Run all cells and wait until the last has its number; RuntimeError with the text of an error output."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function(
        "() => {const all = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];"
        "return all.length && all.every(one => /\\d/.test(one.textContent));}",
        timeout=RUN_MS,
    )
    errors = page.locator(".jp-OutputArea-output[data-mime-type*='error'], .jp-RenderedText[data-mime-type*='stderr']")
    if errors.count():
        raise RuntimeError(f"a cell failed:\n{errors.first.inner_text()}")


@contextlib.contextmanager
def lab_server() -> Iterator[Lab]:
    """Start JupyterLab with the Python that runs this, in a folder of its own; stop it at the end."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        notebooks, settings = folder / "notebooks", folder / "settings"
        notebooks.mkdir()
        for name, values in SETTINGS.items():
            path = settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        port = free_port()
        own = {
            "JUPYTERLAB_SETTINGS_DIR": settings,
            "JUPYTER_CONFIG_DIR": folder / "config",
            "IPYTHONDIR": folder / "ip",
        }
        own |= {"JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces", "JUPYTER_RUNTIME_DIR": folder / "runtime"}
        environment = os.environ | {name: str(path) for name, path in own.items()}
        options = {
            "ServerApp.port": port,
            "ServerApp.root_dir": notebooks,
            "ServerApp.open_browser": False,
            "ServerApp.allow_root": True,
            "IdentityProvider.token": "",
            "LabApp.expose_app_in_browser": True,
            "LabApp.extension_manager": "readonly",
        }
        command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
        log = folder / "server.log"
        with (
            log.open("w") as stream,
            subprocess.Popen(command, stdout=stream, stderr=stream, env=environment) as server,
        ):
            try:
                url = f"http://localhost:{port}"
                _wait_for(url, server, log)
                yield Lab(url, notebooks)
            finally:
                server.terminate()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; RuntimeError with what to type where there is none."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")]
    path = os.environ.get("BROWSER_PATH") or next((one for one in found if one), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        except Error as error:
            raise RuntimeError(
                f"No browser starts ({path or 'of playwright'}). Install one: python -m playwright install chromium, "
                f"or set BROWSER_PATH to a chromium or chrome.\n{error}"
            ) from None
        yield browser
        browser.close()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, server: "subprocess.Popen[Any]", log: Path) -> None:
    for _ in range(4 * START_S):
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/status", timeout=5):
            return
        time.sleep(0.25)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
