"""Every metric against another library's, or against a case that is known."""

import math
import socket

import numpy as np
import pytest
import torch
from huggingface_hub.utils import build_hf_headers
from scipy import linalg, ndimage
from skimage.measure import label
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.errors import UserError
from vera_lite.evaluation import distribution, learned, mattes, metrics


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def clip():
    """A source, an edit of it that also leaks a little, and what was to be kept."""
    source = ndimage.gaussian_filter(random(3, 3, 36, 44).numpy(), (0, 0, 2, 2))
    source = torch.from_numpy((source - source.min()) / np.ptp(source))
    keep = torch.ones(3, 1, 36, 44, dtype=torch.bool)
    keep[..., 10:20, 12:26] = False
    edited = torch.where(keep, source + 0.05 * random(*source.shape, seed=1), 1 - source).clamp(0, 1)
    return edited, source, keep


# --- what was to stay ----------------------------------------------------------------------------


def test_kept_psnr_is_scikit_images_on_the_kept_pixels(clip):
    edited, source, keep = clip
    where = keep.expand_as(source)
    expected = peak_signal_noise_ratio(source[where].numpy(), edited[where].numpy(), data_range=1.0)
    assert metrics.psnr_kept(edited, source, keep) == pytest.approx(expected, abs=1e-4)


def test_the_other_convention_is_torchmetrics_on_masked_videos_and_flatters(clip):
    edited, source, keep = clip
    expected = float(torchmetrics_psnr(edited * keep, source * keep, data_range=1.0))
    found = metrics.psnr_maskmul(edited, source, keep)
    assert found == pytest.approx(expected, abs=1e-4)
    flattery = -10 * math.log10(keep.float().mean())
    assert found - metrics.psnr_kept(edited, source, keep) == pytest.approx(flattery, abs=1e-6)


def test_kept_psnr_without_difference_and_without_pixels(clip):
    edited, source, keep = clip
    assert metrics.psnr_kept(source, source, keep) == math.inf
    assert math.isnan(metrics.psnr_kept(edited, source, torch.zeros_like(keep)))


def test_kept_ssim_is_torchmetrics_over_whole_windows(clip):
    edited, source, keep = clip
    _, scores = structural_similarity_index_measure(
        edited.double(), source.double(), data_range=1.0, return_full_image=True
    )
    inner = ndimage.binary_erosion(keep.numpy(), np.ones((1, 1, 11, 11)))
    expected = scores.numpy()[np.broadcast_to(inner, source.shape)].mean()
    assert metrics.ssim_kept(edited, source, keep) == pytest.approx(expected, abs=1e-9)
    assert (metrics.erode(keep, 5).numpy() == inner).all()


def test_ssim_does_not_see_the_edit_through_the_rim(clip):
    _, source, keep = clip
    edited = torch.where(keep, source, 1 - source)
    assert metrics.ssim_kept(edited, source, keep) == pytest.approx(1, abs=1e-12)


def test_exclusivity_is_the_share_of_change_inside(clip):
    _, source, keep = clip
    source = 0.5 * source
    edited = source.clone()
    edited[0, :, 12, 14] += 0.3  # inside
    edited[1, :, 0, 0] += 0.1  # outside
    assert metrics.exclusivity(edited, source, ~keep) == pytest.approx(0.75, abs=1e-6)
    assert math.isnan(metrics.exclusivity(source, source, ~keep))


def test_recomposition_of_true_layers_is_exact():
    edit, source, alpha = random(2, 3, 8, 8), random(2, 3, 8, 8, seed=1), random(2, 1, 8, 8, seed=2)
    shown = alpha * edit + (1 - alpha) * source
    assert metrics.recomposition_error(edit, alpha, source, shown) == 0
    assert metrics.recomposition_error(edit, alpha, source, shown + 0.1) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("metric", [metrics.psnr_kept, metrics.ssim_kept, metrics.exclusivity])
def test_shapes_that_do_not_fit_are_refused(metric, clip):
    edited, source, keep = clip
    for wrong in ((edited[:2], source, keep), (edited, source, keep[:2]), (edited, source, keep.float())):
        with pytest.raises(ValueError):
            metric(*wrong)


# --- how steady it is ----------------------------------------------------------------------------


def test_flicker_as_vbench_counts_it():
    video = random(5, 3, 8, 8)
    frames = [(255 * frame).numpy() for frame in video]
    steps = [np.abs(b - a).mean() for a, b in zip(frames, frames[1:], strict=False)]
    assert metrics.flicker(video) == pytest.approx((255 - np.mean(steps)) / 255, abs=1e-6)


