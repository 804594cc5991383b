"""The published reference pair, checked on this machine in one go; it needs the hub and a GPU (`make verify-real`).

    python -m benchmarks.verify_real build/verify [--recipe recipes/qwen2vl-7b-to-2b.yaml --samples 50 --steps 10]
    python -m benchmarks.verify_real build/verify --set teacher.model=/models/7b --set student.model=/models/2b

Both models are downloaded, unless they are directories. Then, on synthetic scenes that are drawn here:

    tokens     ids and image inputs of every sample, prompt and answer, against the stock processor's `apply_chat_template`
    targets    the stored log-probabilities of every answer position against a forward pass of the stock model
    mass       of the stored entries at T = 1 and 2
    speed      of the dump and of a few steps of the recipe's training

It prints a Markdown table to paste into an issue, and writes it to DIRECTORY/verify.md as well. Exit code 1: the tokens differ.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.board import free_memory
from benchmarks.gpu.machine import facts
from benchmarks.smollm2 import stored_mass
from firstsight.data.samples import Sample, load_samples
from firstsight.demo.synth.writing import write_dataset
from firstsight.errors import DataError, FirstSightError
from firstsight.families.clock import template_of_one_day
from firstsight.models.loading import default_device, load_processor, load_teacher, resolve_directory
from firstsight.pair import Pair, load_pair
from firstsight.prompting import Prompter, collate
from firstsight.recipe import Recipe, load_recipe
from phase1_teacher.dump import DumpSummary, dump, prepare_dump
from phase2_student.runs.history import read_history
from phase2_student.training.prepare import prepare
from phase2_student.training.train import train
from storage.errors import CacheError
from storage.reader import Cache, open_cache

# L tokens of a sample, V rows of the teacher's head, S shared ids, P answer positions, K stored entries

REFERENCE = Path(__file__).parents[1] / "recipes" / "qwen2vl-7b-to-2b.yaml"
TEMPERATURES = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    check: str
    found: str
    failed: bool = False


def recipe_here(recipe: Path, directory: Path, steps: int, overrides: tuple[str, ...]) -> Recipe:
    """The recipe with data, cache and run in the directory, for a few steps without validation."""
    here = directory.resolve()
    fixed = [
        f"data.root={here / 'data'}",
        "data.train=train.jsonl",
        "data.validation=validation.jsonl",
        f"cache.path={here / 'cache.zarr'}",
        "cache.targets=top_k",
        f"training.output_dir={here / 'run'}",
        f"training.max_steps={steps}",
        "training.logging_steps=1",
        "training.eval_strategy=no",
        "training.save_strategy=no",
        "training.report_to=none",
    ]
    return load_recipe(recipe, [*fixed, *overrides])


def stock_messages(prompter: Prompter, sample: Sample, *, answer: bool) -> list[dict[str, Any]]:
    """The sample as a user of transformers writes it, images inside."""
    images = iter(sample.open_images())
    messages = [dict(message) for message in (sample.messages if answer else sample.prompt)]
    if prompter.system_prompt is not None and messages[0]["role"] != "system":
        content = [{"type": "text", "text": prompter.system_prompt}]
        messages.insert(0, {"role": "system", "content": content})
    for message in messages:
        message["content"] = [
            {"type": "image", "image": next(images)} if part["type"] == "image" else dict(part)
            for part in message["content"]
        ]
        if not prompter.family.has_vision:
            message["content"] = "".join(part["text"] for part in message["content"])
    return messages


def stock_inputs(processor: Any, prompter: Prompter, sample: Sample, *, answer: bool) -> dict[str, Tensor]:
    """What the stock processor makes of a sample: the whole conversation, or the prompt of its answer."""
    found = processor.apply_chat_template(
        stock_messages(prompter, sample, answer=answer),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=not answer,
        chat_template=template_of_one_day(processor),
    )
    return {name: torch.as_tensor(value) for name, value in dict(found).items()}


def answer_span(prompter: Prompter, input_ids_L: Tensor, sample: Sample) -> slice:
    """Where the answer is in the tokens of the stock processor, end of turn included; a template may continue after it."""
    ids = input_ids_L.tolist()
    end = len(ids) - ids[::-1].index(prompter.end_of_turn_ids[-1])
    return slice(end - len(prompter.answer_ids(sample.answer or "")), end)


def tokens_row(role: str, prompter: Prompter, processor: Any, samples: list[Sample]) -> Row:
    """Whether ids and image inputs of prompts and answers equal the stock processor's."""
    prompts = answers = 0
    for sample in samples:
        stock = stock_inputs(processor, prompter, sample, answer=False)
        ours = collate([prompter.encode(sample, [])], prompter.pad_id)
        prompts += ours.keys() == stock.keys() and all(torch.equal(ours[name], value) for name, value in stock.items())
        whole_L = stock_inputs(processor, prompter, sample, answer=True)["input_ids"][0]
        answer = whole_L[answer_span(prompter, whole_L, sample)]
        answers += answer.tolist() == prompter.encode(sample).target_ids.tolist()
    total = len(samples)
    return Row(
        check=f"tokens of the {role} ({type(processor).__name__})",
        found=f"prompts with images equal {prompts} of {total}, answers {answers} of {total}",
        failed=min(prompts, answers) < total,
    )


