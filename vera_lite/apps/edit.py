"""Edit a video file by a sentence."""

from pathlib import Path

from vera_lite.apps.files import apply_to_file, check_folder, read_mask, read_picture
from vera_lite.conditioning.phrases import PhraseEncoder
from vera_lite.errors import UserError
from vera_lite.media.clip import to_float
from vera_lite.media.video import VideoReader
from vera_lite.pipelines import Pipeline, frame_choice


def edit_file(
    pipe: Pipeline,
    video: str | Path,
    prompt: str,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    reference: str | Path | None = None,
    seed: int = 0,
    **changes,
) -> list[Path]:
    """Edit ``video`` and write the results into ``out``.

    Args:
        pipe: the model. Vera lays an edit over the source: where alpha is 0, a pixel of ``final.mkv`` is the
            decoded source's own, bit for bit. RVEDiT and MiVE draw every frame anew.
        video: a file with constant frame rate.
        prompt: what to do.
        out: see :func:`.apply_to_file`.
        mask: of Vera: a video of the same length, or a picture for all frames.
        reference: of MiVE: a picture of the edited first frame, of any size.
        seed: of the noise.
        changes: fields of ``pipe.sampling``.

    Returns:
        The files written.

    Raises:
        UserError: a file cannot be read, a setting is out of its range, or the prompt has an unknown word;
            nothing is written then.
    """
    # What can be refused is refused before the work.
    pipe.sampling_with(**changes)
    if not prompt.strip():
        raise UserError("the prompt is empty: say what to do.")
    encoder = getattr(pipe, "text_encoder", None)
    if isinstance(encoder, PhraseEncoder):
        encoder.parse(prompt)
    out = check_folder(out, video, mask, reference)
    given = [prompt]
    if reference is not None:
        given.append(to_float(read_picture(Path(reference), "reference")))
    reader = VideoReader(video)
    if mask is not None:
        chosen = frame_choice(reader.info.frames, pipe.clip_size[0])
        given.append(read_mask(Path(mask), reader.info, chosen))
    asked = {"source": video, "prompt": prompt, "mask": mask, "reference": reference}
    facts = {name: str(value) for name, value in asked.items() if value is not None}
    return apply_to_file(pipe, reader, given, out, facts, title=f"“{prompt}”", seed=seed, **changes)
