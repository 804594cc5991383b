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
    own = read_preprocessing(trained_student(run.directory))
    system_prompt = None if own is None or own.system_prompt is None else repr(own.system_prompt)  # as in Python code
    data = ModelCardData(
        base_model=base if "/" in base else None,  # only the last part of a directory is recorded
        base_model_relation="finetune" if "/" in base else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        license=license,
        tags=["knowledge-distillation", "firstsight", _TASK],
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
