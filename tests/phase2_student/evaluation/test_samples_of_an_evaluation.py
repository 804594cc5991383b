"""Which samples are measured: those without an answer give no score, those that cannot be used are named or end it."""

import json
import shutil

import pytest
import yaml
from click.testing import CliRunner
from report_cases import make_record, make_result, scores_of

from firstsight.data.samples import load_samples
from firstsight.errors import DataError
from firstsight.models.loading import weights_digest
from firstsight.recipe import load_recipe
from phase1_teacher.dump import dump, prepare_dump
from phase2_student.cli import main
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.evaluation.evaluate import Settings, evaluate
from phase2_student.evaluation.files import read_evaluation, write_evaluation
from phase2_student.evaluation.measure.timing import Timing
from phase2_student.evaluation.results import Evaluation
from phase2_student.evaluation.summary import details_text, summary_text
from storage.reader import open_cache

QUICK = Settings(
    batch_size=4, max_new_tokens=3, timing=Timing(timed=2, warm_up=0, batch_sizes=(), users=(1,), requests=1)
)


def place_of(made_world, directory, change, **cache):
    """The world's models and images, with validation rows that were changed, and a recipe of their own."""
    (directory / "models").symlink_to(made_world / "models")
    shutil.copytree(made_world / "data", directory / "data")
    file = directory / "data" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = yaml.safe_load((made_world / "recipe.yaml").read_text())
    recipe["data"]["train"] = recipe["data"].get("validation", "validation.jsonl")  # a small cache
    recipe["cache"] |= cache
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(directory / "recipe.yaml")


def measure(recipe, directory, names=("base",), **options):
    candidates = parse_candidates(recipe, list(names))
    return evaluate(recipe, candidates, directory=directory, settings=QUICK, progress=False, **options)


def without_answers(rows):
    for row in rows:
        del row["messages"][-1]


@pytest.fixture(scope="module")
def unlabelled(made_world, tmp_path_factory):
    """An evaluation of teacher and base on rows without answers, which the teacher answered in the dump."""
    directory = tmp_path_factory.mktemp("unlabelled")
    recipe = place_of(made_world, directory, without_answers, generate_missing=True, generate_max_tokens=4)
    dump(prepare_dump(recipe, progress=False), progress=False)
    return measure(recipe, directory / "measured", ("teacher", "base"))


def test_without_answers_there_are_distance_agreement_and_latency(unlabelled):
    assert (unlabelled.data.samples, unlabelled.data.answered) == (6, 0)
    text = summary_text(unlabelled)
    assert "No sample has a true answer" in text
    for absent in ("exact match:", "exact match  ", "token F1", "ANLS", "paired bootstrap"):
        assert absent not in text
    assert details_text(unlabelled) == ""
    teacher, base = unlabelled.models
    assert {(record.truth, record.exact, record.f1, record.choice) for record in base.samples} == {
        (None, None, None, None)
    }
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["KL to the teacher, nats/token"].split()[-1] != "-"
    assert lines["agreement with the teacher"].split()[-1].endswith("%")
    assert lines["latency p50, ms"].split()[-1] != "-"
    assert base.distance_unknown is None
    assert teacher.scores.overall.exact is None


def test_what_is_written_without_answers_can_be_read_shown_and_published(unlabelled, tmp_path):
    path = write_evaluation(unlabelled, tmp_path / "run" / "evaluation")
    assert read_evaluation([], path) == unlabelled
    assert json.loads(path.read_text())["models"][0]["scores"]["overall"] == {"exact": None}


