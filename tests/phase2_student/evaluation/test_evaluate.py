"""An evaluation: its records against the data, its measurements, what is kept, a NaN and an empty answer."""

import json
import math
import re
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from firstsight import console
from firstsight.data.samples import load_samples
from firstsight.errors import ModelError
from firstsight.generation import TokenWatch, confidence, generate_answers, stop_ids
from firstsight.models.loading import weights_digest
from firstsight.pair import load_prompter
from firstsight.recipe import load_recipe
from phase2_student.cli import main
from phase2_student.evaluation import answers as answers_module
from phase2_student.evaluation import evaluate as evaluate_module
from phase2_student.evaluation.answers import answer_records
from phase2_student.evaluation.candidates import default_names, parse_candidates
from phase2_student.evaluation.evaluate import Settings, evaluate
from phase2_student.evaluation.files import read_evaluation, write_evaluation
from phase2_student.evaluation.loading import load_for_answers
from phase2_student.evaluation.measure.timing import Stopwatch, Timing
from phase2_student.evaluation.metrics.distance import TeacherCache, add_distance
from phase2_student.release.export import export
from phase2_student.runs.exports import export_directory

QUICK = Settings(
    batch_size=4, max_new_tokens=3, timing=Timing(timed=3, warm_up=1, batch_sizes=(2,), users=(1, 2), requests=3)
)


@pytest.fixture(scope="module")
def place(made_world, tmp_path_factory):
    """A recipe whose best student is the base, and an export of it."""
    directory = tmp_path_factory.mktemp("evaluated")
    shutil.copy(made_world / "recipe.yaml", directory / "recipe.yaml")
    for name in ("models", "data", "cache.zarr"):
        (directory / name).symlink_to(made_world / name)
    recipe = load_recipe(directory / "recipe.yaml")
    shutil.copytree(made_world / "models" / "student", recipe.output_dir / "best")
    half = recipe.student.model_copy(update={"dtype": "bfloat16"})
    export(recipe.output_dir / "best", export_directory(recipe, "int8"), half, "int8")
    return directory


@pytest.fixture(scope="module")
def recipe(place):
    return load_recipe(place / "recipe.yaml")


@pytest.fixture(scope="module")
def evaluation(recipe):
    candidates = parse_candidates(recipe, ["teacher", "base", "student-int8"])
    directory = recipe.output_dir / "evaluation"
    return evaluate(recipe, candidates, directory=directory, settings=QUICK, progress=False)


@pytest.fixture
def kept(evaluation, recipe, monkeypatch, tmp_path):
    """A directory with the results of `evaluation`, and a measurement that only notes who is measured."""
    shutil.copytree(recipe.output_dir / "evaluation" / "measured", tmp_path / "measured")
    measured = []

    def note(_recipe, candidate, *_):
        measured.append(candidate.name)
        if candidate.name == "interrupt":
            raise KeyboardInterrupt
        return evaluation.models[1].model_copy(update={"name": candidate.name})

    monkeypatch.setattr(evaluate_module, "_measure", note)
    return tmp_path, measured


def again(recipe, directory, names=("teacher", "base", "student-int8"), **options):
    candidates = parse_candidates(recipe, names)
    return evaluate(recipe, candidates, directory=directory, progress=False, **{"settings": QUICK, **options})


def test_a_record_per_sample_in_the_order_of_the_data(evaluation, place):
    rows = [json.loads(line) for line in (place / "data" / "validation.jsonl").read_text().splitlines()]
    assert [model.name for model in evaluation.models] == ["teacher", "base", "student-int8"]
    for model in evaluation.to_json()["models"]:
        assert len(model["samples"]) == len(rows) == evaluation.data.samples
        for record, row in zip(model["samples"], rows, strict=True):
            assert record["id"] == row["id"]
            assert record["images"] == row["images"]
            assert record["truth"] == row["messages"][-1]["content"][0]["text"]
            assert (record["category"], record["environment"]) == (row["category"], row["environment"])
            assert record["exact"] == (record["answer"].strip() == record["truth"])
            assert record["empty"] == (record["answer"].strip() == "")
            assert 1 <= record["tokens"] <= 3
            assert 0 < record["confidence"] <= 1
            assert record["nonfinite"] is False
            assert record["choice"] is None
            assert ("kl_sum" in record) == (model["role"] == "student")
        for name in ("empty", "nonfinite", "cut"):
            assert model["counts"][name] == sum(record[name] for record in model["samples"])


