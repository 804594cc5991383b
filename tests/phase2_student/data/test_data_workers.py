"""Images are prepared in worker processes, forked or spawned: the same batches, and the same weights in the end."""

import pytest
import torch
from run_cases import assert_same_weights, run
from torch.utils.data import DataLoader

from firstsight.recipe import load_recipe
from phase2_student.data.batches import GlobalBatches
from phase2_student.data.dataset import Collator
from phase2_student.training.train import prepare


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(world, method):
    plan = prepare(load_recipe(world / "recipe.yaml"), progress=False)
    batches = GlobalBatches(plan.train.lengths(), batch_size=4, seed=1)  # the last one is filled up
    options = {"batch_sampler": batches, "collate_fn": Collator(0)}
    alone = list(DataLoader(plan.train, **options))
    shared = list(DataLoader(plan.train, num_workers=2, multiprocessing_context=method, **options))
    assert len(alone) == len(shared) == 7
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_with_workers_ends_with_the_same_weights(world):
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.num_train_epochs=1"]
    for workers in (0, 2):
        more = ["--set", f"training.dataloader_num_workers={workers}", "--set", f"training.output_dir=runs/{workers}"]
        result = run(*command, *more)
        assert result.exit_code == 0, result.output
    assert_same_weights(world / "runs" / "0" / "final", world / "runs" / "2" / "final")
