"""Runs side by side, finished or not: what differs between them, how far they got, and the seeds of one objective as a group.

runs = read_runs(find_runs([Path("runs/sweep")]))
print(run_table(runs))
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from phase2_student.report.run_groups import Figure, GroupRow, best_group, run_groups, shown
from phase2_student.report.run_row import HIDDEN, RunRow, differing_settings, one_loss, run_rows
from phase2_student.runs.records import Run

_COLUMNS = {
    "steps": ("steps", "{:,}"),
    "best_validation_loss": ("best loss", "{:.4f}"),
    "validation_loss": ("loss", "{:.4f}"),
    "validation_kd": ("KD", "{:.4f}"),
    "validation_kl": ("KL", "{:.4f}"),
    "validation_ce": ("CE", "{:.4f}"),
    "validation_agreement": ("agreement", "{:.1%}"),
    "evaluation_kl": ("evaluated KL", "{:.4f}"),
    "exact_match": ("exact", "{:.1%}"),
    "seconds": ("s", "{:,.0f}"),
}
_OF_GROUP = {
    "kl": ("KL", "{:.4f}"),
    "ce": ("CE", "{:.4f}"),
    "agreement": ("agreement", "{:.1%}"),
    "evaluation_kl": ("evaluated KL", "{:.4f}"),
    "exact_match": ("exact", "{:.1%}"),
}
_BY = {
    "exact_match": "exact match",
    "evaluation_kl": "KL to the teacher in the evaluation",
    "kl": "KL to the teacher on validation",
}


def run_table(runs: Sequence[Run], evaluation: Path | None = None) -> str:
    """One line per run; one line per objective, if any objective has several runs; and the best objective.

    Args:
        runs: as `read_runs` reads them.
        evaluation: as `given` of `run_row.students_of`.
    """
    rows = run_rows(runs, evaluation)
    groups = run_groups(runs, rows)
    columns = {name: each for name, each in _COLUMNS.items() if name != "evaluation_kl" or _any(rows, name)}
    names = differing_settings(runs)
    digests = {name: _letters([run.setting(name) for run in runs]) for name in names if name in HIDDEN}
    cells = [
        [
            row.name + ("" if row.finished else " (not finished)"),
            *(
                digests[name][json.dumps(each)] if name in digests else shown(each)
                for name, each in row.settings.items()
            ),
            *(_figure(row, name, form) for name, (_, form) in columns.items()),
        ]
        for row in rows
    ]
    titles = ["run", *(name.rpartition(".")[2] for name in names), *(title for title, _ in columns.values())]
    starred = [[name in row.best_in for name in ["", *names, *columns]] for row in rows]
    lines = _aligned(titles, cells, starred)
    lines.append(
        "Loss, KD, KL, CE and agreement on validation; best loss is the lowest of all validations, the others are of the last one."
        + (" *: the best of these runs." if any(map(any, starred)) else "")
    )
    if not one_loss(runs):
        lines.append(
            "Loss and KD cannot be compared between runs with different loss settings or targets: compare KL, CE, agreement and exact "
            "match. KL is between teacher and student at T = 1, whatever was minimised."
        )
    lines += _apart_lines(rows)
    if len(groups) < len(runs):
        lines += ["", *_group_lines(groups)]
    if len(groups) > 1:
        lines.append(_best_text(groups))
    return "\n".join(lines)


def run_json(runs: Sequence[Run], evaluation: Path | None = None) -> str:
    """The same as one JSON object: `runs`, `groups`, and `best`, the name of a group and the field that decides, or null."""
    rows = run_rows(runs, evaluation)
    groups = run_groups(runs, rows)
    best = best_group(groups)
    found = {
        "runs": [asdict(row) for row in rows],
        "groups": [asdict(group) for group in groups],
        "best": None if best is None else {"group": best[0].name, "by": best[1]},
    }
    return json.dumps(found, indent=2)


def _apart_lines(rows: Sequence[RunRow]) -> list[str]:
    """What is not compared although it stands in one column, and which evaluations are not used."""
    lines = [row.evaluation_left_out for row in rows if row.evaluation_left_out]
    if len({row.validated_on for row in rows}) > 1:
        lines.append("Figures of validations on different samples are not compared: see the column validation samples.")
    asked: dict[str, list[str]] = {}
    for row in rows:
        if row.evaluated_samples is not None:
            asked.setdefault(row.evaluated_samples, []).append(row.name)
    if len(asked) > 1:
        sets = "; ".join(", ".join(names) for names in asked.values())
        lines.append(
            f"Evaluations of different samples are not compared ({sets}): evaluate the students with one fs-student eval --model "
            "NAME=DIR ..., and pass its file as --evaluation."
        )
    return lines


def _group_lines(groups: Sequence[GroupRow]) -> list[str]:
    several = len({group.measured_on for group in groups}) > 1
    columns = {name: each for name, each in _OF_GROUP.items() if _any(groups, name)}
    hidden = sorted({name for group in groups for name in group.settings if name in HIDDEN})
    letters = {name: _letters([group.settings[name] for group in groups]) for name in hidden}
    cells = [
        [
            group.name,
            *(letters[name][json.dumps(group.settings[name])] for name in hidden),
            f"{group.seeds}" + (f" (+ {len(group.unfinished)} not finished)" if group.unfinished else ""),
            *([group.measured_on] if several else []),
            *(_mean_text(getattr(group, name), form, group.seeds) for name, (_, form) in columns.items()),
        ]
        for group in groups
    ]
    beside = [*hidden, "seeds", *(["KL on"] if several else [])]
    titles = ["objective", *beside, *(title for title, _ in columns.values())]
    starred = [[name in group.best_in for name in ["", *beside, *columns]] for group in groups]
    lines = _aligned(titles, cells, starred)
    lines.append(
        "Finished runs that differ only in their seed are one line: mean ± standard deviation over the seeds; (n): over only n of them."
        + (
            " *: the best" + ("; a KL is compared only with those on the same targets." if several else ".")
            if any(map(any, starred))
            else ""
        )
    )
    return lines


def _best_text(groups: Sequence[GroupRow]) -> str:
    best = best_group(groups)
    if best is not None:
        close = [group.name for group in groups if group is not best[0] and _within_spread(group, *best)]
        return f"Best by {_BY[best[1]]}: {best[0].name}" + (
            f"; within the spread over the seeds: {'; '.join(close)}" if close else ""
        )
    if len({group.validated_on for group in groups}) > 1:
        return (
            "Best: not known. The runs have different validation samples. Evaluate all students on one set (fs-student eval --model "
            "NAME=DIR ...) and pass the file as --evaluation."
        )
    if len({group.measured_on for group in groups}) > 1:
        return (
            "Best: not known. KL on stored entries is a lower bound of the KL on whole distributions. Evaluate all students on one cache "
            "(fs-student eval --set cache.path=... --model NAME=DIR ...) and pass the file as --evaluation."
        )
    if len({group.targets_of for group in groups}) > 1:
        return (
            "Best: not known. The runs began on caches of different content, so whether their targets are of one teacher is not known. "
            "Evaluate all students on one cache (fs-student eval --set cache.path=... --model NAME=DIR ...) and pass the file as "
            "--evaluation."
        )
    return "Best: not known, since not every objective has a finished run with a validation."


def _within_spread(group: GroupRow, best: GroupRow, name: str) -> bool:
    one: Figure = getattr(group, name)
    other: Figure = getattr(best, name)
    return abs(one.mean - other.mean) <= max(one.spread or 0.0, other.spread or 0.0)


def _any(rows: Sequence[RunRow] | Sequence[GroupRow], name: str) -> bool:
    return any(getattr(row, name) is not None for row in rows)


def _letters(values: Sequence[object]) -> dict[str, str]:
    """A letter for each digest, by the digest's JSON."""
    return {json.dumps(value): chr(ord("A") + n) for n, value in enumerate(dict.fromkeys(values))}


def _figure(row: RunRow, name: str, form: str) -> str:
    value = getattr(row, name)
    return "-" if value is None or math.isnan(value) else form.format(value)


def _mean_text(figure: Figure | None, form: str, seeds: int) -> str:
    if figure is None or math.isnan(figure.mean):
        return "-"
    spread = "" if figure.spread is None else f" ± {form.format(figure.spread)}"
    return form.format(figure.mean) + spread + ("" if figure.count == seeds else f" ({figure.count})")


def _aligned(titles: Sequence[str], cells: Sequence[Sequence[str]], starred: Sequence[Sequence[bool]]) -> list[str]:
    """Lines of a table, the first column to the left; a star after each cell that is starred."""
    any_star = [any(column) for column in zip(*starred, strict=True)]
    table = [
        [title + " " * room for title, room in zip(titles, any_star, strict=True)],
        *(
            [cell + ("*" if star else " " * room) for cell, star, room in zip(line, stars, any_star, strict=True)]
            for line, stars in zip(cells, starred, strict=True)
        ),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(titles))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
