"""A skip is a decision of one run: every error of one sample is covered and named, and tried again when it can be dumped."""

import re

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from firstsight.errors import DataError, TargetError
from phase1_teacher.cli import main
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.forward import answers as answers_module
from phase1_teacher.forward.teacher import TeacherForward
from phase1_teacher.planning.retry import BY_TEACHER
from storage.exact import open_exact_cache
from storage.maintenance.status import cache_status
from storage.maintenance.verify import verify_cache
from storage.reader import open_cache


def run(recipe, **options):
    job = prepare_dump(recipe, progress=False, **options)
    return job, dump(job, progress=False)


def command(path, *arguments):
    result = CliRunner().invoke(main, ["dump", "--config", str(path), "--no-progress", *arguments])
    return result.exit_code, result.output


def skipping(workshop, rows, **sections):
    cache = {"on_error": "skip", **sections.pop("cache", {})}
    return workshop.load(rows, cache=cache, **sections)


def question(row, text):
    row["messages"][0]["content"][1]["text"] = text


def lengthen(_workshop, rows):
    question(rows[3], "red " * 300)
    return "more than data.max_length = 256"


def forbid(_workshop, rows):
    question(rows[3], "what <|im_start|> is it")
    return "has the control token <|im_start|> in its text"


def damage(workshop, rows):
    file = workshop.directory / "data" / "damaged.png"
    Image.effect_noise((56, 56), 60).save(file)
    file.write_bytes(file.read_bytes()[:300])
    rows[3]["images"] = ["damaged.png"]
    return "cannot be decoded"


def thin(workshop, rows):
    Image.new("RGB", (1, 5000)).save(workshop.directory / "data" / "thin.png")
    rows[3]["images"] = ["thin.png"]
    return "the model's image processor refuses its images of 1 x 5000 pixels"


@pytest.mark.parametrize("fault", [lengthen, forbid, damage, thin])
def test_every_error_of_one_sample_is_skipped_and_named(workshop, fault):
    rows = workshop.rows(6)
    reason = fault(workshop, rows)
    with pytest.raises(DataError, match=re.escape(reason)):
        run(workshop.load(rows, data={"max_length": 256}))
    recipe = skipping(workshop, rows, data={"max_length": 256}, cache={"path": "skip.zarr"})
    _, summary = run(recipe)
    (said,) = open_cache(recipe.cache_location).skipped().values()
    assert reason in said
    assert "train.jsonl:4" in said
    assert str(workshop.directory) not in said
    assert summary.skipped == (said,)
    assert summary.samples == 5
    assert verify_cache(recipe.cache_location).ok()
    job, summary = run(recipe)  # it still cannot be dumped: no unit is made for it
    assert (job.planned, job.again, summary.units) == (0, 0, 0)


def test_what_only_the_teacher_can_judge_is_tried_again_when_asked(workshop, monkeypatch):
    rows = workshop.rows(6)
    recipe = skipping(workshop, rows)
    states = TeacherForward._states

    def broken(self, samples, *rest):
        hidden = states(self, samples, *rest)
        start = 0
        for sample in samples:
            if sample.sample.id == "s2":
                hidden[start] = torch.nan
            start += sample.encoded.positions
        return hidden

    monkeypatch.setattr(TeacherForward, "_states", broken)
    assert len(run(recipe)[1].skipped) == 1
    cache = open_cache(recipe.cache_location)
    (key,) = cache.skipped()
    assert [manifest.notes.get(BY_TEACHER) for manifest in cache.manifests() if manifest.skipped] == [[key]]
    monkeypatch.undo()
    assert run(recipe)[0].again == 0
    assert "--retry-skipped" in command(workshop.directory / "recipe.yaml")[1]
    code, output = command(workshop.directory / "recipe.yaml", "--retry-skipped")
    assert code == 0, output
    assert "1 sample that an earlier dump skipped is tried again" in output
    assert "Skipped:" not in output
    assert len(open_cache(recipe.cache_location)) == 6
    assert key in open_cache(recipe.cache_location)
    assert verify_cache(recipe.cache_location).ok()
    assert run(recipe, retry_skipped=True)[0].again == 0


