"""A small network that finds people, with the weights of MediaPipe's selfie segmentation.

MobileNetV3's small encoder with an LR-ASPP head (Howard et al., arXiv 1905.02244) and three decoder steps,
each of which reweights the channels of a skip connection. 106,401 weights, Apache-2.0, copyright Google;
``scripts/extract_person_net.py`` takes them out of the original file.
"""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vera_lite.errors import check_tensor

WEIGHTS = Path(__file__).parents[1] / "assets" / "person_net" / "person_net.safetensors"
#: (H, W) of the frames that the network was trained on.
SIZE = (144, 256)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd pixel goes to the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        def pads(side: int) -> tuple[int, int]:
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            return total // 2, total - total // 2

        return super().forward(F.pad(input, (*pads(input.shape[3]), *pads(input.shape[2]))))


class Gate(nn.Module):
    """Squeeze and excitation: one factor in (0, 1) per channel, read from the mean over the picture."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.squeeze, self.excite = SameConv(channels, hidden), SameConv(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Bottleneck(nn.Module):
    """MobileNetV3's block: widen, filter each channel by itself, reweight, narrow."""

    def __init__(self, inputs, width, outputs, kernel=3, stride=1, gate=0, activation=F.relu):
        super().__init__()
        self.expand = SameConv(inputs, width)
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.gate = Gate(width, gate) if gate else None
        self.project = SameConv(width, outputs)
        self.activation, self.residual = activation, inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.depthwise(self.activation(self.expand(x))))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


class UpStep(nn.Module):
    """One decoder step: double the size, and add a skip connection whose channels are reweighted."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.narrow, self.gate = SameConv(inputs, outputs), Gate(outputs, outputs)
        self.mix = SameConv(outputs, outputs)
        self.depthwise = SameConv(outputs, outputs, 3, groups=outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.narrow(F.interpolate(x, scale_factor=2, mode="bilinear"))
        x = self.mix(skip * self.gate(skip + x) + x).relu()
        return x + self.depthwise(x).relu()


class PersonNet(nn.Module):
    """Frames (B, 3, 144, 256) in [0, 1], RGB -> how surely each pixel is a person, (B, 1, 144, 256) in [0, 1].

    Convolutions are defined in the order in which the original graph runs them.
    """

    def __init__(self):
        super().__init__()
        self.stem = SameConv(3, 16, 3, stride=2)
        self.fine = Bottleneck(16, 16, 16, stride=2, gate=8)
        self.coarse = nn.Sequential(Bottleneck(16, 72, 24, stride=2), Bottleneck(24, 88, 24))
        widths = ((24, 96, 2), (32, 128, 1), (32, 128, 1), (32, 96, 1), (32, 96, 1))
        self.deep = nn.Sequential(
            *(Bottleneck(n, width, 32, 5, stride, width // 4, F.hardswish) for n, width, stride in widths)
        )
        self.head, self.head_gate = SameConv(32, 128), SameConv(32, 128)
        self.up = nn.ModuleList([UpStep(128, 24), UpStep(24, 16), UpStep(16, 16)])
        self.out = nn.ConvTranspose2d(16, 1, 2, stride=2)

    def forward(self, frames: Tensor) -> Tensor:
        stem = F.hardswish(self.stem(frames))
        fine = self.fine(stem)
        coarse = self.coarse(fine)
        x = self.deep(coarse)
        x = self.head(x).relu() * self.head_gate(x.mean((2, 3), keepdim=True)).sigmoid()
        for step, skip in zip(self.up, (coarse, fine, stem), strict=True):
            x = step(x, skip)
        return self.out(x).sigmoid()


@functools.cache
def person_net() -> PersonNet:
    """The network with its shipped weights, in float32 on the CPU."""
    net = PersonNet()
    net.load_state_dict({name: w.float() for name, w in load_file(WEIGHTS).items()})
    return net.eval().requires_grad_(False)


@torch.inference_mode()
def person_probability(video: Tensor) -> Tensor:
    """How surely each pixel of a video is a person.

    Args:
        video: (T, 3, H, W) in [0, 1].

    Returns:
        (T, 1, H, W) in [0, 1], as sharp as the network's 144x256 pixels.
    """
    check_tensor("the video", video, "T", 3, "H", "W")
    net, size = person_net(), video.shape[-2:]
    small = (F.interpolate(f[None], SIZE, mode="bilinear", antialias=True) for f in video.float())
    found = (F.interpolate(net(f), size, mode="bilinear", antialias=True) for f in small)
    return torch.cat(list(found)).clamp(0, 1)
