"""Fit the toy codecs that ship in the package: `python scripts/fit_toy_codec.py [--only shapes|scenes]`.

It takes about 20 seconds, and prints the PSNR of each layer of 128 unseen clips through the codec and back.
"""

import argparse

import torch

from vera_lite.codecs import PatchCodec
from vera_lite.evaluation.metrics import PooledPSNR
from vera_lite.media.clip import composite
from vera_lite.media.files import replacing
from vera_lite.toy.scenes import render_scenes
from vera_lite.toy.world import ToyBatch, render
from vera_lite.training.toy.layers import SCENE_CODEC, SHIPPED_CODEC

CLIPS, SEED, TEST_SEED, TEST_CLIPS = 1024, 100, 101, 128
LAYERS = ("source", "edit", "alpha", "composite")


def layers(renderer, seed: int, clips: int) -> dict[str, torch.Tensor]:
    """Videos (clips, 9, 3 or 1, 32, 32) of each layer; "cut out" is the edit on white, as in compositions."""
    batches: list[ToyBatch] = [renderer(seed, range(i, i + 32)) for i in range(0, clips, 32)]
    videos = {name: torch.cat([getattr(b, name) for b in batches]) for name in (*LAYERS, "mask")}
    white = torch.ones_like(videos["edit"])
    return videos | {"cut out": composite(videos["edit"], videos["alpha"], white)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("shapes", "scenes"))
    only = parser.parse_args().only
    for name, renderer, channels, path, fitted in (
        ("shapes", render, 24, SHIPPED_CODEC, LAYERS),
        ("scenes", render_scenes, 48, SCENE_CODEC, (*LAYERS, "cut out")),
    ):
        if only not in (None, name):
            continue
        codec = PatchCodec(patch=4, temporal_stride=4, latent_channels=channels)
        videos = layers(renderer, SEED, CLIPS)
        codec.fit([videos[layer] for layer in fitted])
        with replacing(path) as temporary:
            codec.save(temporary)
        print(f"wrote {path} ({path.stat().st_size / 1e3:.0f} kB)")
        videos = layers(renderer, TEST_SEED, TEST_CLIPS)
        inside = videos.pop("mask") > 0.5
        for layer, video in videos.items():
            truth, back = video.expand(-1, -1, 3, -1, -1), codec.decode(codec.encode(video))
            whole, object_ = PooledPSNR(), PooledPSNR()
            whole.add(back, truth, torch.ones_like(inside))
            object_.add(back, truth, inside)
            print(f"  {layer:10} {whole.value():5.1f} dB, inside objects {object_.value():5.1f} dB")


if __name__ == "__main__":
    main()
