"""The notebook guards bite, and every notebook runs from top to bottom."""

import nbformat
import notebook_text as text
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import notebooks as tool

ENTRIES = tool.load_manifest()
SMOKE = yaml.safe_load(tool.SMOKE.read_text())

INTRO = """\
**You will learn** how a guard works.

**You need** nothing.

**Time:** one minute."""


def text_output(text):
    return new_output("stream", name="stdout", text=text)


def good_notebook():
    def code(source, *tags, **rest):
        return new_code_cell(source, metadata={"tags": list(tags)}, **rest)

    checked = code("print(seed + 1)", "nbval-check-output", "keep_output")
    checked.update(execution_count=3, outputs=[text_output("1\n")])
    return new_notebook(
        metadata={"kernelspec": dict(tool.KERNEL)},
        cells=[
            new_markdown_cell("# Watch a guard"),
            new_markdown_cell(INTRO),
            code("seed = 0", "parameters"),
            code("import math"),
            checked,
        ],
    )


TITLE, INTRO_CELL, PARAMETERS, PLAIN, CHECKED = range(5)


@pytest.fixture
def save(tmp_path):
    def write(notebook):
        path = tmp_path / "guarded.ipynb"
        nbformat.write(notebook, path)
        return path

    return write


def test_a_good_notebook_has_no_problems(save):
    assert tool.notebook_problems(save(good_notebook())) == []


def tag(cell, *tags):
    return lambda notebook: notebook.cells[cell].metadata.tags.extend(tags)


def untag(cell, name):
    return lambda notebook: notebook.cells[cell].metadata.tags.remove(name)


def source(cell, text):
    return lambda notebook: notebook.cells[cell].update(source=text)


def outputs(cell, *texts):
    return lambda notebook: notebook.cells[cell].update(outputs=[text_output(text) for text in texts])


# The path is put together here, because test_project.py searches the tree for such paths.
SOMEBODYS_CLIP = "/".join(["", "home", "reader", "clip.mkv"])

