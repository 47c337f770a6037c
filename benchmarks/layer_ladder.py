"""Do early layers of the toy Qwen3-VL look at the named thing, and late ones everywhere?

python benchmarks/layer_ladder.py                                   the shipped model alone
python benchmarks/layer_ladder.py MODEL MODEL ... --json OUT        several seeds (half a minute each)

MiVE (arXiv 2605.14664, Table 1) says so of Qwen3-VL-8B. Each model is scored on unseen clips, beside the
same network before training. Numbers are means over clips with 95 % bootstrap intervals; the second object
and the background are not in the mask.
"""

import argparse
import json
from pathlib import Path

import torch
from _harness import report_head

from vera_lite.conditioning.vision_language import VisionLanguageModel
from vera_lite.diagnostics import attention_over_clips, lift, mask_ratio
from vera_lite.evaluation.statistics import bootstrap, shuffled_baseline, trend
from vera_lite.evaluation.toy.dialogue_benchmark import TEST_SEED
from vera_lite.media.files import replacing
from vera_lite.toy.dialogues import ask
from vera_lite.toy.world import render
from vera_lite.training.toy.dialogues import DIALOGUE_WORLD

CLIPS = 128


def interval(values: torch.Tensor) -> dict:
    """Mean over clips and band of values (clips, ...)."""
    band = bootstrap(values)
    return {name: getattr(band, name).tolist() for name in ("mean", "low", "high")}


def score(vlm: VisionLanguageModel) -> dict:
    """Curves by layer and what they amount to, in each reading."""
    asked = ask(render(TEST_SEED, range(CLIPS), DIALOGUE_WORLD), "locate", TEST_SEED, range(CLIPS))
    ladder = attention_over_clips(vlm, ((d.clip, d.mask, d.question, 8.0) for d in asked))
    pairs = list(zip(ladder.attention, ladder.coverage, strict=True))
    readings = {"softmax attention": ladder.heat}
    readings |= {f"hidden similarity, {name}": maps for name, maps in ladder.similarity.items()}
    report = {
        "uniform": interval(ladder.coverage.mean(1)),
        "residual": ladder.residual.max().item(),
        # Every head by itself, before any averaging: (clips, layers, heads).
        "heads": interval(torch.stack([mask_ratio(maps, mask) for maps, mask in pairs])),
        "readings": {},
    }
    for name, maps in readings.items():
        ratio = torch.stack([mask_ratio(m, c) for m, c in zip(maps, ladder.coverage, strict=True)])
        report["readings"][name] = {
            "mask_ratio": interval(ratio),
            "lift": interval(torch.stack([lift(m, c) for m, c in zip(maps, ladder.coverage, strict=True)])),
            "shuffled_masks": shuffled_baseline(maps, ladder.coverage).mean.tolist(),
            "early_minus_late": interval(trend(ratio).early_minus_late),
            # Of the mean curve: a single clip's may be flat, and has none then.
            "rank_correlation_with_depth": trend(ratio.mean(0)).correlation.item(),
        }
    return report


def untrained(vlm: VisionLanguageModel) -> VisionLanguageModel:
    """The same network with fresh random weights."""
    torch.manual_seed(0)
    return VisionLanguageModel(type(vlm.model)(vlm.model.config), vlm.processor)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", help="model folders; default: the shipped one")
    parser.add_argument("--json", type=Path, help="where to write the report")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = [VisionLanguageModel.from_pretrained(m, dtype=torch.float32) for m in arguments.models or [None]]
    report = {
        **report_head("layer_ladder", "torch", "transformers"),
        "clips": CLIPS,
        "world_seed": TEST_SEED,
        "models": [score(vlm) for vlm in models],
        "untrained": score(untrained(models[0])),
    }
    for name, one in [
        *((f"seed {i}", m) for i, m in enumerate(report["models"])),
        ("untrained", report["untrained"]),
    ]:
        print(f"{name}: uniform {one['uniform']['mean']:.3f}, largest residual {one['residual']:.1e}")
        for reading, r in one["readings"].items():
            e, c = r["early_minus_late"], r["rank_correlation_with_depth"]
            print(f"  {reading:28}", " ".join(f"{x:.3f}" for x in r["mask_ratio"]["mean"]))
            print(f"  {'early - late':28} {e['mean']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]", end=", ")
            print(f"rank correlation {c:+.2f}")
    if arguments.json is not None:
        with replacing(arguments.json) as path:
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