def texture(*size, seed=0, sigma=2.0):
    ground = ndimage.gaussian_filter(random(3, *size, seed=seed).numpy(), (0, sigma, sigma))
    return torch.from_numpy((ground - ground.min()) / np.ptp(ground))


def pan(frames=4, step=3, size=64):
    ground = texture(size, 2 * size)
    return torch.stack([ground[:, :, step * t : step * t + size] for t in range(frames)])


def test_warping_error_forgives_motion_and_sees_flicker():
    pytest.importorskip("cv2")
    video = pan()
    still = float(video.diff(dim=0).square().mean())
    assert metrics.warping_error(video) < 0.05 * still
    flickering = video * torch.tensor([1.0, 0.8, 1.0, 0.8]).view(-1, 1, 1, 1)
    expected = float((0.2 * video).square().mean())
    assert metrics.warping_error(flickering, motion=video) == pytest.approx(expected, rel=0.2)


def test_what_the_next_frame_hides_does_not_count():
    pytest.importorskip("cv2")
    video = texture(64, 64, sigma=1.5).repeat(4, 1, 1, 1)
    for t, frame in enumerate(video):
        frame[:, 20:44, 8 + 6 * t : 32 + 6 * t] = texture(24, 24, seed=1, sigma=1.5)
    # 0.21 of the plain difference; 0.36 if hidden pixels counted.
    assert metrics.warping_error(video) < 0.28 * float(video.diff(dim=0).square().mean())


def test_frames_are_warped_as_scipy_warps_them():
    image = random(3, 20, 30)
    flow = 4 * random(20, 30, 2, seed=1).double() - 2
    warped, inside = metrics._sample(image, flow)
    y, x = np.mgrid[:20, :30]
    at = [y + flow[..., 1].numpy(), x + flow[..., 0].numpy()]
    expected = np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in image.numpy()])
    assert np.abs(warped.numpy() - expected).max() < 1e-5
    assert (inside.numpy() == (at[0] >= 0) & (at[0] <= 19) & (at[1] >= 0) & (at[1] <= 29)).all()


def test_warping_error_refuses_what_has_no_flow():
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match="16"):
        metrics.warping_error(random(3, 3, 8, 8))
    assert math.isnan(metrics.warping_error(random(1, 3, 32, 32)))


# --- mattes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """A soft true matte, and a noisy one with a loose part."""
    truth = torch.from_numpy(
        ndimage.gaussian_filter((random(3, 1, 30, 40) > 0.5).float().numpy(), (1, 0, 3, 3))
    )
    truth = ((truth - 0.45) / 0.1).clamp(0, 1)
    alpha = (truth + 0.3 * random(3, 1, 30, 40, seed=1) - 0.1).clamp(0, 1)
    alpha[:, :, 2:5, 2:5] = 1
    return alpha, truth


def test_differences_of_mattes(pair):
    alpha, truth = (matte.double().numpy() for matte in pair)
    assert mattes.mad(*pair) == pytest.approx(1e3 * np.abs(alpha - truth).mean())
    assert mattes.mse(*pair) == pytest.approx(1e3 * ((alpha - truth) ** 2).mean())
    unknown = (pair[1] > 0) & (pair[1] < 1)
    for where in (None, unknown):
        kept = np.ones_like(truth) if where is None else where.numpy()
        expected = (np.abs(alpha - truth) * kept).sum((1, 2, 3)).mean() / 1000
        assert mattes.sad(*pair, where) == pytest.approx(expected)


@pytest.mark.parametrize("normalised", [False, True])
def test_gradient_error_with_scipys_filters(pair, normalised):
    half = 4  # of 9 taps, where the Gaussian of sigma 1.4 falls below 0.01
    x = np.arange(-half, half + 1)
    gauss = np.exp(-(x**2) / (2 * 1.4**2)) / (1.4 * np.sqrt(2 * np.pi))
    kernel = np.outer(gauss, -x * gauss / 1.4**2)
    kernel /= np.sqrt((kernel**2).sum())

    def gradient(frame):
        if normalised:
            frame = (frame - frame.min()) / np.ptp(frame)
        return np.hypot(*(ndimage.correlate(frame, k, mode="nearest") for k in (kernel, kernel.T)))

    frames = zip(*(matte[:, 0].double().numpy() for matte in pair), strict=True)
    expected = np.mean([((gradient(a) - gradient(t)) ** 2).sum() / 1000 for a, t in frames])
    assert mattes.gradient_error(*pair, normalised) == pytest.approx(expected, rel=1e-9)


