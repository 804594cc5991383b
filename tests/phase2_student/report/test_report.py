"""The report: what stands on the page, what is left out and said, what is refused; and the page in a browser."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_cases import ALL, HOSTILE, SAMPLES, make_evaluation, make_record, make_result, make_runs, write_evaluation

from firstsight.errors import DataError
from phase2_student.cli import main
from phase2_student.evaluation.files import read_evaluation
from phase2_student.evaluation.results import Evaluation
from phase2_student.report import costs, figures, gallery
from phase2_student.report.page import write_report
from phase2_student.report.run_row import exact_match, students_of
from phase2_student.runs.lineage import read_caches
from phase2_student.runs.records import find_runs, read_runs


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    runs = make_runs(directory)
    evaluation = write_evaluation(directory / "evaluation", make_evaluation(*ALL))
    arguments = ["report", *runs, "--evaluation", evaluation.parent, "--output", directory / "report.html"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return directory / "report.html"


def test_the_page_loads_nothing_and_escapes_everything(page):
    text = page.read_text()
    assert HOSTILE not in text
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text
    for source in re.findall(r"""(?:src|href|url|srcset)\s*[=(]\s*["']?([^"')>\s]+)""", text):
        assert source.startswith(("data:", "#")), source
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert len(re.findall(r'<img class="pixels" width="140" height="112"[^>]*src="data:image/', text)) == SAMPLES


def test_the_page_shows_the_figures_of_the_records(page):
    from phase2_student.evaluation.summary import summary_table

    text = page.read_text()
    evaluation = make_evaluation(*ALL)
    for row in summary_table(Evaluation.model_validate(evaluation)):
        for cell in row[1:]:
            assert f">{cell}</t" in text
    student = evaluation["models"][3]
    exact = sum(record["exact"] for record in student["samples"]) / SAMPLES
    assert f'<dd class="value">{exact:.1%}</dd>' in text
    assert text.count('<svg class="chart"') == 2 + 1 + 4  # accuracy, calibration, curves
    assert "distilled - hard:" in text
    assert "no answer" in text  # an empty one
    assert "not finite" in text


def test_students_stand_first_and_the_head_says_what_distilling_gained(page, tmp_path):
    from phase2_student.evaluation.summary import exact_difference

    text = page.read_text()
    header = re.search(r'<table class="results">\s*<thead>(.*?)</thead>', text, re.DOTALL)[1]
    names = ["distilled (float32)", "hard (float32)", "base (float32)", "teacher (int8)"]
    assert re.findall(r'<th class="n" scope="col">([^<]+)</th>', header) == names
    assert "The table has 4 columns and scrolls sideways" in text
    models = Evaluation.model_validate(make_evaluation(*ALL)).models
    mean, low, high = exact_difference(models[3], models[2])
    tile = re.search(r"<dt>points over hard</dt><dd class=\"value\">([^<]+)</dd><dd class=\"more\">([^<]+)<", text)
    assert tile[1] == f"{100 * mean:+.1f}"
    assert tile[2] == f"95% interval [{100 * low:+.1f}, {100 * high:+.1f}], exact match; it learned from labels alone"
    alone = make_runs(tmp_path, names=("distilled",))
    write_evaluation(alone[0] / "evaluation", make_evaluation(*ALL))
    assert "points over hard" not in write_report(alone).path.read_text()  # that run is not here
    hard = read_runs(make_runs(tmp_path / "other", names=("hard",)))
    assert figures.hard_labels_of(models, hard, models[2]) is None  # it is what the page is about
    assert figures.students_first(models[:1], models[0]) == [0]


def test_compare_marks_the_best_of_what_can_be_compared(runs):
    evaluation = make_evaluation(*ALL)
    write_evaluation(runs[0] / "evaluation", evaluation)
    write_evaluation(runs[1] / "evaluation", evaluation)
    for run in runs:
        history = json.loads((run / "training_history.json").read_text())
        history[-1]["validation"] |= {"ce": 0.5 if run.name == "hard" else 0.4}
        (run / "training_history.json").write_text(json.dumps(history))

    def best():
        done = CliRunner().invoke(main, ["compare", "--json", *map(str, runs)])
        return [row["best_in"] for row in json.loads(done.output)["runs"]]

    assert best() == [[], ["validation_ce"]]  # equal in the rest; losses of another alpha are not compared
    table = CliRunner().invoke(main, ["compare", *map(str, runs)]).output
    assert " 0.4000* " in table
    assert table.count("*") == 2  # and the legend
    lines = table.splitlines()
    assert len({len(line) for line in lines[:2]}) == 1
    recipe = runs[0] / "recipe.yaml"
    recipe.write_text((runs[1] / "recipe.yaml").read_text())
    assert best() == [["best_validation_loss", "validation_loss"], ["validation_ce"]]
    facts = json.loads((runs[0] / "run.json").read_text())
    facts["identity"]["targets"] = "exact"  # the other run's loss is a lower bound
    (runs[0] / "run.json").write_text(json.dumps(facts))
    assert best() == [[], ["validation_ce"]]
    assert (
        "between runs with different loss settings or targets"
        in CliRunner().invoke(main, ["compare", *map(str, runs)]).output
    )
    alone = json.loads(CliRunner().invoke(main, ["compare", "--json", str(runs[0])]).output)["runs"]
    assert alone[0]["best_in"] == []


def test_a_share_and_a_calibration_error_by_hand():
    records = [
        make_record(exact=right, confidence=sure, environment="a_b")
        for right, sure in [(True, 0.95), (True, 0.91), (False, 0.97), (False, 0.2), (True, 1.0), (True, None)]
    ]
    model = make_result(records)
    bins, error = figures.calibration(model, 2)
    assert bins.counts == [1, 4]
    assert bins.right == [0.0, 0.75]
    assert error == pytest.approx(1 / 5 * 0.2 + 4 / 5 * (0.9575 - 0.75))
    assert figures.by_group([model], "category") == []
    (_, (all_,)), (name, (share,)) = figures.by_group([model], "environment")
    assert name == "a b"
    assert share.mean == all_.mean == pytest.approx(4 / 6)
    assert figures.calibration(make_result([make_record(confidence=None)]), 0) is None


def test_the_gallery_takes_categories_and_outcomes_in_turn():
    records = [make_record(category="ab"[index % 2], exact=index not in (0, 3)) for index in range(20)]
    model = make_result(records)
    chosen = gallery.choose(model, 6)
    assert {0, 3} < set(chosen)  # the only wrong ones
    assert len(chosen) == 6
    assert sum(index % 2 for index in chosen) == 3
    assert gallery.choose(model, 90) == list(range(20))
    assert gallery.choose(model, 0) == []


def test_the_costs_are_measured_or_said_to_be_unknown(runs):
    caches, trouble = read_caches(read_runs(runs))
    assert not trouble
    (cache,) = caches.values()
    assert cache.seconds is None  # of a cache that was written before it told
    rows = costs.cost_rows(read_runs(runs), caches)
    assert [row.seconds for row in rows] == [None, 40.0, 44.0]
    assert [row.passes for row in rows] == [cache.status.samples, 0, 0]
    lines = " ".join(costs.cost_lines(read_runs(runs), caches))
    assert "One run learned from the cache" in lines  # the other had hard labels alone
    assert "would have shown it 400 training samples" in lines
    assert "is not known" in lines
    assert "together" not in lines

    facts = json.loads((runs[0] / "run.json").read_text()) | {"identity": {"targets": "online"}}
    (runs[0] / "run.json").write_text(json.dumps(facts))
    cache.status.statistics["seconds"] = 12.0
    rows = costs.cost_rows(read_runs(runs), caches)
    assert [(row.seconds, row.passes) for row in rows] == [(12.0, cache.status.samples), (40.0, 400), (44.0, 0)]
    lines = " ".join(costs.cost_lines(read_runs(runs), caches))
    assert "together: 56 s, 12 s of it for the dump" in lines
    assert "Measured: 40 s for a run with the teacher in memory, 44 s for one from the cache (0.91 x)" in lines
    assert "is not known" not in lines


def test_a_run_alone_is_shown_and_what_is_missing_is_said(runs, tmp_path):
    shutil.rmtree(tmp_path / "cache.zarr")
    history = json.loads((runs[1] / "training_history.json").read_text())
    for row in history:
        del row["seconds"]
    (runs[1] / "training_history.json").write_text(json.dumps(history))
    written = write_report([runs[1]])
    assert written.path == runs[1] / "report.html"
    together = write_report([runs[0].parent])  # of a sweep
    assert together.path == runs[0].parent / "report.html"
    assert "Recipe of hard" in together.path.read_text()
    assert [note.split(" ")[:3] for note in written.notes] == [["The", "cache", "could"], ["No", "evaluation", "was"]]
    text = written.path.read_text()
    assert "not recorded" in text
    assert "<script" not in text
    (runs[1] / "training_history.json").unlink()
    assert "No epoch has ended yet." in write_report([runs[1]]).path.read_text()


def test_pictures_that_are_gone_are_counted_and_none_is_read_from_outside(runs, tmp_path):
    evaluation = make_evaluation(*ALL)
    evaluation["models"][0]["samples"][3]["images"] = ["../secret.png"]
    shutil.copy(tmp_path / "data" / "images" / "3.png", tmp_path / "secret.png")
    (tmp_path / "data" / "images" / "5.png").unlink()
    write_evaluation(runs[1] / "evaluation", evaluation)
    written = write_report(runs)
    assert [note.split(" ")[0] for note in written.notes] == ["2"]
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved" / "images" / "5.png").symlink_to(tmp_path / "moved" / "images" / "4.png")
    assert [note.split(" ")[0] for note in write_report(runs, data=tmp_path / "moved").notes] == ["1"]


def test_evaluations_of_several_runs_are_put_together(runs):
    pair = (("teacher", "teacher", 0.9), ("student", "student", 0.5))
    write_evaluation(runs[0] / "evaluation", make_evaluation(*pair, created="2026-11-25T00:00:00+00:00"))
    write_evaluation(runs[1] / "evaluation", make_evaluation(*pair, ("base", "student", 0.3)))
    joined = read_evaluation(read_runs(runs))
    assert [model.name for model in joined.models] == ["teacher", "base", "hard", "distilled"]
    assert [model.name for model in read_evaluation(read_runs(runs[:1])).models] == ["teacher", "student"]
    other = make_evaluation(*pair)
    for model in other["models"]:
        model["samples"] = model["samples"][1:]
    write_evaluation(runs[1] / "evaluation", other)
    with pytest.raises(DataError, match="different samples, which cannot be compared"):
        read_evaluation(read_runs(runs))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda run: (run / "run.json").unlink(),
            "no run.json was found in it or directly below it; pass the directory of a run",
        ),
        (lambda run: (run / "run.json").write_text("{"), "run.json: not valid JSON"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json: expected a JSON dict, got list"),
        (lambda run: (run / "recipe.yaml").write_text("a: [1"), "recipe.yaml: not valid YAML"),
        (lambda run: (run / "run.json").write_text("{}"), "run.json: the settings of the run are missing"),
        (
            lambda run: (run / "training_history.json").write_text('[{"step": 1}]'),
            "history.json: an entry has no epoch",
        ),
        (lambda run: write_evaluation(run / "evaluation", {}), "created: field required; the file is damaged"),
    ],
)
def test_what_cannot_be_used_is_named(runs, break_it, message):
    break_it(runs[0])
    done = CliRunner().invoke(main, ["report", str(runs[0])])
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("Error: ")


