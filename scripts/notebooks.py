"""Keep the notebooks honest: check them, run them, list them, strip them.

python scripts/notebooks.py check            hygiene rules of CONTRIBUTING.md
python scripts/notebooks.py run [NAME ...]   execute into build/notebooks
python scripts/notebooks.py table            write the README table, the links and the times of the notebooks
python scripts/notebooks.py strip FILE ...   drop outputs that nobody asked to keep
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml
from notebook_text import badges, links, render_table, tags, with_table, with_time

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
MANIFEST = NOTEBOOKS / "manifest.yaml"
README = ROOT / "README.md"
OUT = ROOT / "build" / "notebooks"
SMOKE = NOTEBOOKS / "profiles" / "smoke.yaml"

MAX_BYTES = 3_000_000
MAX_STATE = 3_000_000  # of all widgets together, once run
CELL_SECONDS = 300
LINKS, OPEN = "links", "open"  # ids of the last cell, and of the one that opens the notebook elsewhere
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
STRIPPED_METADATA = "metadata.widgets metadata.papermill cell.metadata.papermill cell.metadata.execution"

# A path from the root with at least one directory. What precedes the slash must not make it
# part of a URL, a relative path, a fraction or an HTML tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<~-])/(?:[\w.+-]+/)+[\w.+-]*|\b[A-Z]:\\\w+")


# ---------------------------------------------------------------------- manifest


def load_manifest(path: Path = MANIFEST) -> list[dict]:
    return yaml.safe_load(path.read_text())["notebooks"]


def save_manifest(entries: list[dict], path: Path = MANIFEST) -> None:
    comment = "".join(re.findall(r"^#.*\n", path.read_text(), flags=re.MULTILINE))
    manifest = yaml.safe_load(path.read_text()) | {"notebooks": entries}
    body = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(comment + body)


def notebook_path(entry: dict) -> Path:
    return NOTEBOOKS / f"{entry['name']}.ipynb"


# ---------------------------------------------------------------------- hygiene


def parameter_names(notebook) -> set[str]:
    """Names that the `parameters` cell assigns."""
    cells = [cell.source for cell in notebook.cells if "parameters" in tags(cell)]
    assigned = [node for source in cells for node in ast.walk(ast.parse(source))]
    return {node.id for node in assigned if isinstance(node, ast.Name)}


def is_simple_literal(node: ast.stmt) -> bool:
    """`name = 3`, `name = -0.5`, `name = "text"`: the forms that papermill reads reliably."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
        return False
    value = node.value
    if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub):
        value = value.operand
    return len(node.targets) == 1 and isinstance(value, ast.Constant)


def output_text(output) -> Iterator[str]:
    """Everything a reader would read in an output; pictures are left out."""
    yield output.get("text", "")
    yield from output.get("traceback", [])
    for mime, value in output.get("data", {}).items():
        if isinstance(value, str) and (mime == "image/svg+xml" or not mime.startswith("image/")):
            yield value


def imported_modules(notebook) -> set[str]:
    """`vera_lite.x` for every room that the code cells import."""
    names = set()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        python = "\n".join(line for line in cell.source.splitlines() if line[:1] not in "%!")
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
                # `from vera_lite import clip` may name a room as well as a class.
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {tuple(name.split(".")[:2]) for name in names if name.startswith("vera_lite.")}
    package = ROOT / "vera_lite"
    return {
        ".".join(part)
        for part in parts
        if (package / part[1]).is_dir() or (package / f"{part[1]}.py").is_file()
    }


def parameter_problems(notebook) -> Iterator[str]:
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(cells) != 1:
        yield f"needs exactly one cell tagged parameters, has {len(cells)}"
    for cell in cells:
        for node in ast.parse(cell.source).body:
            if not is_simple_literal(node):
                yield f"parameters cell: `{ast.unparse(node)}` is not `name = literal`"


def checked_cell_problems(notebook) -> Iterator[str]:
    """nbval passes a cell that has nothing stored, so an empty check would never fail."""
    checked = [cell for cell in notebook.cells if "nbval-check-output" in tags(cell)]
    if not checked:
        yield "no cell is tagged nbval-check-output"
    for cell in checked:
        where = f"checked cell `{cell.source[:40]}`"
        if "keep_output" not in tags(cell):
            yield f"{where}: needs the tag keep_output too, or its output gets stripped"
        if not cell.get("execution_count"):
            yield f"{where}: has no execution count, so nbval would skip the comparison"
        if not cell.get("outputs"):
            yield f"{where}: has no output to compare with"


