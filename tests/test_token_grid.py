"""The token grid against its own inverse, a slow oracle, and the models and processors that it maps."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForImageTextToText,
    Glm46VConfig,
    Glm46VProcessor,
    InternVLConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
)
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel
from transformers.models.glm46v.image_processing_glm46v import Glm46VImageProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from vera_lite.backbone import WanConfig
from vera_lite.codecs import PatchCodec
from vera_lite.diagnostics import (
    Tap,
    TextStream,
    TokenGrid,
    VideoStream,
    dit_grid,
    qwen_vl_grid,
    square_vlm_grid,
)
from vera_lite.systems import Vera, VeraConfig

# --- any grid ------------------------------------------------------------------------------------

sides = st.integers(1, 4)
names = st.sampled_from([("video",), ("edit", "alpha", "composite")])


@st.composite
def wan(draw):
    p, q, r, s, k = (draw(st.integers(1, 3)) for _ in range(5))
    latents = p * draw(sides)
    size = (1 + k * (latents - 1), s * q * draw(sides), s * r * draw(sides))
    options = {"temporal_stride": k, "spatial_stride": s, "patch": (p, q, r)}
    return TokenGrid.wan(*size, draw(names), **options)


@st.composite
def vision(draw):
    """A made-up prompt of up to two videos and an image."""
    prompt, kinds, metadata, sizes, grids = [0], [0], [], [], []
    side = st.integers(1, 50)
    for _ in range(draw(st.integers(1, 2))):
        total = draw(st.integers(1, 30))
        indices = sorted(draw(st.sets(st.integers(0, total - 1), min_size=1, max_size=7)))
        t, h, w = -(-len(indices) // 2), draw(sides), draw(sides)
        for _ in range(t):
            prompt += [0] * draw(st.integers(0, 2)) + [1] * h * w
        metadata.append(SimpleNamespace(frames_indices=indices, total_num_frames=total))
        sizes.append((draw(side), draw(side)))
        grids.append([t, 2 * h, 2 * w])
    kinds = [2 * i for i in prompt] + [0, *[1] * 6]
    settings = SimpleNamespace(merge_size=2, patch_size=4, temporal_patch_size=2)
    processor = SimpleNamespace(
        tokenizer=SimpleNamespace(decode=str), video_processor=settings, image_processor=settings
    )
    inputs = {
        "input_ids": torch.tensor([prompt + [5] * 7]),
        "mm_token_type_ids": torch.tensor([kinds]),
        "video_grid_thw": torch.tensor(grids),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "video_metadata": metadata,
    }
    return qwen_vl_grid(inputs, processor, sizes, [(draw(side), draw(side))])


def text_and_video() -> TokenGrid:
    """Two words, then the four tokens of a clip (5, 16, 32)."""
    video = TokenGrid.wan(5, 16, 32).stream("video")
    text = TextStream("text", torch.arange(2), ("a", "ball"))
    return TokenGrid((text, replace(video, positions=2 + video.positions)))


def text_grid(words, separator=" "):
    return TokenGrid((TextStream("text", torch.arange(len(words)), tuple(words), separator),))


grids = st.one_of(wan(), vision())
quick = settings(max_examples=40, deadline=None)


def videos(grid: TokenGrid) -> list[VideoStream]:
    return [s for s in grid.streams if isinstance(s, VideoStream)]


@quick
@given(grids)
def test_every_token_is_found_again_at_the_centre_of_its_box(grid):
    tokens = list(grid)
    assert len(tokens) == len(grid)
    for i, token in enumerate(tokens):
        assert token == grid[i]
        if token.box is None:
            assert token.word is not None and i in grid.tokens(token.stream)
            continue
        top, left, bottom, right = token.box
        assert token.frames
        for frame in token.frames:
            assert grid.index(token.stream, frame, (top + bottom) / 2, (left + right) / 2) == i
            assert grid.index(token.stream, frame, top, left) == i  # a box owns its top left edges


@quick
@given(grids)
def test_boxes_tile_each_frame(grid):
    for stream in videos(grid):
        _, height, width = stream.size
        for part in stream.parts().values():
            boxes = [grid[int(i)].box for i in part]
            assert sum((b - t) * (r - le) for t, le, b, r in boxes) == pytest.approx(height * width)
            corners = {(t, le) for t, le, _, _ in boxes}
            assert len(corners) == len(boxes) and (0, 0) in corners
            # Every box ends where the next begins, to the last bit, or at the frame's border.
            assert all(b == height or (b, le) in corners for _, le, b, _ in boxes)
            assert all(r == width or (t, r) in corners for t, _, _, r in boxes)


def slow_coverage(grid: TokenGrid, stream: VideoStream, mask: torch.Tensor) -> torch.Tensor:
    """Pixel by pixel."""
    result = []
    for i in grid.tokens(stream.name).tolist():
        top, left, bottom, right = grid[i].box
        total = 0.0
        for f in grid[i].frames:
            for y in range(int(top), min(int(bottom) + 1, stream.size[1])):
                for x in range(int(left), min(int(right) + 1, stream.size[2])):
                    overlap = max(0, min(bottom, y + 1) - max(top, y)) * max(
                        0, min(right, x + 1) - max(left, x)
                    )
                    total += overlap * float(mask[f, y, x])
        result.append(total / (bottom - top) / (right - left) / len(grid[i].frames))
    return torch.tensor(result)


@settings(max_examples=12, deadline=None)
@given(grids, st.integers(0, 99))
def test_coverage_equals_a_sum_over_pixels(grid, seed):
    stream = videos(grid)[-1]
    mask = torch.rand(stream.size, generator=torch.Generator().manual_seed(seed))
    coverage = grid.coverage(stream.name, mask)
    torch.testing.assert_close(coverage, slow_coverage(grid, stream, mask), atol=1e-5, rtol=0)
    assert torch.equal(coverage, grid.coverage(stream.name, mask[:, None]))
    full = grid.coverage(stream.name, torch.ones(stream.size, dtype=torch.bool))
    torch.testing.assert_close(full, torch.ones_like(full), atol=1e-6, rtol=0)
    assert full.max() <= 1


@settings(max_examples=20, deadline=None)
@given(grids, st.data())
def test_painting_one_token_lights_its_box(grid, data):
    stream = videos(grid)[0]
    rank = data.draw(st.integers(0, len(stream.positions) - 1))
    video = grid.to_video(torch.eye(len(stream.positions))[[rank]], stream.name)[0]
    assert video.shape == stream.size
    token = grid[int(stream.positions[rank])]
    top, left, bottom, right = token.box
    for frame in {f for held in stream.frames for f in held}:
        y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in stream.size[1:]), indexing="ij")
        inside = (top <= y) & (y < bottom) & (left <= x) & (x < right) & (frame in token.frames)
        assert torch.equal(video[frame], inside.float())


@quick
@given(grids)
def test_groups_partition_the_sequence(grid):
    for by in ("stream", "frame"):
        labels, names = grid.groups(by)
        assert labels.shape == (len(grid),) and labels.dtype == torch.long
        assert sorted(set(labels.tolist())) == list(range(len(names)))
    for name, label in zip(names, range(len(names)), strict=True):
        frames = {grid[i].frames for i in (labels == label).nonzero()[:, 0].tolist()}
        assert "timestamps" in name or len(frames) == 1  # one slot, or text


@quick
@given(grids)
def test_a_grid_holds_values_where_cells_say(grid):
    stream = videos(grid)[0]
    latent = grid.to_latent(grid.tokens(stream.name), stream.name)
    assert latent.shape == stream.cells
    assert all(grid[int(latent[grid[i].cell])].cell == grid[i].cell for i in stream.positions.tolist())


# --- what is known by hand -----------------------------------------------------------------------


def test_wan_has_one_frame_then_four():
    grid = TokenGrid.wan(81, 480, 832)
    assert len(grid) == 21 * 30 * 52 == 32760  # the size in every Wan paper
    assert grid[0].frames == (0,) and grid[0].box == (0, 0, 16, 16)
    token = grid[30 * 52 + 52 + 2]
    assert token.frames == (1, 2, 3, 4) and token.box == (16, 32, 32, 48) and token.cell == (1, 1, 2)
    assert grid.stream("video").frames[-1] == (77, 78, 79, 80)
    assert grid.index("video", 80, 479.5, 831.5) == 32759


def test_a_frame_between_samples_is_painted_like_its_nearest():
    stream = VideoStream("video", torch.arange(2), ((0, 3), (10,)), (1, 1), (11, 1, 1))
    video = TokenGrid((stream,)).to_video(torch.tensor([5.0, 7.0]), "video")
    assert video.flatten().tolist() == [5] * 7 + [7] * 4


def test_words_and_phrases():
    grid = text_grid(["The", "man", "saw", "a", "woman", "in", "the", "red", "car"])
    assert grid.words("man").tolist() == [1]  # not the end of "woman"
    assert grid.words("the").tolist() == [0, 6]
    assert grid.words("The  Red car").tolist() == [6, 7, 8]
    pieces = text_grid(["A", " wo", "man", " and", " a", " man", "."], separator="")
    assert pieces.words("man").tolist() == [5] and pieces.words("woman").tolist() == [1, 2]
    assert text_grid(["top left", "red", "left"]).words("top left").tolist() == [0]
    for nothing in ("dog", " ", "sa"):
        with pytest.raises(ValueError, match="not in the text"):
            grid.words(nothing)


def test_groups_by_hand():
    grid = text_and_video()
    tokens = grid.tokens("video")
    mask = torch.zeros(5, 16, 32)
    mask[1:, :, 16:] = 1
    inside = grid.coverage("video", mask) > 0.5
    labels, names = grid.groups(
        {"inside": tokens[inside], "outside": tokens[~inside], "ball": grid.words("ball")}
    )
    assert labels.tolist() == [-1, 2, 1, 1, 1, 0] and names == ("inside", "outside", "ball")
    assert grid.groups("frame")[1] == ("text", "video[0]", "video[1]")
    with pytest.raises(ValueError, match="'video'"):
        grid.groups({"one": torch.tensor([3]), "video": tokens})
    with pytest.raises(ValueError, match="'one'"):
        grid.groups({"one": torch.tensor([6])})


@pytest.mark.parametrize(
    "mistake",
    [
        lambda g: TokenGrid.wan(80, 480, 832),
        lambda g: TokenGrid.wan(81, 480, 840),
        lambda g: TokenGrid.wan(5, 16, 16, patch=(3, 2, 2)),
        lambda g: TokenGrid.wan(5, 16, 16, ("a", "a")),
        lambda g: TokenGrid((g.streams[0], replace(g.streams[1], positions=torch.arange(4)))),
        lambda g: TokenGrid((TextStream("text", torch.arange(2), ("a",)),)),
        lambda g: g[6],
        lambda g: g.tokens("branch"),
        lambda g: g.index("text", 0, 0, 0),
        lambda g: g.index("video", 5, 0, 0),
        lambda g: g.index("video", 0, 16, 0),
        lambda g: g.words("ball", "video"),
        lambda g: g.coverage("video", torch.ones(5, 16, 16)),
        lambda g: g.coverage("video", torch.full((5, 16, 32), 255)),
        lambda g: g.to_video(torch.ones(3), "video"),
        lambda g: g.groups("word"),
    ],
)
def test_a_mistake_is_refused(mistake):
    with pytest.raises(ValueError):
        mistake(text_and_video())


# --- against video diffusion transformers --------------------------------------------------------


class FirstQuery(TorchFunctionMode):
    """Keeps the query of the first attention call: before it every token keeps to itself."""

    query = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention and self.query is None:
            self.query = args[0] if args else kwargs["query"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def changed_tokens(run, *inputs: tuple[torch.Tensor, torch.Tensor]) -> list[list[int]]:
    """Which tokens of the first attention call differ from those of the first input."""
    queries = []
    for x in inputs:
        with FirstQuery() as seen:
            run(x)
        queries.append(seen.query)
    return [(q - queries[0]).abs().amax((0, 1, 3)).nonzero()[:, 0].tolist() for q in queries[1:]]


def planted(x: torch.Tensor, *index) -> torch.Tensor:
    x = x.clone()
    x[index] += 1
    return x


TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
}
TINY |= {"freq_dim": 8, "ffn_dim": 8, "num_layers": 1}
PLACES = [(0, 0, 0), (0, 3, 5), (1, 2, 3), (2, 1, 4), (2, 3, 0)]  # latent frame, row, column


def test_wan_of_diffusers():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**TINY)
    x, text, timestep = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 2, 8), torch.tensor([500.0])
    grid = TokenGrid.wan(9, 32, 48)
    changed = changed_tokens(
        lambda x: model(x, timestep, text), x, *(planted(x, 0, 1, t, y, z) for t, y, z in PLACES)
    )
    assert changed == [[grid.index("video", 4 * t, 8 * y, 8 * z)] for t, y, z in PLACES]


SMALL = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
SMALL |= {"num_layers": 1}
JOINT = {"joint_attention_dim": 8, "pooled_projection_dim": 8}
HUNYUAN = {"num_single_layers": 0, "num_refiner_layers": 1, "text_embed_dim": 8, "rope_axes_dim": (4, 6, 6)}
DITS = {
    "wan": lambda: WanTransformer3DModel(**TINY),
    "cogvideox": lambda: CogVideoXTransformer3DModel(
        **SMALL, text_embed_dim=8, sample_width=6, sample_height=4, sample_frames=9, max_text_seq_length=3
    ),
    "hunyuan": lambda: HunyuanVideoTransformer3DModel(
        **SMALL, **HUNYUAN, pooled_projection_dim=8, guidance_embeds=False
    ),
    "ltx": lambda: LTXVideoTransformer3DModel(**SMALL, cross_attention_dim=32, caption_channels=8),
    "sd3": lambda: SD3Transformer2DModel(**SMALL, **JOINT, sample_size=6, caption_projection_dim=32),
    "flux": lambda: FluxTransformer2DModel(
        **SMALL | {"in_channels": 16},
        **JOINT,
        num_single_layers=0,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    ),
}


def run_dit(name: str, net, x: torch.Tensor, text: torch.Tensor) -> None:
    """Latents x (1, 4, t, h, w) and text (1, n, 8) into one of diffusers' models."""
    timestep, pooled, (t, h, w) = torch.tensor([500]), torch.randn(1, 8), x.shape[2:]
    inputs = {"encoder_hidden_states": text, "timestep": timestep}
    if name in ("sd3", "flux"):
        inputs |= {"pooled_projections": pooled}
        x = x[:, :, 0]
    if name == "cogvideox":
        x = x.transpose(1, 2)
    if name == "hunyuan":
        inputs |= {"encoder_attention_mask": torch.ones(1, text.shape[1]), "pooled_projections": pooled}
    if name == "ltx":  # its pipeline flattens the latents
        mask = torch.ones(1, text.shape[1])
        inputs |= {"encoder_attention_mask": mask, "num_frames": t, "height": h, "width": w}
        x = x.flatten(2).transpose(1, 2)
    if name == "flux":  # its pipeline packs 2 x 2 latents
        x = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        inputs |= {"img_ids": torch.zeros(x.shape[1], 3), "txt_ids": torch.zeros(text.shape[1], 3)}
    net(hidden_states=x, **inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", DITS)
def test_a_latent_and_a_word_change_their_tokens(name):
    torch.manual_seed(0)
    net, is_video = DITS[name]().eval(), name not in ("sd3", "flux")
    joins = name not in ("wan", "ltx")
    x, text = torch.randn(1, 4, 3 if is_video else 1, 4, 6), torch.randn(1, 3, 8)
    t, s = (8, 32) if name == "ltx" else (4, 8)
    frames = 1 + t * (x.shape[2] - 1)
    grid = dit_grid(net, frames, s * 4, s * 6, ("a ", "cat", ".") if joins else ())

    def queries(x, text):
        calls = []
        with Tap(net, calls.append):
            torch.manual_seed(1)
            run_dit(name, net, x, text)
        return next(c.query for c in calls if c.query.shape[2] == len(grid))

    before = queries(x, text)

    def changed(*inputs):
        return (queries(*inputs) - before).abs().amax((0, 1, 3)).gt(1e-5).nonzero()[:, 0].tolist()

    for place in PLACES if is_video else [(0, 0, 0), (0, 3, 5), (0, 2, 1)]:
        f, y, z = place
        assert changed(planted(x, 0, 1, *place), text) == [grid.index("video", t * f, s * y, s * z)]
    if joins and name != "hunyuan":  # whose words look at each other before
        assert changed(x, planted(text, 0, 1)) == grid.words("cat").tolist()


def test_a_model_or_words_without_a_place_are_refused():
    with pytest.raises(ValueError, match="no grid for Linear"):
        dit_grid(torch.nn.Linear(1, 1), 1, 8, 8)
    for name, words in (("wan", ("a",)), ("sd3", ())):
        with pytest.raises(ValueError, match="text tokens"):
            dit_grid(DITS[name](), 1, 32, 48, words)


def test_pixels_through_our_codec_into_the_joint_attention_of_vera():
    torch.manual_seed(0)
    layers = ("edit", "alpha", "composite")
    config = WanConfig(**TINY | {"in_channels": 24, "out_channels": 24})
    model = Vera(VeraConfig(backbone=config))
    codec = PatchCodec().fit([torch.rand(4, 9, 3, 16, 24)])
    clip, text = torch.rand(9, 3, 16, 24) / 2, torch.randn(1, 2, 8)
    grid = TokenGrid.wan(9, 16, 24, layers, spatial_stride=4)

    def run(clips):
        latents = codec.encode(clips)[:, None]  # each layer is one clip
        model(latents, torch.tensor([500.0]), text, latents[0])

    clips = torch.stack([clip, clip, clip])
    pixels = [(1, 0, 15, 3), (1, 8, 0, 23), (2, 3, 9, 9), (2, 4, 7, 17), (2, 5, 8, 0)]
    changed = changed_tokens(run, clips, *(planted(clips, n, f, 0, y, x) for n, f, y, x in pixels))
    # The edit layer would do as well, but here its latents are also the source, which the composite sees.
    assert changed == [[grid.index(layers[n], f, y, x)] for n, f, y, x in pixels]


# --- against vision language models --------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and the marks that the processors write."""
    marks = ["image_pad", "video_pad", "vision_start", "vision_end", "image", "video"]
    marks += ["begin_of_image", "end_of_image", "begin_of_video", "end_of_video"]
    marks = ["<unk>", *(f"<|{m}|>" for m in marks)]
    vocabulary = [*marks, *"abcdefghijklmnopqrstuvwxyz0123456789<>. ?"]
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()  # pieces carry their own spaces, as in real tokenizers
    tokenizer.add_special_tokens(marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


BUDGET = {"shortest_edge": 16, "longest_edge": 10**6}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 0, "patch_size": 4}


def model_parts(name: str, tokenizer):
    """A processor, its marks around a video and an image, and a random vision tower."""
    torch.manual_seed(0)
    settings = {"size": BUDGET, "patch_size": 4}
    if name == "glm46v":
        marks = [f"<|begin_of_{m}|><|{m}|><|end_of_{m}|>" for m in ("video", "image")]
        processor = Glm46VProcessor(
            Glm46VImageProcessor(**settings), tokenizer, Glm46VVideoProcessor(**settings)
        )
        config = Glm46VConfig(vision_config={**VISION, "out_hidden_size": 16, "image_size": 16})
        return processor, marks, Glm4vVisionModel(config.vision_config)
    marks = [f"<|vision_start|><|{m}_pad|><|vision_end|>" for m in ("video", "image")]
    image_processor = Qwen2VLImageProcessor(**settings)
    settings["cap_pixels_per_frame"] = False
    if name == "qwen3_vl":
        processor = Qwen3VLProcessor(image_processor, tokenizer, Qwen3VLVideoProcessor(**settings))
        vision = {
            **VISION,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 16,
        }
        return processor, marks, Qwen3VLVisionModel(Qwen3VLConfig(vision_config=vision).vision_config)
    processor = Qwen2_5_VLProcessor(image_processor, tokenizer, Qwen2VLVideoProcessor(**settings))
    vision = {**VISION, "out_hidden_size": 16, "window_size": 16, "fullatt_block_indexes": []}
    config = Qwen2_5_VLConfig(vision_config=vision).vision_config
    return processor, marks, Qwen2_5_VisionTransformerPretrainedModel(config)


class Entry(torch.nn.Module):
    """A block that does nothing but show what came in."""

    def forward(self, hidden_states, *args, **kwargs):
        self.seen = hidden_states
        return hidden_states


@pytest.mark.parametrize(("height", "width"), [(24, 40), (37, 61)], ids=["as it is", "resized"])
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "glm46v"])
@torch.no_grad()
def test_a_bright_square_lights_its_token(name, height, width, tokenizer):
    processor, (video_mark, image_mark), tower = model_parts(name, tokenizer)
    entry = Entry()
    tower.blocks = torch.nn.ModuleList([entry])
    image = torch.zeros(3, 18, 30, dtype=torch.uint8)

    def run(clip):
        inputs = processor(
            text=[f"look {image_mark} at {video_mark} where is the man?"],
            images=[image],
            videos=[clip],
            video_metadata=[{"total_num_frames": len(clip), "fps": 3.0}],
            return_metadata=True,
            return_tensors="pt",
        )
        grid_thw = inputs["video_grid_thw"]
        if name == "glm46v":  # its model hands each slot to the tower as an image
            grid_thw = torch.tensor([[1, h, w] for t, h, w in grid_thw.tolist() for _ in range(t)])
        merged = tower(inputs["pixel_values_videos"], grid_thw=grid_thw).pooler_output
        return inputs, entry.seen, merged

    clip = torch.zeros(9, 3, height, width, dtype=torch.uint8)
    inputs, patches, merged = run(clip)
    grid = qwen_vl_grid(inputs, processor, [(height, width)], [(18, 30)])
    assert len(grid) == inputs["input_ids"].shape[1]
    assert len(grid.tokens("video")) == len(merged) == len(patches) / 4

    # 1. What the sequence holds: all text, one video however it is cut, the image.
    held = sorted({f for frames in grid.stream("video").frames for f in frames})
    assert held == ([0, 2, 3, 5, 6, 8] if name == "qwen3_vl" else list(range(9)))
    pad = {grid.tokens(s)[0].item() for s in ("video", "image")}
    vision_ids = {int(inputs["input_ids"][0, i]) for i in pad}
    assert all(
        (int(t) in vision_ids) == (grid[i].box is not None) for i, t in enumerate(inputs["input_ids"][0])
    )
    asked = [grid[i].word for i in grid.words("the man").tolist()]
    assert asked == list("the man")

    # 2. Timestamps speak of the frames of their slot.
    if name == "qwen2_5_vl":
        assert [s.name for s in grid.streams] == ["text", "video", "image"]
    else:
        stamps = grid.stream("video timestamps")
        for frames in grid.stream("video").frames:
            pieces = [w for w, f in zip(stamps.words, stamps.frames, strict=True) if f == frames]
            middle = frames[0] if name == "glm46v" else (frames[0] + frames[-1]) / 2
            assert "".join(pieces).strip("<>") == f"{middle / 3:.1f} seconds"

    # 3. A bright square in one frame, well inside one token.
    places = [(held[0], 0.5, 0.5), (held[3], 0.8, 0.1), (held[-1], 0.99, 0.99), (held[2], 0.3, 0.6)]
    for frame, v, u in places:
        token = grid[grid.index("video", frame, v * height, u * width)]
        y, x = (int((token.box[i] + token.box[i + 2]) / 2) for i in (0, 1))
        bright = clip.clone()
        bright[frame, :, y, x] = 255
        merged_change = (run(bright)[2] - merged).abs().sum(-1)
        assert grid.tokens("video")[merged_change.argmax()] == grid.index("video", frame, y + 0.5, x + 0.5)
        if (height, width) == (24, 40):  # a multiple of the token: no filter spreads the pixel
            assert (merged_change > 0).sum() == 1

    # 4. A frame that was not sampled changes nothing, and has no token.
    for frame in set(range(9)) - set(held):
        bright = clip.clone()
        bright[frame] = 255
        assert torch.equal(run(bright)[1], patches)
        with pytest.raises(ValueError, match=f"frame {frame}"):
            grid.index("video", frame, 0, 0)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "glm46v"])
