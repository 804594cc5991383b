"""The page: `write_report([Path("runs/distilled")])` reads a run and its evaluation and writes one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from markupsafe import Markup

from firstsight import __version__
from firstsight.page import render
from phase2_student.evaluation.files import read_evaluation
from phase2_student.evaluation.results import Evaluation
from phase2_student.evaluation.summary import difference_lines, preprocessing_lines, sample_lines, summary_table
from phase2_student.report import charts, figures, gallery
from phase2_student.report.costs import cost_lines, cost_rows
from phase2_student.runs.lineage import pair_names, read_caches
from phase2_student.runs.records import Run, find_runs, read_runs
from storage.wording import counted

GALLERY = 90
"""Default number of samples in the gallery."""

_CURVES = {
    "kd": "KD per token",
    "ce": "CE, nats per token",
    "loss": "loss",
    "agreement": "agreement with the teacher",
    "kl": "KL to the teacher at T = 1, nats per token",
}
_RUN_KEYS = {
    "loss.divergence": "divergence",
    "loss.temperature": "T",
    "loss.alpha": "alpha",
    "training.learning_rate": "learning rate",
    "training.num_train_epochs": "epochs",
}


@dataclass(frozen=True)
class Report:
    """The page that was written."""

    path: Path
    notes: tuple[str, ...]
    """What is missing on it, and why."""


def write_report(
    directories: Sequence[Path],
    *,
    output: Path | None = None,
    evaluation: Path | None = None,
    data: Path | None = None,
    shown: int = GALLERY,
) -> Report:
    """Write the page of one or several runs.

    Args:
        directories: directories of runs, or directories with runs directly below them; several runs are shown side by side.
        output: the file; None: `report.html` in the last directory.
        evaluation: a file of `fs-student eval` or a directory with some; None: those in the runs' directories.
        data: image paths are relative to it; None: where the data was when the run began.
        shown: number of samples in the gallery.

    Raises:
        DataError: a directory holds no run, or a file cannot be used.
    """
    runs = read_runs(find_runs(directories))
    left_out: dict[str, str] = {}
    found = read_evaluation(runs, evaluation, left_out=left_out)
    caches, notes = read_caches(runs)
    notes += left_out.values()
    if found is None and not left_out:
        notes.append("No evaluation was found: run fs-student eval, then this command again.")
    notes += [line for run in runs if (line := _skipped(run))]
    models = found.models if found else []
    series = figures.series_of(models, runs)
    keys = _run_keys(runs)
    values: dict[str, object] = {
        "title": pair_names(runs[-1], caches.get(str(runs[-1].facts.get("cache")))),
        "version": __version__,
        "runs": [_run(run, series, keys) for run in runs],
        "run_keys": list(keys.values()),
        "curves": _curves(runs, series),
        "costs": cost_rows(runs, caches),
        "cost_lines": cost_lines(runs, caches),
        "recipes": [
            (run.name, yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True)) for run in runs if run.recipe
        ],
        "caches": [
            {
                "name": cache.name if len(caches) > 1 else "the cache",
                "digest": cache.digest,
                "changed": all(
                    cache.digest != run.facts.get("cache_digest") for run in runs if run.facts.get("cache") == location
                ),
                "spec": yaml.safe_dump(cache.status.spec, sort_keys=False, default_flow_style=None),
            }
            for location, cache in caches.items()
        ],
        "evaluation": found,
        "symbols": charts.SYMBOLS,
        "series_count": charts.SERIES,
        "script": None,
    }
    if found:
        root = data or next((Path(run.facts["data_root"]) for run in runs if run.facts.get("data_root")), None)
        values |= _evaluated(found, runs, series, root, shown, notes)
    values["notes"] = notes
    path = output or directories[-1] / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render("phase2_student.report", "report.html", **values), encoding="utf-8")
    return Report(path=path, notes=tuple(notes))


def _evaluated(
    evaluation: Evaluation,
    runs: Sequence[Run],
    series: dict[str, int],
    root: Path | None,
    shown: int,
    notes: list[str],
) -> dict[str, object]:
    """The parts of the page that show the evaluation."""
    models = evaluation.models
    student = figures.focus(models, runs)
    teacher = figures.teacher_of(models)
    calibrated = [(model.name, figures.calibration(model, series[model.name])) for model in models]
    known = [(name, *result) for name, result in calibrated if result is not None]
    groups = {"category": figures.by_group(models, "category"), "environment": figures.by_group(models, "environment")}
    cards, missing = gallery.cards(models, gallery.choose(student, shown), series, root)
    if missing:
        images = counted(missing, "image of the gallery was", "images of the gallery were")
        notes.append(f"{images} not found under {root}; pass their root as --data.")
    script = files("phase2_student.report").joinpath("templates/gallery.js").read_text(encoding="utf-8")
    return {
        "models": [
            {"name": model.name, "series": series[model.name], "rank": model is not student} for model in models
        ],
        "student": student.name,
        "teacher": None if teacher is None else teacher.name,
        "tiles": figures.tiles(models, student, figures.hard_labels_of(models, runs, student)),
        "table": [
            [row[0], *(row[1 + number] for number in figures.students_first(models, student))]
            for row in summary_table(evaluation)
        ],
        "differences": difference_lines(models),
        "sample_lines": [*sample_lines(evaluation), *preprocessing_lines(models)],
        "accuracy": [charts.intervals(f"By {key}", rows) for key, rows in groups.items() if rows],
        "reliability": charts.reliability("Confidence and share of right answers", [bins for _, bins, _ in known])
        if known
        else None,
        "calibration": [(name, series[name], error) for name, _, error in known],
        "cards": cards,
        "judged": any(card.truth is not None for card in cards),
        "categories": sorted({card.category for card in cards} - {""}),
        "environments": sorted({card.environment for card in cards} - {""}),
        "total": len(student.samples),
        "script": Markup(script),  # our own script, from the package
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _run_keys(runs: Sequence[Run]) -> dict[str, str]:
    """The recipe keys to show side by side, with their labels: the usual ones, and those that differ between the runs."""
    names = {f"{section}.{key}" for run in runs for section, part in run.recipe.items() for key in (part or {})}
    differing = {
        name: name
        for name in sorted(names)
        if len({str(run.setting(name)) for run in runs}) > 1 and name != "training.output_dir"
    }
    return {**_RUN_KEYS, **{name: label for name, label in differing.items() if name not in _RUN_KEYS}}


def _skipped(run: Run) -> str:
    """How many samples a run left out, and why; empty if none."""
    count, first = run.facts.get("skipped_samples"), run.facts.get("skipped_first") or []
    if not count:
        return ""
    why = f": {'; '.join(map(str, first))}{'; ...' if count > len(first) else ''}" if first else ""
    return f"{run.name}: {counted(count, 'sample was', 'samples were')} left out (cache.on_error: skip){why}"


def _run(run: Run, series: dict[str, int], keys: dict[str, str]) -> dict[str, object]:
    best = run.best_validation_loss
    return {
        "name": run.name,
        "series": series[run.name],
        "values": [_value(run, key) for key in keys],
        "losses": "-" if best is None else f"{best:.4f}",
        "precision": run.facts.get("precision", "-"),
        "seed": run.facts.get("seed", "-"),
        "commit": str(run.facts.get("git_commit") or "-"),
    }


def _value(run: Run, key: str) -> str:
    if key == "training.num_train_epochs" and run.max_steps:
        return counted(run.max_steps, "step")  # they take the place of the epochs
    value = run.setting(key)
    return "-" if value is None else str(value)


def _curves(runs: Sequence[Run], series: dict[str, int]) -> list[Markup]:
    made = []
    for name, label in _CURVES.items():
        if lines := figures.history_lines(runs, name, series):
            made.append(charts.curves(label, lines, xlabel="step"))
    return made
