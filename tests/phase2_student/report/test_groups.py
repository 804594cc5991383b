"""`fs-student compare`: seeds of one objective are one group, and only what can be compared is."""

import json
import math
import statistics

import pytest
from report_cases import make_evaluation, write_evaluation
from run_cases import run

from phase2_student.report.run_plot import curves
from phase2_student.runs.records import find_runs, read_runs

LOSS = {"temperature": 2.0, "alpha": 0.7, "tail": "bucket", "divergence": "forward_kl", "beta": None}


def made(
    directory,
    name,
    *,
    seed=0,
    kl=None,
    ce=1.0,
    finished=True,
    targets=None,
    digest="a",
    training=None,
    facts=None,
    teacher=None,
    **loss,
):
    """The files of a run of which three validations are known."""
    place = directory / name
    place.mkdir(parents=True)
    settings = {**LOSS, **loss}
    identity = {f"loss.{key}": settings[key] for key in ("temperature", "alpha", "tail")}
    identity |= {
        f"loss.{key}": settings[key] for key in ("divergence", "beta") if settings[key] not in ("forward_kl", None)
    }
    identity |= {"training.seed": seed, "training samples": "s", "targets digest": digest, **(training or {})}
    identity |= targets or {"targets": "cache"}
    (place / "run.json").write_text(json.dumps({"identity": identity, **(facts or {})}))
    kinds = {"targets": "exact"} if identity["targets"] == "exact" else {"targets": "top_k", "top_k": 64}
    (place / "recipe.yaml").write_text(json.dumps({"loss": settings, "cache": kinds, "teacher": {"model": teacher}}))
    validations = [
        {"epoch": 1.0, "step": step, "loss": 5.0 / step, "kd": 9.0 * ce, "ce": ce + 10 - step, "agreement": 0.5}
        | ({} if kl is None else {"kl": kl + 10 - step})
        for step in (5, 10)
    ]
    row = {"epoch": 1, "step": 10, "seconds": 1.0, "train": {}, "validation": None, "validations": validations}
    (place / "training_history.json").write_text(json.dumps([row]))
    if finished:
        (place / "final").mkdir()
    return place


def compared(directory, *more):
    shown = run("compare", directory, "--json", *more)
    assert shown.exit_code == 0, shown.output
    return json.loads(shown.stdout)


def test_seeds_are_one_group_with_mean_spread_and_count(tmp_path):
    for seed, kl in enumerate((0.2, 0.3, 0.25)):
        made(tmp_path, f"a{seed}", seed=seed, kl=kl, training={} if seed == 1 else {"training.data_seed": seed})
        made(tmp_path, f"b{seed}", seed=seed, kl=kl + 0.1, ce=0.5, divergence="js", beta=0.5)
    made(tmp_path, "b3", seed=3, kl=9.0, divergence="js", beta=0.5, finished=False)
    found = compared(tmp_path)
    assert [group["name"] for group in found["groups"]] == [
        "top_k 64, forward_kl, T 2, alpha 0.7",
        "top_k 64, js, beta 0.5, T 2, alpha 0.7",
    ]
    one, two = found["groups"]
    assert one["kl"]["mean"] == pytest.approx(0.25)
    assert one["kl"]["spread"] == pytest.approx(statistics.stdev([0.2, 0.3, 0.25]))
    assert (one["kl"]["count"], two["kl"]["count"]) == (3, 3)
    assert (two["runs"], two["unfinished"]) == (["b0", "b1", "b2"], ["b3"])
    assert (one["best_in"], two["best_in"]) == (["kl"], ["ce"])
    assert found["best"] == {"group": one["name"], "by": "kl"}
    text = run("compare", tmp_path).output
    assert "0.2500 ± 0.0500*" in text
    assert "3 (+ 1 not finished)" in text
    assert f"Best by KL to the teacher on validation: {one['name']}\n" in f"{text}\n"
    assert "Loss and KD cannot be compared between runs with different loss settings" in text


def test_losses_on_different_scales_are_never_compared(tmp_path):
    """One objective has the lowest loss of all and is not the best."""
    made(tmp_path, "far", kl=2.0, divergence="tv")
    made(tmp_path, "near", kl=1.0)
    found = compared(tmp_path)
    assert found["best"]["group"].startswith("top_k 64, forward_kl")
    marked = {name for row in (*found["runs"], *found["groups"]) for name in row["best_in"]}
    assert marked == {"validation_kl", "kl"}


