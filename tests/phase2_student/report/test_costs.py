"""What the page says about costs: how much was trained, and what the teacher saw for which cache."""

import json
import re
import shutil

import pytest
from report_cases import make_runs

from phase2_student.report import costs
from phase2_student.report.page import write_report
from phase2_student.runs.lineage import CacheFacts, read_cache, read_caches
from phase2_student.runs.records import read_runs


def changed(run, *, steps=100, batch=4, samples=100, max_steps=None, cache=None):
    """The run with other facts; one epoch in its history for each that was begun."""
    facts = json.loads((run / "run.json").read_text())
    facts["identity"] |= {"global batch": batch}
    facts |= {"train_samples": samples} | ({} if cache is None else {"cache": str(cache)})
    (run / "run.json").write_text(json.dumps(facts))
    (entry, *_) = json.loads((run / "training_history.json").read_text())
    per_epoch = -(-samples // batch)
    ends = [*range(per_epoch, steps, per_epoch), steps]
    history = [{**entry, "epoch": number, "step": step} for number, step in enumerate(ends, start=1)]
    (run / "training_history.json").write_text(json.dumps(history))
    if max_steps is not None:
        recipe = run / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("training:\n", f"training:\n  max_steps: {max_steps}\n"))
    (found,) = read_runs([run])
    return found


def plain(path):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text()))


@pytest.mark.parametrize(
    ("steps", "samples", "seen", "text"),
    [
        (1, 26, 4, "0.154 epochs, 1 step"),
        (7, 26, 26, "1 epoch, 7 steps"),  # the last batch is smaller
        (8, 26, 30, "1.154 epochs, 8 steps"),
        (14, 26, 52, "2 epochs, 14 steps"),
        (1, 3, 3, "1 epoch, 1 step"),
    ],
)
def test_the_samples_of_the_steps_are_counted_not_those_of_whole_epochs(tmp_path, steps, samples, seen, text):
    (place,) = make_runs(tmp_path, names=("distilled",))
    run = changed(place, steps=steps, samples=samples)
    assert run.samples_seen == seen
    caches, _ = read_caches([run])
    assert costs.cost_rows([run], caches)[-1].note == text
    counted = "sample" if seen == 1 else "samples"
    assert f"would have shown it {seen} training {counted}." in costs.cost_lines([run], caches)[0]


def test_max_steps_stand_in_place_of_the_epochs_that_they_replace(tmp_path):
    (place,) = make_runs(tmp_path, names=("distilled",))
    assert "distilled forward_kl 1.0 0.7 0.001 4 " in plain(write_report([place]).path)
    changed(place, steps=1, max_steps=1)
    assert "distilled forward_kl 1.0 0.7 0.001 1 step " in plain(write_report([place]).path)


def test_runs_of_several_caches_are_each_told_with_their_own(tmp_path):
    one, two = make_runs(tmp_path, names=("distilled", "other"))
    shutil.copytree(tmp_path / "cache.zarr", tmp_path / "second.zarr")
    runs = [changed(one), changed(two, cache=tmp_path / "second.zarr")]
    caches, troubles = read_caches(runs)
    assert (troubles, [cache.name for cache in caches.values()]) == ([], ["cache.zarr", "second.zarr"])
    whats = [row.what for row in costs.cost_rows(runs, caches)]
    assert whats == ["dump of cache.zarr, once", "dump of second.zarr, once", "distilled", "other"]
    lines = costs.cost_lines(runs, caches)
    assert lines[0].startswith("One run learned from the cache cache.zarr, for which the teacher saw")
    assert lines[1].startswith("One run learned from the cache second.zarr, for which the teacher saw")
    for cache in caches.values():
        cache.status.statistics["seconds"] = 12.0
    assert "Dumps and two runs together: " in costs.cost_lines(runs, caches)[2]
    text = plain(write_report([one, two]).path)
    assert "2 runs on the caches" in text
    assert "Specification of second.zarr" in text
    shutil.rmtree(tmp_path / "second.zarr")
    written = write_report([one, two])
    assert [note for note in written.notes if "could not be opened" in note]
    assert "dump, once" in plain(written.path)  # the one that is there


def test_a_derived_cache_is_no_dump(tmp_path):
    (place,) = make_runs(tmp_path, names=("distilled",))
    run = changed(place)
    cache, _ = read_cache(run)
    assert isinstance(cache, CacheFacts)
    assert not cache.derived
    cache.status.statistics["tokens"] = 0.0
    assert cache.derived
    caches = {run.facts["cache"]: cache}
    first = costs.cost_rows([run], caches)[0]
    assert (first.what, first.passes) == ("cache.zarr, derived from an exact cache without the teacher", 0)
    text = " ".join(costs.cost_lines([run], caches))
    assert "which was derived without the teacher from an exact cache" in text
    assert "the teacher saw" not in text
    assert "for the dump" not in text
