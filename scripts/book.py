"""Build the book: notebooks, model cards and API reference as one static site, without any network.

python scripts/book.py                  into build/book/html; runs notebooks that build/notebooks lacks
python scripts/book.py --no-notebooks   all but the notebooks, in seconds

Widgets of the notebooks stay alive: each becomes a frame with its own page, as in `vera-lite export`.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import browser_page
import nbformat
import yaml

from vera_lite.apps.export_notebook import freeze_widgets

ROOT = Path(__file__).resolve().parents[1]
PAGES, BUILD = ROOT / "docs" / "book", ROOT / "build" / "book"
STAGING, OUT = BUILD / "source", BUILD / "html"
RUN = ROOT / "build" / "notebooks"
WIDGET_MB = 5.0
LARGEST_MB = 60.0


def stage_notebooks() -> None:
    """Executed notebooks with their widgets frozen; those that were not executed are, first."""
    manifest = yaml.safe_load((ROOT / "notebooks" / "manifest.yaml").read_text())
    names = [entry["name"] for entry in manifest["notebooks"]]
    if missing := [name for name in names if not (RUN / f"{name}.ipynb").exists()]:
        subprocess.run([sys.executable, ROOT / "scripts" / "notebooks.py", "run", *missing], check=True)
    (STAGING / "notebooks").mkdir(parents=True)
    for name in names:
        notebook = nbformat.read(RUN / f"{name}.ipynb", as_version=4)
        freeze_widgets(notebook, WIDGET_MB)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("../docs/architectures/", "../architectures/")
        nbformat.write(notebook, STAGING / "notebooks" / f"{name}.ipynb")


def stage_equations() -> None:
    """A table from equation to line, from `equations.yaml`."""
    lines = ["# From equation to line", "", "| paper | equation | it says | line |", "|---|---|---|---|"]
    for row in yaml.safe_load((PAGES / "equations.yaml").read_text()):
        line = line_of(row)
        says = row["says"].replace("|", r"\|")
        lines.append(f"| {row['paper']} | {row['equation']} | `{says}` | `{row['file']}`, line {line} |")
    (STAGING / "equations.md").write_text("\n".join(lines) + "\n")


def line_of(row: dict) -> int:
    """Number of the line that computes an equation; ValueError unless exactly one does."""
    lines = (ROOT / row["file"]).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if row["find"] in line]
    if len(found) != 1:
        raise ValueError(f"{row['find']!r} is on {len(found)} lines of {row['file']}; it must be on one.")
    return found[0]


def stage_cards() -> None:
    """The cards of the shipped models."""
    (STAGING / "cards").mkdir()
    names = []
    for card in sorted((ROOT / "vera_lite" / "assets").glob("*_toy/README.md")):
        names.append(card.parent.name)
        (STAGING / "cards" / f"{card.parent.name}.md").write_text(card.read_text())
    index = ["# Model cards", "", "```{toctree}", *names, "```", ""]
    (STAGING / "cards" / "index.md").write_text("\n".join(index))


def stage_api() -> None:
    """A page per room, with every public module."""
    (STAGING / "api").mkdir()
    package, rooms = ROOT / "vera_lite", {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts) or len(parts) < 2:
            continue
        room = "toy" if "toy" in parts else parts[1]
        rooms.setdefault(room, []).append(".".join(p for p in parts if p != "__init__"))
    rooms.pop("__init__", None)
    for room, modules in rooms.items():
        lines = [f"# {room}", ""]
        for module in modules:
            lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}"]
            # A package shows its members again, so its page has its docstring alone.
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            lines += [*([] if is_package else ["   :members:"]), "```", ""]
        (STAGING / "api" / f"{room}.md").write_text("\n".join(lines))
    index = ["# API reference", "", "```{toctree}", *rooms, "```", ""]
    (STAGING / "api" / "index.md").write_text("\n".join(index))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-notebooks", action="store_true", help="leave the notebooks out")
    options = parser.parse_args(arguments)
    shutil.rmtree(STAGING, ignore_errors=True)
    shutil.copytree(PAGES, STAGING)
    shutil.copytree(ROOT / "docs" / "architectures", STAGING / "architectures")
    shutil.copy(ROOT / "CHANGELOG.md", STAGING / "changelog.md")
    shutil.copy(ROOT / "docs" / "claims.html", STAGING)
    browser_page.main(["--out", str(STAGING / "vera.html")])
    if not options.no_notebooks:
        stage_notebooks()
    stage_equations()
    stage_cards()
    stage_api()
    shutil.rmtree(OUT, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", BUILD / "doctrees", STAGING, OUT],
        check=True,
    )
    for path in OUT.rglob("*.html"):
        # What axe misses in Sphinx's pages: levels of headings, and long lines of code without a mouse.
        text = path.read_text().replace('role="heading">', 'role="heading" aria-level="2">')
        path.write_text(text.replace("<pre>", '<pre tabindex="0">'))
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file()) / 1e6
    print(f"{OUT.relative_to(ROOT)}: {size:.1f} MB")
    if size > LARGEST_MB:
        raise SystemExit(f"the book is larger than {LARGEST_MB:g} MB: show less in the notebooks")


if __name__ == "__main__":
    main()