def test_connectivity_error_with_scikit_images_components(pair):
    def error(alpha, truth):
        connected = np.ones_like(truth)
        for k in reversed(range(1, 11)):
            parts = label((alpha >= 0.1 * k) & (truth >= 0.1 * k), connectivity=1)
            sizes = np.bincount(parts.ravel())[1:]
            inside = parts == sizes.argmax() + 1 if sizes.size else np.zeros(parts.shape, bool)
            connected[~inside] = 0.1 * (k - 1)  # lower levels come later and win
        phi = [1 - np.where(m - connected >= 0.15, m - connected, 0) for m in (alpha, truth)]
        return np.abs(phi[0] - phi[1]).sum() / 1000

    frames = list(zip(*(matte[:, 0].double().numpy() for matte in pair), strict=True))
    assert mattes.connectivity_error(*pair) == pytest.approx(np.mean([error(*f) for f in frames]), rel=1e-6)


def test_a_loose_part_is_what_connectivity_counts():
    truth = torch.zeros(1, 1, 20, 20)
    truth[..., 2:12, 2:12] = 1
    loose = truth.clone()
    loose[..., 15:18, 15:18] = 1
    assert mattes.connectivity_error(loose, truth) == pytest.approx(9 / 1000)
    assert mattes.connectivity_error(truth, truth) == 0


def test_dtssd_sees_flicker_alone(pair):
    alpha, truth = pair
    steps = (alpha.double().diff(dim=0) - truth.double().diff(dim=0)).numpy()
    expected = 100 * sum(np.sqrt((step**2).mean()) for step in steps) / len(alpha)
    assert mattes.dtssd(*pair) == pytest.approx(expected)
    assert mattes.dtssd(0.5 * truth[:1].expand(3, -1, -1, -1), truth[:1].expand(3, -1, -1, -1)) == 0


def test_all_matte_scores_of_the_truth_are_zero(pair):
    assert set(mattes.matte_scores(pair[1], pair[1]).values()) == {0.0}
    assert all(score > 0 for score in mattes.matte_scores(*pair).values())
    with pytest.raises(ValueError):
        mattes.mad(pair[0][:1], pair[1])


# --- distances of distributions ------------------------------------------------------------------


def test_frechet_distance_is_scipys_with_a_matrix_root():
    x, y = random(40, 12).double(), 0.7 * random(55, 12, seed=1).double() + 0.2
    covariances = [np.cov(v.numpy(), rowvar=False) for v in (x, y)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = (x.mean(0) - y.mean(0)).square().sum()
    expected = float(gap) + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert distribution.frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_equal_sets_is_zero_even_with_few_clips():
    x = torch.randn(10, 400, generator=torch.Generator().manual_seed(0))
    assert distribution.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_few_clips_of_one_distribution_are_far_apart_by_fvd_and_not_by_kvd():
    generator = torch.Generator().manual_seed(0)
    few = [torch.randn(40, 200, generator=generator) for _ in range(2)]
    many = [torch.randn(1000, 200, generator=generator) for _ in range(2)]
    assert distribution.frechet_distance(*few) > 10 * distribution.frechet_distance(*many)
    assert abs(distribution.kernel_distance(*few)) < 0.05


def test_kernel_distance_is_torchmetrics():
    x, y = random(30, 8).double(), random(30, 8, seed=1).double() ** 2
    assert distribution.kernel_distance(x, y) == pytest.approx(float(poly_mmd(x, y)), abs=1e-12)
    with pytest.raises(ValueError):
        distribution.kernel_distance(x[:1], y)


def test_a_distance_comes_with_what_chance_alone_gives():
    generator = torch.Generator().manual_seed(0)
    x, same = (torch.randn(24, 16, generator=generator) for _ in range(2))
    with pytest.warns(UserWarning, match="24 and 24 clips"):
        alike = distribution.measure_distance(x, same, "noise", draws=60)
        apart = distribution.measure_distance(x, same + 1, "noise", draws=60)
    assert alike.value < alike.chance < apart.value
    assert apart.low <= apart.high and apart.clips == (24, 24)


def test_random_features_tell_videos_apart_and_are_the_same_every_time():
    videos = random(6, 5, 3, 16, 16)
    features = distribution.RandomFeatures()
    assert features(videos).shape == (6, 64)
    assert torch.equal(features(videos), distribution.RandomFeatures()(videos))
    dark = features(0.3 * videos)
    assert distribution.frechet_distance(features(videos), dark) > 1e-3


# --- what needs weights: the loading code, on small random networks ------------------------------


def test_lpips_says_that_it_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="cannot be measured"):
        learned.LPIPS()
    with pytest.raises(ValueError, match="alex, vgg, squeeze"):
        learned.LPIPS("resnet")


