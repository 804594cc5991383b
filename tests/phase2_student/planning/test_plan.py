"""`fs-student plan`: what it counts is what the training does, and its memory is that of known shapes."""

import json
import shutil

import pytest
import torch
from run_cases import run
from transformers import Qwen2VLConfig, TrainingArguments

from firstsight.models.loading import load_student
from firstsight.recipe import StudentSection, load_recipe
from phase2_student.planning.footprint import MODES, footprint, student_shape
from phase2_student.planning.plan import padding_share, plan_training
from phase2_student.training.arguments import warmup_note
from phase2_student.training.prepare import prepare

# the published shape of Qwen2-VL-2B-Instruct
TWO_BILLION = {
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    "tie_word_embeddings": True,
}


def test_the_memory_of_each_way_for_a_full_student():
    config = Qwen2VLConfig(**TWO_BILLION)
    shape = student_shape(config, StudentSection(), activation_bytes=2)
    assert shape.trained == 2_208_985_600  # what the hub states for Qwen2-VL-2B-Instruct
    ways = {
        mode: footprint(shape, mode, tokens=2 * 1500, patches=2 * 5120, gradient_checkpointing=True) for mode in MODES
    }
    master, kahan, lora = (ways[mode] for mode in MODES)
    assert master.gradients + master.optimizer == 12 * shape.trained
    assert kahan.weights + kahan.gradients + kahan.optimizer == pytest.approx(8 * shape.trained, rel=0.01)
    assert kahan.total < 24e9 < master.total
    assert lora.total < kahan.total / 2
    assert shape.adapters == 18_464_768  # r = 16 on every linear layer of the language model
    frozen = student_shape(config, StudentSection(freeze=("vision", "projector")), activation_bytes=2)
    assert frozen.trained + frozen.frozen == shape.trained
    assert (
        footprint(frozen, "bf16_kahan", tokens=3000, patches=0, gradient_checkpointing=True).total < kahan.total - 3e9
    )
    for mode in MODES:
        free = footprint(shape, mode, tokens=3000, patches=10_240, gradient_checkpointing=False)
        assert free.activations > 4 * ways[mode].activations


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_graph_keeps_what_the_plan_reckons(gradient_checkpointing):
    """Counted: every tensor that torch saves for the backward pass, each storage once, weights left out."""
    from transformers import Qwen2VLForConditionalGeneration

    text = {**TWO_BILLION["text_config"], "vocab_size": 512, "hidden_size": 256, "intermediate_size": 1024}
    text |= {"num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"depth": 4, "embed_dim": 128, "hidden_size": 256, "num_heads": 4, "mlp_ratio": 4}
    tokens = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)
    model = Qwen2VLForConditionalGeneration(config).bfloat16().train()
    if gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable()
    side = 16
    patches, image = side * side, side * side // 4
    ids = torch.cat([torch.full((1, image), 500), torch.arange(1, 193)[None]], dim=1).repeat(2, 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 500).long(),
        "pixel_values": torch.randn(2 * patches, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, side, side]] * 2),
    }
    owned = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.model(**inputs, use_cache=False).last_hidden_state
        peak = sum(saved.values())
        states.sum().backward()
    shape = student_shape(config, StudentSection(), activation_bytes=2)
    sizes = {"tokens": ids.numel(), "patches": 2 * patches}
    free = footprint(shape, "bf16_kahan", **sizes, gradient_checkpointing=False).activations
    if not gradient_checkpointing:
        assert 0.6 < free / peak < 1.6
        return
    # and what one layer keeps when it is computed again, of the six and four there are
    reckoned = footprint(shape, "bf16_kahan", **sizes, gradient_checkpointing=True).activations
    assert peak * 0.6 < reckoned < peak * 1.6 + free / 4