def test_the_measurements(evaluation, recipe):
    teacher, base, int8 = evaluation.to_json()["models"]
    assert (teacher["dtype"], base["dtype"], int8["dtype"]) == ("float32", "float32", "int8")
    assert base["weights"] == weights_digest(recipe.output_dir / "best") != int8["weights"]
    assert base["parameters"] == int8["parameters"] < teacher["parameters"]
    assert int8["size_bytes"] < 0.75 * base["size_bytes"]
    for model in (teacher, base, int8):
        alone = [record["seconds"] for record in model["samples"] if "seconds" in record]
        assert len(alone) == 3
        assert model["throughput"]["1"] == pytest.approx(3 / sum(alone))
        assert model["throughput"]["2"] == pytest.approx(4 / model["throughput_runs"][1]["seconds"])
        assert model["throughput"]["best"] == max(model["throughput"]["1"], model["throughput"]["2"])
        assert [len(seen["seconds"]) for seen in model["concurrency"].values()] == [3, 4]
        assert model["load_seconds"] > 0
        assert model["energy_joules_per_answer"] is None or torch.cuda.is_available()
    assert [goal.name for goal in evaluation.goals] == ["compression", "memory", "speed"] * 2
    assert {goal.against for goal in evaluation.goals} == {"teacher"}


def test_scores_alone(place, evaluation, tmp_path):
    options = ["--config", str(place / "recipe.yaml"), "--no-progress", "--output", str(tmp_path)]
    options += ["--model", "teacher", "--model", "base", "--max-new-tokens", "3", "--batch-size", "4", "--timed", "0"]
    done = CliRunner().invoke(main, ["eval", *options])
    assert done.exit_code == 0, done.output
    assert "nothing is timed" in done.stderr
    found = read_evaluation([], next(tmp_path.glob("evaluation_2*.json")))
    for model, timed in zip(found.models, evaluation.models[:2], strict=True):
        assert (model.throughput, model.throughput_runs, model.concurrency) == (None, [], {})
        assert model.samples == [record.model_copy(update={"seconds": None}) for record in timed.samples]
    (speed,) = [goal for goal in found.goals if goal.name == "speed"]
    assert (speed.got, speed.passed) == (None, None)
    assert "Nothing was timed (--timed 0)" in done.stdout
    assert not re.search(r"latency p50|tokens/s|samples/s|best batch|users", done.stdout)
    assert re.search(r"original goal: speed .* -", done.stdout)


def test_the_json_is_plain_and_names_no_directory(evaluation, place):
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert str(place) not in text
    assert str(place.resolve()) not in text


def test_what_is_kept_is_not_measured_again(kept, recipe, evaluation):
    directory, measured = kept
    told = []
    second = again(recipe, directory, report=told.append)
    assert measured == []
    assert second.models == evaluation.models
    assert len(told) == 3
    again(recipe, directory, fresh=True)
    assert measured == ["teacher", "base", "student-int8"]


def test_other_settings_data_or_weights_are_measured(kept, recipe, place):
    directory, measured = kept
    again(recipe, directory, ["base"], limit=5)
    again(recipe, directory, ["base"], settings=Settings(max_new_tokens=4))
    other = shutil.copytree(place / "models" / "student", directory / "other")
    again(recipe, directory, [f"same={other}"])
    assert measured == ["base", "base"]  # the same weights under another name are known
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    again(recipe, directory, [f"other={other}"])
    assert measured == ["base", "base", "other"]


def test_how_a_student_was_trained_is_no_reason_to_measure_it_again(kept, recipe):
    directory, measured = kept
    changed = recipe.student.model_copy(update={"precision": "bf16_kahan", "freeze": ("vision",), "padding_free": True})
    again(recipe.model_copy(update={"student": changed}), directory, ["base"])
    assert measured == []
    smaller = recipe.student.model_copy(update={"max_pixels": 784})
    again(recipe.model_copy(update={"student": smaller}), directory, ["base"])
    assert measured == ["base"]


