"""`benchmarks.regimes`: the true distribution, the shuffled cache, what counts in the table, and one regime from end to end."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import regime_data, regimes
from benchmarks.regime_data import REGIMES, Sizes
from benchmarks.regime_report import regime_figures
from benchmarks.regime_scores import calibration_error, true_next_tokens
from storage.targets import SampleTargets, Targets

ANSWERS = [([1, 2, 9], 0.5), ([1, 3, 9], 0.2), ([4, 9], 0.3)]


@pytest.mark.parametrize("path", [ids for ids, _ in ANSWERS])
def test_the_true_next_tokens_multiply_to_the_answers_probability(path):
    found = true_next_tokens(ANSWERS, path)
    shares = [dict(zip(each.ids, each.shares, strict=True)) for each in found]
    assert all(sum(each.values()) == pytest.approx(1) for each in shares)
    assert math.prod(each[token] for each, token in zip(shares, path, strict=True)) == pytest.approx(
        {tuple(ids): share for ids, share in ANSWERS}[tuple(path)]
    )
    assert shares[0] == pytest.approx({1: 0.7, 4: 0.3})


def test_calibration_is_nought_where_the_confidence_is_the_true_probability_and_its_bias_elsewhere():
    draw = np.random.default_rng(0).uniform(0.5, 1.0, 500)
    assert calibration_error(draw, draw) == pytest.approx(0)
    assert calibration_error(draw, draw - 0.25) == pytest.approx(0.25)
    assert calibration_error([1.0], [0.0]) == 1.0


def targets(count, mark):
    return Targets(
        ids=np.full((count, 4), mark, np.uint32),
        logprobs=np.zeros((count, 4), np.float32),
        tail=np.zeros((count, 1), np.float32),
        target_ids=np.full(count, mark, np.uint32),
        target_logprobs=np.zeros(count, np.float32),
        soft=np.ones(count, bool),
    )


class FakeCache(dict):
    temperatures = (1.0,)


@pytest.mark.parametrize("hard_share", [0.0, 0.1, 0.5, 1.0])
def test_a_shuffled_cache_gives_every_sample_the_targets_of_another_one_and_keeps_labels(hard_share):
    draw = np.random.default_rng(3)
    cache = FakeCache()
    for number in range(40):
        hard = number < hard_share * 40
        cache[f"{number}"] = SampleTargets(
            key=f"{number}", hard=hard, targets=targets(int(draw.integers(3, 9)), number)
        )
    mixed = regimes._Shuffled(cache, list(cache))
    given = Counter()
    for key, own in cache.items():
        found = mixed[key]
        mark = int(found.targets.ids[0, 0])
        given[mark] += 1
        assert mark != int(key)
        assert cache[str(mark)].hard == own.hard == found.hard
        if own.hard:
            assert found.targets.target_ids.tolist() == own.targets.target_ids.tolist()
            assert len(found.targets.ids) == len(own.targets)
        else:
            assert found.targets is cache[str(mark)].targets
    assert set(given.values()) == {1}, "a permutation"


def line(arm, seed, rate, loss, right):
    return {"arm": arm, "seed": seed, "rate": rate, "validation_loss": loss, "right": right, "nll": [0.5], "kl": [0.1]}


def test_of_the_first_seed_the_run_with_the_lower_validation_loss_counts():
    rows = [
        {"arm": "base", "seed": 0, "right": "0001", "nll": [0.5], "kl": [0.1]},
        line("hard", 0, 1e-3, 0.4, "0011"),
        line("hard", 0, 2e-3, 0.3, "0111"),
        line("hard", 1, 2e-3, 0.9, "0011"),
        line("T = 1", 0, 1e-3, 0.4, "1111"),
        line("T = 1", 0, 2e-3, 0.5, "0000"),
    ]
    found = regime_figures(rows, "A")
    assert (found["hard"]["rate"], found["hard"]["right"]) == (2e-3, [75.0, 50.0])
    assert found["base"]["right"] == [25.0]
    assert found["T = 1"]["minus hard"][0] == 25.0, "paired with the same seeds"
    assert "minus hard" not in found["base"]
    assert "minus answers" not in found["T = 1"]


def test_more_scenes_are_the_first_of_all_and_have_no_labels(tmp_path):
    sizes = Sizes(train=5, validation=2, test=2, steps=3, batch=2)
    regime = REGIMES["E"]
    regime_data._place_data(tmp_path / "data", regime, sizes)
    counts = regime_data.scene_counts(regime, sizes)
    assert counts == [5, 10, 20, 40]
    rows = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    for count in counts:
        first = (tmp_path / "data" / regime_data.rows_of_scenes(count)).read_text().splitlines()
        assert list(map(json.loads, first)) == list(map(json.loads, rows[:count]))
    assert all(len(json.loads(row)["messages"]) == 1 for row in rows)
    found = regimes.arms("E", tmp_path, sizes)
    assert [(arm.rows, arm.times) for arm in found.values()] == [
        *((regime_data.rows_of_scenes(count), 1) for count in counts),
        ("first-5.jsonl", 8),
        ("first-40.jsonl", 8),
        ("first-40.jsonl", 32),
    ]
    assert [len(arm.rates) for arm in found.values()] == [2, 2, 2, 2, 2, 2, 1]


def test_no_run_is_made_twice_and_the_page_has_every_arm(tmp_path, monkeypatch):
    monkeypatch.setattr(
        regimes, "arms", lambda _regime, _directory, _sizes: {"hard": regimes.Arm(alpha=0.0), "T = 1": regimes.Arm()}
    )
    sizes = {"--train": 21, "--validation": 7, "--test": 7, "--steps": 5, "--batch": 4, "--seeds": 2}
    options = ["--regime", "C", *(word for size in sizes.items() for word in map(str, size))]
    command = [str(tmp_path / "bench"), *options, "--docs", str(tmp_path / "docs")]
    for _ in range(2):
        done = CliRunner().invoke(regimes.main, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        rows = [json.loads(text) for text in (tmp_path / "bench" / "runs.jsonl").read_text().splitlines()]
        assert Counter(row["arm"] for row in rows) == {"teacher": 1, "base": 1, "hard": 3, "T = 1": 3}
        assert all(len(row["right"]) == len(row["nll"]) == len(row["kl_truth"]) == 7 for row in rows)
    teacher, base = rows[:2]
    # the teacher knows how likely each wording is; 70 other pictures: .007 nats per token, the base .214
    assert np.mean(teacher["kl_truth"]) < 0.05 < np.mean(base["kl_truth"])
    assert teacher["calibration"] < base["calibration"]
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert page.count("<!-- python -m benchmarks.regimes: begin -->") == 1
    assert "| `T = 1` |" in page
    assert (tmp_path / "docs" / "regimes.png").stat().st_size > 10_000
    assert set(json.loads((tmp_path / "benchmarks" / "results" / "regimes.json").read_text())["regimes"]) == {"C"}
    (tmp_path / "docs" / "benchmarks.md").write_text(f"before\n{page}after\n")
    CliRunner().invoke(regimes.main, [*command, "--report"], catch_exceptions=False)
    again = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert again == f"before\n{page}after\n"
