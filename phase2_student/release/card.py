"""The model card of a student: lineage, figures, how to load it, what to cite, limits; made with `huggingface_hub.ModelCard`.

card = model_card(run, evaluation, student, repo="me/student", license=None)
card.save("README.md")
"""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from firstsight import __version__
from firstsight.families import family_of
from firstsight.families.clock import PROMPT_DATE, template_of_one_day
from firstsight.page import render
from phase2_student.evaluation.results import Evaluation, ModelResult
from phase2_student.evaluation.summary import difference_lines, preprocessing_lines, sample_lines, summary_table
from phase2_student.runs.best import trained_student
from phase2_student.runs.lineage import CacheFacts, pair_names
from phase2_student.runs.preprocessing import read_preprocessing
from phase2_student.runs.records import Run
from storage.wording import counted

_METRICS = {
    "exact": ("exact_match", "Exact match"),
    "f1": ("f1", "Token F1"),
    "anls": ("anls", "ANLS"),
    "choice": ("accuracy", "Multiple choice"),
    "vqa": ("vqa_accuracy", "VQA accuracy"),
}
_TASK = "visual-question-answering"


def model_card(
    run: Run,
    evaluation: Evaluation | None,
    student: ModelResult | None,
    cache: CacheFacts | None,
    *,
    repo: str,
    license: str | None,
) -> ModelCard:
    """The card.

    Args:
        run: the run that trained the student.
        evaluation: the evaluation; None: the card says that the student was not evaluated.
        student: the student in the evaluation.
        cache: gives the teacher's identity; None if it cannot be opened.
        repo: `user/name`.
        license: identifier of the hub, such as `apache-2.0`.
    """
    config = json.loads((trained_student(run.directory) / "config.json").read_text(encoding="utf-8"))
    sees = "model_type" not in config or family_of(SimpleNamespace(**config)).has_vision
    teacher_name, base = pair_names(run, cache)
    hard = run.setting("loss.alpha") == 0
    own = read_preprocessing(trained_student(run.directory))
    system_prompt = None if own is None or own.system_prompt is None else repr(own.system_prompt)  # as in Python code
    data = ModelCardData(
        base_model=base if "/" in base else None,  # only the last part of a directory is recorded
        base_model_relation="finetune" if "/" in base else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        license=license,
        tags=[*([] if hard else ["knowledge-distillation"]), "firstsight", _TASK],
        metrics=[_METRICS[name][0] for name in student.scores.overall.known()] if student else None,
        model_name=repo.split("/")[-1],
        eval_results=_results(evaluation, student) if evaluation and student else None,
    )
    table = summary_table(evaluation) if evaluation else []
    teacher = cache.teacher if cache else {}
    text = render(
        "phase2_student",
        "card.md",
        card_data=data.to_yaml(),
        repo=repo,
        run=run,
        facts=run.facts,
        version=run.facts.get("firstsight", __version__),
        student_base=base,
        teacher_name=teacher_name,
        teacher=teacher,
        quantization=teacher.get("quantization") or run.key("teacher.quantization"),
        cache=cache,
        exact=run.identity.get("targets") == "exact",
        hard=hard,
        learned=_learned(run),
        trained=_trained(run),
        evaluation=evaluation,
        own=student.name if student else None,
        table=[[_cell(cell) for cell in row] for row in table],
        differences=[
            *difference_lines(evaluation.models),
            *sample_lines(evaluation),
            *preprocessing_lines(evaluation.models),
        ]
        if evaluation
        else [],
        sees=sees,
        system_prompt=system_prompt,
        prompt_date=_prompt_date(trained_student(run.directory)),
        qwen2_vl=config.get("model_type") == "qwen2_vl",
        license=license,
    )
    return ModelCard(text)


def _learned(run: Run) -> str:
    """What the student did not see of the teacher's distribution; empty if it saw all of it."""
    if run.setting("loss.alpha") == 0:
        return "It was trained on labels alone (`loss.alpha` was 0), on nothing of a teacher's distribution."
    if run.identity.get("targets", "cache") != "cache" or not run.facts.get("cache_digest"):
        return ""
    entries = f"It was trained on the teacher's {run.key('cache.top_k')} most likely tokens per position"
    tail = run.setting("loss.tail")
    if tail in ("renormalize", "none"):
        how = "as if they were all" if tail == "renormalize" else "without the mass of the rest"
        return f"{entries}, {how}, not on the whole distribution."
    if "tail" in run.identity:
        return f"{entries} and an approximation of the rest ({run.identity['tail']}), not on the whole distribution itself."
    return f"{entries} and the mass of the rest, not on the whole distribution."


def _trained(run: Run) -> str:
    """How long a run trained: `2 of 4 epochs, 14 steps`."""
    seen, planned = run.epochs_seen, run.key("training.num_train_epochs")
    if seen is None:
        return "an unknown number of epochs and steps"
    steps = counted(run.history.last_step, "step")
    if planned and not run.max_steps:
        return f"{seen:g} of {counted(planned, 'epoch') if planned % 1 == 0 else f'{planned:g} epochs'}, {steps}"
    return f"{seen:g} epoch{'' if seen == 1 else 's'}, {steps}"


def _prompt_date(directory: Path) -> date | None:
    """Which day it was in the prompts; None if the model's chat template does not ask."""
    template = directory / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    return PROMPT_DATE if template_of_one_day(SimpleNamespace(chat_template=text)) else None


def _results(evaluation: Evaluation, student: ModelResult) -> list[EvalResult]:
    """The `model-index` of the card: every metric over all samples, and exact match by category."""
    name, count = evaluation.data.file, len(student.samples)
    common: dict[str, Any] = {
        "task_type": _TASK,
        "dataset_type": re.sub(r"\W+", "-", name.rsplit(".", 1)[0]),
        "dataset_split": "validation",
    }
    results = [
        EvalResult(
            **common,
            dataset_name=f"{name}, {count:,} held-out samples",
            metric_type=_METRICS[metric][0],
            metric_name=_METRICS[metric][1],
            metric_value=round(score.mean, 6),
        )
        for metric, score in student.scores.overall.known().items()
    ]
    for category, scores in student.scores.category.items():
        if scores.exact is None:
            continue
        results.append(
            EvalResult(
                **common,
                dataset_name=f"{name}, {category}",
                dataset_config=category,
                metric_type=_METRICS["exact"][0],
                metric_name=_METRICS["exact"][1],
                metric_value=round(scores.exact.mean, 6),
            )
        )
    return results


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
