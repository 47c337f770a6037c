"""Metrics of edited videos that need no model."""

from torch import Tensor, float64


class PooledPSNR:
    """PSNR in dB of the mean squared error pooled over clips, for videos in [0, 1].

    Pooling is the stricter mean: one clip that leaks is not outweighed by others that are exact (a
    mean of decibels would reward those without bound).
    """

    def __init__(self):
        from torchmetrics.image import PeakSignalNoiseRatio  # slow to import

        self.psnr = PeakSignalNoiseRatio(data_range=1.0).set_dtype(float64)

    def add(self, a: Tensor, b: Tensor, where: Tensor) -> None:
        """Videos (..., 3, H, W), counted where the boolean (..., 1, H, W) holds."""
        where = where.expand_as(a)
        self.psnr.update(a[where].double(), b[where].double())

    def value(self) -> float:
        """The PSNR; infinite if all pixels are equal, nan if there were none."""
        return float(self.psnr.compute())


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boolean tensors; 1 if both are empty."""
    union = (a | b).sum()
    return 1.0 if union == 0 else float((a & b).sum() / union)