def test_lpips_reads_torchvisions_weights_from_the_cache(tmp_path, monkeypatch):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    trained = squeezenet1_1()
    file = tmp_path / "checkpoints" / SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(trained.state_dict(), file)
    lpips = learned.LPIPS("squeeze")
    assert lpips.name == "lpips[squeeze]"
    first = next(v for k, v in lpips.network.net.state_dict().items() if k.endswith("0.weight"))
    assert torch.equal(first, trained.state_dict()["features.0.weight"])


def test_lpips_of_a_region_is_zero_where_nothing_near_has_changed():
    lpips = learned.LPIPS("squeeze", random=True)
    assert lpips.name == "lpips[squeeze, random weights]"
    source = random(1, 3, 96, 96)
    edited = source.clone()
    edited[..., :24, :24] = 1 - edited[..., :24, :24]
    keep = torch.ones(1, 1, 96, 96, dtype=torch.bool)
    far = keep.clone()
    far[..., :60, :60] = False
    whole = lpips.kept(edited, source, keep, radius=0)
    assert lpips.kept(source, source, keep, radius=0) == 0
    assert whole > 4 * lpips.kept(edited, source, far, radius=8)
    # The plain LPIPS is the mean of each layer's own grid; ours is the mean of the enlarged grids.
    lpips.network.spatial = False
    assert whole == pytest.approx(float(lpips.network(edited, source, normalize=True)), rel=0.15)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=small | {"vocab_size": 8, "eos_token_id": 1, "bos_token_id": 0},
            vision_config=small | {"image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "dog": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="?", model_max_length=77
    )
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_transformers_own_logit(clip_folder):
    encoder = learned.FrameEncoder.from_pretrained(clip_folder)
    video = random(3, 3, 24, 20)
    inputs = encoder.processor(
        text=["a dog"], images=list(video), do_rescale=False, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        logits = encoder.model(**inputs).logits_per_image[:, 0] / encoder.model.logit_scale.exp()
    expected = float(100 * logits.clamp_min(0).mean())
    assert learned.clip_score(encoder, video, "a dog") == pytest.approx(expected, abs=1e-4)


def test_consistency_as_vbench_counts_it(clip_folder):
    features = learned.FrameEncoder.from_pretrained(clip_folder).frames(random(4, 3, 24, 20))
    cosine = torch.nn.functional.cosine_similarity
    total = 0.0
    for t in range(1, 4):
        before, first = (cosine(features[t], features[k], dim=0).clamp_min(0) for k in (t - 1, 0))
        total += float(before + first) / 2
    assert learned.consistency(features) == pytest.approx(total / 3, abs=1e-6)
    assert learned.consistency(torch.eye(3)) == 0
    assert learned.consistency(torch.ones(3, 4)) == pytest.approx(1)


def test_a_vision_network_gives_its_first_token(tmp_path):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.image_size, config.patch_size = 16, 8
    ViTModel(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    encoder = learned.FrameEncoder.from_pretrained(tmp_path)
    video = random(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder.model((video - 0.5) / 0.5).last_hidden_state[:, 0]
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert (encoder.frames(video) - expected).abs().max() < 1e-5


def test_videomae_reads_its_own_number_of_frames(tmp_path):
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    config = VideoMAEConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, num_frames=4,
    )  # fmt: skip
    VideoMAEModel(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(tmp_path)
    features = learned.VideoMAEFeatures.from_pretrained(tmp_path)
    videos = random(2, 7, 3, 16, 16)
    found = features(videos)
    assert found.shape == (2, 16) and features.name == str(tmp_path)
    shown = videos[:, [0, 2, 4, 6]]
    assert (features(shown) - found).abs().max() < 1e-6
    assert (features(shown.flip(1)) - found).abs().max() > 1e-4


@pytest.mark.parametrize(
    "kind",
    [learned.FrameEncoder, learned.VideoMAEFeatures, VisionLanguageModel],
    ids=lambda k: k.__name__,
)
def test_what_is_not_here_is_not_fetched(kind, monkeypatch):
    asked = []

    def ask(host, *_, **__):
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    build_hf_headers()  # huggingface_hub asks once by itself what programs there are
    asked.clear()
    with pytest.raises(UserError, match="download=True"):
        kind.from_pretrained("no-such-owner/no-such-model")
    assert not asked
