"""Train the toys of the world of things on places, one after the other, and measure each.

python scripts/train_toys.py                              all five, on the CPU, at 32 pixels
python scripts/train_toys.py --only vlm,rvedit            some of them
python scripts/train_toys.py --device cuda                on a GPU: 64 pixels, a wider network, larger batches
python scripts/train_toys.py --only vera --trainer.max_steps 500      further options go to `vera-lite fit`

A training that was interrupted goes on from its last checkpoint. Everything lands in `runs/NAME_scenes`: the
checkpoint, `model` (what `vera-lite export` makes of it, with its card), and `score.json` of
`benchmarks/scenes_toy.py`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "vera_lite" / "configs"
#: RVEDiT and MiVE read what the vision-language model has learned, so it comes first.
TOYS = ("vlm", "vera", "gencompositor", "rvedit", "mive")


def commands(name: str, device: str, more: list[str]) -> list[list[str]]:
    """What to run for a toy: train, export, measure."""
    run = Path("runs") / f"{name}_scenes"
    fit = ["-m", "vera_lite.cli", "fit", f"--config={CONFIGS / f'{name}_scenes.yaml'}"]
    if device == "cuda" and name != "vlm":  # the vision-language model sees 32 pixels at every size
        fit += [f"--config={CONFIGS / 'scenes_64px.yaml'}"]
        backbone = "--model.init_args.system.init_args.config.backbone"
        if name == "gencompositor":
            fit += [f"{backbone}.patch_size=2", f"{backbone}.sample_height=16", f"{backbone}.sample_width=16"]
        else:
            fit += [f"{backbone}.patch_size=[1,2,2]"]
    fit += [f"--trainer.accelerator={device}", *more]
    if (ROOT / run / "last.ckpt").exists():
        fit += ["--ckpt_path=last"]
    export = ["-m", "vera_lite.cli", "export", str(run / "last.ckpt"), f"--out={run / 'model'}"]
    export += ["--full"] if name == "vlm" else []
    measure = [str(ROOT / "benchmarks" / "scenes_toy.py"), name, str(run / "model")]
    measure += [f"--json={run / 'score.json'}"]
    if device == "cpu":  # a card names the committed configuration
        measure += [f"--run={run}", "--card"]
    return [fit, export, measure]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="Further options go to `vera-lite fit`."
    )
    parser.add_argument("--only", default=",".join(TOYS), help=f"names of {', '.join(TOYS)}, with commas")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options, more = parser.parse_known_args()
    wanted = options.only.split(",")
    if unknown := sorted(set(wanted) - set(TOYS)):
        parser.error(f"unknown toy {', '.join(unknown)}: choose among {', '.join(TOYS)}")
    readable = "vlm" in wanted or (ROOT / "runs" / "vlm_scenes" / "model").exists()
    if not readable and not {"rvedit", "mive"}.isdisjoint(wanted):
        parser.error("RVEDiT and MiVE read the trained vision-language model: train vlm first")
    for name in (toy for toy in TOYS if toy in wanted):
        for command in commands(name, options.device, more):
            print("$ python", *command, flush=True)
            if code := subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
                raise SystemExit(code)


if __name__ == "__main__":
    main()