def test_a_limit_counts_samples_with_an_answer(kept, recipe, place):
    directory, _ = kept
    rows = [json.loads(line) for line in (place / "data" / "validation.jsonl").read_text().splitlines()]
    del rows[0]["messages"][-1]
    data = shutil.copytree(place / "data", directory / "data")
    (data / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    moved = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": data})})
    assert again(moved, directory, ["base"], limit=len(rows) - 1).data.samples == len(rows) - 1
    assert again(moved, directory, ["base"], limit=1).data.samples == 1


def test_a_batch_of_answers_that_does_not_fit_is_told_with_the_option(recipe, monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(evaluate_module, "answer_records", full)
    with pytest.raises(
        ModelError, match=r"base: out of memory on .* with 4 answers at once; give a smaller --batch-size"
    ):
        again(recipe, tmp_path, ["base"])


def test_a_model_that_does_not_fit_is_told_apart_from_a_batch_that_does_not(recipe, monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(evaluate_module, "load", full)
    with pytest.raises(ModelError, match=r"base: does not fit into the memory of .*; lower max_pixels"):
        again(recipe, tmp_path, ["base"])


def test_what_is_written_can_be_read(evaluation, tmp_path):
    path = write_evaluation(evaluation, tmp_path)
    written = json.loads(path.read_text())
    assert read_evaluation([], path) == evaluation
    assert json.dumps(read_evaluation([], path).to_json()) == json.dumps(written)  # in the same order
    assert list(written["models"][0]["throughput"]) == ["1", "2", "best_batch", "best"]
    written["models"][0]["samples"][0]["of a newer version"] = 1
    path.write_text(json.dumps(written))
    assert read_evaluation([], path).to_json() == written
    assert "4 answered at once" in (tmp_path / "evaluation_summary.txt").read_text()


def test_an_interrupted_evaluation_goes_on(kept, recipe, place):
    directory, measured = kept
    shutil.rmtree(directory / "measured")
    changed = shutil.copytree(place / "models" / "student", directory / "changed")
    (changed / "generation_config.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        again(recipe, directory, ["teacher", f"interrupt={changed}", "base"])
    again(recipe, directory, ["teacher", f"last={changed}", "base"])
    assert measured == ["teacher", "interrupt", "last", "base"]


def test_a_damaged_result_is_measured_again(kept, recipe):
    directory, measured = kept
    for path in (directory / "measured").iterdir():
        path.write_text(path.read_text()[:-40])
    again(recipe, directory)
    assert measured == ["teacher", "base", "student-int8"]


def stock_logits(model, whole):
    """float32 logits of the positions before the answer's tokens."""
    inputs = {**whole.images, "mm_token_type_ids": whole.token_types["mm_token_type_ids"][None]}
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    with torch.inference_mode():
        logits = model(input_ids=whole.input_ids[None].to(model.device), **inputs).logits[0, whole.answer_columns]
    return logits.float().cpu()


def test_confidence_is_what_a_plain_forward_says(recipe):
    directory = parse_candidates(recipe, ["base"])[0].directory
    model, _ = load_for_answers(directory, recipe.student)
    prompter = load_prompter(directory, recipe.student, max_length=512)
    sample = load_samples(recipe.source("validation"))[0]
    watch = TokenWatch()
    (ids,) = generate_answers(model, prompter, [prompter.encode(sample, [])], max_new_tokens=3, watch=watch)
    whole = prompter.encode(sample, [ids])
    probabilities = stock_logits(model, whole).softmax(-1)[range(len(ids)), ids]
    assert confidence(watch.log_probabilities(0, len(ids))) == pytest.approx(
        float(probabilities.prod()) ** (1 / len(ids)), rel=1e-3
    )


def test_the_nll_is_that_of_the_true_answer_by_the_stock_forward(evaluation, recipe):
    model, _ = load_for_answers(parse_candidates(recipe, ["base"])[0].directory, recipe.student)
    prompter = load_prompter(parse_candidates(recipe, ["base"])[0].directory, recipe.student, max_length=512)
    records = evaluation.models[1].samples
    for sample, record in list(zip(load_samples(recipe.source("validation")), records, strict=True))[:3]:
        whole = prompter.encode(sample)
        nll = torch.nn.functional.cross_entropy(stock_logits(model, whole), whole.target_ids, reduction="sum")
        assert record.nll_sum == pytest.approx(float(nll), rel=1e-3)
        assert record.hard_positions == len(whole.target_ids)
    assert all(record.nll_sum is None for record in evaluation.models[0].samples), "a teacher has no distance"


def test_a_nan_is_counted_and_not_dropped(recipe, place, tmp_path):
    broken = shutil.copytree(place / "models" / "student", tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.nan)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    model, _ = load_for_answers(broken, recipe.student)
    prompter = load_prompter(broken, recipe.student, max_length=512)
    samples = load_samples(recipe.source("validation"))[:2]
    options = {"batch_size": 2, "max_new_tokens": 2, "root": recipe.data_root, "label": "", "progress": False}
    records = answer_records(model, prompter, samples, **options)
    assert [record.nonfinite for record in records] == [True, True]
    assert [record.confidence for record in records] == [None, None]
    cache = TeacherCache.of_recipe(recipe)
    assert add_distance(recipe, cache, model, prompter, samples, records, batch_size=2) is None
    assert [record.kl_sum for record in records] == [None, None]
    assert all(record.nonfinite for record in records)
    json.dumps([record.to_json() for record in records], allow_nan=False)


def test_without_a_cache_the_distance_is_unknown_and_no_directory_is_named(recipe):
    directory = parse_candidates(recipe, ["base"])[0].directory
    model, _ = load_for_answers(directory, recipe.student)
    prompter = load_prompter(directory, recipe.student, max_length=512)
    elsewhere = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"path": "none.zarr"})})
    cache = TeacherCache.of_recipe(elsewhere)
    assert (cache.digest, cache.kind) == (None, None)
    reason = add_distance(elsewhere, cache, model, prompter, [], [], batch_size=2)
    assert "no cache at none.zarr" in reason
    assert str(recipe.directory) not in reason


