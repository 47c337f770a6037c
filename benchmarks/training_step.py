"""Training speed against the first release: samples per CPU second of whole training steps.

    python benchmarks/training_step.py --json benchmarks/results/training_step.json

Both sides train the shipped toy configurations with Lightning: rendering, the step, the optimizer, the
average. The first release is checked out from git into a temporary folder. Ours may use the trainer's
options: compiled systems, kept readings of the vision-language model (with clips that repeat), and larger
batches. Each side is a separate process; they take turns, in reverse order every second round. Before that,
both take the same steps with the same batches, and their losses are compared.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST_RELEASE = "ff66025"
ROOT = Path(__file__).parents[1]
STEPS = 3  # of one turn
BATCH, LARGE = 16, 48
TOLERANCE = 0.02  # of the loss, under bfloat16 autocast
#: System: what it may use beside compiling, and the goal for its samples per CPU second.
SYSTEMS = {
    "rvedit": (("readings",), ">= 3"),
    "mive": (("readings",), ">= 3"),
    "vera": ((), ">= 2"),
    "gencompositor": ((), ">= 2"),
}


def worker(name: str, options: list[str]) -> None:
    """Train, and before every turn wait for a line on standard input; print CPU seconds and losses."""
    import lightning as L
    import torch
    from lightning.pytorch.cli import LightningCLI

    import vera_lite

    torch.set_num_threads(1)

    class Turns(L.Callback):
        def __init__(self):
            self.losses = []

        def on_train_start(self, *_):
            self.wait()

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.losses.append(float(outputs["loss"]))
            if len(self.losses) == STEPS:
                seconds = (time.process_time() - self.start) / STEPS
                print(json.dumps({"seconds": seconds, "losses": self.losses}), flush=True)
                self.losses = []
                self.wait()

        def wait(self):
            if not sys.stdin.readline():
                raise SystemExit
            self.start = time.process_time()

    config = Path(vera_lite.__file__).parent / "configs" / f"{name}_toy.yaml"
    fixed = {
        "logger": "false",
        "callbacks": "null",
        "enable_checkpointing": "false",
        "limit_val_batches": "0",
    }
    fixed |= {"enable_progress_bar": "false", "enable_model_summary": "false"}
    arguments = [f"--config={config}", *(f"--trainer.{k}={v}" for k, v in fixed.items()), *options]
    cli = LightningCLI(args=arguments, run=False, save_config_callback=None, seed_everything_default=0)
    cli.trainer.callbacks.append(Turns())
    cli.trainer.fit(cli.model, cli.datamodule)


class Side:
    """A worker process that trains a turn when it is asked to."""

    def __init__(self, code: Path, name: str, options: list[str], errors: Path):
        environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, *options],
            env=environment,
            cwd=errors.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
        )

    def turn(self) -> dict:
        """Train a turn: CPU seconds per step, and losses."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a training ended early:\n{self.errors.read_text()[-2000:]}")

    def end(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def first_release(folder: Path) -> Iterator[Path]:
    """Its code, checked out from git."""
    place, git = folder / "first_release", ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", place, FIRST_RELEASE], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", place], check=True)


def measure(report, rounds: int, systems: tuple[str, ...] = tuple(SYSTEMS)) -> None:
    """Fill the report."""
    with tempfile.TemporaryDirectory() as temporary, first_release(Path(temporary)) as theirs:
        folder = Path(temporary)
        for name in systems:
            uses, goal = SYSTEMS[name]
            data = ["--data.init_args.clips=256"] if name == "vera" else []
            if name == "vera":
                data += ["--data.init_args.validation_clips=16", f"--data.init_args.cache_dir={folder}/cache"]
            old = Side(theirs, name, data, folder / f"{name}-old.txt")
            before = old.turn()
            batch = [f"--data.init_args.batch_size={LARGE}"]
            ours = [*data, "--model.init_args.compile=true"]
            if "readings" in uses:
                ours.append(f"--model.init_args.readings={folder}/readings")
                batch.append(f"--data.init_args.clips={STEPS * LARGE}")
            check = Side(ROOT, name, ours, folder / f"{name}-check.txt")
            losses = check.turn()["losses"]
            check.end()
            worst = max(abs(a / b - 1) for a, b in zip(losses, before["losses"], strict=True))
            report.add(f"{name}: losses, worst difference", worst, "relative", peer="tolerance",
                       peer_value=TOLERANCE, goal="<= 1")  # fmt: skip
            new = Side(ROOT, name, [*ours, *batch], folder / f"{name}-new.txt")
            new.turn()  # compiles, and reads
            speeds = {"new": [], "old": []}
            for turn in range(rounds):
                sides = [("new", new, LARGE), ("old", old, BATCH)]
                for label, side, clips in sides[:: -1 if turn % 2 else 1]:
                    speeds[label].append(clips / side.turn()["seconds"])
            new.end()
            old.end()
            report.add(
                f"{name}: {', '.join(('compiled', *uses))}, batch {LARGE}",
                sorted(speeds["new"])[rounds // 2],
                "clips per CPU second",
                peer=f"first release, batch {BATCH}",
                peer_value=sorted(speeds["old"])[rounds // 2],
                goal=goal,
                ratios=[a / b for a, b in zip(speeds["new"], speeds["old"], strict=True)],
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
    else:
        from _harness import main

        main("training_step", measure, rounds=3)
