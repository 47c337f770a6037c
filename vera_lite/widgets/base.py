"""The base of all widgets: one small script serves three hosts.

* Live in Jupyter, anywidget syncs traits with the kernel.
* A saved and trusted notebook restores the traits; no kernel answers.
* A static page (:meth:`Widget.to_static`) holds the traits and a stand-in for the model.

A widget's script is a plain module without imports, ``export default { render({ model, el }) {...} }``; its
style is a file beside it. ``render`` may be called again at any time and returns a cleanup. It shows the
trait ``error`` in a banner (closing it sets ``error`` to ""). A script that needs Python sends
``{hello: true}`` when it is rendered, and knows that Python is there when ``{alive: true}`` comes back. A
trait could not say so: it is saved with the notebook, and would name a kernel that is gone. Key handlers stop
propagation, or JupyterLab takes the keys. Colours are JupyterLab's variables (``--jp-layout-color0`` and so
on), which the static page defines too. Bytes arrive as a DataView, which need not start at byte 0 of its
buffer.
"""

import functools
import html
import io
import json
from collections.abc import Callable
from pathlib import Path

import anywidget
import ipywidgets
from PIL import Image
from torch import Tensor
from traitlets import Int, Unicode

from vera_lite.errors import UserError, check_pixels, check_tensor

HOST = Path(__file__).with_name("host.html")


def script(*parts: str) -> str:
    """The parts of a long script, joined to the one module that a notebook saves."""
    return "\n".join(HOST.with_name(f"{part}.js").read_text(encoding="utf-8") for part in parts)


def shows_error(method: Callable) -> Callable:
    """Decorate a method of a widget: its exceptions are also shown in the widget."""

    @functools.wraps(method)
    def guarded(self, *arguments, **options):
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise  # for the log

    return guarded


class Widget(anywidget.AnyWidget):
    """A view whose whole state is its synced traits."""

    #: the last exception of a callback (``observe`` or ``on_msg``) after something that the browser did.
    #: Without it, a widget whose callback fails seems to do nothing.
    error = Unicode("").tag(sync=True)
    height = Int(600).tag(sync=True)  #: pixels of the frame that holds the static page.

    def __repr__(self) -> str:
        """What a saved notebook shows where it has no state of the widget; longer texts are cut."""
        name = type(self).__name__
        return f"{name}. To keep it in a saved notebook: Settings > Save Widget State Automatically"

    @shows_error
    def set_state(self, sync_data: dict) -> None:
        """Take the browser's changes."""
        super().set_state(sync_data)

    @shows_error
    def _handle_custom_msg(self, content, buffers):
        if content == {"hello": True}:
            return self.send({"alive": True})
        # ipywidgets' own dispatcher would hide the exceptions of callbacks.
        for callback in self._msg_callbacks.callbacks:
            callback(self, content, buffers)

    def to_static(self, budget_mb: float = 8.0) -> str:
        """One HTML page that works without Python, network or other files; see :func:`static_page`."""
        state = ipywidgets.Widget.get_manager_state(widgets=[self])["state"]
        return static_page(state[self.model_id], budget_mb)


def static_page(saved: dict, budget_mb: float = 8.0) -> str:
    """The page of a widget in the form that notebooks save: ``{"state": traits, "buffers": [...]}``.

    Raises:
        UserError: the page would be larger than ``budget_mb`` (millions of bytes).
    """
    # A "<" in JSON could close the script element that holds it.
    text = json.dumps(saved).replace("<", "\\u003c")
    page = HOST.read_text(encoding="utf-8").replace("{{ saved }}", text)
    size = len(page.encode()) / 1e6
    if size > budget_mb:
        sizes = {name: len(json.dumps(value)) for name, value in saved["state"].items()}
        sizes |= {".".join(map(str, b["path"])): len(b["data"]) for b in saved.get("buffers", [])}
        name = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"the page of {widget_name(saved)} would be {size:.2f} MB, over {budget_mb:g} MB: show less. The "
            f"largest part, {name}, is {sizes[name] / 1e6:.2f} MB."
        )
    return page


def widget_name(saved: dict) -> str:
    """The name of a saved widget's class."""
    return saved["state"]["_anywidget_id"].rpartition(".")[2]


def iframe(page: str, height: int) -> str:
    """An element that shows a page inside another; it may run scripts and save files, no more."""
    # Screen readers announce the title.
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" title="widget" srcdoc="{html.escape(page)}" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


def checked_video(name: str, video: Tensor, channels: int) -> Tensor:
    """The video on the CPU, without gradients; ValueError unless it is (T, channels, H, W) in [0, 1]."""
    check_tensor(name, video, "T", channels, "H", "W")
    check_pixels(name, video)
    return video.detach().cpu()


def image_file(image: Image.Image, is_exact: bool) -> bytes:
    """An image file: PNG if every pixel must stay exact, otherwise JPEG."""
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} if is_exact else {"format": "JPEG", "quality": 85}))
    return file.getvalue()
