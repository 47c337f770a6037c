"""Multiscale context: hidden states of several layers of a frozen vision-language model (VLM), fused.

MiVE's way (arXiv 2605.14664, Eq. 3-5). Early layers know where things are, late layers what is meant, so the
video model reads both. For chosen layers l with hidden states phi_l (N_c, D_vlm):

    c_l = Linear_l(RMSNorm_l(phi_l))        (N_c, D / number of layers)       (3)
    c^  = Concat(c_1, ..., c_L)             (N_c, D), along features          (4)
    c   = Linear_fuse(c^)                   (N_c, D)                          (5)

No token is dropped or merged: N_c is the length of the prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vera_lite.conditioning.readings import Readings, padded
from vera_lite.conditioning.vision_language import VisionLanguageModel, chat


class Reading(NamedTuple):
    """Hidden states of a VLM for B prompts. Shorter prompts are padded at their end."""

    layers: tuple[Tensor, ...]  #: phi_l of each chosen layer, (B, N_c, D_vlm).
    text: Tensor  #: (B, N_c), True where a token is a word or a punctuation mark.
    visual: Tensor  #: (B, N_c), True where a token stands for pixels; padding is neither.


def read(
    vlm: VisionLanguageModel,
    clips: Sequence[Tensor],
    texts: Sequence[str],
    images: Sequence[Tensor],
    layers: Sequence[int] = (1, -1),
    frames: int | None = None,
    fps: float = 8.0,
) -> Reading:
    """Let a VLM read reference image, video and instruction in one prompt, without gradients.

    Args:
        vlm: the model.
        clips: (T, 3, H, W) in [0, 1] each.
        texts: an instruction for each clip.
        images: reference pictures (3, H, W) in [0, 1], shown before the clips.
        layers: which to keep, numbered as in transformers' ``hidden_states``: 0 is the embedded input, l the
            output of the l-th of L layers, and L (or -1) the output of the last after the final norm.
        frames: how many frames of each clip are shown, spread evenly; None leaves it to the processor.
        fps: frames per second of the clips; the VLM reads the time of each frame.

    Raises:
        ValueError: the model has no such layer, or a word is unknown to the toy model.
    """
    shown = vlm.sample_frames if frames is None else frames
    dialogues = [[(text, None)] for text in texts]
    prompt = chat(vlm.processor, clips, dialogues, images, fps, shown, to_be_answered=False).tensors
    prompt = {name: value.to(vlm.model.device) for name, value in prompt.items()}
    hidden = hidden_states(vlm, layers, prompt)
    tokens, is_token = prompt["input_ids"], prompt["attention_mask"].bool()
    config = vlm.model.config
    visual = ((tokens == config.image_token_id) | (tokens == config.video_token_id)) & is_token
    # The processor pads on the left: roll each row until it starts with its first token.
    length = tokens.shape[1]
    order = (torch.arange(length, device=tokens.device) + length - is_token.sum(1, keepdim=True)) % length
    text, visual = (mask.take_along_dim(order, 1) for mask in (is_token & ~visual, visual))
    return Reading(tuple(h.take_along_dim(order[..., None], 1) for h in hidden), text, visual)


@torch.no_grad()
def hidden_states(vlm: VisionLanguageModel, layers: Sequence[int], prompt: dict[str, Tensor]) -> list[Tensor]:
    """Hidden states of chosen layers, (B, N_c, D_vlm) each, numbered as in :func:`read`.

    Hooks, because transformers' ``output_hidden_states`` keeps all layers until the end of the pass.
    """
    tower = vlm.model.model.language_model
    depth, kept = len(tower.layers), {}
    if not all(-depth - 1 <= layer <= depth for layer in layers):
        raise ValueError(f"layers lie in {-depth - 1} .. {depth}, got {tuple(layers)}.")
    numbers = [layer % (depth + 1) for layer in layers]

    def keep(number: int, _module, inputs: tuple, output) -> None:
        output = output[0] if isinstance(output, tuple) else output
        kept[number] = output if number else inputs[0]

    with ExitStack() as hooks:
        for number in set(numbers):
            module = tower.norm if number == depth else tower.layers[max(number - 1, 0)]
            hooks.callback(module.register_forward_hook(partial(keep, number)).remove)
        vlm.model.model(**prompt, use_cache=False)
    return [kept[number] for number in numbers]


def remembered(
    readings: Readings,
    vlm: VisionLanguageModel,
    how: Sequence,
    texts: Sequence[str],
    pixels: Sequence[Sequence[Tensor]],
    compute: Callable[[], Reading],
) -> Reading:
    """The result of ``compute``, kept per clip; for the arguments see :class:`.readings.Readings`."""

    def rows() -> list[dict[str, Tensor]]:
        reading = compute()
        parts = {str(i): layer for i, layer in enumerate(reading.layers)}
        parts |= {"text": reading.text, "visual": reading.visual}
        is_token = reading.text | reading.visual
        return [{name: part[i, is_token[i]] for name, part in parts.items()} for i in range(len(is_token))]

    found = readings(vlm, how, texts, pixels, rows)
    batch = {name: padded([row[name] for row in found]).to(vlm.model.device) for name in found[0]}
    layers = tuple(batch[str(i)] for i in range(len(batch) - 2))
    return Reading(layers, batch["text"], batch["visual"])


class MultiscaleContext(nn.Module):
    """Eq. 3-5.

    Args:
        vlm_dim: D_vlm, width of the VLM's language tower.
        dim: D, width of the video model.
        layers: how many layers are fused; D must be divisible by it.
    """

    def __init__(self, vlm_dim: int, dim: int, layers: int):
        super().__init__()
        if layers < 1 or dim % layers:
            raise ValueError(f"a context of width {dim} cannot be made of {layers} layers of equal width.")
        self.norms = nn.ModuleList(nn.RMSNorm(vlm_dim, eps=1e-6) for _ in range(layers))
        self.projections = nn.ModuleList(nn.Linear(vlm_dim, dim // layers) for _ in range(layers))
        self.fusion = nn.Linear(dim, dim)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """phi_l (B, N_c, D_vlm) of each layer -> c (B, N_c, D)."""
        parts = [
            project(norm(phi.type_as(norm.weight)))  # (3)
            for norm, project, phi in zip(self.norms, self.projections, layers, strict=True)
        ]
        return self.fusion(torch.cat(parts, -1))  # (4), (5)