@torch.inference_mode()
def differences(
    model: Any, pair: Pair, processor: Any, cache: Cache, samples: list[Sample]
) -> Iterator[NDArray[np.float32]]:
    """For every sample [P, K] the stored log-probabilities minus those of the stock model, nats, where targets are soft."""
    shared_ids = pair.alignment.shared.nonzero()[0]
    teacher_ids_S = torch.from_numpy(pair.alignment.teacher_of_student[shared_ids])
    for sample in samples:
        targets = cache[sample.key].targets
        rows = pair.answer_rows(sample, pair.teacher.turn_ids(sample), pair.student.turn_ids(sample))
        inputs = stock_inputs(processor, pair.teacher, sample, answer=True)
        span = answer_span(pair.teacher, inputs["input_ids"][0], sample)
        logits_LV = model(**{name: value.to(model.device) for name, value in inputs.items()}, use_cache=False).logits[0]
        before = slice(span.start - 1, span.stop - 1)  # a token's row is the position before it
        values_PS = logits_LV[before][torch.from_numpy(rows[targets.soft])][:, teacher_ids_S].float().log_softmax(dim=1)
        columns_PK = np.searchsorted(shared_ids, targets.ids[targets.soft])
        yield targets.logprobs[targets.soft] - values_PS.gather(1, torch.from_numpy(columns_PK)).cpu().numpy()


def targets_row(recipe: Recipe, pair: Pair, processor: Any, samples: list[Sample]) -> Row:
    """How far the stored log-probabilities are from the stock model's."""
    model = load_teacher(pair.directory, recipe.teacher)
    cache = open_cache(recipe.cache_location)
    apart = np.abs(np.concatenate(list(differences(model, pair, processor, cache, samples))))
    first = apart[:, 0]
    found = (
        f"{len(apart):,} positions: mean {apart.mean():.4f} nats, 99 % below {np.quantile(apart, 0.99):.4f}, largest "
        f"{apart.max():.4f}; of the most likely token mean {first.mean():.4f}"
    )
    return Row(check="stored log-probabilities against a stock forward pass", found=found)


def dump_row(recipe: Recipe, summary: DumpSummary) -> Row:
    """Speed and memory of the dump."""
    tokens = open_cache(recipe.cache_location).statistics()["tokens"]
    found = f"{summary.samples / summary.seconds:.2f} samples/s, {tokens / summary.seconds:,.0f} tokens/s"
    if summary.peak_bytes is not None:
        found += f", at most {summary.peak_bytes / 1e9:.1f} GB"
    return Row(check=f"dump, {summary.samples} samples of {tokens / summary.samples:,.0f} tokens", found=found)


