"""Large models in their libraries' real formats, with tiny random weights."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from test_segment_clips import tiny_detector, tiny_segmenter
from transformers import (
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
    VitDetConfig,
    VitMatteConfig,
    VitMatteForImageMatting,
    VitMatteImageProcessor,
)

from vera_lite.dataset.checks import Rejected
from vera_lite.dataset.models import MatAnyone, ViTMatte, VLMCaption, WanVideo
from vera_lite.dataset.sam2 import Sam2Segmenter
from vera_lite.dataset.segment import segmenter
from vera_lite.dataset.stage import Fail, Ok, Sample
from vera_lite.dataset.stages import Background, Matte, Plate, Segment
from vera_lite.dataset.weights import revision
from vera_lite.errors import UserError
from vera_lite.media.video_writer import write_video
from vera_lite.toy.world import render

SIZE = (32, 48)


@pytest.fixture(scope="module")
def vitmatte(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vitmatte")
    torch.manual_seed(0)
    backbone = VitDetConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_channels=4,
        image_size=32,
        pretrain_image_size=32,
        patch_size=16,
        out_features=["stage2"],
        residual_block_indices=[],
        window_block_indices=[],
        use_relative_position_embeddings=True,
    )
    config = VitMatteConfig(
        backbone_config=backbone,
        hidden_size=16,
        convstream_hidden_sizes=[8, 8, 8],
        fusion_hidden_sizes=[8] * 4,
    )
    VitMatteForImageMatting(config).save_pretrained(folder)
    VitMatteImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip():
    return torch.rand(5, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def half(*shape):
    known = torch.zeros(*shape)
    known[..., 10:20, 10:30] = 0.5
    known[..., 13:17, 15:25] = 1
    return known


def test_vitmatte_solves_the_unknown_band(vitmatte, clip):
    video, known = clip[:2, :, :29, :45], half(2, 1, 29, 45)  # no multiples of 32: it pads
    alpha = ViTMatte(str(vitmatte))(video, known)
    assert torch.equal(alpha[known != 0.5], known[known != 0.5])
    model = VitMatteForImageMatting.from_pretrained(vitmatte).eval()
    pictures = VitMatteImageProcessor()(
        images=[(v * 255).round().byte().permute(1, 2, 0).numpy() for v in video],
        trimaps=[(k[0] * 255).round().byte().numpy() for k in known],
        return_tensors="pt",
    )
    with torch.no_grad():
        wanted = model(**pictures).alphas[:, :, :29, :45]
    band = known == 0.5
    assert alpha[band] == pytest.approx(wanted[band], abs=1e-5)
    assert wanted[band].std() > 0
    stage = Matte(model=str(vitmatte))
    assert stage.config["model_revision"] == revision(str(vitmatte))
    assert isinstance(stage.matter(), ViTMatte)


def test_matanyone_follows_the_object_from_its_first_trimap(tmp_path, clip):
    """Its own code with random weights: 5 frames, of which the first is empty."""
    reason = "its licence forbids commercial use, so no extra installs it"
    package = pytest.importorskip("matanyone2", reason=reason)
    from omegaconf import OmegaConf

    folder = Path(package.__file__).parent / "config"
    cfg = OmegaConf.load(folder / "eval_matanyone_config.yaml")
    cfg = OmegaConf.masked_copy(cfg, [n for n in cfg if n not in ("defaults", "hydra")])
    cfg.model = OmegaConf.load(folder / "model" / "base.yaml")
    cfg.model.pretrained_resnet, cfg.top_k = False, 4  # few pixels to choose from
    torch.manual_seed(0)
    network = package.MatAnyone2(cfg, single_object=True).eval()
    network.save_pretrained(tmp_path)
    known = half(5, 1, *SIZE)
    known[0] = 0
    matter = MatAnyone(str(tmp_path), "matanyone2", warm_up=2)
    alpha = matter(clip, known)
    assert torch.equal(alpha[known != 0.5], known[known != 0.5])
    core = package.InferenceCore(network, device="cpu")
    with torch.no_grad():
        core.step(clip[1], 255 * known[1, 0], objects=[1])
        steps = [core.step(clip[1], first_frame_pred=True) for _ in range(3)]
        wanted = torch.stack([steps[-1][1:], *(core.step(frame)[1:] for frame in clip[2:])])
    band = known[1:] == 0.5
    assert alpha[1:][band] == pytest.approx(wanted[band], abs=1e-5)
    assert wanted[band].std() > 0
    assert torch.equal(matter(clip, 0 * known), 0 * known)


def test_without_its_code_matanyone_is_one_sentence(tmp_path, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "matanyone", None)
    with pytest.raises(UserError, match="licence"):
        MatAnyone(str(tmp_path))(clip, half(5, 1, *SIZE))
    assert isinstance(Matte(model=str(tmp_path), network="MatAnyone").matter(), MatAnyone)


def test_a_revision_follows_the_weights(vitmatte, tmp_path):
    for file in vitmatte.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert revision(str(tmp_path)) == revision(str(vitmatte))
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert revision(str(tmp_path)) != revision(str(vitmatte))
    assert revision("nobody/has-this-model") is None


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Folders of a text-to-video model and of VACE."""
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    pieces = {
        "vae": AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        "tokenizer": T5TokenizerFast(
            vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)]
        ),
    }
    shape = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 16,
    }
    plain = WanTransformer3DModel(**shape, num_layers=1, in_channels=16, out_channels=16)
    WanPipeline(**pieces, transformer=plain).save_pretrained(folder / "t2v")
    vace = WanVACETransformer3DModel(**shape, num_layers=2, vace_layers=[0], vace_in_channels=96)
    WanVACEPipeline(**pieces, transformer=vace).save_pretrained(folder / "vace")
    return folder


