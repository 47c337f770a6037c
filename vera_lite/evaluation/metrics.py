"""Metrics of edited videos that need no trained weights.

A video is (T, 3, H, W) in [0, 1]. ``keep`` and ``region`` are boolean (T, 1, H, W). Everything is computed in
float64. Published numbers differ by convention, so every function says which one it follows.
"""

import numpy as np
import torch
from torch import Tensor, float64
from torch.nn import functional as F

from vera_lite.errors import UserError, check_tensor
from vera_lite.media.clip import composite

#: Half of SSIM's 11 x 11 window.
SSIM_RADIUS = 5


class PooledPSNR:
    """PSNR in dB of the mean squared error over all clips, for videos in [0, 1].

    This is stricter than a mean of decibels, where exact clips, with their unlimited PSNR, outweigh one clip
    with errors.
    """

    def __init__(self):
        from torchmetrics.image import PeakSignalNoiseRatio  # slow to import

        self.psnr = PeakSignalNoiseRatio(data_range=1.0).set_dtype(float64)

    def add(self, a: Tensor, b: Tensor, where: Tensor) -> None:
        """Add videos (..., 3, H, W), where the boolean (..., 1, H, W) is True."""
        where = where.expand_as(a)
        self.psnr.update(a[where].double(), b[where].double())

    def value(self) -> float:
        """The PSNR; infinite if all pixels are equal, nan if there were none."""
        return float(self.psnr.compute())


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boolean tensors; 1 if both are empty."""
    union = (a | b).sum()
    return 1.0 if union == 0 else float((a & b).sum() / union)


# --- what was to stay ----------------------------------------------------------------------------


def psnr_kept(edited: Tensor, source: Tensor, keep: Tensor) -> float:
    """PSNR in dB over the kept pixels alone: their squared error over their number.

    Infinite if all of them are equal, nan if there are none.
    """
    _check(edited, source, keep)
    error = _squared_error(edited, source, keep) / (3 * keep.sum())
    return float(-10 * error.log10())


def psnr_maskmul(edited: Tensor, source: Tensor, keep: Tensor) -> float:
    """PSNR as VideoPainter and VPBench print it: both videos are multiplied by the mask and all pixels count.

    Pixels outside count as perfect, so it is :func:`psnr_kept` plus -10 log10(kept share of the frame): 3 dB
    more where half is kept. Only for comparison with their tables.
    """
    _check(edited, source, keep)
    return float(-10 * (_squared_error(edited, source, keep) / edited.numel()).log10())


def ssim_kept(edited: Tensor, source: Tensor, keep: Tensor) -> float:
    """Mean SSIM over the pixels whose whole window lies in the frame and in the kept region; nan if none.

    Windows are Gaussian, 11 x 11, sigma 1.5, with biased variances (Wang et al. 2004). A window at the rim of
    the region would see edited pixels.
    """
    from skimage.metrics import structural_similarity

    _check(edited, source, keep)
    pairs = zip(edited.double().numpy(), source.double().numpy(), strict=True)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    maps = [structural_similarity(a, b, channel_axis=0, full=True, **options)[1] for a, b in pairs]
    scores = torch.from_numpy(np.stack(maps))
    return float(scores[erode(keep, SSIM_RADIUS).expand_as(scores)].mean())


def erode(keep: Tensor, radius: int) -> Tensor:
    """The pixels of a boolean (T, 1, H, W) whose square neighbourhood is all kept; outside the frame nothing
    is."""
    outside = F.pad((~keep).float(), (radius,) * 4, value=1.0)
    return F.max_pool2d(outside, 2 * radius + 1, stride=1) == 0


def exclusivity(edited: Tensor, source: Tensor, region: Tensor) -> float:
    """Share of all change that lies in the region that was asked for, in [0, 1]; nan if nothing changed.

    Change is the sum of absolute differences. The question is VEFX-Bench's "edit exclusivity"
    (arXiv 2604.16272), which is rated there and measured here.
    """
    _check(edited, source, region)
    change = (edited.double() - source.double()).abs().sum(1, keepdim=True)
    return float((change * region).sum() / change.sum())


def recomposition_error(edit: Tensor, alpha: Tensor, source: Tensor, shown: Tensor) -> float:
    """Mean absolute error between ``alpha * edit + (1 - alpha) * source`` and the composite ``shown``.

    0 if the layers are the whole truth about the composite. ``alpha`` is (T, 1, H, W) in [0, 1].
    """
    return float((composite(edit, alpha, source).double() - shown.double()).abs().mean())


# --- how steady it is ----------------------------------------------------------------------------


def flicker(video: Tensor) -> float:
    """VBench's temporal flickering: 1 - mean |x[t+1] - x[t]|, in [0, 1], higher is steadier.

    It is meant for static scenes: a pan lowers it. nan for one frame.
    """
    check_tensor("the video", video, "T", 3, "H", "W")
    return float(1 - video.double().diff(dim=0).abs().mean())


def warping_error(video: Tensor, motion: Tensor | None = None) -> float:
    """Mean squared error between each frame and the next one, warped back along optical flow (Lai et al.
    2018), over pixels that are seen in both. nan if there are none.

    Flow is OpenCV's DIS, preset "medium", at full size. A pixel is seen in both frames if forward and
    backward flow cancel: ``|f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5`` (Sundaram et al. 2010).

    Args:
        video: whose frames are compared.
        motion: the video that the flow is read from, such as the source; None: ``video``.

    Raises:
        UserError: OpenCV is not installed.
        ValueError: the videos' shapes differ, or a side is too small for the flow (below 16 pixels).
    """
    cv2 = _opencv()
    motion = video if motion is None else motion
    check_tensor("the video", video, *motion.shape)
    if min(video.shape[-2:]) < 16:
        raise ValueError(f"optical flow needs frames of 16 x 16 pixels or more, not {tuple(video.shape)}.")
    grey = (motion.double().mean(1) * 255).round().byte().numpy()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    total, count = 0.0, 0
    for t in range(len(video) - 1):
        there = torch.from_numpy(dis.calc(grey[t], grey[t + 1], None)).double()  # (H, W, [x, y])
        back = torch.from_numpy(dis.calc(grey[t + 1], grey[t], None)).double()
        back_at, inside = _sample(back.permute(2, 0, 1), there)
        gap = (there + back_at.permute(1, 2, 0)).square().sum(-1)
        size = there.square().sum(-1) + back_at.square().sum(0)
        seen = inside & (gap <= 0.01 * size + 0.5)
        warped, _ = _sample(video[t + 1].double(), there)
        total += float((warped - video[t].double()).square().mean(0)[seen].sum())
        count += int(seen.sum())
    return total / count if count else float("nan")


def _sample(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """An image (C, H, W) read at each pixel plus its flow (H, W, 2), bilinearly; and where that is inside."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = flow + torch.stack([x, y], -1)
    limit = torch.tensor([width - 1, height - 1])
    inside = ((at >= 0) & (at <= limit)).all(-1)
    grid = (2 * at / limit - 1).to(image)[None]
    sampled = F.grid_sample(image[None], grid, padding_mode="border", align_corners=True)
    return sampled[0], inside


def _opencv():
    try:
        import cv2
    except ImportError as error:
        raise UserError("optical flow needs OpenCV: pip install 'vera-lite[dataset]'.") from error
    return cv2


def _squared_error(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    return (a.double() - b.double()).square_().mul_(where).sum()


def _check(edited: Tensor, source: Tensor, mask: Tensor) -> None:
    check_tensor("the source", source, "T", 3, "H", "W")
    check_tensor("the edited video", edited, *source.shape)
    if mask.dtype != torch.bool or mask.shape != source[:, :1].shape:
        raise ValueError(f"the mask is {mask.dtype} {tuple(mask.shape)}; it must be boolean (T, 1, H, W).")