def test_report_compare_and_card_of_an_evaluation_without_answers(unlabelled, tmp_path):
    from report_cases import make_runs

    from phase2_student.release.card import model_card
    from phase2_student.runs.records import read_runs

    (run,) = make_runs(tmp_path, names=("distilled",))
    own = {"name": "student", "weights": weights_digest(run / "best")}
    student = unlabelled.models[1].model_copy(update=own)
    whole = unlabelled.model_copy(update={"models": [unlabelled.models[0], student]})
    write_evaluation(whole, run / "evaluation")
    done = CliRunner().invoke(main, ["report", str(run), "--gallery", "6"])
    assert done.exit_code == 0, done.output
    page = (run / "report.html").read_text()
    assert "No sample has a true answer" in page
    assert 'id="accuracy"' not in page
    assert 'value="wrong"' not in page
    assert "agreement, student" in page
    assert page.count('class="card" data-unknown') == 6
    shown = CliRunner().invoke(main, ["compare", str(run), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["runs"][0]["exact_match"] is None
    assert CliRunner().invoke(main, ["compare", str(run)]).exit_code == 0
    card = str(model_card(read_runs([run])[0], whole, student, None, repo="me/s", license=None))
    assert "No sample has a true answer" in card


def test_rows_with_and_without_answers_are_all_measured(made_world, tmp_path):
    def change(rows):
        del rows[1]["messages"][-1]

    recipe = place_of(made_world, tmp_path, change)
    found = measure(recipe, tmp_path / "measured")
    assert (found.data.samples, found.data.answered) == (6, 5)
    assert [record.exact is None for record in found.models[0].samples] == [False, True, False, False, False, False]
    assert found.models[0].scores.overall.exact.n == 5
    assert "Scores over 5 samples of 6 with a true answer." in summary_text(found)
    assert measure(recipe, tmp_path / "measured", limit=2).data.samples == 2


def damaged(rows, images):
    file = images / rows[2]["images"][0]
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize("fault", ["image", "missing", "text", "length"])
def test_a_row_that_cannot_be_used_ends_it_or_is_left_out_and_named(made_world, tmp_path, fault):
    def change(rows):
        if fault == "image":
            damaged(rows, tmp_path / "data")
        elif fault == "missing":
            rows[2]["images"] = ["images/nowhere.png"]
        else:
            text = "look: <|image_pad|>" if fault == "text" else "red " * 600
            rows[2]["messages"][0]["content"][-1]["text"] = text

    recipe = place_of(made_world, tmp_path, change)
    name = json.loads((tmp_path / "data" / "validation.jsonl").read_text().splitlines()[2])["id"]
    advice = "" if fault == "missing" else "; or set cache.on_error: skip to leave such samples out"
    with pytest.raises(DataError, match=rf"validation.jsonl:3: .*{advice}"):
        measure(recipe, tmp_path / "measured")
    recipe = place_of_skip(recipe)
    found = measure(recipe, tmp_path / "measured")
    assert found.data.samples == 5
    assert name not in found.models[0].sample_ids
    (reason,) = found.data.skipped
    assert reason.startswith("validation.jsonl:3: ")
    assert str(tmp_path) not in json.dumps(found.to_json())
    assert f"1 sample was skipped (cache.on_error: skip): {reason}" in summary_text(found)
    assert Evaluation.model_validate(found.to_json()) == found


def place_of_skip(recipe):
    return recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"on_error": "skip"})})


def test_dump_train_and_eval_go_on_over_broken_validation_images(made_world, tmp_path):
    def change(rows):
        damaged(rows, tmp_path / "data")
        rows[4]["images"] = ["images/nowhere.png"]

    recipe = place_of(made_world, tmp_path, change, on_error="skip")
    config = ["--config", str(tmp_path / "recipe.yaml"), "--no-progress"]
    dump(prepare_dump(recipe, progress=False), progress=False)
    trained = CliRunner().invoke(main, ["train", *config, "--set", "training.max_steps=1"])
    assert trained.exit_code == 0, trained.output
    assert "4 samples are left out (cache.on_error: skip):\n  validation.jsonl:5: image" in trained.output
    facts = json.loads((tmp_path / "runs" / "a" / "run.json").read_text())
    assert (facts["validation_samples"], facts["skipped_samples"]) == (4, 4)  # they are in both splits here
    page = CliRunner().invoke(main, ["report", str(tmp_path / "runs" / "a")])
    assert "4 samples were left out (cache.on_error: skip): validation.jsonl:5: image" in page.stderr
    options = ["--model", "student", "--timed", "1", "--requests", "1", "--max-new-tokens", "2"]
    done = CliRunner().invoke(main, ["eval", *config, *options])
    assert done.exit_code == 0, done.output
    assert "2 samples were skipped (cache.on_error: skip): validation.jsonl:5: image" in done.stdout
    assert "; validation.jsonl:3: image" in done.stdout


