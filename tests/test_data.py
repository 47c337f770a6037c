"""`vera_lite.data` finds what comes with the project, in a clone and in a wheel."""

import pytest

import vera_lite


def test_files_of_a_clone_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert vera_lite.data("data_samples/coffee.mkv").is_file()
    assert vera_lite.data("benchmarks/results/rvedit_first_stage").is_dir()
    with pytest.raises(FileNotFoundError, match="vera-lite has no cofee.mkv"):
        vera_lite.data("cofee.mkv")


def test_files_of_a_wheel_are_found(tmp_path, monkeypatch):
    kept = tmp_path / "site" / "vera_lite" / "shipped" / "data_samples"
    kept.mkdir(parents=True)
    (kept / "a.mkv").touch()
    monkeypatch.setattr(vera_lite, "_PACKAGE", tmp_path / "site" / "vera_lite")
    assert vera_lite.data("data_samples/a.mkv") == kept / "a.mkv"


def test_a_wheel_ships_what_the_function_promises():
    """The folders that the wheel is told to hold are those of the docstring."""
    import tomllib

    project = tomllib.loads((vera_lite._PACKAGE.parent / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {f"vera_lite/shipped/{name}" for name in shipped} == set(shipped.values())
    assert {"data_samples", "benchmarks/results"} <= shipped.keys()