def test_an_empty_answer_is_counted_and_not_dropped(recipe, monkeypatch):
    directory = parse_candidates(recipe, ["base"])[0].directory
    prompter = load_prompter(directory, recipe.student, max_length=512)
    samples = load_samples(recipe.source("validation"))[:2]

    def silent(_model, prompter, _prompts, *, watch, **_):
        watch(torch.zeros(2, 1), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
        return [list(prompter.end_of_turn_ids)] * 2

    monkeypatch.setattr(answers_module, "generate_answers", silent)
    options = {"batch_size": 2, "max_new_tokens": 2, "root": recipe.data_root, "label": "", "progress": False}
    records = answer_records(None, prompter, samples, **options)
    assert [(record.empty, record.exact, record.f1, record.anls) for record in records] == [(True, False, 0.0, 0.0)] * 2
    assert [record.confidence for record in records] == pytest.approx([0.5, 0.5])
    assert not any(record.cut for record in records)


def test_a_batch_that_does_not_fit_ends_the_search_and_is_unknown_to_its_users():
    def answer(batch, _):
        if len(batch) > 4:
            raise torch.OutOfMemoryError

    watch = Stopwatch(answer, list(range(40)), Timing(batch_sizes=(2, 16, 32), users=(1, 2, 10)), 8)
    assert [run.batch for run in watch.throughput_runs()][:1] == [1]
    assert 16 not in [run.batch for run in watch.throughput_runs()]
    seen = watch.concurrency()
    assert seen["10"].to_json() == {"samples_per_second": None, "p50": None, "p95": None, "seconds": []}
    assert len(seen["2"].seconds) == 20


def test_the_default_models(recipe):
    assert default_names(recipe) == ["teacher", "base", "student", "student-int8"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["studnet"], "expected teacher, teacher-bf16, base"),
        (["base", "base"], "is given twice"),
        (["student-nf4"], "fs-student export --nf4"),
        (["mine=nowhere"], "no config.json"),
    ],
)
def test_names_that_are_refused(recipe, names, said):
    with pytest.raises(ModelError, match=said):
        parse_candidates(recipe, names)


def test_an_export_of_other_weights_is_refused(place, tmp_path):
    moved = shutil.copytree(place, tmp_path / "moved", symlinks=True)
    weights = moved / "runs" / "a" / "best" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match="other weights"):
        parse_candidates(load_recipe(moved / "recipe.yaml"), ["student-int8"])


def test_an_answer_ends_at_any_token_that_the_models_own_configuration_names(recipe):
    """Such as <|endoftext|> beside the end of the turn: what comes behind it is no part of the answer."""
    directory = recipe.output_dir / "best"
    prompter = load_prompter(directory, recipe.student, recipe.data)
    model, _ = load_for_answers(directory, recipe.student)
    samples = load_samples(recipe.source("validation"))[:1]
    prompts = [prompter.encode(samples[0], [])]
    (free,) = generate_answers(model, prompter, prompts, max_new_tokens=4)
    assert len(free) == 4
    other = free[1]
    assert other not in prompter.end_of_turn_ids
    place = free.index(other)
    model.generation_config.eos_token_id = [other, prompter.end_of_turn_ids[-1]]
    assert stop_ids(model, prompter) == [prompter.end_of_turn_ids[-1], other]
    (ids,) = generate_answers(model, prompter, prompts, max_new_tokens=4)
    assert ids == free[: place + 1]
    (record,) = answer_records(
        model, prompter, samples, batch_size=1, max_new_tokens=4, root=recipe.image_root, label="x", progress=False
    )
    assert (record.tokens, record.cut) == (place + 1, False)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, prompter) == [prompter.end_of_turn_ids[-1]]


def test_an_evaluation_gives_signs_of_life_without_a_terminal(recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(console, "HEARTBEAT", 0.0)
    evaluate(recipe, parse_candidates(recipe, ["base"]), directory=tmp_path, settings=QUICK, progress=False)
    error = capsys.readouterr().err
    assert re.search(r"^base: timed answer \d+, \S+ timed answers/s$", error, re.MULTILINE)
    answers = r"^base: answer 6 of 6 \(100%\), \S+ answers/s, ETA 0:00:00, waiting for data \d+%$"
    assert re.search(answers, error, re.MULTILINE), error
    assert re.search(r"^distance to the teacher: sample 6 of 6 \(100%\), ", error, re.MULTILINE)
