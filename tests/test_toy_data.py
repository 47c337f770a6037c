"""Toy data under autocast, in loader processes and on several ranks."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from vera_lite.errors import UserError
from vera_lite.toy.compositions import render_compositions
from vera_lite.toy.edits import render_edits
from vera_lite.toy.world import WorldConfig, render
from vera_lite.training import ToyCompositionData, ToyDialogues, ToyEditData, ToyWorldData


def with_trainer(data, rank=0, world_size=1):
    """``data`` as Lightning leaves it: it holds a trainer, which cannot be pickled."""
    ranks = {"rank": rank, "num_replicas": world_size}
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, distributed_sampler_kwargs=ranks, unpicklable=lambda: None
    )
    data.setup()
    return data


@pytest.mark.parametrize("renderer", [render, render_edits, render_compositions])
def test_rendering_is_the_same_under_autocast(renderer):
    with torch.autocast("cpu", torch.bfloat16):
        found = renderer(3, range(24))
    for name, expected in vars(renderer(3, range(24))).items():
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(getattr(found, name), expected)


@pytest.mark.parametrize("kind", [ToyCompositionData, ToyEditData, ToyDialogues, ToyWorldData])
def test_datasets_travel_to_loader_processes(kind, tmp_path):
    cached = {"cache_dir": str(tmp_path), "clips": 4, "validation_clips": 2} if kind is ToyWorldData else {}
    data = with_trainer(kind(batch_size=2, **cached))
    expected = data.train[1]  # opens what is opened on first use
    found = pickle.loads(pickle.dumps(data.train))[1]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
        assert same, name


def test_spawned_loader_processes_give_the_same_batches():
    data = with_trainer(ToyEditData(batch_size=2))
    (found,) = DataLoader(
        data.train, batch_size=None, sampler=[3], num_workers=1, multiprocessing_context="spawn"
    )
    assert torch.equal(found["source_video"], data.train[3]["source_video"])


def test_ranks_see_different_clips_of_one_validation_world(tmp_path):
    world = WorldConfig(frames=5, height=16, width=16)
    build = lambda rank: with_trainer(  # noqa: E731
        ToyWorldData(str(tmp_path), world, clips=4, validation_clips=3, batch_size=2), rank, 2
    )
    first, second = build(0).validation, build(1).validation
    assert len(first.indices(0)) == 1 and first.indices(0) != second.indices(0)


def test_fewer_validation_clips_than_ranks_are_refused_before_a_cache_is_built(tmp_path):
    with pytest.raises(UserError, match="validation_clips"):
        with_trainer(ToyWorldData(str(tmp_path), validation_clips=2), world_size=3)
    assert not list(tmp_path.iterdir())
