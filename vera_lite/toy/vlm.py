"""Words and processor of the toy vision-language model, a small Qwen3-VL with a tokenizer of whole words."""

from vera_lite.toy.scenes import LANDSCAPES, PHOTO_NAMES
from vera_lite.toy.sprites import NOUNS
from vera_lite.toy.words import COLOURS, MOTIONS, PATTERNS, PLACES, SHAPES, TEXTURES

#: The toy model sees a clip as a grid of this many columns and rows, and names places by it: "x3 y2".
CELLS = 8

_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|unknown|>",
)  # fmt: skip
_NAMES = (*COLOURS, *SHAPES, *TEXTURES, *PLACES, *MOTIONS, *PATTERNS)
_WORDS = (
    *"user assistant system < > . ? : , - seconds 0 1 2 3 4 5 6 7 8 9".split(),  # noqa: SIM905
    *(f"{axis}{i}" for axis in "xy" for i in range(CELLS)),
    *" ".join(_NAMES).split(),
    *"""
    a an the at in on of to from with and is are it its by as behind front same new not no yes up down
    left right over under what where which who how many describe result changed look like reference
    first last moving standing still shadow object other photograph background video image clip frame
    scene layer place colour shape texture pattern motion add remove change replace turn make swap keep
    recolour into instead delete insert style everything sepia grey grayscale negative blurred bright
    dark pixelated posterised mirrored white black
    """.split(),  # noqa: SIM905
)


#: Of the world of things on places; they follow the words of the world of shapes.
_SCENE_WORDS = (*NOUNS, *" ".join((*PHOTO_NAMES, *LANDSCAPES)).split())


def toy_vocabulary(scenes: bool = False) -> dict[str, int]:
    """Words of the toy model -> ids, with ``scenes`` also those of :mod:`vera_lite.toy.scenes`. Checkpoints
    depend on the order: append only."""
    words = _SPECIAL + _WORDS + _SCENE_WORDS * scenes
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def toy_processor(frames: int = 4, pixels: int = 32 * 32, scenes: bool = False):
    """The processor of the toy Qwen3-VL: ``frames`` sampled frames of at most ``pixels`` pixels each,
    patches of 2 x 2 pixels and two frames, four patches a token; words as of :func:`toy_vocabulary`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2VLImageProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    words = Tokenizer(models.WordLevel(toy_vocabulary(scenes), unk_token="<|unknown|>"))
    words.normalizer = normalizers.Lowercase()
    pattern = Regex(r"[a-z]+[0-9]?|[0-9]|[^\s\w]")  # a word, "x3", a digit, a punctuation mark
    words.pre_tokenizer = pre_tokenizers.Split(pattern, "removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<|unknown|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL[1:-1]),
    )
    patches = {"patch_size": 2, "temporal_patch_size": 2, "merge_size": 2}
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessor(
            **patches, **colours, size={"shortest_edge": pixels // 4, "longest_edge": pixels}
        ),
        video_processor=Qwen3VLVideoProcessor(
            **patches,
            **colours,
            num_frames=frames,
            fps=None,
            min_frames=2,
            max_frames=frames,
            size={"shortest_edge": frames * pixels // 4, "longest_edge": frames * pixels},
            cap_pixels_per_frame=False,
        ),
        # The processor itself puts vision_start and vision_end around each time slot of a video.
        chat_template=(
            "{% for message in messages %}<|im_start|>{{ message.role }} "
            "{% for part in message.content %}"
            "{% if part.type == 'video' %}<|video_pad|>"
            "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
            "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
        ),
    )
