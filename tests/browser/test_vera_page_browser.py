"""The page in which Vera runs in the browser, against the Python pipeline, with the network off."""

import base64
import gzip
from pathlib import Path

import browser_page as script
import numpy as np
import pytest
import torch

from vera_lite.diagnostics import KnockOut
from vera_lite.pipelines import VeraPipeline
from vera_lite.systems.vera import ALPHA, COMPOSITE, LAYERS

STEPS, CLIP = 2, 1


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vera") / "vera.html"
    script.main(["--out", str(path)])
    return path


@pytest.fixture(scope="module")
def pipe() -> VeraPipeline:
    return VeraPipeline.from_pretrained()


@pytest.fixture
def vera(offline, html):
    offline.goto(html.as_uri())
    offline.get_by_role("button", name="Draw").wait_for(timeout=120_000)
    return offline


def draw(page, noise) -> dict[str, np.ndarray]:
    """Result of the page for this noise, flat, by layer."""
    page.get_by_label("Steps", exact=True).fill(str(STEPS))
    found = page.evaluate(
        """async (noise) => {
            const found = await window.vera.run(Float32Array.from(noise));
            return Object.fromEntries(Object.entries(found).map(([name, v]) => [name, Array.from(v)]));
        }""",
        noise.flatten().tolist(),
    )
    return {name: np.array(values) for name, values in found.items()}


def check(pipe, clip: dict, ours: dict, with_mask: bool = False) -> None:
    """The page's layers are those of Python, and its result is what Python makes of them."""
    source, mask = clip["source"] / 255, (clip["mask"] / 255 if with_mask else None)
    sampling = pipe.sampling_with(steps=STEPS)
    theirs = pipe.layers(source, [clip["sentence"]], mask, sampling=sampling, seed=5)
    for name, layer in theirs.items():
        assert np.abs(ours[name] - layer.flatten().numpy()).max() < 1e-3, name
    drawn = {name: torch.from_numpy(ours[name]).view(layer.shape).float() for name, layer in theirs.items()}
    final = pipe.read(drawn, source, sampling).final
    assert np.abs(ours["final"] - final.flatten().numpy()).max() < 1e-5


@pytest.fixture(scope="module")
def clip(pipe) -> dict:
    """The clip that the tests choose, as the page has it: in bytes."""
    found, (frames, *size) = dict(script.clips(pipe)[CLIP]), pipe.clip_size
    for name in ("source", "mask"):
        values = torch.frombuffer(
            bytearray(gzip.decompress(base64.b64decode(found[name]))), dtype=torch.uint8
        )
        found[name] = values.view(1, frames, -1, *size).float()
    return found


@pytest.fixture(scope="module")
def noise(pipe):
    return torch.randn(pipe.noise_shape(1, *pipe.clip_size), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("with_mask", [False, True])
def test_it_draws_what_the_pipeline_draws(vera, pipe, clip, noise, with_mask):
    vera.get_by_role("radio", name=f"clip {CLIP + 1}:").click()
    if with_mask:
        vera.get_by_label("the clip's own").check()
    ours = draw(vera, noise)
    check(pipe, clip, ours, with_mask)
    assert vera.locator("#status").text_content().startswith(f"{STEPS} steps in")


def test_a_cut_wire_hides_one_layer_from_another(vera, pipe, clip, noise):
    vera.get_by_role("radio", name=f"clip {CLIP + 1}:").click()
    whole = draw(vera, noise)
    vera.get_by_label("matte → composite").uncheck()
    ours = draw(vera, noise)
    tokens = noise[0, 0, 0].numel() // torch.Size(pipe.system.config.backbone.patch_size).numel()
    belongs = torch.arange(len(LAYERS)).repeat_interleave(tokens)
    with KnockOut(pipe.system, belongs == COMPOSITE, r"\.attn1$", queries=belongs == ALPHA):
        check(pipe, clip, ours)
    assert np.abs(ours["alpha"] - whole["alpha"]).max() > 0.1
    assert "all wires" in vera.locator("#before figcaption").text_content()


def test_a_word_that_it_does_not_know_is_named_before_any_work(vera):
    vera.get_by_label("Sentence").fill("add a zeppelin at the top")
    vera.get_by_role("button", name="Draw").click()
    assert '"zeppelin"' in vera.get_by_role("alert").text_content()
    assert vera.locator("#status").text_content() == "Ready."


def test_words_are_read_as_the_pipeline_reads_them(vera, pipe):
    for sentence in (
        "Add a RED ring, at upper left!",
        "remove the blue disk",
        "add red ring moving right",
    ):
        assert vera.evaluate("(s) => window.vera.parse(s)", sentence) == pipe.text_encoder.parse(sentence)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_use_it(vera, accessible, scheme):
    vera.emulate_media(color_scheme=scheme)
    accessible(vera)


def test_a_mask_is_drawn_with_the_pointer(vera):
    vera.get_by_label("drawn on the source").check()
    vera.get_by_role("button", name="Draw").click()
    assert vera.get_by_role("alert").text_content().startswith("Draw a mask")
    canvas = vera.get_by_role("img", name="source")
    middle = "(c) => Array.from(c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data)"
    vera.get_by_role("button", name="Pause").click()
    before = canvas.evaluate(middle)
    canvas.click()
    assert canvas.evaluate(middle)[2] > before[2]
    vera.get_by_role("button", name="Clear").click()
    assert canvas.evaluate(middle) == before


def test_the_matte_can_be_dragged_and_steps_looked_at(vera, noise):
    draw(vera, noise)
    result = vera.get_by_role("img", name="result")
    picture = "(c) => c.toDataURL()"
    vera.get_by_role("button", name="Pause").click()
    whole = result.evaluate(picture)
    vera.get_by_role("slider", name="Matte ×").fill("0")
    source = vera.get_by_role("img", name="source").evaluate(picture)
    assert result.evaluate(picture) == source != whole
    vera.get_by_role("slider", name="Step shown").fill("0")
    assert vera.locator("#step-value").text_content() == f"1 of {STEPS}, noise level 1.00"


def test_a_page_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LARGEST_MB", 0.1)
    monkeypatch.setattr(script, "graphs", lambda pipe: {})
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path / "vera.html")])
    assert not list(tmp_path.iterdir())