def test_a_remover_changes_only_what_it_is_to_remove(wan, clip):
    mask = torch.zeros(5, 1, *SIZE)
    mask[..., 8:20, 10:30] = 1
    remover = WanVideo(str(wan / "vace"), "a", steps=1, guidance=1.0)
    plate = remover.remove(clip, mask)
    assert torch.equal(plate[(mask == 0).expand_as(clip)], clip[(mask == 0).expand_as(clip)])
    assert not torch.equal(plate, clip)
    assert torch.equal(plate, remover.remove(clip, mask))
    assert Plate(model=str(wan / "vace")).config["model_revision"] == revision(str(wan / "vace"))


def test_a_background_is_made_from_words(wan, clip):
    made = WanVideo(str(wan / "t2v"), "a", steps=1, guidance=1.0).background(clip)
    assert made.shape == clip.shape
    assert 0 <= made.min() < made.max() <= 1
    assert "model_revision" in Background(model=str(wan / "t2v")).config
    with pytest.raises(ValueError, match="16"):
        WanVideo(str(wan / "t2v"), "a").background(clip[..., :40])


@pytest.mark.parametrize("model", ["nobody/has-this-model", "t2v"])
def test_a_pipeline_that_is_not_there_is_one_sentence(wan, clip, model):
    name = str(wan / model) if model == "t2v" else model
    with pytest.raises(UserError, match="WanVACEPipeline"):
        WanVideo(name, "a", steps=1).remove(clip, torch.ones(5, 1, *SIZE))