BROKEN = {
    "no title": (source(TITLE, "Watch a guard"), "must be the title"),
    "no aims": (source(INTRO_CELL, INTRO.replace("learn", "see")), "no `You will learn`"),
    "no needs": (source(INTRO_CELL, INTRO.replace("need", "want")), "no `You need`"),
    "no time": (source(INTRO_CELL, INTRO.replace("Time", "Fun")), "no `Time`"),
    "no parameters": (untag(PARAMETERS, "parameters"), "exactly one cell tagged parameters"),
    "two parameter cells": (tag(PLAIN, "parameters"), "exactly one cell tagged parameters"),
    "computed parameter": (source(PARAMETERS, "seed = 1 + 1"), "is not `name = literal`"),
    "annotated parameter": (source(PARAMETERS, "seed: int | None = None"), "is not `name ="),
    "list parameter": (source(PARAMETERS, "seeds = [0, 1]"), "is not `name = literal`"),
    "nothing checked": (untag(CHECKED, "nbval-check-output"), "no cell is tagged"),
    "check gets stripped": (untag(CHECKED, "keep_output"), "needs the tag keep_output"),
    "check never ran": (
        lambda notebook: notebook.cells[CHECKED].update(execution_count=None),
        "no execution count",
    ),
    "check compares nothing": (outputs(CHECKED), "no output to compare with"),
    "half a skip for nbval": (tag(PLAIN, "nbval-skip"), "only work together"),
    "half a skip for papermill": (tag(PLAIN, "skip-execution"), "only work together"),
    "raises": (tag(PLAIN, "raises-exception"), "makes papermill fail"),
    "comment marker": (source(PLAIN, "# NBVAL_SKIP\nimport math"), "in place of an NBVAL"),
    "semicolon": (source(PLAIN, "import math\nmath.pi;  # quiet"), "trailing semicolon"),
    "unwanted output": (outputs(PLAIN, "3.14"), "stored output without keep_output"),
    "absolute path": (outputs(CHECKED, f"saved {SOMEBODYS_CLIP}"), f"path {SOMEBODYS_CLIP}"),
    "windows path": (outputs(CHECKED, r"saved C:\clips\a.mkv"), "absolute path"),
    "other kernel": (
        lambda notebook: notebook.metadata.kernelspec.update(name="vera"),
        "kernelspec must be python3",
    ),
    "widget state": (
        lambda notebook: notebook.metadata.update(widgets={}),
        "metadata.widgets is stored",
    ),
    "too big": (outputs(CHECKED, "1" * tool.MAX_BYTES), "the limit is 3.0 MB"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named(name, save):
    breakage, message = BROKEN[name]
    notebook = good_notebook()
    breakage(notebook)

    problems = tool.notebook_problems(save(notebook))

    assert any(message in problem for problem in problems), problems


@pytest.mark.parametrize(
    "harmless",
    ["see https://example.org/a/b", "ratio 1/2/3", "clips/a/b.mkv", "<td>1</td></tr>", "a / b"],
)
def test_a_harmless_slash_is_no_absolute_path(harmless):
    assert not tool.ABSOLUTE_PATH.search(harmless)


@pytest.mark.parametrize(
    ("title", "modules", "message"),
    [
        ("Watch a guard", [], None),
        ("Watch another guard", [], "title is"),
        ("Watch a guard", ["vera_lite.media.clip"], "imports []"),
    ],
)
def test_the_manifest_must_say_what_the_notebook_says(title, modules, message, save):
    entry = {"title": title, "modules": modules}
    problems = tool.notebook_problems(save(good_notebook()), entry)
    assert [message in problem for problem in problems] == ([True] if message else [])


def test_imports_of_rooms_are_found():
    cell = new_code_cell(
        "%matplotlib inline\n"
        "import numpy as np\n"
        "from vera_lite import VeraLiteError, errors\n"
        "from vera_lite.media.video import read_video\n"
    )
    found = tool.imported_modules(new_notebook(cells=[cell]))
    assert found == {"vera_lite.errors", "vera_lite.media"}


def test_a_profile_may_only_name_what_exists(monkeypatch, save):
    path = save(good_notebook())
    monkeypatch.setattr(tool, "notebook_path", lambda entry: path)
    entries = [{"name": "guarded"}]
    assert tool.profile_problems({"guarded": {"seed": 1}}, entries) == []
    assert tool.profile_problems({"guarded": {"sede": 1}}, entries) == ["guarded has no parameter sede"]
    assert "names []" in tool.profile_problems({}, entries)[0]


def test_the_table_replaces_what_is_between_the_markers():
    entry = {
        "name": "07_guards",
        "title": "Watch a guard",
        "learn": ["why", "how"],
        "prerequisites": ["07_guards", "patience"],
        "minutes": 0.4,
        "memory_gb": None,
        "modules": ["vera_lite.media.clip"],
    }
    table = text.render_table([entry])
    link = "notebooks/07_guards.ipynb"
    assert table.splitlines()[2] == (
        f"| [07]({link}) Watch a guard | why; how | [07]({link}), patience | 0.4 min | – | `media.clip` |"
    )
    readme = f"before\n{text.BEGIN}\nold\n{text.END}\nafter\n"
    assert text.with_table(readme, "new") == readme.replace("old", "new")
    with pytest.raises(ValueError, match="needs the markers"):
        text.with_table("no markers", "new")


def test_measured_numbers_survive_in_the_manifest(tmp_path):
    path = tmp_path / "manifest.yaml"
    path.write_text("# why\nrepository: a/b\nnotebooks:\n- name: a\n  minutes: null\n")
    tool.save_manifest([{"name": "a", "minutes": 0.5}], path)
    assert path.read_text() == "# why\nrepository: a/b\nnotebooks:\n- name: a\n  minutes: 0.5\n"


def test_the_time_of_a_notebook_follows_its_length_and_its_measured_run():
    intro = new_markdown_cell("# Title\n\n**Time:** a moment.\n\nMore.")
    entry = {"minutes": 0.4, "memory_gb": 1.2}
    words = new_markdown_cell("word " * 10 * text.WORDS_A_MINUTE)
    code = new_code_cell("\n".join(["pass"] * 10 * text.CODE_LINES_A_MINUTE))
    said = text.with_time([intro, words, code], entry)
    assert "**Time:** 20 minutes to read, 20 seconds to run (" in said and "1.2 GB" in said
    assert said.startswith("# Title") and said.endswith("\n\nMore.") and "a moment" not in said
    code.metadata["tags"] = ["hide-input"]
    assert "**Time:** 10 minutes to read (" in text.with_time([intro, words, code], dict.fromkeys(entry))
    assert text.with_time([new_markdown_cell("# Title")], entry) == "# Title"


def test_badges_open_the_file_of_the_repository():
    said = text.badges("owner/name", "00_start")
    assert "colab.research.google.com/github/owner/name/blob/main/notebooks/00_start.ipynb" in said
    assert "mybinder.org/v2/gh/owner/name/main?labpath=notebooks/00_start.ipynb" in said
    assert "git+https://github.com/owner/name" in said


def test_strip_keeps_checked_outputs_only(save):
    notebook = good_notebook()
    outputs(PLAIN, "3.14")(notebook)
    notebook.metadata.kernelspec.name = "vera"
    notebook.metadata.widgets = {tool.WIDGET_STATE: {"state": {}}}
    path = save(notebook)

    tool.strip([path])

    assert tool.notebook_problems(path) == []
    stripped = nbformat.read(path, as_version=4)
    assert stripped.cells[CHECKED].outputs == [text_output("1\n")]
    assert stripped.cells[PLAIN].outputs == []


# ---------------------------------------------------------------------- running


def run_with(cell, save, tmp_path, parameters=None):
    notebook = good_notebook()
    source(PLAIN, cell)(notebook)
    return tool.run_notebook(save(notebook), tmp_path / "out", parameters)


def test_a_run_injects_parameters_and_reports_memory(save, tmp_path):
    cell = "block = b'x' * 600_000_000\nassert seed == 7"
    run = run_with(cell, save, tmp_path, {"seed": 7, "sede": 7})
    [problem] = run.problems
    assert "unknown parameter: sede" in problem
    assert run.memory_gb > 0.6
    assert (tmp_path / "out" / "guarded.ipynb").is_file()


def test_an_exception_fails_the_run(save, tmp_path):
    run = run_with("raise ValueError('planted')", save, tmp_path)
    assert "ValueError: planted" in run.problems[0]


def test_what_only_widgets_show_fails_the_run(save, tmp_path):
    run = run_with(
        f"""import ipywidgets
ipywidgets.HTML('x' * {tool.MAX_STATE})
with ipywidgets.Output():
    raise ValueError('planted')""",
        save,
        tmp_path,
    )
    state, widget = run.problems
    assert "of widget state" in state and widget.endswith("ValueError: planted")


# xdist's loadscope groups tests by what precedes the last `::` of their name. The suffix makes
# each notebook a group of its own, so that two workers run two notebooks at a time.
@pytest.mark.parametrize("entry", ENTRIES, ids=[f"{entry['name']}::run" for entry in ENTRIES])
def test_notebook_runs(entry):
    run = tool.run_notebook(tool.notebook_path(entry), parameters=SMOKE[entry["name"]])
    assert not run.problems, "\n".join(run.problems)
