"""A batch is typed, moved as a whole, and reaches `forward` unchanged through what wraps a model."""

import pickle
from dataclasses import fields, is_dataclass

import pytest
import torch
from accelerate.utils import send_to_device
from torch.distributed.utils import _to_kwargs

from firstsight.recipe import load_recipe
from phase2_student.training.prepare import prepare


def tensors(value):
    """All tensors of a batch by their place."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    parts = value if isinstance(value, dict) else vars(value) if is_dataclass(value) else {}
    return {f"{name}.{rest}": tensor for name, part in parts.items() for rest, tensor in tensors(part).items()}


@pytest.fixture(params=[False, True], ids=["cache", "online"])
def batch(request, world):
    plan = prepare(load_recipe(world / "recipe.yaml"), online=request.param, progress=False)
    return plan.source.collator()([plan.train[0], plan.train[1], plan.train[~2]])


def test_it_is_moved_as_a_whole_in_its_own_types(batch):
    before = tensors(batch)
    moved = batch.to(torch.device("meta"))
    after = tensors(moved)
    assert type(moved) is type(batch)
    assert moved.names == batch.names
    assert before.keys() == after.keys()
    assert len(before) >= 12
    for name, tensor in after.items():
        assert tensor.device.type == "meta"
        assert (tensor.dtype, tensor.shape) == (before[name].dtype, before[name].shape)
    assert tensors(send_to_device(batch, "meta")).keys() == before.keys()


def test_workers_can_send_it(batch):
    again = tensors(pickle.loads(pickle.dumps(batch)))
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors(batch).items())


def test_wrappers_pass_it_on_as_it_is(batch):
    _, (kwargs,) = _to_kwargs((), {"batch": batch}, torch.device("cpu"), False)  # DDP and FSDP
    assert kwargs["batch"] is batch

    leaves, _ = torch.utils._pytree.tree_flatten({"batch": batch})  # FSDP2 casts the tensors among the leaves

    assert leaves == [batch]


def test_its_targets_are_those_of_its_items_in_a_row(world):
    plan = prepare(load_recipe(world / "recipe.yaml"), progress=False)
    items = [plan.train[index] for index in (0, 1, ~2)]
    batch = plan.source.collator()(items)
    assert batch.names == tuple(item.name for item in items)
    assert batch.counted() == len(items[0].targets.soft_N) + len(items[1].targets.soft_N)
    for field in fields(batch.targets):
        parts = [getattr(item.targets, field.name) for item in items]
        assert torch.equal(getattr(batch.targets, field.name), torch.cat(parts))
