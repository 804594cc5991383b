"""Every number of the summary, computed again from the per-sample records and the raw times of the JSON."""

import json
import random
import re

import numpy as np
import pytest
from pydantic import ValidationError
from report_cases import scores_of

from phase2_student.evaluation.files import write_evaluation
from phase2_student.evaluation.goals import check_goals
from phase2_student.evaluation.measure.timing import seen_by_users, throughput
from phase2_student.evaluation.results import Evaluation, ModelResult, ThroughputRun
from phase2_student.evaluation.summary import details_text, summary_text

METRICS = {"exact match": "exact", "token F1": "f1", "ANLS": "anls", "multiple choice": "choice"}
KITCHEN, DESK = "kitchen", "desk"


def records(seed, count=120, *, distance):
    draw = random.Random(seed)
    made = []
    for number in range(count):
        exact = draw.random() < 0.6
        record = {
            "id": f"s{number}",
            "category": ("colours", "counting", "places")[number % 3],
            "environment": (KITCHEN, DESK)[number % 2],
            "question": "?",
            "images": ["images/a.png"],
            "truth": "a",
            "answer": "a" if exact else "",
            "tokens": draw.randrange(1, 12),
            "exact": exact,
            "f1": 1.0 if exact else draw.random(),
            "anls": 1.0 if exact else draw.random(),
            "choice": draw.random() < 0.5 if number % 3 == 1 else None,
            "confidence": None if number == 7 else draw.random(),
            "nonfinite": number == 7,
            "empty": not exact,
            "cut": number % 50 == 0,
        }
        if number < 16:
            record["seconds"] = draw.uniform(0.1, 0.4)
        if distance:
            record |= {"kl_sum": draw.uniform(0, 3), "soft_positions": draw.randrange(1, 9), "agree": 1}
        made.append(record)
    return made


def measured(name, role, seed, *, size):
    draw = random.Random(seed)
    samples = records(seed, distance=role == "student")
    alone = [record["seconds"] for record in samples if "seconds" in record]
    runs = [{"batch": 1, "samples": 16, "seconds": sum(alone)}, {"batch": 4, "samples": 20, "seconds": 1.7}]
    runs.append({"batch": 16, "samples": 32, "seconds": 2.1})
    batches = {
        "1": alone,
        "4": [draw.uniform(0.2, 0.5) for _ in range(5)],
        "10": [draw.uniform(0.3, 0.9) for _ in "ab"],
    }
    return {
        "name": name,
        "role": role,
        "dtype": "int8" if role == "teacher" else "float32",
        "parameters": size,
        "size_bytes": 2 * size,
        "load_seconds": draw.uniform(0.2, 2),
        "peak_memory_bytes": 10 * size,
        "throughput": throughput([ThroughputRun(**run) for run in runs]).to_json(),
        "throughput_runs": runs,
        "concurrency": {users: seen_by_users(int(users), seconds).to_json() for users, seconds in batches.items()},
        "energy_joules_per_answer": 12.5,
        "distance_unknown": None,
        "scores": scores_of(samples),
        "samples": samples,
    }


def goals(models):
    return [goal.to_json() for goal in check_goals([ModelResult.model_validate(model) for model in models])]


@pytest.fixture(scope="module")
def evaluation():
    """The JSON of an evaluation."""
    models = [
        measured("teacher", "teacher", 1, size=4_000_000),
        measured("base", "student", 2, size=1_000_000),
        measured("student", "student", 3, size=2_000_000),
    ]
    settings = {
        "device": "CPU, 2 threads",
        "batch_size": 8,
        "timed": 16,
        "warm_up": 2,
        "repetitions": 1,
        "requests": 20,
    }
    whole = {
        "created": "2026-11-25T00:10:00+00:00",
        "data": {"file": "validation.jsonl", "samples": 120},
        "settings": settings,
        "targets": goals(models),
        "models": models,
    }
    return json.loads(json.dumps(whole))