def cell_problems(notebook) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells):
        where = f"cell {number}"
        if len({"skip-execution", "nbval-skip"} & tags(cell)) == 1:
            yield f"{where}: skip-execution and nbval-skip only work together"
        if {"raises-exception", "nbval-raises-exception"} & tags(cell):
            yield f"{where}: raises-exception makes papermill fail; catch the error and print it"
        if cell.cell_type != "code":
            continue
        if re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell.source):
            yield f"{where}: use a tag in place of an NBVAL comment, the checks only read tags"
        if re.search(r";\s*(#.*)?\Z", cell.source):
            yield f"{where}: trailing semicolon; nbval ignores it, write `_ = ...`"
        if cell.outputs and "keep_output" not in tags(cell):
            yield f"{where}: stored output without keep_output; run `scripts/notebooks.py strip`"
        for text in (text for output in cell.outputs for text in output_text(output)):
            if found := ABSOLUTE_PATH.search(text):
                yield f"{where}: absolute path {found[0]} in the output"


def frame_problems(notebook) -> Iterator[str]:
    """Title first; then, before the parameters, what the reader learns, needs, and how long."""
    cells = notebook.cells
    if not (cells and cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")):
        yield "the first cell must be the title, `# ...`"
    intro = ""
    for cell in cells:
        if "parameters" in tags(cell):
            break
        intro += cell.source + "\n" if cell.cell_type == "markdown" else ""
    for phrase, pattern in {
        "You will learn": r"you will learn",
        "You need": r"you need",
        "Time": r"^\W*time\b",
    }.items():
        if not re.search(pattern, intro, flags=re.IGNORECASE | re.MULTILINE):
            yield f"no `{phrase}` before the parameters cell"


def metadata_problems(notebook) -> Iterator[str]:
    kernel = notebook.metadata.get("kernelspec", {})
    if (kernel.get("name"), kernel.get("language")) != (KERNEL["name"], KERNEL["language"]):
        yield "kernelspec must be python3; run `scripts/notebooks.py strip`"
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is stored; run `scripts/notebooks.py strip`"


def manifest_problems(notebook, entry: dict) -> Iterator[str]:
    title = notebook.cells[0].source.splitlines()[0].removeprefix("# ").strip()
    if title != entry["title"]:
        yield f"title is {title!r}, the manifest says {entry['title']!r}"
    if (used := imported_modules(notebook)) != set(entry["modules"]):
        yield f"imports {sorted(used)}, the manifest says {sorted(entry['modules'])}"


def notebook_problems(path: Path, entry: dict | None = None) -> list[str]:
    """Every broken rule of one notebook; `entry` is its part of the manifest."""
    notebook = nbformat.read(path, as_version=4)
    problems = [
        *frame_problems(notebook),
        *parameter_problems(notebook),
        *checked_cell_problems(notebook),
        *cell_problems(notebook),
        *metadata_problems(notebook),
    ]
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"{path.stat().st_size / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6} MB")
    if entry and notebook.cells:
        problems += manifest_problems(notebook, entry)
    return problems


def profile_problems(profile: dict, entries: list[dict]) -> list[str]:
    """A profile names every notebook, and only parameters that the notebook has."""
    problems = []
    names = {entry["name"] for entry in entries}
    if names != set(profile):
        problems.append(f"names {sorted(profile)}, the manifest {sorted(names)}")
    for entry in entries:
        if notebook_path(entry).is_file():
            known = parameter_names(nbformat.read(notebook_path(entry), as_version=4))
            for name in sorted(set(profile.get(entry["name"]) or {}) - known):
                problems.append(f"{entry['name']} has no parameter {name}")
    return problems


def check() -> int:
    entries = load_manifest()
    by_name = {entry["name"]: entry for entry in entries}
    problems = (
        [
            f"{path.relative_to(ROOT)}: {problem}"
            for path in sorted(NOTEBOOKS.glob("*.ipynb"))
            for problem in notebook_problems(path, by_name.get(path.stem))
        ]
        + [
            f"{entry['name']}: its links or its time are out of date; run the command `table`"
            for at, entry in enumerate(entries)
            for cells in [nbformat.read(notebook_path(entry), as_version=4).cells]
            if (cells[-1].source, cells[0].source) != (links(entries, at), with_time(cells, entry))
        ]
        + [
            f"{path.relative_to(ROOT)}: {problem}"
            for path in sorted(SMOKE.parent.glob("*.yaml"))
            for problem in profile_problems(yaml.safe_load(path.read_text()), entries)
        ]
    )
    print("\n".join(problems) or "notebooks: every rule kept")
    return bool(problems)


# ---------------------------------------------------------------------- running


@dataclass
class Run:
    minutes: float
    memory_gb: float
    problems: list[str]