def test_sam2_finds_by_box_and_by_words(tmp_path, monkeypatch):
    import vera_lite.dataset.sam2 as module

    torch.manual_seed(0)
    tiny_detector(tmp_path / "detector")
    tiny_segmenter(tmp_path / "segmenter")
    monkeypatch.setattr(module, "check_masks", lambda mask: None)  # random weights find anything
    video = torch.rand(3, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    models = {"segmenter": str(tmp_path / "segmenter"), "detector": str(tmp_path / "detector")}
    by_box = Sam2Segmenter((10, 5, 20, 20), **models)(video)
    assert by_box.shape == (3, 1, 37, 50)
    assert set(by_box.unique().tolist()) <= {0.0, 1.0}
    assert by_box.any()
    frames = list((video * 255).round().byte())
    pair = module.load(Sam2VideoModel, Sam2VideoProcessor, models["segmenter"])
    wanted = module.track(frames, 0, [10, 5, 30, 25], *pair)
    assert torch.equal(by_box, torch.stack(wanted).float() / 255)
    assert Sam2Segmenter("a ball", threshold=0.0, **models)(video).shape == by_box.shape
    with pytest.raises(Rejected) as rejected:
        Sam2Segmenter("a ball", threshold=1.0, **models)(video)
    assert rejected.value.reason == "nothing_found"
    by_point = Sam2Segmenter((20, 15), **models)(video)
    assert by_point.shape == by_box.shape and not torch.equal(by_point, by_box)
    assert segmenter("sam2:20,15") == Sam2Segmenter((20, 15))
    assert segmenter("sam2:a ball") == Sam2Segmenter("a ball")
    assert segmenter("sam2:8,20,100,60", 0.5) == Sam2Segmenter((4, 10, 50, 30))


def test_the_key_of_a_segment_follows_the_weights_of_sam2(tmp_path):
    torch.manual_seed(0)
    tiny_segmenter(tmp_path / "model")
    stage = Segment(model=str(tmp_path / "model"))
    before = stage.config
    assert before["model_revision"] == revision(str(tmp_path / "model"))
    (tmp_path / "model" / "more.json").write_text("{}")
    assert stage.config != before
    # Without a model, a subject that needs one fails, and is not found by weights that no key knows.
    sample = Sample("00", "object_addition", {}, {"subject": "sam2:a ball"})
    assert isinstance(Segment()(sample, lambda name: tmp_path / name, tmp_path), Fail)
    assert isinstance(stage(sample, lambda name: tmp_path / name, tmp_path), Fail)  # words need a detector
    with pytest.raises(ValueError, match="needs a model"):
        Segment(subject={"object_addition": "sam2:1,2"})
    with pytest.raises(ValueError, match="backend"):
        Sam2Segmenter("a ball", backend="sam")
    with pytest.raises(ValueError, match="network"):
        Matte(network="vitmatte")


@pytest.mark.parametrize("prompt", [(10, 5, 30, 30), (25, 20)])
def test_both_codes_of_sam2_give_the_same_masks(tmp_path, monkeypatch, prompt):
    """Hiera-tiny with random weights, on frames of 128 pixels."""
    package = pytest.importorskip("sam2.sam2_video_predictor", reason="`pip install 'vera-lite[sam2]'`")
    import vera_lite.dataset.sam2 as module

    monkeypatch.setattr(module, "check_masks", lambda mask: None)
    torch.manual_seed(3)
    config = Sam2VideoConfig(image_size=128, memory_attention_rope_feat_sizes=[8, 8])
    config.prompt_encoder_config.image_size = 128
    config.vision_config.backbone_config.image_size = [128, 128]
    config.vision_config.backbone_feature_sizes = [[32, 32], [16, 16], [8, 8]]
    model = Sam2VideoModel(config)
    for parameter in model.parameters():  # biases and embeddings of 0 would hide a mistake
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data += 10  # it is there
    # Checkpoints hold this twice, and so the two are equal.
    shared = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.data.copy_(shared)
    model.save_pretrained(tmp_path)
    size, small = {"height": 128, "width": 128}, {"height": 32, "width": 32}
    processors = Sam2ImageProcessor(size=size, mask_size=small), Sam2VideoVideoProcessor(size=size)
    Sam2VideoProcessor(*processors).save_pretrained(tmp_path)
    video = torch.rand(4, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    scores = []  # before they become masks
    hook = Sam2VideoProcessor, package.SAM2VideoPredictor
    unsigned, enlarged = hook[0].post_process_masks, hook[1]._get_orig_video_res_output

    def post_process_masks(self, *arguments):
        scores.append(unsigned(self, *arguments, binarize=False)[0][0])
        return unsigned(self, *arguments)

    def resize(self, *arguments):
        scores.append(enlarged(self, *arguments)[1][0])
        return enlarged(self, *arguments)

    monkeypatch.setattr(hook[0], "post_process_masks", post_process_masks)
    monkeypatch.setattr(hook[1], "_get_orig_video_res_output", resize)
    one = Sam2Segmenter(prompt, str(tmp_path))(video)
    wanted, scores[:] = torch.stack(scores[:4]), []
    other = Sam2Segmenter(prompt, str(tmp_path), backend="sam2")(video)
    # Halving weights of one part of the tracker changes the scores by 1e-4 or more.
    assert torch.stack(scores[1:]) == pytest.approx(wanted, abs=2e-5)
    assert 0.02 < one.mean() < 0.98
    assert (one == other).float().mean() > 0.999  # a score of 0 may round otherwise


def test_a_vision_language_model_writes_the_captions(tmp_path):
    """The toy model in the package stands for a large one; it knows few questions."""
    batch = render(0, [0])
    files = {"source": batch.source[0], "composite": batch.composite[0]}
    for name, video in files.items():
        write_video(tmp_path / f"{name}.mkv", (video * 255).round().byte(), 8, "lossless")
    sample = Sample("00", "object_addition", {n: str(tmp_path / f"{n}.mkv") for n in files}, {"fps": 8.0})
    questions = {"describe": "describe the video", "instruct": "{source}"}
    outcome = VLMCaption(**questions, max_new_tokens=16)(sample, lambda n: sample.files[n], tmp_path)
    assert isinstance(outcome, Ok), outcome
    words = outcome.sample.facts
    assert words["instruction"]
    assert words["source_caption"]
    assert replace(outcome.sample, facts={}) == replace(sample, facts={})
