"""Sphinx's settings of the book; `scripts/book.py` copies them beside the pages that it makes."""

from docutils import nodes
from latex2mathml.converter import convert

project = "vera-lite"
author = "The vera-lite authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "vera-lite"
html_static_path = []
html_extra_path = ["claims.html", "vera.html"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
napoleon_numpy_docstring = False
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header", "myst.xref_missing", "ref.python"]


def _mathml(display: str):
    """Visitor of a formula: MathML, which browsers show without a script; what does not parse stays TeX."""

    def visit(translator, node) -> None:
        try:
            translator.body.append(convert(node.astext(), display=display))
        except Exception:  # latex2mathml raises many kinds
            translator.body.append(f"<code>{translator.encode(node.astext())}</code>")
        raise nodes.SkipNode

    return visit, None


def setup(app) -> None:
    app.add_html_math_renderer("mathml", _mathml("inline"), _mathml("block"))
    app.config["html_math_renderer"] = "mathml"