def widget_problems(notebook) -> list[str]:
    """Exceptions inside `interact` or an Output widget, where the cell itself looks successful; and
    more saved state than a notebook should carry."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    size = len(json.dumps(state))
    problems = []
    if size > MAX_STATE:
        problems.append(f"{size / 1e6:.1f} MB of widget state, {MAX_STATE / 1e6:g} at most")
    return problems + [
        f"error inside a widget: {output['ename']}: {output['evalue']}"
        for model in state.values()
        if model["model_name"] == "OutputModel"
        for output in model["state"].get("outputs", [])
        if output["output_type"] == "error"
    ]


def run_notebook(path: Path, out: Path = OUT, parameters: dict | None = None) -> Run:
    """Execute `path` with papermill into `out`, in the directory of the notebook."""
    out.mkdir(parents=True, exist_ok=True)
    executed, log = out / path.name, (out / path.name).with_suffix(".log")
    executed.unlink(missing_ok=True)
    command = [sys.executable, "-m", "papermill", str(path), str(executed), "--cwd", path.parent]
    command += ["-k", "python3", "--no-progress-bar", "--execution-timeout", str(CELL_SECONDS)]
    if parameters:
        command += ["-y", yaml.safe_dump(parameters)]

    start = time.monotonic()
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        # wait4 reports the peak memory of papermill and of the kernel it started.
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    minutes = (time.monotonic() - start) / 60
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    memory_gb = usage.ru_maxrss * bytes_per_unit / 1e9

    lines = log.read_text().splitlines()
    # papermill only logs a misspelt parameter, and runs with the default.
    problems = [line for line in lines if "Passed unknown parameter" in line]
    if process.returncode:
        problems.append("\n".join(["papermill failed:", *lines[-30:]]))
    elif executed.is_file():
        problems += widget_problems(nbformat.read(executed, as_version=4))
    return Run(minutes, memory_gb, problems)


def run(names: list[str], profile_path: Path, out: Path, workers: int, measure: bool) -> int:
    entries = load_manifest()
    profile = yaml.safe_load(profile_path.read_text())
    chosen = [entry for entry in entries if not names or entry["name"] in names]
    if unknown := set(names) - {entry["name"] for entry in entries}:
        sys.exit(f"not in the manifest: {', '.join(sorted(unknown))}")

    def run_entry(entry: dict) -> Run:
        if not notebook_path(entry).is_file():
            return Run(0, 0, ["is in the manifest, but the file is missing"])
        return run_notebook(notebook_path(entry), out, profile.get(entry["name"]))

    failed = False
    # Side by side, notebooks slow each other down: measure one at a time.
    with ThreadPoolExecutor(1 if measure else workers) as pool:
        for entry, result in zip(chosen, pool.map(run_entry, chosen), strict=True):
            verdict = "FAILED" if result.problems else "ok"
            print(f"{entry['name']}: {result.minutes:.1f} min, {result.memory_gb:.1f} GB, {verdict}")
            print("".join(f"  {problem}\n" for problem in result.problems), end="", flush=True)
            failed |= bool(result.problems)
            entry["minutes"] = round(max(result.minutes, 0.1), 1)
            entry["memory_gb"] = round(result.memory_gb, 1)
    if measure and not failed:
        save_manifest(entries)
        write_table()
    return failed


# ---------------------------------------------------------------------- README table


def write_table() -> int:
    """The table of the README; in each notebook its times, and cells that lead on and open it elsewhere."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    entries, repository = manifest["notebooks"], manifest.get("repository")
    README.write_text(with_table(README.read_text(), render_table(entries)))
    for at, entry in enumerate(entries):
        notebook = nbformat.read(notebook_path(entry), as_version=4)
        cells = [cell for cell in notebook.cells if cell.get("id") not in (LINKS, OPEN)]
        cells[0].source = with_time(cells, entry)
        if repository:
            cells.insert(1, nbformat.v4.new_markdown_cell(badges(repository, entry["name"]), id=OPEN))
        notebook.cells = [*cells, nbformat.v4.new_markdown_cell(links(entries, at), id=LINKS)]
        notebook_path(entry).write_text(nbformat.writes(notebook) + "\n")
    return 0


# ---------------------------------------------------------------------- stripping


def strip(paths: list[Path]) -> int:
    """Keep the outputs of cells tagged keep_output and name the kernel python3."""
    if not paths:
        return 0
    command = [sys.executable, "-m", "nbstripout", "--keep-count"]
    subprocess.run([*command, "--extra-keys", STRIPPED_METADATA, *paths], check=True)
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["kernelspec"] = KERNEL
        # The rest of language_info only says which Python the last author had.
        notebook.metadata["language_info"] = {"name": "python"}
        text = nbformat.writes(notebook) + "\n"
        if text != path.read_text():
            path.write_text(text)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="hygiene rules")
    runner = commands.add_parser("run", help="execute with papermill")
    runner.add_argument("names", nargs="*", metavar="NAME", help="default: the whole manifest")
    runner.add_argument("--profile", type=Path, default=SMOKE)
    runner.add_argument("--out", type=Path, default=OUT)
    runner.add_argument("--workers", type=int, default=2)
    runner.add_argument(
        "--measure", action="store_true", help="write minutes and memory into manifest and README"
    )
    commands.add_parser("table", help="write the README table, and links and times of the notebooks")
    stripper = commands.add_parser("strip", help="drop outputs, normalise the kernel")
    stripper.add_argument("paths", nargs="*", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.command == "check":
        return check()
    if args.command == "run":
        return run(args.names, args.profile, args.out, args.workers, args.measure)
    if args.command == "table":
        return write_table()
    return strip(args.paths)


if __name__ == "__main__":
    sys.exit(main())
