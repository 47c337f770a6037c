"""Token grids of vision-language models.

:func:`qwen_vl_grid` is for models that keep a clip's shape: Qwen2.5-VL, Qwen3-VL and GLM-4.6V.
:func:`square_vlm_grid` is for those that stretch every frame to a square: InternVL, SmolVLM and
LLaVA-OneVision.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vera_lite.diagnostics.token_grid import TextStream, TokenGrid, VideoStream, join_words, merge_frames

_MARKS = {1: "\1", 2: "\2"}  # one image token and one video token in the joined text

# Qwen3-VL: <0.4 seconds><|vision_start|>VIDEO<|vision_end|>
# GLM-4.6V: <|begin_of_image|>VIDEO<|end_of_image|>0.4 seconds
# Pieces of a whole-word tokenizer have no spaces.
_SLOT = re.compile(
    "(<[0-9.]+ ?seconds>)?(?:<[|]vision_start[|]>)?(\2+)(?:<[|]end_of_image[|]>([0-9.]+ ?seconds))?"
)


def qwen_vl_grid(
    inputs: Mapping,
    processor,
    video_sizes: Sequence[tuple[int, int]] = (),
    image_sizes: Sequence[tuple[int, int]] = (),
) -> TokenGrid:
    """The language sequence of Qwen2.5-VL, Qwen3-VL or GLM-4.6V.

    Streams are "text"; "video" or, if there are several, "video 0", "video 1"; "image" likewise; and
    "video timestamps": the text ``<0.4 seconds>`` (GLM: ``0.4 seconds``) of each temporal slot.

    Args:
        inputs: the output of ``processor(..., return_metadata=True)`` for one prompt. To cover generated
            tokens, append them to ``input_ids``, and zeros to ``mm_token_type_ids``.
        processor: with its tokenizer.
        video_sizes, image_sizes: (height, width) of each in source pixels, in the order of the prompt.

    Raises:
        ValueError: inputs are incomplete, hold several prompts or do not fit the sizes.
    """
    ids, kinds = (_one_prompt(inputs, key) for key in ("input_ids", "mm_token_type_ids"))
    # mm_token_type_ids: 0 text, 1 image, 2 video.
    videos = _vision_streams("video", inputs, processor, video_sizes, (kinds == 2).nonzero()[:, 0])
    images = _vision_streams("image", inputs, processor, image_sizes, (kinds == 1).nonzero()[:, 0])
    words = [
        processor.tokenizer.decode([i]) if kind == 0 else _MARKS[kind]
        for i, kind in zip(ids.tolist(), kinds.tolist(), strict=True)
    ]
    stamps = _timestamps(words, videos)
    rest = [i for i, kind in enumerate(kinds.tolist()) if kind == 0 and all(i not in s for s in stamps)]
    # The pieces of most tokenizers include their spaces; whole words do not.
    whole = processor.tokenizer.decode(ids[rest].tolist()) == " ".join(words[i] for i in rest)
    separator = " " if whole else ""
    texts = []
    if rest:
        texts.append(TextStream("text", torch.tensor(rest), tuple(words[i] for i in rest), separator))
    for video, stamp in zip(videos, stamps, strict=True):
        if stamp:
            pieces, frames = tuple(words[i] for i in stamp), tuple(stamp.values())
            name, positions = f"{video.name} timestamps", torch.tensor(list(stamp))
            texts.append(TextStream(name, positions, pieces, separator, frames))
    return TokenGrid((*texts, *videos, *images))


def square_vlm_grid(
    ids: Tensor, tokenizer, vision_token: int, frames: Sequence[int], size: tuple[int, int, int]
) -> TokenGrid:
    """The language sequence of InternVL, SmolVLM or LLaVA-OneVision with one video, or an untiled image.

    They stretch every frame to a square, which becomes a square of tokens. Streams are "text", "video" and
    "video end", the one more token of LLaVA-OneVision. That model averages 27 x 27 patches into 14 x 14
    tokens, which reach a little beyond their boxes.

    Args:
        ids: (S,) token ids of one prompt, with every vision token.
        tokenizer: to decode the text.
        vision_token: the id that stands for a piece of a frame; the model's ``config.image_token_id``, or
            ``video_token_id`` in LLaVA-OneVision.
        frames: numbers of the source frames that the model sees, such as ``frames_indices`` of the
            processor's video metadata; ``[0]`` for an image.
        size: (T, H, W) of the source.

    Raises:
        ValueError: the vision tokens are no squares of these frames, as in an image that is cut into tiles.
    """
    kinds = ids == vision_token
    positions, rest = kinds.nonzero()[:, 0], (~kinds).nonzero()[:, 0]
    side = math.isqrt(len(positions) // max(len(frames), 1))
    tokens = len(frames) * side**2
    if not tokens or len(positions) - tokens not in (0, 1):
        raise ValueError(
            f"{len(positions)} vision tokens are no squares of {len(frames)} frames; images that are cut "
            "into tiles have no grid."
        )
    words = tuple(tokenizer.decode([i]) for i in ids[rest].tolist())
    slots = tuple((int(f),) for f in frames)
    streams = [VideoStream("video", positions[:tokens], slots, (side, side), tuple(size))]
    if len(positions) > tokens:
        streams.append(TextStream("video end", positions[tokens:], ("",), ""))
    if len(rest):
        streams.insert(0, TextStream("text", rest, words, ""))
    return TokenGrid(tuple(streams))


def _one_prompt(inputs: Mapping, key: str) -> Tensor:
    if key not in inputs:
        raise ValueError(f"the inputs have no {key}: give all that the processor returned.")
    values = torch.as_tensor(inputs[key])
    if values.dim() != 2 or len(values) != 1:
        raise ValueError(f"{key} of one prompt are (1, S), not {tuple(values.shape)}.")
    return values[0].cpu()


def _timestamps(words: list[str], videos: list[VideoStream]) -> list[dict[int, tuple[int, ...]]]:
    """For each video, its timestamp tokens with the frames that they name."""
    slot_of = {
        position: (video, frames)
        for video, stream in enumerate(videos)
        for slot, frames in zip(stream.positions.view(len(stream.frames), -1), stream.frames, strict=True)
        for position in slot.tolist()
    }
    stamps = [{} for _ in videos]
    joined, owner = join_words(words, "")
    for match in _SLOT.finditer(joined):
        video, frames = slot_of[owner[match.start(2)]]
        for group in (1, 3):
            if match[group]:
                stamps[video].update(dict.fromkeys(owner[slice(*match.span(group))], frames))
    return stamps


def _vision_streams(kind, inputs, processor, sizes, positions) -> list[VideoStream]:
    """Videos or images (``kind``) in a processor's output; ``sizes`` are their sources' (H, W)."""
    grids = inputs[f"{kind}_grid_thw"].tolist() if f"{kind}_grid_thw" in inputs else []
    if len(grids) != len(sizes):
        raise ValueError(f"the prompt has {len(grids)} {kind}s, but {kind}_sizes has {len(sizes)}.")
    settings = processor.video_processor if kind == "video" else processor.image_processor
    merge = settings.merge_size
    if len(positions) * merge**2 != sum(map(math.prod, grids)):
        raise ValueError(f"the prompt's {len(positions)} {kind} tokens do not fit grids {grids}.")
    streams, start = [], 0
    for i, ((t, h, w), (height, width)) in enumerate(zip(grids, sizes, strict=True)):
        frames, length = ((0,),) * t, 1
        if kind == "video":
            frames, length = _sampled_frames(inputs, i, t, settings.temporal_patch_size)
        grid = (h // merge, w // merge)
        order = positions[start : start + t * math.prod(grid)]
        name = kind if len(grids) == 1 else f"{kind} {i}"
        streams.append(VideoStream(name, order, frames, grid, (length, height, width)))
        start += len(order)
    return streams


def _sampled_frames(inputs, video, slots, temporal_patch) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Source frames of each slot, the last repeated to fill it; and how many the source has."""
    if "video_metadata" not in inputs:
        raise ValueError("the inputs have no video_metadata: call the processor with return_metadata=True.")
    metadata = inputs["video_metadata"][video]
    indices = metadata.frames_indices
    # None: all frames were used.
    indices = range(metadata.total_num_frames) if indices is None else [int(i) for i in indices]
    if math.ceil(len(indices) / temporal_patch) != slots:
        raise ValueError(f"{len(indices)} sampled frames do not fill {slots} slots of {temporal_patch}.")
    return merge_frames([(i,) for i in indices], temporal_patch), metadata.total_num_frames