def test_what_makes_an_objective(tmp_path):
    """Every part of it tells groups apart; so does what else the runs were begun with, and that is named."""
    made(tmp_path, "base", kl=1.0)
    for name, loss in {"T": {"temperature": 1.0}, "a": {"alpha": 1.0}, "none": {"tail": "none"}}.items():
        made(tmp_path, name, kl=1.0, **loss)
    made(tmp_path, "skewed1", kl=1.0, divergence="skewed_kl", beta=0.1)
    made(tmp_path, "skewed2", kl=1.0, divergence="skewed_kl", beta=0.2)
    made(tmp_path, "exact", kl=1.0, targets={"targets": "exact"}, digest="x")
    made(tmp_path, "tail", kl=1.0, targets={"targets": "cache", "tail": "shape of rank 16"}, digest="t")
    made(tmp_path, "lr", kl=1.0, training={"training.learning_rate": 0.5})
    groups = compared(tmp_path)["groups"]
    assert len(groups) == 9
    assert len({group["name"] for group in groups}) == 9
    names = {group["runs"][0]: group["name"] for group in groups}
    assert names["exact"].startswith("exact, ")
    assert names["tail"].startswith("tail_rank 16, ")
    assert names["none"].startswith("top_k 64, none, ")
    assert names["lr"].endswith("learning_rate 0.5")
    assert "beta 0.2" in names["skewed2"]


def test_hard_labels_are_one_objective_whatever_their_cache_and_temperature(tmp_path):
    made(tmp_path, "h0", kl=3.0, alpha=0.0)
    made(tmp_path, "h1", kl=4.0, alpha=0.0, temperature=1.0, seed=1)
    made(tmp_path, "h2", kl=9.0, alpha=0.0, divergence="js", beta=0.5, targets={"targets": "exact"}, digest="x", seed=2)
    made(tmp_path, "soft", kl=1.0)
    hard, soft = compared(tmp_path)["groups"]
    assert hard["name"] == "hard"
    assert hard["runs"] == ["h0", "h1", "h2"]
    assert hard["ce"]["count"] == 3
    assert hard["kl"] is None  # of two kinds of targets
    assert hard["measured_on"] == "exact and top_k 64"
    assert soft["measured_on"] == "top_k 64"


def test_a_kl_is_compared_with_those_on_the_same_targets(tmp_path):
    """A bound on stored entries is lower than the whole KL: no sign of a better student."""
    for kind, targets in (("top", None), ("whole", {"targets": "exact"})):
        for name, kl in (("forward_kl", 1.0), ("reverse_kl", 1.5)):
            made(
                tmp_path,
                f"{kind}-{name}",
                kl=kl * (1 + (kind == "whole")),
                targets=targets,
                digest=kind,
                divergence=name,
            )
    found = compared(tmp_path)
    assert [group["best_in"] for group in found["groups"]] == [["kl"], [], ["kl"], []]
    assert found["best"] is None
    text = run("compare", tmp_path).output
    assert "Best: not known. KL on stored entries is a lower bound" in text
    evaluation = make_evaluation(*((each.name, "student", 0.5) for each in sorted(tmp_path.iterdir())))
    for model, kl in zip(evaluation["models"], (6.0, 7.0, 3.0, 8.0), strict=True):
        model["distance_targets"] = "exact"
        for sample in model["samples"]:
            sample.update(kl_sum=kl * 6, soft_positions=6, agree=4, exact=None)
    file = write_evaluation(tmp_path.parent / "evaluation", evaluation)
    judged = compared(tmp_path, "--evaluation", file)
    assert [group["evaluation_kl"]["mean"] for group in judged["groups"]] == [6.0, 7.0, 3.0, 8.0]
    assert judged["best"] == {"group": judged["groups"][2]["name"], "by": "evaluation_kl"}
    assert "evaluated KL" in run("compare", tmp_path, "--evaluation", file).output
    for model, right in zip(evaluation["models"], (24, 12, 6, 3), strict=True):
        for number, sample in enumerate(model["samples"]):
            sample["exact"] = number < right
    exact = compared(tmp_path, "--evaluation", write_evaluation(file.parent, evaluation))
    assert exact["best"] == {"group": exact["groups"][0]["name"], "by": "exact_match"}


def test_what_is_not_known_is_not_the_best(tmp_path):
    made(tmp_path, "a", kl=None)
    made(tmp_path, "b", kl=math.nan, alpha=1.0)
    made(tmp_path, "c", kl=1.0, alpha=0.5)
    found = compared(tmp_path)
    assert found["best"] is None
    assert "not every objective has a finished run" in run("compare", tmp_path).output
    assert run("compare", tmp_path / "a").output.count("Best") == 0


def test_the_picture_draws_one_curve_per_objective(tmp_path):
    for seed in range(3):
        made(tmp_path / "runs", f"a{seed}", seed=seed, kl=1.0 + seed)
        made(tmp_path / "runs", f"b{seed}", seed=seed, kl=2.0, divergence="tv", finished=seed != 2)
    runs = read_runs(find_runs([tmp_path / "runs"]))
    drawn = {curve.label: curve for curve in curves(runs)}
    assert list(drawn) == [
        "top_k 64, forward_kl, T 2, alpha 0.7 (3 runs)",
        "top_k 64, tv, T 2, alpha 0.7 (2 runs)",
        "b2 (not finished)",
    ]
    assert next(iter(drawn.values())).points("kl") == [(5, 7.0, 1.0), (10, 2.0, 1.0)]
    shown = run("compare", tmp_path / "runs", "--plot", tmp_path / "curves.png")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_spread_does_not_tell_apart_is_said(tmp_path):
    for seed, kl in enumerate((0.2, 0.3)):
        made(tmp_path, f"a{seed}", seed=seed, kl=kl)
        made(tmp_path, f"b{seed}", seed=seed, kl=kl + 0.01, alpha=1.0)
        made(tmp_path, f"c{seed}", seed=seed, kl=kl + 1, alpha=0.5)
    last = run("compare", tmp_path).output.splitlines()[-1]
    assert last.endswith("alpha 0.7; within the spread over the seeds: top_k 64, forward_kl, T 2, alpha 1")


