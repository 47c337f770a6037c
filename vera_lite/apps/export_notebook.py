"""A notebook as one HTML page whose widgets and formulas work without Python, network or other files."""

from pathlib import Path

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from vera_lite.errors import UserError
from vera_lite.media.files import replacing
from vera_lite.widgets.base import iframe, static_page, widget_name

STATE = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
# The frame of a widget gets the widget's height, and is light as the page is.
FRAMES = """<script>
addEventListener("message", ({ source, data }) => {
  const frame = [...document.querySelectorAll("iframe")].find((f) => f.contentWindow === source);
  if (!frame || !data.height) return;
  frame.style.height = `${data.height}px`;
  source.postMessage({ scheme: "light" }, "*");
});
</script>"""
# nbconvert's page without the parts that it loads from elsewhere: require.js, widgets, MathJax, Mermaid.
TEMPLATE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {name} %}}{script}{{% endblock %}}"
    for name, script in (
        ("html_head_js", FRAMES),
        ("jupyter_widgets", ""),
        ("html_head_js_mathjax", ""),
        ("html_head_js_mermaidjs", ""),
    )
)


def export_notebook(path: str | Path, out: str | Path | None = None, budget_mb: float = 8.0) -> Path:
    """Write a notebook as one HTML page.

    Widgets come from the state that a run leaves in the notebook. Committed notebooks have none: then a copy
    is run first, in the folder of the notebook.

    Args:
        path: .ipynb file; it is not changed.
        out: HTML file; default: beside the notebook.
        budget_mb: of the page, in millions of bytes.

    Returns:
        Where the page is.

    Raises:
        UserError: the file is no notebook, a cell fails, or the page would be too large.
    """
    path = Path(path)
    out = path.with_suffix(".html") if out is None else Path(out)
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is no notebook ({str(error).splitlines()[0]}): save it again.") from error
    if STATE not in notebook.metadata.get("widgets", {}):
        try:
            NotebookClient(
                notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": path.parent}}
            ).execute()
        except CellExecutionError as error:
            raise UserError(f"a cell of {path} fails: {error.ename}: {error.evalue}") from error
    sizes = freeze_widgets(notebook, budget_mb)
    page, _ = _Exporter(raw_template=TEMPLATE, embed_images=True).from_notebook_node(
        notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}}
    )
    if (size := len(page.encode()) / 1e6) > budget_mb:
        largest = max(sizes, key=lambda name: sizes[name], default=None)
        blame = f"; the largest widget, {largest}, takes {sizes[largest] / 1e6:.2f} MB" if largest else ""
        raise UserError(
            f"the page of {path} would be {size:.2f} MB, over {budget_mb:g} MB{blame}: show less."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def freeze_widgets(notebook: nbformat.NotebookNode, budget_mb: float) -> dict[str, int]:
    """Turn the views of our widgets into frames; returns the size of each.

    Other widgets (sliders, progress bars) keep the text beside their view.
    """
    saved = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    sizes = {}
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(VIEW, None)
            widget = saved.get(view["model_id"]) if view else None
            if widget and "_esm" in widget["state"]:
                frame = iframe(static_page(widget, budget_mb), widget["state"].get("height", 600))
                output.data["text/html"] = frame
                sizes[f"{widget_name(widget)} of cell {number}"] = len(frame)
    return sizes


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context, source):
        # As in the parent class, with another renderer.
        renderer = _Renderer(
            escape=False,
            attachments=context.get("cell", {}).get("attachments", {}),
            embed_images=self.embed_images,
            path=context["resources"]["metadata"]["path"],
            anchor_link_text=self.anchor_link_text,
            exclude_anchor_links=self.exclude_anchor_links,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers show without a library; formulas that do not parse stay TeX."""

    def inline_math(self, body):
        return _mathml(body, "inline") or super().inline_math(body)

    def block_math(self, body):
        return _mathml(body, "block") or super().block_math(body)

    def latex_environment(self, name, body):
        tex = rf"\begin{{{name}}}{body}\end{{{name}}}"
        return _mathml(tex, "block") or super().latex_environment(name, body)


def _mathml(tex: str, display: str) -> str | None:
    try:
        return convert(tex, display=display)
    except Exception:  # the package's errors have no common class
        return None
