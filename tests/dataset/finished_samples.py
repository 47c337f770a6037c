"""Finished samples for tests: layers of the toy world in a store."""

from vera_lite.dataset.layers import CheckLayers
from vera_lite.dataset.run import new_run, run
from vera_lite.dataset.stage import LAYERS, Sample, digest
from vera_lite.dataset.store import Store, Writer
from vera_lite.media.clip import to_uint8
from vera_lite.media.video_writer import write_video
from vera_lite.toy.world import WorldConfig, render

CATEGORIES = {"add": "object_addition", "background": "background_change"}


def clips(count, seed=5):
    world = WorldConfig(frames=9, height=32, width=32)
    batch = render(seed, range(count), world)
    return [batch.clip(i) for i in range(count)]


def store_of(folder, count, **changed):
    """A store of finished samples; ``changed`` are layers that take the place of the right ones."""
    store = Store(folder)
    with store.lock():
        writer = Writer(store, new_run())
        for number, made in enumerate(clips(count)):
            files = {}
            for name in LAYERS:
                layer = changed.get(name, lambda clip, name=name: getattr(clip, name))(made)
                path = folder.parent / f"{number}_{name}.mkv"
                write_video(path, to_uint8(layer), made.fps, "lossless")
                files[name] = writer.copy(path)
                path.unlink()
            facts = {"instruction": made.instruction, "licence": "MIT"}
            category = CATEGORIES[made.attributes["task"]]
            writer.add(Sample(digest(files), category, files, facts), f"toy {number}")
        writer.close()
    configuration = {"stages": [{"class_path": "vera_lite.dataset.layers.CheckLayers"}]}
    return store, run(store, [CheckLayers()], workers=0, progress=False, configuration=configuration)