def test_memory_that_does_not_take_a_sample_skips_it(workshop, monkeypatch):
    states = TeacherForward._states

    def small(self, samples, *rest):
        if any(sample.sample.id == "s2" for sample in samples):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return states(self, samples, *rest)

    monkeypatch.setattr(TeacherForward, "_states", small)
    recipe = skipping(workshop, workshop.rows(6))
    _, summary = run(recipe)
    assert summary.samples == 5
    assert re.search(r"train.jsonl:3: sample 's2' alone does not fit into the device's memory", summary.skipped[0])
    monkeypatch.undo()
    assert run(recipe)[0].again == 0
    assert run(recipe, retry_skipped=True)[1].samples == 1


def test_an_answer_that_cannot_be_sampled_is_skipped_alone(workshop, monkeypatch):
    rows = workshop.rows(5, answered=False)
    generate = answers_module.generate_answers
    target = rows[1]["messages"][0]["content"][1]["text"]

    def sampled(model, prompter, prompts, **options):
        for prompt in prompts:
            if target in prompter.tokenizer.decode(prompt.input_ids):
                raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        return generate(model, prompter, prompts, **options)

    monkeypatch.setattr(answers_module, "generate_answers", sampled)
    wanted = {"generate_missing": True, "generate_max_tokens": 4, "generate_temperature": 1.0}
    with pytest.raises(TargetError, match=r"train.jsonl:2: sample 's1': the teacher cannot answer it"):
        run(workshop.load(rows, cache=wanted))
    recipe = skipping(workshop, rows, cache={**wanted, "path": "skip.zarr"})
    _, summary = run(recipe)
    assert (summary.samples, len(summary.skipped)) == (4, 1)
    assert "sample 's1': the teacher cannot answer it" in summary.skipped[0]


