"""Where the words of a prompt look, layer by layer of a vision-language model.

MiVE (arXiv 2605.14664, Sec. 3) motivates its multiscale features with this picture: for "the person in
the video", early layers look at the person and late layers look everywhere.

Axis letters: C clips, L decoder layers, H heads, S tokens of the prompt, N of them the clip's, D width.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.diagnostics.measurements import Rows
from vera_lite.diagnostics.plan import CapturePlan, Entry
from vera_lite.diagnostics.scores import similarity_map
from vera_lite.diagnostics.tap import Tap
from vera_lite.diagnostics.token_grid import TokenGrid
from vera_lite.diagnostics.vlm_layout import qwen_vl_grid

_LAYER = r"language_model\.layers\.\d+"
#: The self-attention of every decoder layer, in Qwen2.5-VL, Qwen3-VL and GLM-4.6V alike.
DECODER_LAYERS = _LAYER + r"\.self_attn$"


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """Where a phrase looks in one clip."""

    grid: TokenGrid  #: of the prompt; its stream "video" is the clip.
    #: (L, H, S) softmax attention, mean over the phrase's tokens (Eq. 2's heat map before the mean over
    #: heads).
    attention: Tensor
    #: reading -> (L, N), products of the hidden states after each layer; see
    #: :func:`vera_lite.diagnostics.scores.similarity_map`. The last layer's are taken before the model's
    #: final norm (unlike transformers' ``hidden_states[-1]``), so that all layers compare.
    similarity: dict[str, Tensor]
    residual: Tensor  #: (L,) largest difference between attention * values and the kernel's own output.
    queries: Tensor  #: the phrase's tokens.

    @property
    def to_clip(self) -> Tensor:
        """The part of ``attention`` that goes to the clip: (L, H, N)."""
        return self.attention[..., self.grid.tokens("video")]


@torch.inference_mode()
def attention_by_layer(
    vlm: VisionLanguageModel,
    clip: Tensor,
    text: str,
    phrase: str | None = None,
    budget_bytes: int = 4 * 10**9,
    fps: float = 8.0,
) -> LayerAttention:
    """Run the model once on a clip and a text, and capture where a phrase looks.

    Args:
        vlm: the model.
        clip: (T, 3, H, W) in [0, 1].
        text: about the clip, such as "the person in the video".
        phrase: the part of the text to follow; all of it by default.
        budget_bytes: for the attention rows; see :class:`vera_lite.diagnostics.plan.CapturePlan`.
        fps: frames per second of the clip.

    Raises:
        ValueError: the phrase is not in the text, or the rows would go over the budget.
    """
    prompt = vlm.prompt([clip], [text], fps=fps)
    inputs = {k: v.cpu() for k, v in prompt.tensors.items()} | {"video_metadata": prompt.metadata}
    grid = qwen_vl_grid(inputs, vlm.processor, [tuple(clip.shape[-2:])])
    queries = grid.words(phrase or text)
    plan = CapturePlan([Entry(DECODER_LAYERS, Rows(queries), "text")], budget_bytes)
    hidden = []
    layers = [m for name, m in vlm.model.named_modules() if re.search(_LAYER + "$", name)]
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, out: hidden.append(out)) for layer in layers
    ]
    try:
        with Tap(vlm.model, plan):
            vlm.model(**prompt.tensors, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    captures = plan.captures["text"]
    if not captures:
        raise ValueError(f"no attention of {type(vlm.model).__name__} matched {DECODER_LAYERS!r}.")
    hidden = [(h[0] if isinstance(h, tuple) else h)[0].float().cpu() for h in hidden]  # (S, D) each
    video = grid.tokens("video")
    similarity = {
        reading: torch.stack([similarity_map(h[queries], h[video], reading) for h in hidden])
        for reading in ("softmax", "shifted")
    }
    attention = torch.stack([c.values[0].mean(-2) for c in captures])
    residual = torch.tensor([c.residual for c in captures])
    return LayerAttention(grid, attention, similarity, residual, queries)


@dataclass(frozen=True, eq=False)
class ClipAttention:
    """:class:`LayerAttention` of C clips at one grid, to be scored by :mod:`vera_lite.diagnostics.scores`."""

    attention: Tensor  #: (C, L, H, N) to the clip's tokens.
    similarity: dict[str, Tensor]  #: reading -> (C, L, N).
    coverage: Tensor  #: (C, N) share of each token that the named thing covers.
    residual: Tensor  #: (C, L).

    @property
    def heat(self) -> Tensor:
        """MiVE's heat maps: heads averaged, (C, L, N)."""
        return self.attention.mean(2)


def attention_over_clips(
    vlm: VisionLanguageModel, clips: Iterable[tuple[Tensor, Tensor, str, float]]
) -> ClipAttention:
    """:func:`attention_by_layer` of every clip with its text.

    Each of ``clips`` is a video (T, 3, H, W) in [0, 1], the mask (T, 1, H, W) of the thing that the text
    names, the text, and frames per second. ValueError if clips differ in size or length.
    """
    attention, similarity, coverage, residual = [], [], [], []
    for clip, mask, text, fps in clips:
        found = attention_by_layer(vlm, clip, text, fps=fps)
        attention.append(found.to_clip)
        similarity.append(found.similarity)
        coverage.append(found.grid.coverage("video", mask))
        residual.append(found.residual)
        if len(coverage[-1]) != len(coverage[0]):
            raise ValueError("crop or resize the clips to one size and number of frames.")
    return ClipAttention(
        torch.stack(attention),
        {reading: torch.stack([s[reading] for s in similarity]) for reading in similarity[0]},
        torch.stack(coverage),
        torch.stack(residual),
    )
