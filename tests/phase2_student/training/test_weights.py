"""How the weights are kept and trained: none of the ways loses its updates, and each goes on bitwise."""

import json
import shutil

import pytest
import torch
import yaml
from run_cases import run
from safetensors.torch import load_file

from firstsight.recipe import StudentSection
from phase2_student.runs.checkpoints import SEAL, checkpoints
from phase2_student.training.kahan import KahanAdamW8bit

LORA = ["--set", "student.lora.r=4", "--set", "student.lora.dropout=0.1"]
KAHAN = ["--set", "student.precision=bf16_kahan", "--set", "student.dtype=bfloat16"]
FREEZE = ["--set", "student.freeze=[vision, embedding]"]


def train(world, output, *more):
    command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", f"training.output_dir={output}"]
    return run(*command, *more)


def weights(directory):
    return load_file(directory / "model.safetensors")


def displacement(dtype, optimizer_class, steps=600):
    """How far 600 steps at lr 1e-5 carry two layers of scale 0.02, biases included, and a norm's weights of 1."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sizes = [(96, 64), (64, 96), (64,), (96,)]
    start = [0.02 * draw(*size) for size in sizes] + [torch.ones(64)]
    goal = [0.02 * draw(*size) for size in sizes] + [torch.ones(64) + 0.02 * draw(64)]
    start = [part.bfloat16().float() for part in start]
    trained = [torch.nn.Parameter(part.to(dtype, copy=True)) for part in start]
    optimizer = optimizer_class(trained, lr=1e-5, weight_decay=0.01)

    def forward(parts, x):
        first, second, second_bias, first_bias, norm = (part.float() for part in parts)
        return torch.nn.functional.gelu(x @ first.T + first_bias) @ second.T * norm + second_bias

    for _ in range(steps):
        x = draw(32, 64)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(forward(trained, x), forward(goal, x)).backward()
        optimizer.step()
    kept = [optimizer.state[part].get("remainder", 0.0) for part in trained]
    moved = [part.detach().float() + rest - begin for part, rest, begin in zip(trained, kept, start, strict=True)]
    return torch.cat([part.flatten() for part in moved[:4]]), moved[4]


def test_kahan_moves_the_weights_as_float32_does_and_plain_bfloat16_does_not():
    reference, reference_norm = displacement(torch.float32, torch.optim.AdamW)
    kahan, kahan_norm = displacement(torch.bfloat16, KahanAdamW8bit)
    plain, _ = displacement(torch.bfloat16, torch.optim.AdamW)
    assert abs(kahan.norm() / reference.norm() - 1) < 0.05
    assert (kahan - reference).norm() < 0.05 * reference.norm()
    assert abs(kahan_norm.norm() / reference_norm.norm() - 1) < 0.05
    assert (plain @ reference) / reference.norm() ** 2 < 0.2


@pytest.mark.parametrize(
    "mode", [KAHAN, LORA, [*FREEZE, "--set", "training.gradient_checkpointing=true"]], ids=["kahan", "lora", "freeze"]
)
def test_each_way_goes_on_bitwise_and_leaves_a_plain_checkpoint(world, mode):
    from transformers import AutoModelForImageTextToText

    first = train(world, "runs/whole", *mode)
    assert first.exit_code == 0, first.output
    whole, again = world / "runs" / "whole", world / "runs" / "again"
    shutil.copytree(whole, again)
    for name in ("final", "best"):
        shutil.rmtree(again / name)
    (checkpoints(again)[0] / SEAL).unlink()  # as if killed while it was written: the one before is taken
    second = train(world, "runs/again", *mode)
    assert second.exit_code == 0, second.output
    assert "checkpoint-14 is not used" in second.stderr
    one, two = weights(whole / "final"), weights(again / "final")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    base = weights(world / "models" / "student")
    assert one.keys() == base.keys()
    assert any(not torch.equal(one[name], base[name].to(one[name].dtype)) for name in one)
    model, report = AutoModelForImageTextToText.from_pretrained(whole / "best", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.architectures == ["Qwen2VLForConditionalGeneration"]


def test_frozen_parts_stay_as_they_are_and_the_rest_moves(world):
    assert train(world, "runs/a", "--set", "student.freeze=[vision]").exit_code == 0
    after, before = weights(world / "runs" / "a" / "final"), weights(world / "models" / "student")
    moved = {name: not torch.equal(after[name], before[name].to(after[name].dtype)) for name in before}
    tower = [name for name in moved if "visual" in name and "merger" not in name]
    assert len(tower) > 10
    assert not any(moved[name] for name in tower)
    assert all(
        moved[name]
        for name in moved
        if "merger" in name or "embed_tokens" in name or ("mlp" in name and name not in tower)
    )
    facts = json.loads((world / "runs" / "a" / "run.json").read_text())
    assert facts["precision"] == "float32 master weights, vision frozen, computing in float32, saved as float32"
    assert facts["identity"]["student.freeze"] == ["vision"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_merged_adapters_answer_as_the_adapted_model_does(world):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    result = train(world, "runs/a", "--set", "student.lora={r: 4}")
    assert result.exit_code == 0, result.output
    assert "float32 adapters of rank 4 beside frozen float32 weights" in result.output
    final = world / "runs" / "a" / "final"
    stock = AutoModelForImageTextToText.from_pretrained(world / "models" / "student", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(stock, final / "adapter")
    merged = AutoModelForImageTextToText.from_pretrained(final, dtype=torch.float32)
    tokens = {"input_ids": torch.arange(5, 25)[None]}
    with torch.inference_mode():
        torch.testing.assert_close(merged(**tokens).logits, adapted(**tokens).logits, rtol=1e-4, atol=1e-5)
        moved = merged(**tokens).logits - adapted.get_base_model().eval()(**tokens).logits
    assert moved.abs().max() < 1e-3
    after, before = weights(final), weights(world / "models" / "student")
    moved = {name.rsplit(".", 2)[-2] for name in after if not torch.equal(after[name], before[name].float())}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert json.loads((final / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "student"
    # what is published tells of no directory of this machine
    for path in (
        path for name in ("best", "final") for path in (world / "runs" / "a" / name).rglob("*") if path.is_file()
    ):
        assert str(world).encode() not in path.read_bytes(), path


def test_the_way_is_part_of_what_a_run_is(world):
    assert train(world, "runs/a", *KAHAN).exit_code == 0
    facts = json.loads((world / "runs" / "a" / "run.json").read_text())
    assert "Kahan" in facts["precision"]
    assert facts["identity"]["student.precision"] == "bf16_kahan"
    other = train(world, "runs/a", "--set", "student.dtype=bfloat16")
    assert other.exit_code == 2
    assert "student.precision: the run has 'bf16_kahan', the recipe 'fp32_master'" in other.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.lora={r: 4}", "student.precision=bf16_kahan"], "student.precision: does not go with student.lora"),
        (["student.lora={r: 4}", "student.freeze=[vision]"], "student.freeze: does not go with student.lora"),
        (["student.lora.rank=4"], "student.lora.rank: no such key"),
        (["student.lora.r=0"], "student.lora.r: "),
        (["student.freeze=[sight]"], "student.freeze"),
        (
            ["student.lora.target_modules=[q_prj]"],
            "the student's language model has no module 'q_prj'; its linear layers are down_proj",
        ),
        (["student.lora.target_modules=[lm_head]"], "'lm_head' is the embedding or the head"),
        (["student.lora.target_modules=[mlp]"], "student.lora: "),
        (["student.precision=bf16_kahan", "training.optim=adafactor"], "training.optim: cannot be combined with"),
        (["student.precision=bf16"], "student.precision: "),
    ],
)
def test_what_does_not_go_together_is_refused_before_weights_are_loaded(world, monkeypatch, settings, message):
    monkeypatch.setattr("firstsight.models.loading._load", lambda *_, **__: pytest.fail("weights were loaded"))
    result = train(world, "runs/a", *(word for setting in settings for word in ("--set", setting)))
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in result.output
    assert not (world / "runs").exists()


def test_the_defaults_are_float32_masters():
    section = StudentSection()
    assert (section.precision, section.lora, section.freeze) == ("fp32_master", None, ())
    assert yaml.safe_load(yaml.safe_dump(section.model_dump(mode="json")))["lora"] is None
