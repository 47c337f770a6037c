"""CPU time of every metric against the library that tests it, on the same clip.

Rows without a goal do more than their peer.
"""

import numpy as np
import torch
from _harness import Report, cpu_seconds, main
from scipy import linalg, ndimage
from skimage.measure import label
from skimage.metrics import peak_signal_noise_ratio
from torch.nn.functional import l1_loss
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error
from torchmetrics.image.kid import poly_mmd

from vera_lite.evaluation import distribution, learned, mattes, metrics

FRAMES, SIDE, CLIPS, FEATURES = 16, 128, 128, 400


def videos():
    """A source, an edit of it, and what was to be kept."""
    source = torch.from_numpy(ndimage.gaussian_filter(torch.rand(FRAMES, 3, SIDE, SIDE), (0, 0, 2, 2)))
    keep = torch.ones(FRAMES, 1, SIDE, SIDE, dtype=torch.bool)
    keep[..., 30:80, 40:90] = False
    edited = torch.where(keep, source + 0.02 * torch.rand_like(source), 1 - source).clamp(0, 1)
    return edited, source, keep


def gradients(kernel: np.ndarray, matte: np.ndarray) -> np.ndarray:
    return np.hypot(*(ndimage.correlate(matte, k, mode="nearest") for k in (kernel, kernel.T)))


def gradient_kernel() -> np.ndarray:
    x = np.arange(-4, 5)
    gauss = np.exp(-(x**2) / (2 * 1.4**2))
    kernel = np.outer(gauss, -x * gauss)
    return kernel / np.sqrt((kernel**2).sum())


def connectivity(alpha: np.ndarray, truth: np.ndarray) -> float:
    """The definition with scikit-image's components."""
    connected = np.ones_like(truth)
    for k in reversed(range(1, 11)):
        parts = label((alpha >= 0.1 * k) & (truth >= 0.1 * k), connectivity=1)
        sizes = np.bincount(parts.ravel())[1:]
        inside = parts == sizes.argmax() + 1 if sizes.size else np.zeros(parts.shape, bool)
        connected[~inside] = 0.1 * (k - 1)
    phi = [1 - np.where(m - connected >= 0.15, m - connected, 0) for m in (alpha, truth)]
    return np.abs(phi[0] - phi[1]).sum() / 1000


def scipy_frechet(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return gap + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)


def measure(report: Report, rounds: int) -> None:
    edited, source, keep = videos()
    where = keep.expand_as(source)
    a, b = edited.double(), source.double()
    truth = ((source[:, :1] - 0.45) / 0.1).clamp(0, 1)
    alpha = (truth + 0.1 * torch.rand_like(truth) - 0.05).clamp(0, 1)
    frames = list(zip(alpha[:, 0].double().numpy(), truth[:, 0].double().numpy(), strict=True))
    kernel = gradient_kernel()
    x, y = torch.randn(CLIPS, FEATURES).double(), 1.1 * torch.randn(CLIPS, FEATURES).double()
    lpips = learned.LPIPS("squeeze", random=True)
    size = f"{FRAMES} frames of {SIDE} x {SIDE}"

    def pairs(case, ours, peer_name, peer, goal="<= 1.10"):
        seconds = cpu_seconds({"ours": ours, peer_name: peer}, rounds)
        report.add_times(case, seconds, "ours", peer_name, goal)

    pairs(
        f"psnr_kept, {size}",
        lambda: metrics.psnr_kept(edited, source, keep),
        "scikit-image",
        lambda: peak_signal_noise_ratio(b[where].numpy(), a[where].numpy(), data_range=1.0),
    )
    pairs(
        f"psnr_maskmul, {size}",
        lambda: metrics.psnr_maskmul(edited, source, keep),
        "torchmetrics",
        lambda: torchmetrics_psnr(a * keep, b * keep, data_range=1.0),
    )
    pairs(
        f"ssim_kept, {size}",
        lambda: metrics.ssim_kept(edited, source, keep),
        "torchmetrics, float64",
        lambda: structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True),
    )
    pairs(
        f"flicker, {size}",
        lambda: metrics.flicker(source),
        "torch l1_loss",
        lambda: l1_loss(source[1:].double(), source[:-1].double()),
    )
    pairs(
        f"mad, {size}",
        lambda: mattes.mad(alpha, truth),
        "torchmetrics",
        lambda: mean_absolute_error(alpha.double().flatten(), truth.double().flatten()),
    )
    pairs(
        f"mse, {size}",
        lambda: mattes.mse(alpha, truth),
        "torchmetrics",
        lambda: mean_squared_error(alpha.double().flatten(), truth.double().flatten()),
    )
    pairs(
        f"gradient_error, {size}",
        lambda: mattes.gradient_error(alpha, truth),
        "scipy.ndimage",
        lambda: [((gradients(kernel, p) - gradients(kernel, q)) ** 2).sum() for p, q in frames],
    )
    pairs(
        f"connectivity_error, {size}",
        lambda: mattes.connectivity_error(alpha, truth),
        "scikit-image",
        lambda: [connectivity(p, q) for p, q in frames],
    )
    pairs(
        f"dtssd, {size}",
        lambda: mattes.dtssd(alpha, truth),
        "torchmetrics",
        lambda: [
            mean_squared_error(p.flatten(), q.flatten())
            for p, q in zip(alpha.double().diff(dim=0), truth.double().diff(dim=0), strict=True)
        ],
    )
    flow = 4 * torch.rand(SIDE, SIDE, 2).double() - 2
    rows, columns = np.mgrid[:SIDE, :SIDE]
    at = [rows + flow[..., 1].numpy(), columns + flow[..., 0].numpy()]
    pairs(
        f"warping_error: a frame of {SIDE} x {SIDE} along its flow",
        lambda: metrics._sample(a[0], flow),
        "scipy.ndimage",
        lambda: [ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in a[0].numpy()],
    )
    features = f"{CLIPS} + {CLIPS} clips, {FEATURES} features"
    pairs(
        f"frechet_distance, {features}",
        lambda: distribution.frechet_distance(x, y),
        "scipy.linalg.sqrtm",
        lambda: scipy_frechet(x.numpy(), y.numpy()),
    )
    pairs(
        f"kernel_distance, {features}",
        lambda: distribution.kernel_distance(x, y),
        "torchmetrics",
        lambda: poly_mmd(x, y),
    )
    plain = learned.LPIPS("squeeze", random=True).network
    plain.spatial = False
    with torch.inference_mode():
        pairs(
            f"LPIPS of a region, 4 frames of {SIDE} x {SIDE}",
            lambda: lpips.kept(edited[:4], source[:4], keep[:4]),
            "torchmetrics, no map",
            lambda: plain(edited[:4], source[:4], normalize=True),
            goal=None,
        )


if __name__ == "__main__":
    main("metrics", measure, rounds=9)
