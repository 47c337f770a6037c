"""RVEDiT (arXiv 2605.24674): edit a video by instruction, without a text encoder.

A vision-language model (VLM) reads the source video v and the instruction l. Its editing tokens X_e are a
coarse summary of the edit; its native tokens X_v, X_l hold detail. *Granularity-routed token conditioning*:
the shallow blocks of the diffusion transformer see the coarse tokens alone (Eq. 3),

    C_i = X_e                      i <= L_s
    C_i = [X_e; X_v; X_l]          i >  L_s

The source video enters by addition, and fades with the noise (Kiwi-Edit's way, on which RVEDiT stands):

    h = P(x_sigma) + sigma * E(z_source)          E starts at zero

*Reference-anchored attention alignment*: in training, a second pass through the same weights, without
gradient, reads the result instead of the request: the edited video v* and its caption l*. At one random
depth the cross-attention outputs of both passes, A and A*, are pulled together position by position, by a
bound on their mutual information (Eq. 4-5):

    loss = flow matching - lambda * InfoNCE(A, A*)

paper                    here
X_e, X_v, X_l            :class:`vera_lite.conditioning.editing_tokens.Context`
L_s, lambda, tau         ``routed_layers``, ``alignment_weight``, ``temperature``
A                        output of ``transformer.blocks[i].attn2``, before it is added
InfoNCE                  :func:`vera_lite.diffusion.infonce.info_nce`
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from vera_lite.backbone import WAN_TI2V_5B, WanConfig, WanTransformer, load_weights, read_wan
from vera_lite.backbone.context import gather
from vera_lite.backbone.wan import PatchEmbedding
from vera_lite.conditioning.editing_tokens import Context, EditingTokens
from vera_lite.conditioning.readings import Readings
from vera_lite.conditioning.vision_language import VisionLanguageModel, frozen_vlm
from vera_lite.diffusion.draws import StepRandom
from vera_lite.diffusion.flow_matching import FlowMatching
from vera_lite.diffusion.infonce import info_nce
from vera_lite.errors import check_choices


@dataclass(frozen=True)
class RVEDiTConfig:
    """Size, and every choice that the paper leaves open or that an ablation changes.

    Attributes:
        backbone: Wan2.2-TI2V-5B in the paper. The paper says 34 blocks; the released Wan has 30, and the
            fractions in the paper's own sweep fit 30. ``text_dim`` must be None: contexts come from the VLM.
            With ``summed_text``, X_e is also summed into the time embedding; not in the paper.
        objective: see :class:`vera_lite.diffusion.flow_matching.FlowMatching`. Kiwi-Edit, on which RVEDiT
            stands, has shift 5 and weights timesteps by a bell around 500; ours weights them equally.
        vlm: folder or Hub name of the vision-language model; None is the toy model in the package. It is
            frozen, and not saved with the system.
        vlm_dim: width of its language tower.
        lora_rank: rank of the adapters on q, k, v and o of its language tower (LoRA, arXiv 2106.09685), 64
            in the paper; 0: none. They are trained and saved with the system: the paper says "adapted" and
            "update", but also "frozen" after a first stage.
        editing_tokens: K.
        text_tokens: longest instruction, in tokens.
        read: see :class:`~vera_lite.conditioning.editing_tokens.EditingTokens`.
        routed_layers: L_s, how many blocks see X_e alone: half of them in the paper ("17", of 34). All of
            them is its "without GRTC"; 0 gives every block all tokens, a control that the paper lacks.
        alignment_weight: lambda; 0 is "without RAAA". The paper prints 0.75 and 0.1, and in its own table
            0.25, 0.5 and 1 are worse than 0: start low.
        temperature: tau.
        reference_noise: "shared": the reference pass sees the same noisy latents, as we read Algorithm 1.
            Then the noise alone can identify positions. "own": it draws its own noise (ours, a control).
        changed_loss_weight: weight of a second loss term: flow matching, averaged where the edit changes
            pixels. 0 in the paper. Without pretraining, unchanged pixels would dominate the loss.
        source_fades: the source is weighted by sigma, as in Kiwi-Edit. Otherwise by 1 (ours), which a small
            model without pretraining learns faster.
    """

    backbone: WanConfig = field(default_factory=lambda: replace(WAN_TI2V_5B, text_dim=None))
    objective: FlowMatching = field(default_factory=FlowMatching)
    vlm: str | None = None
    vlm_dim: int = 2048
    lora_rank: int = 0
    editing_tokens: int = 512
    text_tokens: int = 64
    read: Literal["queries", "last"] = "queries"
    routed_layers: int = 15
    alignment_weight: float = 0.1
    temperature: float = 0.07
    reference_noise: Literal["shared", "own"] = "shared"
    changed_loss_weight: float = 0.0
    source_fades: bool = True

    def __post_init__(self):
        layers = self.backbone.num_layers
        if self.backbone.text_dim is not None:
            raise ValueError("RVEDiT has no text encoder: set text_dim of its backbone to null.")
        if not 0 <= self.routed_layers <= layers:
            raise ValueError(f"routed_layers lies in 0..{layers}, not {self.routed_layers}.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}.")
        check_choices(self)
        if self.alignment_weight < 0:
            raise ValueError(f"alignment_weight must not be negative, got {self.alignment_weight}.")


class RVEDiTBatch(TypedDict):
    """What :meth:`RVEDiT.training_losses` learns from."""

    #: source, target: latents of the video and of the edited video (B, C, t, h, w).
    source: Tensor
    target: Tensor
    #: source_video, target_video: their pixels (B, T, 3, H, W) in [0, 1], for the VLM.
    source_video: Tensor
    target_video: Tensor
    #: instruction, target_caption: what to do, and what the edited video shows; B strings each.
    instruction: Sequence[str]
    target_caption: Sequence[str]
    #: (B, 1, t, h, w), 1 where the edit changes pixels; for a ``changed_loss_weight``.
    changed: Tensor


class AdaptedVLM(VisionLanguageModel):
    """A frozen vision-language model with LoRA adapters. A copy has its own adapters and shares the rest."""

    def __deepcopy__(self, memo: dict) -> "AdaptedVLM":
        memo |= {id(p): p for name, p in self.model.named_parameters() if "lora_" not in name}
        return AdaptedVLM(copy.deepcopy(self.model, memo), self.processor, self.sample_frames)

    @classmethod
    def new(cls, frozen: VisionLanguageModel, rank: int) -> "AdaptedVLM":
        """A frozen model with fresh adapters. They change nothing yet, because B starts at zero."""
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds

        vlm = copy.deepcopy(cls(frozen.model, frozen.processor, frozen.sample_frames))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
        inject_adapter_in_model(config, vlm.model.model.language_model)
        return vlm

    def adapters(self) -> dict[str, nn.Linear]:
        """All A and B by their names in peft, with dashes for dots: "layers-0-self_attn-q_proj-lora_A"."""
        return {
            name.removesuffix(".default").replace(".", "-"): module
            for name, module in self.model.model.language_model.named_modules()
            if "lora_" in name and isinstance(module, nn.Linear)
        }


class RVEDiT(nn.Module):
    """RVEDiT's denoiser, its editing tokens, and its training loss."""

    #: Entries of :meth:`training_losses` that are logged and not minimised.
    logged_only = ("positive_rank",)
    #: Folder that keeps what the frozen VLM read; None keeps nothing.
    readings: Readings | None = None

    def __init__(self, config: RVEDiTConfig):
        super().__init__()
        self.config = config
        self.transformer = WanTransformer(config.backbone)
        self.tokens = EditingTokens(
            config.vlm_dim, config.backbone.dim, config.editing_tokens, config.text_tokens, config.read
        )
        self.source_embedding = PatchEmbedding(config.backbone, zero=True)  # E
        #: Of a compiled system: outputs of all cross-attentions in the current pass.
        self.attended: list[Tensor] | None = None
        self._adapted: AdaptedVLM | None = None
        if config.lora_rank:
            with torch.device("cpu"):  # the rest may be built on the meta device; a VLM is loaded
                self.adapt(AdaptedVLM.new(frozen_vlm(config.vlm), config.lora_rank))

    def adapt(self, vlm: AdaptedVLM) -> None:
        """Read with this model, and train its adapters.

        The VLM is not a submodule, so checkpoints do not contain it. Its adapters are submodules, the same
        objects as inside the VLM. They are float32 even in a half-precision VLM, where small steps would be
        rounded away.
        """
        self._adapted = vlm
        self.adapters = nn.ModuleDict({n: m.float() for n, m in vlm.adapters().items()})

    @classmethod
    def from_wan(cls, folder: str | Path, **changes) -> "RVEDiT":
        """Start from the Wan transformer that diffusers saved in a folder, without its text embedding.

        ``changes`` are fields of :class:`RVEDiTConfig` other than ``backbone``.
        """
        backbone, tensors = read_wan(folder)
        system = cls(RVEDiTConfig(backbone=replace(backbone, text_dim=None), **changes))
        text = "condition_embedder.text_embedder."
        load_weights(system.transformer, {n: v for n, v in tensors.items() if not n.startswith(text)})
        return system

    def compile(self, *args, **kwargs) -> None:
        """``nn.Module.compile``. Compiled code must not depend on the aligned depth, so here every
        cross-attention keeps its output."""
        if self.config.alignment_weight and self.attended is None:
            attended: list[Tensor] = []
            self.attended = attended
            for block in self.transformer.blocks:
                block.attn2.register_forward_hook(lambda _m, _i, output: attended.append(output))
        super().compile(*args, **kwargs)

    @property
    def vlm(self) -> VisionLanguageModel:
        """The vision-language model with this system's adapters, if it has any, on this system's device."""
        vlm = self._adapted or frozen_vlm(self.config.vlm)
        vlm.model.to(self.tokens.queries.device)
        return vlm

    def context(self, videos: Sequence[Tensor], texts: Sequence[str], fps: float = 8.0) -> Context:
        """Let the VLM read videos (T, 3, H, W) in [0, 1] of ``fps`` frames per second and one text for each.

        Raises:
            UserError: as :meth:`EditingTokens.prompt` and its reading.
        """
        vlm, videos = self.vlm, list(videos)
        if self.readings is not None:
            if self._adapted is not None:
                raise ValueError("readings are for a frozen VLM, not for one with adapters.")
            return self.tokens(vlm, *self.tokens.remembered(self.readings, vlm, videos, texts, fps))
        prompt = self.tokens.prompt(vlm, videos, texts, fps)
        return self.tokens(vlm, {name: v.to(self.tokens.queries.device) for name, v in prompt.items()})

    def contexts(self, context: Context) -> list[Tensor]:
        """C_i of each block (Eq. 3): (B, K, D) or (B, K + V + W, D)."""
        shallow, deep = context.editing, torch.cat(context, 1)
        routed = self.config.routed_layers
        return [shallow] * routed + [deep] * (self.config.backbone.num_layers - routed)

    def forward(self, latents: Tensor, timestep: Tensor, source: Tensor, context: Context) -> Tensor:
        """
        Args:
            latents: noisy latents of the edited video (B, C, t, h, w).
            timestep: (B,), 1000 * sigma.
            source: clean latents of the source (B, C, t, h, w).
            context: see :meth:`context`.

        Returns:
            Prediction (B, C, t, h, w).
        """
        added = self.source_embedding(source)
        if self.config.source_fades:
            added = (timestep / 1000).view(-1, 1, 1) * added
        summed = context.editing if self.config.backbone.summed_text else None
        return self.transformer(latents, timestep, self.contexts(context), added, summed)

    def training_losses(self, batch: RVEDiTBatch, sigma: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """Flow matching and alignment of each clip, at noise levels sigma (B,).

        Returns:
            ``target`` (B,). With a ``changed_loss_weight``, ``changed`` (B,). With an ``alignment_weight``,
            ``alignment`` (B,), -lambda times the bound, which starts near lambda * ln S; and
            ``positive_rank`` (B,), the mean rank of a position's own counterpart among all S positions, by
            chance (S + 1) / 2.
        """
        objective, weight = self.config.objective, self.config.alignment_weight
        x_0 = batch["target"]
        noise = random.noise(x_0)
        x_sigma, timestep = objective.add_noise(x_0, noise, sigma), 1000 * sigma
        depth = random.shared_integer(self.config.backbone.num_layers) if weight else None

        context = self.context(batch["source_video"], batch["instruction"])
        with _keep_cross_attention(self, depth) as ours:
            output = self(x_sigma, timestep, batch["source"], context)
        losses = {"target": objective.loss(output, x_0, noise, sigma)}
        if self.config.changed_loss_weight:
            inside = objective.loss_where(batch["changed"], output, x_0, noise, sigma)
            losses["changed"] = self.config.changed_loss_weight * inside
        if weight:
            with torch.no_grad(), _keep_cross_attention(self, depth) as theirs:
                reference = self.context(batch["target_video"], batch["target_caption"])
                if self.config.reference_noise == "own":  # the second of two independent draws
                    x_sigma = objective.add_noise(x_0, random.noise(torch.stack([x_0, x_0]))[1], sigma)
                self(x_sigma, timestep, x_0, reference)
            S, group = math.prod(self.config.backbone.grid(x_0.shape)), self.transformer.context_group
            ours, theirs = gather(ours[0], S, group), gather(theirs[0], S, group)
            bound, rank = info_nce(ours, theirs, self.config.temperature)
            losses |= {"alignment": -weight * bound, "positive_rank": rank.float().mean(1)}
        return losses


@contextmanager
def _keep_cross_attention(system: RVEDiT, depth: int | None) -> Iterator[list[Tensor]]:
    """A list that receives the output A (B, S, D) of one block's cross-attention; of none for depth None."""
    kept: list[Tensor] = []
    hook = None
    if depth is not None and system.attended is None:
        attention = system.transformer.blocks[depth].attn2
        hook = attention.register_forward_hook(lambda _m, _i, output: kept.append(output))
    try:
        yield kept
    finally:
        if hook is not None:
            hook.remove()
        if system.attended:
            kept += system.attended[depth : depth + 1] if depth is not None else []
            system.attended.clear()
