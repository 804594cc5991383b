"""What tests of runs share: a command in this process, and the weights of two runs compared."""

from pathlib import Path

import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from phase2_student.cli import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_same_weights(one: Path, two: Path):
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