def train_row(recipe: Recipe) -> Row:
    """Speed and memory of the training."""
    plan = prepare(recipe, progress=False)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    result = train(plan, overwrite=True)
    logged = [row["tokens_per_second"] for row in read_history(result.output_dir).logged]
    rate = statistics.median(logged[1:] or logged)  # the first step warms up
    found = f"{rate * len(plan.train) / sum(plan.train.lengths()):.2f} samples/s, {rate:,.0f} tokens/s"
    if on_gpu:
        found += f", at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return Row(check=f"training, {result.steps} steps, {plan.precision}", found=found)


def verify(recipe: Recipe, directory: Path, samples: int) -> list[Row]:
    """All checks, one after the other.

    Raises:
        FirstSightError: a model was not found or does not suit this recipe, or an earlier call has used up the directory.
        CacheError: the directory holds another cache.
    """
    _say("models")
    for section in (recipe.teacher, recipe.student):
        resolve_directory(recipe, section)  # downloads
    pair = load_pair(recipe)
    data = directory / "data"
    if not data.exists():
        held_out = max(1, samples // 5)
        write_dataset(data, train=samples - held_out, validation=held_out, seed=0, progress=False)
    found = [sample for source in recipe.sources() for sample in load_samples(source)]
    if len(found) != samples:
        raise DataError(f"{data} holds {len(found)} samples instead of {samples}; give a new directory")
    rows = []
    _say("tokens")
    processors = {}
    for role, prompter, section in (
        ("teacher", pair.teacher, recipe.teacher),
        ("student", pair.student, recipe.student),
    ):
        processors[role] = load_processor(resolve_directory(recipe, section), section)
        rows.append(tokens_row(role, prompter, processors[role], found))
    _say("dump")
    summary = dump(prepare_dump(recipe, progress=False))
    if not summary.samples:
        raise DataError(f"{recipe.cache_location} is complete already, so no dump can be timed; give a new directory")
    rows.append(dump_row(recipe, summary))
    free_memory()
    _say("stored log-probabilities against a stock forward pass")
    rows.append(targets_row(recipe, pair, processors["teacher"], found))
    free_memory()
    masses = stored_mass(recipe.cache_location, TEMPERATURES)
    text = ", ".join(f"{mass:.3f} at T = {T:g}" for T, mass in masses.items())
    rows.append(Row(check=f"mass of the {recipe.cache.top_k} stored entries", found=text))
    _say("training")
    rows.append(train_row(recipe))
    return rows


def table(recipe: Recipe, rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        f"`python -m benchmarks.verify_real`: {recipe.teacher.model} ({recipe.teacher.quantization}) into {recipe.student.model}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {row.check} | {'**differs:** ' if row.failed else ''}{row.found} |" for row in rows),
        *(f"| {name} | {value} |" for name, value in facts(default_device()).items() if name != "command"),
    ]
    return "\n".join(lines)


def _say(step: str) -> None:
    click.echo(f"{step} ...", err=True)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--recipe",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=REFERENCE,
    help="The pair's.",
)
@click.option("--samples", default=50, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=10, show_default=True, type=click.IntRange(min=1), help="Training steps.")
@click.option("--set", "overrides", multiple=True, help="As for fs-teacher dump.")
def main(directory: Path, path: Path, samples: int, steps: int, overrides: tuple[str, ...]) -> None:
    """Check a published pair on this machine, and print a table to paste into an issue.

    Example: python -m benchmarks.verify_real build/verify --samples 50
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        recipe = recipe_here(path, directory, steps, overrides)
        rows = verify(recipe, directory, samples)
    except (FirstSightError, CacheError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    text = table(recipe, rows)
    (directory / "verify.md").write_text(text + "\n", encoding="utf-8")
    click.echo(text)
    sys.exit(1 if any(row.failed for row in rows) else 0)


if __name__ == "__main__":
    main()
