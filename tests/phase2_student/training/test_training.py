"""A whole training through the command, and what it leaves."""

import json

import torch
from PIL import Image
from run_cases import run

from firstsight.models.loading import load_processor
from firstsight.recipe import StudentSection


def test_train_leaves_models_that_plain_transformers_loads_and_a_second_call_does_nothing(world):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    command = ["train", "--config", world / "recipe.yaml", "--no-progress"]
    first = run(*command)
    assert first.exit_code == 0, first.output
    final = world / "runs" / "a" / "final"

    model = AutoModelForImageTextToText.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert model.config.architectures == ["Qwen2VLForConditionalGeneration"]
    messages = [{"role": "user", "content": "What is it?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]

    # AutoProcessor, where torchvision is
    processor = load_processor(final, StudentSection())
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[Image.new("RGB", (112, 112), "red")], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]

    facts = json.loads((world / "runs" / "a" / "run.json").read_text())
    assert facts.keys() >= {"cache_digest", "git_commit", "seed", "precision", "processes"}
    assert facts["data_root"] == str(world / "data")
    assert facts["versions"]["torch"] == torch.__version__
    history = json.loads((world / "runs" / "a" / "training_history.json").read_text())
    assert history[-1]["train"].keys() >= {"loss", "kd", "ce", "agreement", "tokens_per_second", "data_wait"}
    assert all(row["seconds"] > 0 for row in history)

    before = sorted((path, path.stat().st_mtime_ns) for path in (world / "runs").rglob("*") if path.is_file())
    second = run(*command)
    assert second.exit_code == 0
    assert "is finished: 14 steps; pass --overwrite to begin again" in second.output
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (world / "runs").rglob("*") if p.is_file())

    other = run(*command, "--set", "loss.alpha=0.5", "--set", "training.learning_rate=2e-3")
    assert other.exit_code == 2
    assert "loss.alpha: the run has 0.7, the recipe 0.5" in other.output
    assert "training.learning_rate: the run has 0.001, the recipe 0.002" in other.output
    again = run(*command, "--set", "loss.alpha=0.5", "--set", "training.num_train_epochs=1", "--overwrite")
    assert again.exit_code == 0, again.output
    assert "7 steps" in again.output
