"""Variables of accelerate that would change what the recipe states are refused by name."""

import pytest
from run_cases import run

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from phase2_student.training.arguments import training_arguments
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train


@pytest.mark.parametrize(
    ("name", "value", "stated", "words"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", [], "the recipe computes in float32; set training.bf16: true"),
        ("ACCELERATE_MIXED_PRECISION", "BF16", [], "set training.bf16: true"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", [], "set training.fp16: true"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", ["bf16=true"], "the recipe computes in bfloat16"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", ["fp16=true"], "the recipe computes in float16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", [], "set training.bf16: true"),
        ("ACCELERATE_DYNAMO_BACKEND", "eager", [], "compiling is not supported here"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", ["bf16=true"], "compiling is not supported here"),
        ("ACCELERATE_USE_DEEPSPEED", "true", [], "set training.deepspeed"),
        ("ACCELERATE_USE_DEEPSPEED", "1", [], "set training.deepspeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", [], "only DDP and FSDP2"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", [], "only DDP and FSDP2"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_what_differs_from_the_recipe_is_refused(world, monkeypatch, name, value, stated, words, command):
    monkeypatch.setenv(name, value)
    settings = [part for text in stated for part in ("--set", f"training.{text}")]
    refused = run(command, "--config", world / "recipe.yaml", "--no-progress", *settings)
    assert refused.exit_code == 2
    (line,) = [line for line in refused.output.splitlines() if line.startswith("Error")]
    assert name in line
    assert words in line
    assert not (world / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value", "stated"),
    [
        ("ACCELERATE_MIXED_PRECISION", "no", []),
        ("ACCELERATE_MIXED_PRECISION", "", []),
        ("ACCELERATE_MIXED_PRECISION", "no", ["training.bf16=true"]),
        ("ACCELERATE_MIXED_PRECISION", "bf16", ["training.bf16=true"]),
        ("ACCELERATE_MIXED_PRECISION", "fp16", ["training.fp16=true"]),
        ("ACCELERATE_DYNAMO_BACKEND", "NO", []),
        ("ACCELERATE_USE_DEEPSPEED", "false", []),
    ],
)
def test_what_says_the_same_passes(world, monkeypatch, name, value, stated):
    monkeypatch.setenv(name, value)
    training_arguments(load_recipe(world / "recipe.yaml", stated))


def test_plans_of_two_precisions_are_trained_one_after_the_other(world):
    def plan(name, *more):
        settings = [f"training.output_dir=runs/{name}", "training.max_steps=1", "training.eval_strategy=no", *more]
        return prepare(load_recipe(world / "recipe.yaml", settings), progress=False)

    half, whole = plan("half", "training.bf16=true"), plan("whole")
    for each, text in ((half, "bfloat16"), (whole, "float32")):
        assert train(each).finished
        assert f"computing in {text}" in (each.recipe.output_dir / "run.log").read_text()


def test_the_refusal_from_python(world, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RecipeError, match="ACCELERATE_MIXED_PRECISION"):
        prepare(load_recipe(world / "recipe.yaml"), progress=False)
