"""A notebook for tests: its definitions without a run, its exercises and their solutions."""

import ast
import math
import re

import nbformat

import notebooks as tool
from vera_lite.toy.edits import EditConfig


class Book:
    """A notebook by its name, without ``.ipynb``.

    ``given``: globals that its functions read and that running it would have set.
    """

    def __init__(self, name: str, **given):
        self.given = given
        self.cells = nbformat.read(tool.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        code = "\n".join(cell.source for cell in self.cells if cell.cell_type == "code")
        self.exercises = re.findall(r"^exercises\.check\((\w+)\)", code, flags=re.MULTILINE)

    def definitions(self, **names) -> dict:
        """Everything that the notebook imports and defines, without running the rest.

        The dict is the globals of the notebook's functions: what a test puts in, they see.
        """
        kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
        body = []
        for cell in self.cells:
            if cell.cell_type == "code":
                tree = ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))
                body += [node for node in tree.body if isinstance(node, kinds)]
        names = self.given | names
        exec(compile(ast.Module(body, type_ignores=[]), "notebook", "exec"), names)
        return names

    def solution(self, definitions: dict, name: str):
        """The function from the collapsed solution of an exercise."""
        text = "\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")
        [source] = re.findall(rf"```python\n(def {name}\(.*?)```", text, flags=re.DOTALL)
        names = dict(definitions)
        exec(source, names)
        return names[name]


GRID = (3, 8, 8)
BOOKS = {
    "00_start_here": Book("00_start_here"),
    "01_attention_diagnostics": Book("01_attention_diagnostics"),
    "02_mot_layered_dit": Book(
        "02_mot_layered_dit", CASES=("a case",), ADD=0, BACKGROUND=1, seed=0, steps=12
    ),
    "03_erope": Book("03_erope", GRID=GRID, S=math.prod(GRID), head_dim=32, seed=0),
    "04_granularity_routing": Book("04_granularity_routing", LAYERS=6, FULL="L_s 3, lambda 0.1"),
    "05_attention_alignment": Book("05_attention_alignment", LAYERS=2, S=6, D=4, seed=0, learning_steps=60),
    "06_dataset_pipeline": Book("06_dataset_pipeline"),
    "07_evaluation": Book("07_evaluation"),
    "08_multiscale_conditioning": Book(
        "08_multiscale_conditioning", WORLD=EditConfig(from_place=True), world_seed=1, ends=[0, 8]
    ),
    "09_full_scale": Book("09_full_scale"),
}