def test_two_videos_and_an_image_keep_apart(name, tokenizer):
    processor, (video_mark, image_mark), _ = model_parts(name, tokenizer)
    clips = [torch.zeros(n, 3, h, 24, dtype=torch.uint8) for n, h in ((5, 16), (4, 32))]
    inputs = processor(
        text=[f"{video_mark} or {video_mark}{image_mark}?"],
        images=[torch.zeros(3, 16, 24, dtype=torch.uint8)],
        videos=clips,
        video_metadata=[{"total_num_frames": len(c), "fps": 2.0} for c in clips],
        return_metadata=True,
        return_tensors="pt",
    )
    grid = qwen_vl_grid(inputs, processor, [(16, 24), (32, 24)], [(16, 24)])
    held = [len(grid.tokens(s)) for s in ("video 0", "video 1", "image")]
    assert held == [3 * 2 * 3, 2 * 4 * 3, 2 * 3]  # slots x rows x columns
    assert grid.stream("video 0").frames[-1] == (4,)  # five frames: the last fills its slot alone
    assert grid.stream("video 1").size == (4, 32, 24) and grid.stream("image").frames == ((0,),)
    first, second = grid.tokens("video 0"), grid.tokens("video 1")
    assert first.max() < grid.words("or").min() and grid.words("or").max() < second.min()

    sizes = [(16, 24), (32, 24)], [(16, 24)]
    unsampled = {k: v for k, v in inputs.items() if k != "video_metadata"}
    too_few = [SimpleNamespace(frames_indices=[0, 1]), *inputs["video_metadata"][1:]]
    larger = inputs["video_grid_thw"] + torch.tensor([0, 2, 0])
    for wrong, video_sizes, image_sizes in (
        (inputs, [(16, 24)], [(16, 24)]),
        (unsampled, *sizes),
        ({**inputs, "video_metadata": too_few}, *sizes),
        ({**inputs, "video_grid_thw": larger}, *sizes),
        ({"input_ids": inputs["input_ids"]}, (), ()),
        ({**inputs, "input_ids": inputs["input_ids"].expand(2, -1)}, *sizes),
    ):
        with pytest.raises(ValueError):
            qwen_vl_grid(wrong, processor, video_sizes, image_sizes)


