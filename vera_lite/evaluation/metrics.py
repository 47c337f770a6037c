"""Metrics of edited videos that need no model."""

from torch import Tensor, float64


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
