"""Metrics that need trained weights: LPIPS, and what CLIP, DINO and VideoMAE see in a video.

Nothing is downloaded unless ``download=True``: without its weights each says in one sentence that it cannot
run. Videos are (T, 3, H, W) in [0, 1].
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from vera_lite.errors import UserError, check_tensor
from vera_lite.evaluation.metrics import erode


class LPIPS:
    """Perceptual distance (Zhang et al. 2018), version 0.1, as a map that can be averaged over a region.

    Tables name their network: most use "alex", VideoPainter "squeeze". The linear heads come with
    torchmetrics, the network's weights are torchvision's.

    Args:
        net: "alex", "vgg" or "squeeze".
        download: fetch the weights if they are not in torch's cache.
        random: leave the network untrained, for tests.

    Raises:
        UserError: the weights are not on this machine.
    """

    def __init__(self, net: str = "alex", download: bool = False, random: bool = False):
        import torchvision.models as networks
        from torchmetrics.functional.image.lpips import _LPIPS

        weights = {
            "alex": networks.AlexNet_Weights.IMAGENET1K_V1,
            "vgg": networks.VGG16_Weights.IMAGENET1K_V1,
            "squeeze": networks.SqueezeNet1_1_Weights.IMAGENET1K_V1,
        }
        if net not in weights:
            raise ValueError(f"net is one of {', '.join(weights)}, not {net!r}.")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights[net].url).name
        if not (cached.is_file() or download or random):
            raise UserError(
                f"LPIPS cannot be measured: {cached.name} of torchvision is not on this machine; pass "
                "download=True to fetch it."
            )
        self.network = _LPIPS(net=net, spatial=True, pnet_rand=random)
        self.name = f"lpips[{net}{', random weights' if random else ''}]"

    @torch.inference_mode()
    def map(self, edited: Tensor, source: Tensor) -> Tensor:
        """(T, 1, H, W), enlarged from the network's own grid."""
        check_tensor("the source", source, "T", 3, "H", "W")
        check_tensor("the edited video", edited, *source.shape)
        return self.network(edited.float(), source.float(), normalize=True)  # [0, 1] to [-1, 1]

    def kept(self, edited: Tensor, source: Tensor, keep: Tensor, radius: int = 16) -> float:
        """Mean over the kept region, eroded by ``radius`` pixels; nan if nothing is left.

        The network sees further than that, so a change still counts a little beyond its rim.
        """
        return float(self.map(edited, source)[erode(keep, radius)].mean())


class Encoder:
    """A network of transformers with its processor; ``name`` belongs beside every number."""

    def __init__(self, model, processor, name: str):
        self.model, self.processor, self.name = model.eval(), processor, name

    @classmethod
    def from_pretrained(cls, name: str | Path, download: bool = False) -> Self:
        """A local folder or a model of the Hub.

        Raises:
            UserError: it is not on this machine, and may not be fetched.
        """
        from transformers import AutoModel, AutoProcessor

        local = {"local_files_only": not download}
        try:
            # Auto classes look for an adapter first, and ask the network unless told twice.
            model = AutoModel.from_pretrained(name, use_safetensors=True, adapter_kwargs=local, **local)
            processor = AutoProcessor.from_pretrained(name, **local)
        except OSError as error:
            raise UserError(
                f"{str(name)!r} cannot be asked: its weights are not on this machine; pass download=True to "
                "fetch them."
            ) from error
        return cls(model, processor, str(name))


class FrameEncoder(Encoder):
    """One vector for each frame, and with CLIP one for a sentence. Any vision model will do whose first token
    stands for the image.

    VBench asks "facebook/dino-vitb16" about the subject, "openai/clip-vit-base-patch32" about the background.
    """

    @torch.inference_mode()
    def frames(self, video: Tensor) -> Tensor:
        """(T, D), of length 1."""
        check_tensor("the video", video, "T", 3, "H", "W")
        images = getattr(self.processor, "image_processor", self.processor)
        pixels = images(list(video), do_rescale=False, return_tensors="pt").pixel_values
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixels)
            found = getattr(found, "pooler_output", found)
        else:
            found = self.model(pixels).last_hidden_state[:, 0]
        return F.normalize(found, dim=-1)

    @torch.inference_mode()
    def sentence(self, text: str) -> Tensor:
        """(D,), of length 1; CLIP only."""
        tokens = self.processor.tokenizer(text, return_tensors="pt", truncation=True)
        found = self.model.get_text_features(**tokens)
        return F.normalize(getattr(found, "pooler_output", found)[0], dim=-1)


class VideoMAEFeatures(Encoder):
    """Mean token of a VideoMAE such as "MCG-NJU/videomae-base": the features of content-debiased FVD (Ge et
    al. 2024). Videos (B, T, 3, H, W) in [0, 1] -> (B, D); frames are spread evenly over each."""

    @torch.inference_mode()
    def __call__(self, videos: Tensor) -> Tensor:
        chosen = torch.linspace(0, videos.shape[1] - 1, self.model.config.num_frames).round().long()
        clips = [list(video[chosen]) for video in videos]
        pixels = self.processor(clips, do_rescale=False, return_tensors="pt").pixel_values
        return self.model(pixels).last_hidden_state.mean(1)


def clip_score(encoder: FrameEncoder, video: Tensor, text: str) -> float:
    """100 times the cosine between a frame and a sentence, not below 0, mean over frames."""
    return float(100 * (encoder.frames(video) @ encoder.sentence(text)).clamp_min(0).mean())


def consistency(features: Tensor) -> float:
    """VBench's consistency of a video from its frames' features (T, D): of the subject with DINO, of the
    background with CLIP.

    Mean over the frames after the first of (cosine to the frame before + cosine to the first frame) / 2, each
    not below 0. nan for one frame.
    """
    check_tensor("features", features, "T", "D")
    features = F.normalize(features.double(), dim=-1)
    later = features[1:]
    before = (later * features[:-1]).sum(-1).clamp_min(0)
    first = (later @ features[0]).clamp_min(0)
    return float(((before + first) / 2).mean())
