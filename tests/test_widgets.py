"""The base of all widgets: a page that holds everything, and visible errors."""

import base64
import json
import re
from unittest import mock

import pytest
from traitlets import Bytes, Dict, Int, observe

from vera_lite.errors import UserError
from vera_lite.widgets.base import Widget, iframe


class Echo(Widget):
    _esm = "export default { render() {} }"
    number = Int(0).tag(sync=True)
    data = Bytes(b"</script>\x00\xff").tag(sync=True)
    nested = Dict({"text": "</script><!--", "data": b"\x01"}).tag(sync=True)

    @observe("number")
    def _on_number(self, change):
        if change["new"] < 0:
            raise ValueError("too low")


def saved_state(page):
    return json.loads(re.search(r'id="saved">(.*?)</script>', page, re.DOTALL)[1])


def test_a_page_holds_all_traits():
    saved = saved_state(Echo(number=3).to_static())
    assert saved["state"]["number"] == 3
    assert saved["state"]["nested"] == {"text": "</script><!--"}
    buffers = {tuple(b["path"]): base64.b64decode(b["data"]) for b in saved["buffers"]}
    assert buffers == {("data",): b"</script>\x00\xff", ("nested", "data"): b"\x01"}


def test_a_page_over_budget_names_the_largest_trait():
    with pytest.raises(UserError, match=r"Echo .*0\.5\d MB.* data"):
        Echo(data=bytes(400_000)).to_static(0.5)
    Echo(data=bytes(300_000)).to_static(0.5)


def test_an_iframe_is_one_attribute_and_may_run_scripts_and_save_files():
    frame = iframe(Echo().to_static(), 321)
    assert (
        frame.count("<") == 2
        and 'sandbox="allow-scripts allow-downloads"' in frame
        and "height: 321px" in frame
    )


def test_a_saved_notebook_without_state_says_what_to_do():
    (bundle, *_) = Echo()._repr_mimebundle_()
    assert "Settings > Save Widget State Automatically" in bundle["text/plain"]


def test_python_answers_when_it_is_asked_and_saves_no_trace_of_it():
    widget = Echo()
    before = saved_state(widget.to_static())
    with mock.patch.object(widget, "send") as send:
        widget._handle_custom_msg({"hello": True}, [])
    send.assert_called_once_with({"alive": True})
    assert saved_state(widget.to_static()) == before


def test_a_failing_trait_callback_is_shown_and_raised():
    widget = Echo()
    widget.set_state({"number": 1})
    assert widget.error == ""
    with pytest.raises(ValueError, match="too low"):
        widget.set_state({"number": -1})
    assert widget.error == "ValueError: too low"
    widget.set_state({"number": 2})
    assert widget.error == "ValueError: too low", "only its reader closes it"


def test_a_failing_message_callback_is_shown_and_raised():
    widget = Echo()
    widget.on_msg(lambda _, content, buffers: 1 / content)
    widget._handle_custom_msg(2, [])
    assert widget.error == ""
    with pytest.raises(ZeroDivisionError):
        widget._handle_custom_msg(0, [])
    assert widget.error == "ZeroDivisionError: division by zero"