LANGUAGE = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LANGUAGE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
SQUARE = {
    "internvl": lambda: InternVLConfig(
        vision_config=TOWER | {"num_hidden_layers": 0, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config=LANGUAGE | {"model_type": "qwen2"},
    ),
    "smolvlm": lambda: SmolVLMConfig(
        vision_config=TOWER | {"num_hidden_layers": 0, "image_size": 16, "patch_size": 4},
        text_config=LANGUAGE | {"model_type": "llama"},
        scale_factor=2,
    ),
    "onevision": lambda: LlavaOnevisionConfig(
        vision_config=TOWER | {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4},
        text_config=LANGUAGE | {"model_type": "qwen2"},
        vision_feature_layer=-2,  # before the tower's attention
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SQUARE)
def test_a_bright_pixel_lights_its_token_of_a_square_frame(name, tokenizer):
    torch.manual_seed(0)
    net = AutoModelForImageTextToText.from_config(SQUARE[name]()).eval().model
    clip = torch.randn(1, 3, 3, 16, 16)

    def features(clip):  # (tokens, width) of all frames
        if name == "onevision":
            return net.get_video_features(clip).pooler_output.flatten(0, 1)
        pixels = clip if name == "smolvlm" else clip[0]
        return torch.cat([*net.get_image_features(pixels).pooler_output])

    plain = features(clip)
    end = 1 if name == "onevision" else 0
    assert len(plain) == 3 * 4 + end
    video = 31
    ids = torch.tensor([11, *[video] * (len(plain)), 12])
    size = (20, 32, 48)  # the source, which was stretched to 16 x 16
    grid = square_vlm_grid(ids, tokenizer, video, (0, 9, 18), size)
    assert [s.name for s in grid.streams] == ["text", "video", "video end"][: 2 + end]
    for frame, y, x in ((0, 0, 0), (1, 5, 14), (2, 15, 3)):
        change = (features(planted(clip, 0, frame, 0, y, x)) - plain).abs().amax(1)
        token = grid.index("video", 9 * frame, 2 * y, 3 * x)
        assert change.gt(1e-6).nonzero()[:, 0].tolist() == [token - 1]


def test_tiles_have_no_grid(tokenizer):
    for frames in ((0,), ()):
        with pytest.raises(ValueError, match="tiles"):
            square_vlm_grid(torch.tensor([31] * 11), tokenizer, 31, frames, (1, 8, 8))
