"""Fit the toy codec that ships in the package: `python scripts/fit_toy_codec.py` (about 5 s)."""

import torch

from vera_lite.codecs import PatchCodec
from vera_lite.media.files import replacing
from vera_lite.toy.world import render
from vera_lite.training.toy.layers import SHIPPED_CODEC

CLIPS, SEED = 1024, 100

batches = [render(SEED, range(i, i + 32)) for i in range(0, CLIPS, 32)]
layers = ("source", "edit", "alpha", "composite")
codec = PatchCodec(patch=4, temporal_stride=4, latent_channels=24)
codec.fit([torch.cat([getattr(b, name) for b in batches]) for name in layers])
with replacing(SHIPPED_CODEC) as path:
    codec.save(path)
print(f"wrote {SHIPPED_CODEC} ({SHIPPED_CODEC.stat().st_size / 1e3:.0f} kB)")
