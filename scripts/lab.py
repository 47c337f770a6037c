"""JupyterLab in a browser, driven by a program: for tests and pictures of the widgets."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary
from playwright.sync_api import Browser, Page, sync_playwright

SECONDS = 60
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
NAMES = ("chromium", "chromium-browser", "google-chrome", MAC)
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of the system; nothing is downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Lab:
    """A JupyterLab server on loopback that shares no setting, token or trust with the user's own.

    Args:
        folder: an empty one, for the notebooks and everything that the server writes.
    """

    def __init__(self, folder: Path):
        self.root, own = folder / "root", folder / "own"
        settings = own / "config/lab/user-settings/@jupyterlab/apputils-extension"
        self.root.mkdir(parents=True)
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text(
            '{"fetchNews": "false", "checkForUpdates": false}'
        )
        self.data = own / "data"
        self.opened = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", "--ServerApp.token="]
        options += [f"--ServerApp.root_dir={self.root}", "--LabApp.expose_app_in_browser=True"]
        options += ["--no-browser", "--allow-root", "--LabApp.extension_manager=readonly"]
        places = {"CONFIG_DIR": own / "config", "RUNTIME_DIR": own / "runtime", "DATA_DIR": self.data}
        environment = os.environ | {f"JUPYTER_{name}": str(place) for name, place in places.items()}
        self.log = own / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {"IPYTHONDIR": str(own / "ipython")},
            )
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/api", timeout=SECONDS).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}") from None
                time.sleep(0.1)

    def close(self) -> None:
        """Stop the server and its kernels."""
        self.process.terminate()
        self.process.wait(SECONDS)

    def open(self, page: Page, notebook: nbformat.NotebookNode, trust: bool = True) -> "Notebook":
        """Show a notebook in a page; another open one is closed, and its kernel shut down."""
        self.opened += 1
        path = self.root / f"{self.opened}.ipynb"
        notebook.metadata.setdefault(
            "kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"}
        )
        nbformat.write(notebook, path)
        if trust:
            NotebookNotary(data_dir=str(self.data)).sign(nbformat.read(path, as_version=4))
        if not page.url.startswith(self.url):
            page.set_default_timeout(SECONDS * 1000)
            page.goto(f"{self.url}/lab?reset")
            page.wait_for_function("window.jupyterapp?.shell && document.querySelector('.jp-Launcher')")
        page.evaluate(
            """async (path) => {
                const { commands, shell } = jupyterapp;
                const old = shell.currentWidget;
                if (old?.sessionContext) {
                    await old.sessionContext.shutdown();
                    await old.context.save();
                    old.dispose();
                }
                const widget = await commands.execute("docmanager:open", { path, factory: "Notebook" });
                await widget.context.ready;
                await widget.sessionContext.ready;
                window.notebook = widget.content;
            }""",
            path.name,
        )
        return Notebook(page)


class Notebook:
    """The notebook that a page of JupyterLab shows."""

    def __init__(self, page: Page):
        self.page = page

    def run_all(self) -> None:
        """Run every cell and wait for the last.

        Raises:
            RuntimeError: a cell failed.
        """
        self.page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        for cell in range(self.cell_count()):
            self.output(cell)

    def ask(self, source: str) -> str:
        """Run code in a new last cell; returns what it prints or shows."""
        cell = self.page.evaluate(
            """async (source) => {
                const cell = notebook.widgets.length;
                notebook.model.sharedModel.insertCell(cell, { cell_type: "code", source });
                notebook.activeCellIndex = cell;
                await jupyterapp.commands.execute("notebook:run-cell");
                return cell;
            }""",
            source,
        )
        return self.output(cell)

    def wait_for(self, source: str, expected: str) -> None:
        """Ask until Python has heard of what was done in the browser, which takes a moment.

        Raises:
            AssertionError: another answer after some seconds.
        """
        deadline = time.monotonic() + SECONDS / 6
        while (answer := self.ask(source)) != expected:
            assert time.monotonic() < deadline, f"{source} is {answer}, not {expected}"

    def output(self, cell: int) -> str:
        """Text that a cell printed or shows.

        Raises:
            RuntimeError: the cell failed.
        """
        outputs = self.page.evaluate("(cell) => notebook.model.cells.get(cell).outputs?.toJSON() ?? []", cell)
        for output in outputs:
            if output["output_type"] == "error":
                raise RuntimeError("\n".join(output["traceback"]))
        return "".join(
            output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
        )

    def cell_count(self) -> int:
        return self.page.evaluate("notebook.widgets.length")
