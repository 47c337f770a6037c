"""Real Chromium, and one JupyterLab for all tests of this folder (one a worker)."""

import os

import lab as driver
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe


@pytest.fixture(scope="session")
def browser():
    if driver.CHROMIUM is None:
        sentence = "browser tests need Chromium, e.g. `apt-get install chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    with driver.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A page of its own; the test fails if a script in it does."""
    with browser.new_context(viewport={"width": 1000, "height": 900}) as context:
        page = context.new_page()
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
        assert not failures


@pytest.fixture
def offline(page):
    """The page again, cut off from the network; the test fails if it asks for anything."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.route(lambda url: not url.startswith(("file:", "blob:", "data:")), lambda route: route.abort())
    yield page
    assert not [url for url in asked if not url.startswith(("file:", "blob:", "data:", "about:"))]


@pytest.fixture
def accessible():
    """``accessible(page)`` asserts that axe finds no serious or critical violation."""

    def check(page) -> None:
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        wrong = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not wrong, [(v["id"], v["nodes"][0]["html"]) for v in wrong]

    return check


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory):
    server = driver.Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def lab_page(browser):
    """One page for all: loading JupyterLab takes seconds."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        yield context.new_page()


@pytest.fixture
def lab(lab_server, lab_page):
    """``lab(source, ...)`` opens a notebook with these code cells in JupyterLab and runs them."""

    def open_and_run(*sources: str) -> driver.Notebook:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = lab_server.open(lab_page, nbformat.v4.new_notebook(cells=cells))
        notebook.run_all()
        return notebook

    return open_and_run


# What the tests of the explorer replace in a static page, to see and answer its messages.
CONTROLS = {
    "send() {},": """send(content) {
      if (!content.hello) globalThis.sent.push(content);
      else if (globalThis.live) call("msg:custom", { alive: true });
    },""",
    "if (state._css)": "Object.assign(globalThis, { model, call, sent: [] });\n  if (state._css)",
}


@pytest.fixture
def show(offline, tmp_path):
    """Put an explorer on a static page, cut off from the network; ``live``: as if Python were there."""

    def open_page(explorer, live=False, page=offline):
        text = explorer.to_static()
        for old, new in CONTROLS.items():
            assert text.count(old) == 1
            text = text.replace(old, new)
        path = tmp_path / "page.html"
        path.write_text(text.replace("<body>", f"<body><script>live = {str(live).lower()}</script>"))
        page.goto(path.as_uri())
        page.locator(".stage canvas").first.wait_for()
        page.wait_for_timeout(50)  # the frames are decoded
        return page

    return open_page