@pytest.mark.parametrize("option", ["--requests", "--repetitions"])
def test_an_option_of_a_timing_that_is_not_made_is_refused(made_world, option):
    options = ["--config", str(made_world / "recipe.yaml"), "--timed", "0", option, "1"]
    done = CliRunner().invoke(main, ["eval", *options])
    assert done.exit_code == 2
    assert f"{option} has no effect with --timed 0" in done.stderr


def test_nothing_that_can_be_used_is_an_error(made_world, tmp_path):
    def change(rows):
        for row in rows:
            row["messages"][0]["content"][-1]["text"] = "look: <|image_pad|>"

    recipe = place_of_skip(place_of(made_world, tmp_path, change))
    with pytest.raises(DataError, match=r"none of the 6 samples can be used; the first: validation.jsonl:1"):
        measure(recipe, tmp_path / "measured")


def test_a_distance_over_part_of_the_samples_is_said():
    known = make_record(kl_sum=1.0, agree=1, soft_positions=2)
    model = make_result([known, make_record(id="b"), make_record(id="c")])
    evaluation = {
        "created": "2026-11-25T00:10:00+00:00",
        "data": {"file": "v.jsonl", "samples": 3},
        "settings": {
            "device": "CPU",
            "timed": 1,
            "warm_up": 0,
            "repetitions": 1,
            "batch_size": 1,
            "requests": 1,
        },
        "targets": [],
        "models": [model.to_json()],
    }
    text = summary_text(Evaluation.model_validate(evaluation))
    assert "m: KL and agreement over 1 of 3 samples; the cache has no targets for the others" in text


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_a_share_is_wilsons(right, count, low, high):
    records = [make_record(id=str(n), exact=n < right, category="c") for n in range(count)]
    for scores in (scores_of(records)["overall"], scores_of(records)["category"]["c"]):
        found = scores["exact"]
        assert found["n"] == count
        assert found["mean"] == pytest.approx(right / count)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-5)


def test_several_truths_give_vqa_accuracy_and_are_no_target(made_world, tmp_path):
    def change(rows):
        rows[0]["answers"] = ["red"] * 9 + ["blue"]
        rows[1]["answers"] = [{"answer": "yes", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
        del rows[2]["messages"][-1]
        rows[2]["answers"] = ["two"]

    recipe = place_of(made_world, tmp_path, change)
    found = measure(recipe, tmp_path / "measured")
    records = found.models[0].samples
    assert [record.vqa is None for record in records] == [False] * 3 + [True] * 3
    assert records[1].truths == ["yes"] * 10
    assert records[2].exact is None
    assert found.models[0].scores.overall.vqa.n == 3
    assert found.data.answered == 6
    assert "VQA accuracy" in summary_text(found)
    keys = [sample.key for sample in load_samples(made_world / "data" / "validation.jsonl")][:2]
    assert [sample.key for sample in load_samples(tmp_path / "data" / "validation.jsonl")][:2] == keys


def test_the_distance_is_over_the_answers_that_the_cache_holds(made_world, tmp_path):
    def change(rows):
        for row in rows:
            more = [{"type": "text", "text": "And now?"}]
            row["messages"] += [{"role": "user", "content": more}, row["messages"][1]]

    recipe = place_of(made_world, tmp_path, change)
    last = recipe.data.model_copy(update={"turns": "last"})
    dump(prepare_dump(recipe.model_copy(update={"data": last}), progress=False), progress=False)
    found = measure(recipe, tmp_path / "measured").models[0]
    assert recipe.data.turns == "all"
    assert found.distance_unknown is None
    cache = open_cache(recipe.cache_location)
    assert {record.soft_positions for record in found.samples} <= {len(cache[key].targets) for key in cache}