def _set(value, *path):
    def change(evaluation):
        for key in path[:-1]:
            evaluation = evaluation[key]
        if value is None:
            del evaluation[path[-1]]
        else:
            evaluation[path[-1]] = value

    return change


def _untimed(evaluation):
    for record in evaluation["models"][1]["samples"]:
        record.pop("seconds", None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set([], "models"), "models: list should have at least 1 item"),
        (_set([], "models", 1, "samples"), "models.1.samples: list should have at least 1 item"),
        (_set(None, "models", 0, "samples", 5, "question"), "models.0.samples.5.question: field required"),
        (_set("yes", "models", 0, "samples", 5, "exact"), "models.0.samples.5.exact: input should be a valid boolean"),
        (_set("0.5", "models", 0, "samples", 5, "confidence"), "models.0.samples.5.confidence: input should be"),
        (_set(None, "models", 1, "scores", "category", "counting", "exact"), "category.counting.exact: field required"),
        (_set(None, "models", 1, "throughput", "best"), "models.1.throughput.best: field required"),
        (_set(2.5, "models", 0, "samples", 2, "kl_sum"), "kl_sum, agree and soft_positions belong together"),
        (_untimed, "base has no timed answer"),
        (_set("?", "models", 1, "samples", 3, "id"), "base has other samples than teacher; run fs-student eval again"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_damaged_evaluation_is_named_by_the_place_of_its_damage(runs, command, damage, message):
    evaluation = make_evaluation(*ALL)
    damage(evaluation)
    write_evaluation(runs[0] / "evaluation", evaluation)
    done = CliRunner().invoke(main, [command, str(runs[0])])
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def test_runs_that_are_called_like_other_models_keep_their_own_figures(tmp_path):
    runs = make_runs(tmp_path, names=("base", "teacher"))
    pair = [("teacher", "teacher", 0.9), ("base", "student", 0.3), ("student", "student", 0.6)]
    evaluation = make_evaluation(*pair, ("student-int8", "student", 0.5))
    for run in runs:
        write_evaluation(run / "evaluation", evaluation)
    alone = read_evaluation(read_runs(runs[:1]))
    assert figures.focus(alone.models, read_runs(runs[:1])).name == "student"
    joined = read_evaluation(read_runs(runs)).models
    assert [model.name for model in joined] == [
        *("teacher", "base", "runs/base", "runs/base-int8", "runs/teacher", "runs/teacher-int8")
    ]
    assert figures.focus(joined, read_runs(runs)).name == "runs/teacher"
    assert (
        exact_match(students_of(read_runs(runs))[0])
        == sum(r["exact"] for r in evaluation["models"][2]["samples"]) / SAMPLES
    )


def test_runs_of_one_name_are_told_apart_and_one_run_is_one_run(tmp_path, monkeypatch):
    runs = [make_runs(tmp_path / project, names=("reference",))[0] for project in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    spelled = [*runs, Path("a/runs/reference"), Path("a/runs/../runs/reference")]
    assert find_runs(spelled) == runs
    found = read_runs(runs)
    assert [run.name for run in found] == ["a/runs/reference", "b/runs/reference"]
    for run, share in zip(runs, (0.3, 0.9), strict=True):
        by_name = make_evaluation(("teacher", "teacher", 0.9), ("reference", "student", share))
        write_evaluation(run / "evaluation", by_name)
    shares = [exact_match(student) for student in students_of(found)]
    assert shares[0] < 0.6 < shares[1]


def browse(url: str, *options: str) -> tuple[str, str]:
    """What a headless Chromium prints for a page, and what it logs, the page's console among it."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("FIRSTSIGHT_CI") == "1":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    done = subprocess.run(
        [program, *flags, "--virtual-time-budget=4000", *options, url], capture_output=True, text=True, timeout=200
    )
    return done.stdout, done.stderr


def shown(dom: str) -> list[str]:
    return re.findall(r'<li class="card"(?![^>]* hidden)[^>]*data-category="([^"]*)"', dom)


def test_in_a_browser_the_filter_follows_the_address(page):
    dom, log = browse(f"{page.as_uri()}#filter=wrong&model=base&category=counting", "--dump-dom")
    assert "CONSOLE" not in log
    base = make_evaluation(*ALL)["models"][1]["samples"]
    wanted = [record for record in base if record["category"] == "counting" and not record["exact"]]
    assert shown(dom) == ["counting"] * len(wanted)
    assert f"{len(wanted)} of {SAMPLES} shown" in dom


DRIVER = """<iframe src="report.html" style="width: 390px; height: 800px; border: 0"></iframe><pre></pre><script>
onload = () => {
  const frame = document.querySelector("iframe").contentWindow, page = frame.document, out = [];
  const state = (what) => out.push(what + ": " + page.getElementById("count").textContent + " " + frame.location.hash);
  out.push("width: " + page.documentElement.scrollWidth);
  state("first");
  const field = page.querySelector("select[name=filter]");
  field.focus();
  out.push("focus: " + page.activeElement.name);
  field.value = "lost";
  field.dispatchEvent(new Event("change", {bubbles: true}));
  state("lost");
  frame.location.hash = "#filter=flagged&model=teacher&environment=nowhere";
  setTimeout(() => {
    state("flagged");
    page.getElementById("filter").reset();
    setTimeout(() => { state("reset"); document.querySelector("pre").textContent = out.join("\\n"); }, 50);
  }, 50);
};
</script>"""


def test_in_a_browser_the_filter_works_and_a_phone_shows_the_whole_page(page):
    driver = page.with_name("driver.html")
    driver.write_text(DRIVER)
    dom, log = browse(driver.as_uri(), "--allow-file-access-from-files", "--dump-dom")
    assert "CONSOLE" not in log
    said = dict(line.split(": ", 1) for line in re.search(r"<pre>(.+?)</pre>", dom, re.DOTALL)[1].splitlines())
    teacher, _, _, student = (model["samples"] for model in make_evaluation(*ALL)["models"])
    lost = sum(a["exact"] and not b["exact"] for a, b in zip(teacher, student, strict=True))
    flagged = sum(record["empty"] or record["nonfinite"] for record in teacher)
    assert int(said["width"]) == 390
    assert said["focus"] == "filter"
    assert said["first"].strip() == f"{SAMPLES} of {SAMPLES} shown"
    assert said["lost"] == f"{lost} of {SAMPLES} shown #filter=lost"
    assert said["flagged"].startswith(f"{flagged} of {SAMPLES} shown ")
    assert said["reset"].startswith(f"{SAMPLES} of {SAMPLES} shown")


def test_a_browser_draws_it_and_the_log_would_show_an_error(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>throw new Error('seen')</script>")
    assert "CONSOLE" in browse(broken.as_uri(), "--dump-dom")[1]
    picture = tmp_path / "page.png"
    _, log = browse(page.as_uri(), f"--screenshot={picture}", "--window-size=390,900", "--force-dark-mode")
    assert "CONSOLE" not in log
    assert picture.stat().st_size > 10_000