def test_another_error_of_generation_is_no_error_of_a_sample(workshop, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(answers_module, "generate_answers", broken)
    rows = workshop.rows(4, answered=False)
    with pytest.raises(RuntimeError, match="a bug"):
        run(skipping(workshop, rows, cache={"generate_missing": True, "generate_max_tokens": 4}))


def test_a_skipped_sample_is_dumped_by_the_next_dump_that_can(workshop):
    rows = workshop.rows(8)
    question(rows[5], "red " * 300)
    run(skipping(workshop, rows, data={"max_length": 256}))
    path = workshop.directory / "recipe.yaml"
    # a longer limit, another one, and stop: whatever the run that follows is
    code, output = command(path, "--set", "data.max_length=260")
    assert "holds all samples of this recipe except 1 that an earlier dump skipped" in output
    code, output = command(path, "--set", "cache.on_error=stop")
    assert code == 2
    assert "train.jsonl:6: sample 's5' has" in output
    code, output = command(path, "--set", "data.max_length=2000", "--set", "cache.on_error=stop")
    assert code == 0, output
    assert "1 sample that an earlier dump skipped is tried again" in output
    cache = open_cache(str(workshop.directory / "cache.zarr"))
    assert len(cache) == 8
    assert cache.skipped() == {}
    status = cache_status(str(workshop.directory / "cache.zarr"))
    assert (status.samples, status.planned_samples, status.skipped) == (8, 8, {})
    assert "holds all 8 samples" in command(path, "--set", "data.max_length=2000")[1]


def test_a_row_that_comes_back_is_dumped(workshop):
    """Planned, taken out of the data before its unit was done, put back later."""
    rows = workshop.rows(8)
    recipe = skipping(workshop, rows)
    prepare_dump(recipe, progress=False)
    train = workshop.directory / "data" / "train.jsonl"
    whole = train.read_text()
    train.write_text("".join(whole.splitlines(keepends=True)[1:]))
    _, summary = run(recipe)
    assert "was not found in the data" in summary.skipped[0]
    train.write_text(whole)
    job, summary = run(recipe)
    assert (job.again, summary.samples) == (1, 1)
    assert len(open_cache(recipe.cache_location)) == 8


def test_the_summary_says_how_many_and_why(workshop):
    rows = workshop.rows(12)
    for number in range(7):
        question(rows[number], "red " * (300 + number))
    recipe = skipping(workshop, rows, data={"max_length": 256})
    code, output = command(workshop.directory / "recipe.yaml")
    assert code == 0, output
    assert "Skipped:   7 samples; fs-teacher status" in output
    assert output.count("more than data.max_length = 256") == 5
    assert yaml.safe_load((workshop.directory / "recipe.yaml").read_text())["cache"]["on_error"] == "skip"
    assert len(open_cache(recipe.cache_location).skipped()) == 7


def test_a_derived_cache_skips_what_the_exact_one_skipped_and_follows_it(workshop):
    rows = workshop.rows(8)
    question(rows[5], "red " * 300)
    path = workshop.recipe(
        rows, cache={"targets": "exact", "on_error": "skip", "path": "exact.zarr"}, data={"max_length": 256}
    )
    path.write_text(path.read_text().replace("  top_k: 16\n", ""))
    exact = str(workshop.directory / "exact.zarr")
    top_k = ["--set", "cache.targets=top_k", "--set", "cache.path=top.zarr", "--set", "cache.top_k=16"]

    def derive():
        done = CliRunner().invoke(main, ["derive", exact, "--config", str(path), "--no-progress", *top_k])
        assert done.exit_code == 0, done.output
        return open_cache(str(workshop.directory / "top.zarr"))

    assert command(path, "--student", "none")[0] == 0
    derived = derive()
    assert (len(derived), list(derived.skipped())) == (7, list(open_exact_cache(exact).skipped()))
    assert "more than data.max_length = 256" in next(iter(derived.skipped().values()))
    units = cache_status(derived.location).units
    assert len(derive()) == 7  # nothing has changed: nothing is planned
    assert cache_status(derived.location).units == units
    code, output = command(path, "--student", "none", "--set", "data.max_length=2000")
    assert (code, "1 sample that an earlier dump skipped is tried again" in output) == (0, True), output
    derived = derive()
    assert (len(derived), derived.skipped()) == (8, {})
    assert verify_cache(str(workshop.directory / "top.zarr")).ok()


def test_a_row_whose_picture_is_not_there_is_left_out_and_named(workshop):
    """It has no key, so that the cache knows nothing of it."""
    rows = workshop.rows(8)
    rows[2]["images"] = ["nowhere.png"]
    rows[4]["images"] = ["data:image/png;base64,%%%"]
    path = workshop.recipe(rows)
    code, output = command(path)
    assert code == 2
    assert "train.jsonl:3: image" in output
    code, output = command(path, "--set", "cache.on_error=skip")
    assert code == 0, output
    assert "2 samples are left out (cache.on_error: skip):\n  train.jsonl:3: image" in output
    assert "train.jsonl:5: image 1" in output
    assert "s4" in output
    cache = open_cache(str(workshop.directory / "cache.zarr"))
    assert (len(cache), cache.skipped()) == (6, {})
    planned = CliRunner().invoke(main, ["plan", "--config", str(path), "--set", "cache.on_error=skip", "--no-progress"])
    assert planned.exit_code == 0, planned.output
    assert "2 samples cannot be used and are skipped" in planned.output
    assert CliRunner().invoke(main, ["plan", "--config", str(path), "--no-progress"]).exit_code == 2
    Image.effect_noise((56, 56), 60).save(workshop.directory / "data" / "nowhere.png")
    assert "1 sample is left out" in command(path, "--set", "cache.on_error=skip")[1]
    assert len(open_cache(str(workshop.directory / "cache.zarr"))) == 7


def test_a_row_of_an_unknown_form_is_refused_and_not_skipped(workshop):
    rows = workshop.rows(6)
    rows[1]["videos"] = ["a.mp4"]
    code, output = command(workshop.recipe(rows, cache={"on_error": "skip"}))
    assert code == 2
    assert "train.jsonl:2" in output


def test_rows_of_which_none_has_its_picture_are_an_error(workshop):
    rows = workshop.rows(6)
    for row in rows:
        row["images"] = ["nowhere.png"]
    code, output = command(workshop.recipe(rows, cache={"on_error": "skip"}))
    assert code == 2
    assert "none of the 4 rows can be used; the first: train.jsonl:1: image" in output
