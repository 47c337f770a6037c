"""The files around the code agree with each other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from importlinter.cli import lint_imports
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import notebooks as tool

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for line in sum(EXTRAS.values(), PROJECT["dependencies"])]
#: An extra may ask for another extra of the project itself.
DIRECT = [requirement for requirement in REQUIREMENTS if requirement.name != PROJECT["name"]]


def pinned_versions():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[^=,*]+", str(pin.specifier)) for pin in pins)
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_constraints_satisfy_every_direct_requirement(requirement):
    pinned = pinned_versions()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    assert any(spec.operator == ">=" for spec in requirement.specifier), "needs a lower bound"


@pytest.mark.parametrize("lines", [PROJECT["dependencies"], *EXTRAS.values()], ids=["always", *EXTRAS])
def test_no_package_is_asked_for_twice(lines):
    names = [canonicalize_name(Requirement(line).name) for line in lines]
    assert sorted(names) == sorted(set(names))


def test_environment_yml_follows_pyproject():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(line for line in dependencies if str(line).startswith("python"))
    pip = next(line["pip"] for line in dependencies if isinstance(line, dict))
    editable = next(line for line in pip if line.startswith("-e"))

    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    # The package of SAM 2 has no wheel: pip would fetch a second torch to build it.
    assert set(Requirement(editable.replace("-e .", "vera-lite")).extras) == set(EXTRAS) - {"sam2"}


def test_changelog_and_citation_name_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert headings[:2] == ["Unreleased", PROJECT["version"]]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]


def test_the_citation_names_the_papers_of_the_readme():
    papers = set(re.findall(r"https://arxiv\.org/abs/[\d.]+", tool.README.read_text()))
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    assert {reference["url"] for reference in cited} == papers
    assert len(papers) == 4 and all(reference["authors"] for reference in cited)


def test_types_are_shipped():
    assert (ROOT / "vera_lite" / "py.typed").is_file()


def test_ci_runs_on_supported_pythons():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(v) for v in versions)


def test_manifest_and_notebooks_name_each_other():
    listed = [entry["name"] for entry in tool.load_manifest()]
    present = [path.stem for path in tool.NOTEBOOKS.glob("*.ipynb")]
    assert sorted(listed) == sorted(present)


def test_prerequisites_come_earlier_in_the_manifest():
    seen = set()
    for entry in tool.load_manifest():
        numbered = {need for need in entry["prerequisites"] if re.match(r"\d\d_", need)}
        assert numbered <= seen, entry["name"]
        seen.add(entry["name"])


def test_notebooks_keep_the_rules():
    assert not tool.check()


def test_readme_table_follows_the_manifest():
    readme = tool.README.read_text()
    table = tool.render_table(tool.load_manifest())
    assert readme == tool.with_table(readme, table), "run `python scripts/notebooks.py table`"


def test_architecture_pictures_are_what_their_script_draws(tmp_path):
    script = ROOT / "scripts" / "architectures.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "architectures").iterdir()}
    assert len(drawn) == 4 and drawn == kept


def test_imports_only_point_down():
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


# Home directories, and the work areas of shared machines.
PERSONAL = re.compile(rb"(?<![\w.-])/(?:home|Users|root|work|scratch)/\w|[A-Z]:\\Users")


def test_no_file_names_a_place_on_one_machine():
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.split("\0") if name]
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in paths
        if path.is_file() and (match := PERSONAL.search(path.read_bytes()))
    }
    assert not found