def test_the_plan_counts_what_the_training_then_does(world):
    without = shutil.copytree(
        world / "models" / "student", world / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    command = ["plan", "--config", world / "recipe.yaml", "--no-progress", "--set", f"student.model={without}"]
    result = run(*command, "--json")
    assert result.exit_code == 0, result.output
    planned = json.loads(result.output)
    plan = prepare(load_recipe(world / "recipe.yaml"), progress=False)
    lengths = plan.train.lengths()
    work = planned["work"]
    assert work["tokens"] == sum(lengths)
    assert work["longest"] == max(lengths)
    assert work["positions"] == sum(len(plan.source.cache[key].targets) for key, _ in plan.train.samples)
    assert (work["steps_per_epoch"], work["steps"], work["global_batch"]) == (7, 14, 4)
    assert planned["mode"] == "fp32_master"
    trained = planned["shape"]["trained"]
    student = load_student(world / "models" / "student", plan.recipe.student, dtype=torch.float32)
    assert trained == sum(p.numel() for p in student.parameters())
    elsewhere = ["--set", "training.bf16=true", "--set", "training.use_cpu=false"]  # for a card that is not here
    text = run(*command, "--set", "student.precision=bf16_kahan", *elsewhere).output
    assert "7 per epoch, 14 in 2 epochs, of 4 samples" in text
    (chosen,) = [line for line in text.splitlines() if line.startswith("> ")]
    assert chosen.startswith("> bf16_kahan ")
    assert "RTX 4090" in chosen


def test_padding_free_adds_nothing_and_more_cards_take_fewer_steps(world):
    padded = plan_training(load_recipe(world / "recipe.yaml"), progress=False)
    free = plan_training(load_recipe(world / "recipe.yaml", ["student.padding_free=true"]), processes=2, progress=False)
    assert padded.work.padding > 0
    assert free.work.padding == 0
    assert free.work.steps_per_epoch == 4


def test_the_share_of_padding():
    from phase2_student.data.order import GlobalBatches

    lengths = [10, 10, 5, 5]
    assert padding_share(lengths, GlobalBatches(lengths, batch_size=2, shuffle=False)) == 0
    alone = GlobalBatches([10, 5], batch_size=2, shuffle=False)
    assert padding_share([10, 5], alone) == pytest.approx(0.25)


def test_a_plan_refuses_what_the_training_would(world):
    result = run("plan", "--config", world / "recipe.yaml", "--set", "training.learning_rat=1")
    assert result.exit_code == 2
    assert "learning_rate" in result.output


@pytest.mark.parametrize(
    ("warmup", "steps", "note"),
    [
        (100, 12, "12 of 12 steps are warm-up (training.warmup_steps: 100)"),
        (7, 12, "7 of 12 steps are warm-up"),
        (0.9, 10, "9 of 10 steps are warm-up (training.warmup_steps: 0.9)"),
        (6, 12, None),
        (0.03, 12, None),
        (0, 12, None),
        (0, 0, None),
        (0.03, 1, None),
    ],
)
def test_a_training_that_is_mostly_warm_up_is_noted(warmup, steps, note):
    found = warmup_note(TrainingArguments(warmup_steps=warmup, use_cpu=True, report_to="none"), steps)
    assert found is None if note is None else found.startswith(note)


def test_a_schedule_without_warm_up_says_that_the_key_has_no_effect():
    given = {"use_cpu": True, "report_to": "none", "lr_scheduler_type": "constant"}
    note = "training.warmup_steps: 100 has no effect with lr_scheduler_type: constant"
    assert warmup_note(TrainingArguments(warmup_steps=100, **given), 12) == note
    assert warmup_note(TrainingArguments(**given), 12) is None


def test_plan_and_training_note_the_warm_up(world):
    result = run("plan", "--config", world / "recipe.yaml", "--no-progress", "--set", "training.warmup_steps=9999")
    assert result.exit_code == 0, result.output
    assert "steps are warm-up (training.warmup_steps: 9999)" in result.output
    short = ["training.warmup_steps=3", "training.max_steps=3", "training.output_dir=runs/warm"]
    trained = run(
        "train",
        "--config",
        world / "recipe.yaml",
        "--no-progress",
        *(word for text in short for word in ("--set", text)),
    )
    assert trained.exit_code == 0, trained.output
    assert "3 of 3 steps are warm-up (training.warmup_steps: 3)" in trained.output


@pytest.mark.parametrize(
    "settings",
    [
        ["training.num_train_epochs=0.3"],
        ["training.num_train_epochs=1.5", "training.data_seed=9"],
        ["training.train_sampling_strategy=sequential"],
        ["training.train_sampling_strategy=random", "training.seed=3"],
        ["training.max_steps=5", "training.per_device_train_batch_size=3"],
    ],
)
def test_steps_and_padding_are_those_of_the_training(world, settings):
    from phase2_student.training.loaders import train_batches

    recipe = load_recipe(world / "recipe.yaml", settings)
    planned = plan_training(recipe, progress=False).work
    plan = prepare(recipe, progress=False)
    lengths = plan.train.lengths()
    assert planned.padding == padding_share(lengths, train_batches(plan.train, plan.arguments))
    if "training.num_train_epochs=0.3" in settings:
        done = run("train", "--config", world / "recipe.yaml", "--no-progress", "--set", settings[0])
        assert f"{planned.steps} steps in" in done.output
        assert planned.steps == 3
