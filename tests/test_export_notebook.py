"""`vera-lite export NOTEBOOK`: what it makes of saved widgets and formulas, and what it refuses."""

import re

import ipywidgets
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traitlets import Bytes

from vera_lite.apps.export_notebook import STATE, VIEW, export_notebook
from vera_lite.cli import main
from vera_lite.errors import UserError
from vera_lite.widgets.base import Widget


class Blob(Widget):
    _esm = "export default { render() {} }"
    data = Bytes().tag(sync=True)


def saved_notebook(*widgets):
    """What a run would have saved; its code would fail if it ran."""
    cells = [
        new_code_cell(
            "this is not python",
            outputs=[
                new_output("display_data", {VIEW: {"model_id": widget.model_id}, "text/plain": "as text"})
            ],
        )
        for widget in widgets
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["widgets"] = {STATE: ipywidgets.Widget.get_manager_state(widgets=widgets)}
    return notebook


@pytest.fixture
def write(tmp_path):
    def write_notebook(notebook):
        path = tmp_path / "story.ipynb"
        nbformat.write(notebook, path)
        return path

    return write_notebook


def test_saved_widgets_become_frames_without_a_run(write, tmp_path):
    path = write(saved_notebook(Blob(height=222), ipywidgets.IntSlider()))
    before = path.read_bytes()
    page = export_notebook(path)
    text = page.read_text()
    assert page == tmp_path / "story.html" and path.read_bytes() == before
    assert len(re.findall("<iframe ", text)) == 1 and "height: 222px" in text
    assert text.count("as text") == 1, "the slider keeps its text"
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.?(http|//)", text)


def test_formulas_become_mathml_or_stay_tex(write):
    notebook = saved_notebook(Blob())
    notebook.cells.insert(0, new_markdown_cell("Here $\\alpha < 1$ and\n\n$$x^2$$\n\nand $\\left($ too."))
    text = export_notebook(write(notebook)).read_text()
    assert "<mi>α</mi>" in text and text.count("<math ") == 2
    assert "$\\left($" in text


def test_a_page_over_budget_names_the_largest_widget(write):
    path = write(saved_notebook(Blob(data=bytes(300_000)), Blob(data=bytes(400_000))))
    size = len(export_notebook(path).read_text()) / 1e6
    with pytest.raises(UserError, match=r"Blob of cell 2, takes 0\.5"):
        export_notebook(path, budget_mb=size - 0.1)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("not json", "story.ipynb"),
        (nbformat.writes(new_notebook(cells=[new_code_cell("1 / 0")])), "division by zero"),
        (None, "story.ipynb"),
    ],
)
def test_what_cannot_become_a_page_is_one_sentence(tmp_path, capsys, content, named):
    path = tmp_path / "story.ipynb"
    if content:
        path.write_text(content)
    assert main(["export", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("vera-lite: ") and named in error and "Traceback" not in error
    assert not path.with_suffix(".html").exists()


def test_a_checkpoint_needs_a_folder(capsys):
    assert main(["export", "last.ckpt"]) == 2
    assert "--out" in capsys.readouterr().err