def test_two_runs_of_one_seed_are_no_spread(tmp_path):
    made(tmp_path, "h0", kl=3.0, alpha=0.0)
    made(tmp_path, "again", kl=3.0, alpha=0.0, temperature=1.0)
    made(tmp_path, "other", kl=1.0)
    groups = {group["name"]: group for group in compared(tmp_path)["groups"]}
    assert groups["hard"]["kl"] == {"mean": 3.0, "spread": None, "count": 1}
    assert (groups["hard"]["runs"], groups["hard"]["seeds"]) == (["again", "h0"], 1)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ({"bound": {"validation samples": "1a"}}, {"bound": {"validation samples": "2b"}}),
        (
            {"bound": {"validation samples": "1a"}, "validation_samples": 6},
            {"bound": {"validation samples": "2b"}, "validation_samples": 6},
        ),
        ({"validation_samples": 3}, {"validation_samples": 6}),
    ],
)
def test_runs_with_different_validation_samples_are_neither_averaged_nor_ranked(tmp_path, x, y):
    for seed in range(2):
        made(tmp_path, f"x{seed}", seed=seed, kl=0.2, ce=1.0, facts=x)
        made(tmp_path, f"y{seed}", seed=seed, kl=0.1, ce=0.0, facts=y)  # as of samples without a label
    found = compared(tmp_path)
    assert [group["runs"] for group in found["groups"]] == [["x0", "x1"], ["y0", "y1"]]
    assert all(row["best_in"] == [] for row in (*found["runs"], *found["groups"]))
    assert found["best"] is None
    text = run("compare", tmp_path).output
    assert "Figures of validations on different samples are not compared" in text
    assert "Best: not known. The runs have different validation samples." in text
    assert "validation samples" in text.splitlines()[0]
    made(tmp_path, "x2", kl=0.3, ce=2.0, facts=x, alpha=1.0)
    within = compared(tmp_path)
    assert {row["name"]: row["best_in"] for row in within["runs"]}["x0"] == ["validation_ce", "validation_kl"]
    assert within["best"] is None


def test_beside_a_run_that_recorded_only_their_number_the_number_is_compared(tmp_path):
    new, old = {"bound": {"validation samples": "1a"}, "validation_samples": 6}, {"validation_samples": 6}
    made(tmp_path, "new", seed=0, kl=0.2, facts=new)
    made(tmp_path, "old", seed=1, kl=0.1, facts=old)
    assert [group["runs"] for group in compared(tmp_path)["groups"]] == [["new", "old"]]


def test_runs_with_the_same_validation_samples_are_ranked(tmp_path):
    same = {"bound": {"validation samples": "1a"}, "validation_samples": 6, "cache_digest": "c"}
    made(tmp_path, "a", kl=0.2, facts=same)
    made(tmp_path, "b", kl=0.1, facts=same, alpha=1.0)
    found = compared(tmp_path)
    assert found["best"]["group"].endswith("alpha 1")
    assert "validation samples" not in run("compare", tmp_path).output


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"digest": "a", "facts": {"cache_digest": "c"}}, {"digest": "b", "facts": {"cache_digest": "d"}}),
        ({"digest": "a"}, {"digest": "b"}),
        (
            {"digest": None, "targets": {"targets": "online", "teacher.weights": "1"}},
            {"digest": None, "targets": {"targets": "online", "teacher.weights": "2"}},
        ),
    ],
)
def test_a_kl_to_another_teacher_is_not_compared(tmp_path, one, two):
    made(tmp_path, "one", kl=0.2, ce=1.0, teacher="models/teacher", **one)
    made(tmp_path, "two", kl=0.1, ce=2.0, teacher="/somewhere/teacher2", **two)
    found = compared(tmp_path)
    assert [row["best_in"] for row in found["runs"]] == [["validation_ce"], []]
    assert found["best"] is None
    assert "whether their targets are of one teacher is not known" in run("compare", tmp_path).output


def test_runs_of_one_cache_have_one_teacher_although_it_grew_or_they_learned_other_samples(tmp_path):
    made(tmp_path, "before", kl=0.3, digest="a", facts={"cache_digest": "c"})
    made(tmp_path, "grown", kl=0.2, digest="a", facts={"cache_digest": "d"}, alpha=1.0)
    made(tmp_path, "fewer", kl=0.1, digest="b", facts={"cache_digest": "d"}, training={"training samples": "t"})
    found = compared(tmp_path)
    assert len({row["targets_of"] for row in found["runs"]}) == 1
    best = {row["name"]: row["best_in"] for row in found["runs"]}
    assert "validation_kl" in best["fewer"]
    assert found["best"]["by"] == "kl"