def cells(text):
    """Label -> the cells of its line; a cell may hold single spaces."""
    table = {}
    for line in text.split("\n\n")[0].splitlines():
        if line.strip("-"):
            label, *rest = re.split(r" {2,}", line.strip())
            table[label] = rest
    return table


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def percentile(values, share):
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def expected_figures(model, teacher):
    samples = model["samples"]
    timed = [s for s in samples if "seconds" in s]
    seconds = [s["seconds"] for s in timed]
    rates = {run["batch"]: run["samples"] / run["seconds"] for run in model["throughput_runs"]}
    best = max(rates, key=rates.get)
    figures = {
        "parameters": f"{model['parameters']:,}",
        "weights on disk, MB": f"{model['size_bytes'] / 10**6:,.1f}",
        "load time, s": f"{model['load_seconds']:.2f}",
        "peak memory above idle, MB": f"{model['peak_memory_bytes'] / 10**6:.0f}",
        "latency p50, ms": f"{1000 * percentile(seconds, 0.5):.1f}",
        "latency p95, ms": f"{1000 * percentile(seconds, 0.95):.1f}",
        "tokens/s": f"{sum(s['tokens'] for s in timed) / sum(seconds):.0f}",
        "samples/s": f"{len(timed) / sum(seconds):.2f}",
        "samples/s at the best batch": f"{rates[best]:.2f}",
        "best batch": str(best),
        "energy per answer, J": "12.50",
        "mean answer tokens": f"{mean(s['tokens'] for s in samples):.1f}",
        "mean confidence": f"{mean(s['confidence'] for s in samples if s['confidence'] is not None):.3f}",
        "empty answers": str(len([s for s in samples if s["answer"] == ""])),
        "answers with NaN": "1",
        "answers cut": "3",
        "KL to the teacher, nats/token": "-",
        "agreement with the teacher": "-",
    }
    for users, seen in model["concurrency"].items():
        rate = len(seen["seconds"]) / (sum(seen["seconds"]) / int(users))
        p50, p95 = (1000 * percentile(seen["seconds"], share) for share in (0.5, 0.95))
        label = f"samples/s (p50, p95 in ms), {users} user{'' if users == '1' else 's'}"
        figures[label] = f"{rate:.2f} ({p50:,.0f}, {p95:,.0f})"
    student = model is not teacher
    if student:
        positions = sum(s["soft_positions"] for s in samples)
        figures["KL to the teacher, nats/token"] = f"{sum(s['kl_sum'] for s in samples) / positions:.4f}"
        figures["agreement with the teacher"] = f"{100 * sum(s['agree'] for s in samples) / positions:.1f}%"
    times = teacher["parameters"] / model["parameters"]
    less = 100 * (model["peak_memory_bytes"] / teacher["peak_memory_bytes"] - 1)
    alone = [s["seconds"] for s in teacher["samples"] if "seconds" in s]
    faster = (len(seconds) / sum(seconds)) / (len(alone) / sum(alone))
    for label, shown, passed in [
        ("original goal: compression >= 3 x against teacher", f"{times:.2f} x", times >= 3),
        ("original goal: peak memory -30% against teacher", f"{less:+.0f}%", less <= -30),
        ("original goal: speed >= 3 x against teacher", f"{faster:.2f} x", faster >= 3),
    ]:
        figures[label] = f"{shown} {'pass' if passed else 'FAIL'}" if student else "-"
    return figures


def check_score(cell, values):
    """`61.7% [52.5, 70.0]`: the mean exactly; the interval as another resampling has it, to one step of the mean and noise."""
    shown, low, high = map(float, re.fullmatch(r"([\d.]+)% \[([\d.]+), ([\d.]+)\]", cell).groups())
    values = np.array([float(value) for value in values])
    assert shown == pytest.approx(100 * values.mean(), abs=0.051)
    generator = np.random.default_rng(99)
    drawn = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(3000)]
    tolerance = 100 / len(values) + 1
    assert low == pytest.approx(100 * np.quantile(drawn, 0.025), abs=tolerance)
    assert high == pytest.approx(100 * np.quantile(drawn, 0.975), abs=tolerance)
    assert low <= shown <= high


def of_group(samples, label):
    return [s for s in samples if label in (s["category"], s["environment"])]


def test_every_number_of_the_table(evaluation):
    table = cells(summary_text(Evaluation.model_validate(evaluation)))
    models = evaluation["models"]
    expected = [expected_figures(model, models[0]) for model in models]
    for label in expected[0]:
        assert table.pop(label) == [figures[label] for figures in expected], label
    for label in list(table):
        if label in METRICS or of_group(models[0]["samples"], label):
            metric = METRICS.get(label, "exact")
            for cell, model in zip(table.pop(label), models, strict=True):
                samples = model["samples"] if label in METRICS else of_group(model["samples"], label)
                check_score(cell, [s[metric] for s in samples if s[metric] is not None])
    header = {"teacher (int8)": ["base (float32)", "student (float32)"]}
    assert table == header


def test_every_number_of_the_details(evaluation):
    parts = details_text(Evaluation.model_validate(evaluation)).split("\n\n")
    assert len(parts) == 3
    for part in parts:
        table = cells(part)
        label = next(iter(table))
        assert table.pop(label) == ["teacher", "base", "student"]
        metric = METRICS[label]
        for name, line in table.items():
            for cell, model in zip(line, evaluation["models"], strict=True):
                samples = model["samples"] if name == "all" else of_group(model["samples"], name)
                check_score(cell, [s[metric] for s in samples if s[metric] is not None])
        groups = {"counting", KITCHEN, DESK} | (set() if metric == "choice" else {"colours", "places"})
        assert set(table) == {"all"} | groups


