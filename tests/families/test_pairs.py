"""plan -> dump -> verify -> train -> eval -> plain transformers, for every family and for mixed pairs.

Two of them in the suite; all with FIRSTSIGHT_FAMILIES=all (make families).
"""

import os

import numpy as np
import pytest
import torch
from checkpoints import BUILDERS, VISION
from pairs import MIXED, SUITE
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from world import fs_student, fs_teacher, make_world, passes

from firstsight.data.samples import load_samples
from firstsight.pair import load_pair
from firstsight.prompting import collate
from firstsight.recipe import load_recipe
from storage import open_cache

ALL = os.environ.get("FIRSTSIGHT_FAMILIES") == "all"
PAIRS = [*SUITE, *MIXED, *((kind, kind) for kind in BUILDERS)] if ALL else SUITE


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_a_pair_goes_through_both_phases(teacher, student, tmp_path):
    recipe = make_world(tmp_path, teacher, student)
    config = ("--config", recipe, "--no-progress")
    passes(fs_teacher, "plan", *config)
    passes(fs_teacher, "dump", *config)
    passes(fs_teacher, "verify", tmp_path / "cache.zarr")
    assert_stored_are_those_of_a_plain_forward(recipe, teacher)
    passes(fs_student, "plan", *config)
    passes(fs_student, "train", *config)
    passes(fs_student, "eval", *config, "--model", "teacher", "--model", "student", "--timed", 1, "--requests", 1)
    load = AutoModelForImageTextToText if student in VISION else AutoModelForCausalLM
    before = load.from_pretrained(tmp_path / "student", dtype=torch.float32)
    after, report = load.from_pretrained(tmp_path / "run" / "best", dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(after) is type(before)
    changed = [
        not torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    ]
    assert any(changed)


def assert_stored_are_those_of_a_plain_forward(recipe_file, kind):
    recipe = load_recipe(recipe_file)
    pair = load_pair(recipe)
    load = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    model = load.from_pretrained(pair.directory, dtype=torch.float32)
    cache = open_cache(recipe.cache_location)
    soft = 0
    for sample in load_samples(recipe.source("train")):
        encoded = pair.teacher.encode(sample)
        with torch.inference_mode():
            logits_LV = model(**collate([encoded], pair.teacher.pad_id)).logits[0].float()
        targets = cache[sample.key].targets
        rows = pair.answer_rows(sample, encoded.turn_ids, [targets.target_ids.tolist()])
        assert ((rows >= 0) == targets.soft).all()
        logits_PV = logits_LV[encoded.answer_columns[rows[targets.soft]]]
        shared = pair.alignment.shared
        log_p_PV = torch.full((len(logits_PV), len(shared)), -torch.inf)
        log_p_PV[:, shared] = logits_PV[:, pair.alignment.teacher_of_student[shared]].log_softmax(dim=1)
        ids = torch.from_numpy(targets.ids[targets.soft].astype(np.int64))
        np.testing.assert_allclose(targets.logprobs[targets.soft], log_p_PV.gather(1, ids), atol=3 / 128 + 1e-3, rtol=0)
        np.testing.assert_array_equal(ids[:, 0], log_p_PV.argmax(dim=1))
        soft += int(targets.soft.sum())
    assert soft > 20
