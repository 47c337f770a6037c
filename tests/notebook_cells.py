"""What tests need of a notebook: its definitions without running it, and its hidden solutions."""

import ast
import re

import nbformat

import notebooks as tool


class Book:
    """A notebook by name, without ``.ipynb``."""

    def __init__(self, name: str):
        self.cells = nbformat.read(tool.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells

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
        exec(compile(ast.Module(body, type_ignores=[]), "notebook", "exec"), names)
        return names

    def solution(self, definitions: dict, name: str):
        """The function from the collapsed solution of an exercise."""
        text = "\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")
        [source] = re.findall(rf"```python\n(def {name}\(.*?)```", text, flags=re.DOTALL)
        names = dict(definitions)
        exec(source, names)
        return names[name]
