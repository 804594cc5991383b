"""Images are prepared in worker processes, forked or spawned: the same batches, and the same weights in the end."""

import shutil
from dataclasses import is_dataclass

import pytest
import torch
from run_cases import assert_same_weights, run
from torch.utils.data import DataLoader

from firstsight.errors import DataError
from firstsight.recipe import load_recipe
from phase2_student.data import cached
from phase2_student.data.order import GlobalBatches
from phase2_student.training.loaders import checked_batch, data_loader, train_batches
from phase2_student.training.prepare import prepare


def assert_same(one, two):
    """Batches, or what they hold."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_same(one[name], two[name])
    elif is_dataclass(one):
        assert_same(vars(one), vars(two))
    else:
        assert one == two


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(world, method):
    plan = prepare(load_recipe(world / "recipe.yaml"), progress=False)
    batches = GlobalBatches(plan.train.lengths(), batch_size=4, seed=1)  # the last one is filled up
    options = {"batch_sampler": batches, "collate_fn": plan.source.collator()}
    alone = list(DataLoader(plan.train, **options))
    shared = list(DataLoader(plan.train, num_workers=2, multiprocessing_context=method, **options))
    assert len(alone) == len(shared) == 7
    for one, two in zip(alone, shared, strict=True):
        assert_same(one, two)


def test_a_run_with_workers_ends_with_the_same_weights(world):
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1"]
    for workers in (0, 2):
        more = ["--set", f"training.dataloader_num_workers={workers}", "--set", f"training.output_dir=runs/{workers}"]
        result = run(*command, *more)
        assert result.exit_code == 0, result.output
    assert_same_weights(world / "runs" / "0" / "final", world / "runs" / "2" / "final")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_a_sample_in_the_middle_is_one_line(world, workers):
    """A picture that was damaged after the checks; with workers its error comes from another process."""
    data = (world / "data").resolve()
    (world / "data").unlink()
    shutil.copytree(data, world / "data")
    plan = prepare(load_recipe(world / "recipe.yaml", [f"training.dataloader_num_workers={workers}"]), progress=False)
    for file in (world / "data" / "images").iterdir():
        file.write_bytes(file.read_bytes()[:300])
    batches = train_batches(plan.train, plan.arguments)
    loader = data_loader(plan.train, batches, plan.source.collator(), plan.arguments)
    with pytest.raises(DataError, match=r"^train.jsonl:\d+: image .* cannot be decoded") as error:
        list(map(checked_batch, loader))
    assert "\n" not in str(error.value)


def test_memory_and_scratch_of_the_recipe_are_those_of_the_cache_and_no_part_of_the_run(world, monkeypatch):
    opened = []
    stock = cached.open_any_cache
    monkeypatch.setattr(
        cached, "open_any_cache", lambda *args, **options: opened.append(options) or stock(*args, **options)
    )
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1"]
    more = ["--set", "cache.scratch=fast", "--set", "cache.memory=1 B"]
    assert run(*command, *more).exit_code == 0
    assert opened == [{"memory_budget": 1, "scratch": world / "fast"}]
    assert any((world / "fast").iterdir())
    assert "is finished" in run(*command).output
