"""Masks from detector and tracker: the real classes with tiny random weights."""

from fractions import Fraction

import pytest
import segment_clips
import torch
from tqdm import tqdm
from transformers import (
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BertConfig,
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    SwinConfig,
)

from vera_lite.errors import UserError
from vera_lite.media.video import VideoReader, read_grey
from vera_lite.media.video_writer import write_video

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "ball")
SIZE = {"height": 64, "width": 64}


def tiny_segmenter(folder):
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "image_size": [64, 64],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [8, 4, 4, 2],
            "global_attention_blocks": [3],
            "window_positional_embedding_background_size": [4, 4],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 128,
    }
    config = Sam2VideoConfig(
        image_size=64,
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": 64},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "iou_head_hidden_dim": 32},
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
    )
    Sam2VideoModel(config).save_pretrained(folder)
    Sam2VideoProcessor(
        Sam2ImageProcessor(size=SIZE, mask_size={"height": 16, "width": 16}),
        Sam2VideoVideoProcessor(size=SIZE),
    ).save_pretrained(folder)


def tiny_detector(folder):
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1] * 3, num_heads=[1] * 3, out_features=["stage2", "stage3"]
        ),
        text_config=BertConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        ),
        **heads,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
        num_feature_levels=2,
        max_text_len=16,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": 48, "longest_edge": 64}),
        BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}),
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a detector and a segmenter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    tiny_detector(folder / "detector")
    tiny_segmenter(folder / "segmenter")
    return folder


@pytest.fixture
def video(tmp_path):
    frames = torch.randint(0, 256, (6, 3, 37, 50), generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "one.mkv", frames.to(torch.uint8), Fraction(30000, 1001), "lossless")
    return tmp_path / "one.mkv"


def run(models, *videos, out, threshold=0.0, what="a ball"):
    return segment_clips.main(
        [*map(str, videos), "--what", what, "--out", str(out), "--threshold", str(threshold)]
        + ["--device", "cpu", "--detector", str(models / "detector")]
        + ["--segmenter", str(models / "segmenter")]
    )


def test_a_mask_is_like_its_video_and_is_made_once(models, video, tmp_path):
    out = tmp_path / "masks"
    assert run(models, video, out=out) == 0
    assert [path.name for path in out.iterdir()] == ["one.mask.mkv"]
    mask = read_grey(out / "one.mask.mkv")
    assert mask.shape == (6, 1, 37, 50)
    assert set(mask.unique().tolist()) == {0, 255}
    mask, film = VideoReader(out / "one.mask.mkv").info, VideoReader(video).info
    assert (mask.frames, mask.fps, mask.width, mask.height) == (
        film.frames,
        film.fps,
        film.width,
        film.height,
    )

    # Again with models that are not there: they are not asked for.
    assert run(tmp_path / "nowhere", video, out=out) == 0


def test_the_surest_find_of_all_frames_is_taken(models, video):
    detector, processor = segment_clips.load(
        AutoModelForZeroShotObjectDetection, AutoProcessor, str(models / "detector"), False, "cpu"
    )
    finds = []
    for t, frame in enumerate(VideoReader(video)):
        inputs = processor(images=frame, text="a ball.", return_tensors="pt")
        with torch.no_grad():
            outputs = detector(**inputs)
        scores = outputs.logits[0].sigmoid().amax(-1)
        x, y, width, height = outputs.pred_boxes[0, scores.argmax()].tolist()
        box = [(x - width / 2) * 50, (y - height / 2) * 37, (x + width / 2) * 50, (y + height / 2) * 37]
        finds.append((float(scores.max()), t, box))
    score, best, box = max(finds)
    assert best != 0, "the frames should tell the first from the best"

    at, found = segment_clips.find(VideoReader(video), "a ball", detector, processor, 0.0)
    assert at == best
    assert found == pytest.approx(box, abs=1e-3)
    assert segment_clips.find(VideoReader(video), "a ball", detector, processor, score + 1e-3) is None


def test_the_box_is_on_its_frame_and_both_ends_are_reached(models, video, tmp_path):
    kind = (Sam2VideoModel, Sam2VideoProcessor)
    model, processor = segment_clips.load(*kind, str(models / "segmenter"), False, "cpu")
    frames, box = list(VideoReader(video)), [10.0, 5.0, 30.0, 25.0]

    def masks(frames, start):
        write_video(tmp_path / "some.mkv", frames, 8, "lossless")
        with tqdm(total=len(frames)) as bar:
            result = segment_clips.track(
                VideoReader(tmp_path / "some.mkv"), start, box, model, processor, bar
            )
        assert bar.n == len(result) == len(frames)
        return torch.stack(result)

    # On the frame of the box nothing is remembered yet: as if there were no other frame.
    assert torch.equal(masks(frames, 3)[3:4], masks(frames[3:4], 0))
    # From the last frame backwards is from the first frame on in the video turned round.
    backwards = masks(frames, 5)
    assert torch.equal(backwards.flip(0), masks(frames[::-1], 0))
    assert len(backwards.unique(dim=0)) == 6, "the frames should be told apart"


def test_what_is_not_found_is_skipped_and_told(models, video, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "empty.mkv", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 8, "lossless")
    find = segment_clips.find
    monkeypatch.setattr(
        segment_clips, "find", lambda video, *rest: None if len(video) == 2 else find(video, *rest)
    )
    assert run(models, tmp_path / "empty.mkv", video, out=tmp_path / "masks") == 2
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["one.mask.mkv"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a ball" in last
    assert "empty.mkv" in last


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"videos": ["missing.mp4"]}, "missing.mp4"),
        ({"models": "elsewhere"}, "--download"),
        ({"models": "swapped"}, "AutoModelForZeroShotObjectDetection"),
        ({"videos": ["one.mkv", "one.mp4"]}, "'one'"),
        ({"what": "a dog. a cat"}, "one phrase"),
        ({"what": "."}, "one phrase"),
        ({"out": "one.mkv"}, "one.mkv"),
    ],
)
def test_refused_in_one_sentence_before_any_work(models, video, tmp_path, capsys, change, named):
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "detector").symlink_to(models / "segmenter")
    if "models" in change:
        models = tmp_path / change["models"]
    videos = [tmp_path / name for name in change.get("videos", ["one.mkv"])]
    out = tmp_path / change.get("out", "masks")
    assert run(models, *videos, out=out, what=change.get("what", "a ball")) == 2
    error = capsys.readouterr().err
    assert named in error
    assert len([line for line in error.splitlines() if line.startswith("segment_clips:")]) == 1
    assert not (tmp_path / "masks").exists()


def test_a_segmenter_of_another_kind_is_refused(models):
    """transformers would fill it with random weights."""
    with pytest.raises(UserError, match="Sam2VideoModel"):
        segment_clips.load(Sam2VideoModel, Sam2VideoProcessor, str(models / "detector"), False, "cpu")