def test_the_differences_between_neighbours_and_of_the_last_to_each(evaluation):
    lines = [
        line for line in summary_text(Evaluation.model_validate(evaluation)).splitlines() if "paired bootstrap" in line
    ]
    teacher, base, student = evaluation["models"]
    compared = [(teacher, base), (base, student), (teacher, student)]
    for line, (before, model) in zip(lines, compared, strict=True):
        assert line.startswith(f"{model['name']} - {before['name']}: ")
        shown, low, high = map(float, re.findall(r"([+-][\d.]+)", line.split(":")[1]))
        pairs = zip(model["samples"], before["samples"], strict=True)
        difference = np.array([100 * (int(mine["exact"]) - int(theirs["exact"])) for mine, theirs in pairs])
        assert shown == pytest.approx(difference.mean(), abs=0.051)
        generator = np.random.default_rng(5)
        drawn = [difference[generator.integers(0, 120, 120)].mean() for _ in range(3000)]
        assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=2)


def test_the_nll_of_the_true_answers_and_its_differences_are_shown_where_they_are_known(evaluation):
    assert "NLL of the true answers" not in summary_text(Evaluation.model_validate(evaluation))
    known = json.loads(json.dumps(evaluation))
    draw = random.Random(8)
    for model in known["models"][1:]:
        for number, sample in enumerate(model["samples"]):
            if number % 5:  # not every sample has a label
                sample |= {"nll_sum": draw.uniform(0, 9), "hard_positions": 1 + number % 7}
    text = summary_text(Evaluation.model_validate(known))
    base, student = ([s for s in model["samples"] if "nll_sum" in s] for model in known["models"][1:])
    means = [sum(s["nll_sum"] for s in part) / sum(s["hard_positions"] for s in part) for part in (base, student)]
    row = next(line.split() for line in text.splitlines() if line.startswith("NLL of the true answers, nats/token"))
    assert row[-3:] == ["-", *(f"{mean:.4f}" for mean in means)]
    (line,) = (line for line in text.splitlines() if "nats per token of the true answers" in line)
    assert line.startswith("student - base: ")
    differences = [
        (mine["nll_sum"] - theirs["nll_sum"]) / mine["hard_positions"]
        for mine, theirs in zip(student, base, strict=True)
    ]
    assert float(re.search(r"[+-][\d.]+", line)[0]) == pytest.approx(np.mean(differences), abs=5.1e-5)


def test_an_nll_of_no_positions_is_refused(evaluation):
    broken = json.loads(json.dumps(evaluation))
    broken["models"][1]["samples"][0]["nll_sum"] = 1.0
    with pytest.raises(ValidationError, match="nll_sum and hard_positions belong together"):
        Evaluation.model_validate(broken)


def test_what_was_measured_is_said(evaluation):
    text = summary_text(Evaluation.model_validate(evaluation))
    assert "120 samples of validation.jsonl, 8 answered at once, on CPU, 2 threads" in text
    assert "16 answers after 2 for warm-up" in text
    assert "at least 20 answers" in text


def test_without_a_teacher_there_are_no_targets_and_what_is_not_known_is_a_dash(evaluation):
    alone = json.loads(json.dumps(evaluation))
    alone["models"] = alone["models"][1:2]
    alone["targets"] = goals(alone["models"])
    model = alone["models"][0]
    model |= {"peak_memory_bytes": None, "energy_joules_per_answer": None, "distance_unknown": "no cache"}
    for sample in model["samples"]:
        del sample["kl_sum"], sample["agree"], sample["soft_positions"]
    text = summary_text(Evaluation.model_validate(alone))
    table = cells(text)
    assert table["peak memory above idle, MB"] == table["KL to the teacher, nats/token"] == ["-"]
    assert "energy per answer, J" not in table
    assert "target" not in text
    assert "No distance to the teacher: no cache" in text


def test_the_files(evaluation, tmp_path):
    path = write_evaluation(Evaluation.model_validate(evaluation), tmp_path / "evaluation")
    assert path.name == "evaluation_20261125T001000.json"
    assert json.loads(path.read_text()) == evaluation
    text = (path.parent / "evaluation_summary.txt").read_text()
    assert summary_text(Evaluation.model_validate(evaluation)) in text
    assert details_text(Evaluation.model_validate(evaluation)) in text
