"""Trains a recipe under FSDP2 on CPUs, one process of torchrun. A script of test_processes.py.

    torchrun --nproc-per-node 2 sharded_run.py ACCELERATE_CONFIG RECIPE OVERRIDE...

accelerate keeps FSDP2 for GPUs and takes DDP on a CPU without a word. Here it is told that the processes have GPUs, and
nothing else is changed: what is sharded, and how it is trained and saved, is what `accelerate launch` would do.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

config, recipe_path, *overrides = sys.argv[1:]
os.environ["ACCELERATE_USE_FSDP"] = "true"
for key, value in yaml.safe_load(Path(config).read_text())["fsdp_config"].items():
    os.environ[f"FSDP_{key.removeprefix('fsdp_').upper()}"] = str(value)

plain_init = PartialState.__init__


def init(self, *args, **kwargs):
    plain_init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = init

from torch.distributed.fsdp import FSDPModule  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from firstsight.recipe import load_recipe  # noqa: E402
from phase2_student.training import train as module  # noqa: E402
from phase2_student.training.prepare import prepare  # noqa: E402
from phase2_student.training.student import with_distillation_forward  # noqa: E402

torch.set_num_threads(1)
models = []


def remembered(model, settings, **options):
    models.append(with_distillation_forward(model, settings, **options))
    return models[-1]


module.with_distillation_forward = remembered
recipe = load_recipe(Path(recipe_path), overrides)
result = module.train(prepare(recipe, progress=False))
model = models[-1]
head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
if os.environ["RANK"] == "0":
    facts = {
        "sharded": isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in model.parameters()),
        "tied": head is embedding,
        "share": sum(p.to_local().numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters()),
        "steps": result.steps,
    }
    print("FACTS", json.dumps(facts))

# interrupted after the checkpoint before the last one, and continued
newest = recipe.output_dir / f"checkpoint-{result.steps}"
torch.distributed.barrier()
if os.environ["RANK"] == "0":
    (recipe.output_dir / "final").rename(recipe.output_dir / "undisturbed")
    shutil.rmtree(newest)
torch.distributed.barrier()
again = module.train(prepare(recipe, progress=False))
assert again.steps == result.steps
torch.distributed.destroy_process_group()
