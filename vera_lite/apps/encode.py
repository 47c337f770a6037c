"""`vera-lite encode`: clips into latents and text features, before training."""

from pathlib import Path

from vera_lite.apps.plan import read_job
from vera_lite.pipelines import pick_device
from vera_lite.training.encode import encode, load_encoders, read_table, this_process


def encode_table(
    table: Path,
    out: Path,
    system: str,
    config: Path,
    vae: Path,
    text: Path | None = None,
    device: str = "auto",
) -> str:
    """Encode this process's part of a table; returns what to tell the person.

    Args:
        table, out, system: see :func:`vera_lite.training.encode.encode`.
        config: of `vera-lite fit`; its clip and its vision-language model are used.
        vae, text: folders of the models.
        device: "auto" takes a GPU if there is one, under torchrun one per process.

    Raises:
        UserError: the table, the configuration or a folder cannot be used.
    """
    rank, ranks = this_process()
    read_table(table, system)
    job = read_job(config)
    place = pick_device(device)
    if place.type == "cuda":
        import torch

        place = torch.device("cuda", rank % torch.cuda.device_count())
    encoders = load_encoders(system, job.clip, vae, text, getattr(job.config, "vlm", None), place)
    done, failed = encode(table, out, system, job.clip, encoders, rank, ranks)
    problems = f"; {failed} could not be read, see {out}/*.failed" if failed else ""
    return f"{out} holds {done} clips{problems}."
