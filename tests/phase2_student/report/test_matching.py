"""Which evaluation belongs to which run: models are matched by their weights, samples by their content."""

import json
import shutil

import pytest
from report_cases import make_evaluation, make_runs, write_evaluation
from run_cases import run

from firstsight.models.loading import weights_digest
from phase2_student.evaluation.files import read_evaluation, student_of
from phase2_student.runs.records import read_runs

PAIR = (("teacher", "teacher", 0.9), ("student", "student", 0.5))


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


def evaluated(*models, keys=None, **options):
    """An evaluation of which each model has the weights of a run, or those given, and its samples have keys."""
    found = make_evaluation(*((name, role, share) for name, role, share, _ in models), **options)
    for model, (*_, weights) in zip(found["models"], models, strict=True):
        model["weights"] = weights if isinstance(weights, str) else weights_digest(weights / "best")
        model["distance_targets"] = None if model["role"] == "teacher" else "top_k"
        for number, record in enumerate(model["samples"]):
            record |= {"id": f"v.jsonl: row {number + 1}", "key": f"{keys or 'k'}{number}"}
    return found


def compared(*arguments):
    done = run("compare", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_student_is_found_by_its_weights_whatever_it_is_called(runs, tmp_path):
    evaluation = evaluated(("one", "student", 0.3, runs[1]), ("distilled", "student", 0.9, runs[0]))
    file = write_evaluation(tmp_path / "judged", evaluation)
    rows = compared(*runs, "--evaluation", file)["runs"]
    shares = [sum(r["exact"] for r in model["samples"]) / 24 for model in evaluation["models"]]
    assert [row["exact_match"] for row in rows] == shares[::-1]


def test_one_runs_student_is_not_anothers(runs, tmp_path):
    file = write_evaluation(tmp_path / "judged", evaluated(("student", "student", 0.5, runs[0])))
    found = compared(*runs, "--evaluation", file)
    assert [row["exact_match"] is None for row in found["runs"]] == [False, True]
    assert found["runs"][0]["evaluation_left_out"] is None
    assert "student has other weights than" in found["runs"][1]["evaluation_left_out"]
    text = run("compare", *runs, "--evaluation", file).output
    assert text.count("distilled: not evaluated") == 1
    report = run("report", *runs, "--evaluation", file, "--output", tmp_path / "report.html")
    assert report.exit_code == 0, report.output
    assert "distilled: not evaluated" in report.stderr


@pytest.mark.parametrize("other", ["final", "best-int8"])
def test_any_student_of_a_run_is_the_runs(runs, tmp_path, other):
    if not (runs[0] / other).exists():
        shutil.copytree(runs[0] / "best", runs[0] / other)
    for path in (runs[0] / other).glob("*.safetensors"):
        path.write_bytes(path.read_bytes() + b"other")
    weights = weights_digest(runs[0] / other)
    file = write_evaluation(tmp_path / "judged", evaluated((runs[0].name, "student", 0.5, weights)))
    found = compared(*runs, "--evaluation", file)["runs"]
    assert [row["exact_match"] is None for row in found] == [False, True]


def test_an_evaluation_from_the_middle_of_the_training_is_not_the_finished_runs(runs):
    models = (("teacher", "teacher", 0.9, "ab" * 32), ("student", "student", 0.5, runs[1]))
    write_evaluation(runs[1] / "evaluation", evaluated(*models))
    assert compared(runs[1])["runs"][0]["exact_match"] is not None
    (runs[1] / "best" / "model.safetensors").write_bytes(b"trained on")
    (row,) = compared(runs[1])["runs"]
    assert row["exact_match"] is row["evaluation_kl"] is None
    assert "run fs-student eval again" in row["evaluation_left_out"]
    assert "distilled: not evaluated" in run("compare", runs[1]).output
    for directories in (runs[1:], runs):
        report = run("report", *directories)
        assert report.exit_code == 0, report.output
        assert "distilled: not evaluated" in report.stderr
        assert "No evaluation was found" not in report.stderr
    shutil.rmtree(runs[1] / "best")  # nothing is left to compare with
    assert compared(runs[1])["runs"][0]["exact_match"] is not None


def test_an_older_file_is_matched_by_names_and_ids(runs):
    evaluation = make_evaluation(*PAIR)
    for model in evaluation["models"]:
        model.pop("weights", None)
    write_evaluation(runs[0] / "evaluation", evaluation)
    (first,) = read_runs(runs[:1])
    left_out = {}
    found = read_evaluation([first], left_out=left_out)
    assert student_of(found.models, first).name == "student"
    assert left_out == {}


@pytest.mark.parametrize("difference", ["keys", "number", "question"])
def test_evaluations_of_different_samples_are_not_compared_although_their_ids_are_equal(runs, difference):
    one, two = (evaluated(("student", "student", share, run)) for run, share in zip(runs, (0.3, 0.9), strict=True))
    records = two["models"][0]["samples"]
    for record in records:
        record["kl_sum"] = 0.1
    if difference == "number":
        del records[2:]
    elif difference == "question":
        records[5]["question"] = "Another turn?"
    else:
        two["models"][0]["samples"] = [{**record, "key": f"other {n}"} for n, record in enumerate(records)]
    write_evaluation(runs[0] / "evaluation", one)
    write_evaluation(runs[1] / "evaluation", two)
    found = compared(*runs)
    for row in (*found["runs"], *found["groups"]):
        assert not {"exact_match", "evaluation_kl"} & set(row["best_in"])
    assert found["best"] is None or found["best"]["by"] == "kl"
    assert "Evaluations of different samples are not compared (hard; distilled)" in run("compare", *runs).output
    report = run("report", *runs)
    assert report.exit_code == 2, report.output
    assert "evaluations of different samples, which cannot be compared" in report.stderr


def test_the_same_samples_under_other_ids_are_compared(runs):
    one, two = (evaluated(("student", "student", share, run)) for run, share in zip(runs, (0.3, 0.9), strict=True))
    for record in two["models"][0]["samples"]:
        record["id"] = f"moved/{record['id']}"
    write_evaluation(runs[0] / "evaluation", one)
    write_evaluation(runs[1] / "evaluation", two)
    assert "exact_match" in compared(*runs)["runs"][1]["best_in"]
    assert run("report", *runs).exit_code == 0


def test_a_kl_to_other_targets_is_not_compared(runs):
    for number, (place, digest) in enumerate(zip(runs, ("1a", "2b"), strict=True)):
        evaluation = evaluated(("student", "student", 0.5 + number / 4, place))
        evaluation["models"][0]["distance_digest"] = digest
        write_evaluation(place / "evaluation", evaluation)
    assert all("evaluation_kl" not in row["best_in"] for row in compared(*runs)["runs"])
    evaluation["models"][0]["distance_digest"] = "1a"
    write_evaluation(runs[1] / "evaluation", evaluation)
    assert [("evaluation_kl" in row["best_in"]) for row in compared(*runs)["runs"]] == [False, True]
