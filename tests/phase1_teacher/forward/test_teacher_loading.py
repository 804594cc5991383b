"""The teacher is loaded as the recipe says, from safetensors alone, and runs no code from its directory."""

import json
import shutil

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from firstsight.demo.miniature.build import build_tokenizer, save_pair_member
from firstsight.errors import ModelError
from firstsight.models.loading import load_teacher
from phase1_teacher.dump import dump, prepare_dump
from storage.reader import open_cache


def test_four_bit_weights(workshop):
    # on a CPU bitsandbytes asks for widths that are multiples of its block of 64; the vision tower's 96 is none
    config = Qwen2VLConfig.from_pretrained(workshop.models / "teacher", dtype="float32")
    config.vision_config.embed_dim, config.vision_config.num_heads = 128, 4
    torch.manual_seed(3)
    directory = workshop.directory / "wide"
    save_pair_member(Qwen2VLForConditionalGeneration(config), build_tokenizer(), directory)
    rows = workshop.rows(6)
    plain = workshop.load(rows, cache={"path": "plain"}, teacher={"model": str(directory)})
    nf4 = workshop.load(rows, cache={"path": "nf4"}, teacher={"model": str(directory), "quantization": "nf4"})
    for recipe in (plain, nf4):
        dump(prepare_dump(recipe, progress=False), progress=False, check_quantization=recipe is nf4)
    cache = open_cache(nf4.cache_location)
    assert cache.spec["teacher"]["quantization"] == "nf4"
    sums = cache.statistics()
    assert 1e-5 < sums["check_kl"] / sums["check_positions"] < 0.5
    assert cache.digest != open_cache(plain.cache_location).digest


def test_dtype_and_attention_are_the_recipes(workshop):
    section = workshop.load(workshop.rows(4), teacher={"dtype": "bfloat16", "attn_implementation": "eager"}).teacher
    teacher = load_teacher(workshop.models / "teacher", section)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert teacher.config._attn_implementation == "eager"
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_pickled_weights_are_refused(workshop):
    directory = workshop.directory / "pickled"
    shutil.copytree(workshop.models / "teacher", directory, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({}, directory / "pytorch_model.bin")
    recipe = workshop.load(workshop.rows(4), teacher={"model": str(directory)})
    with pytest.raises(ModelError, match=r"has no \.safetensors file; weights are read from safetensors only"):
        prepare_dump(recipe, progress=False)


def test_code_in_the_teachers_directory_is_not_run(workshop):
    directory = workshop.directory / "coded"
    shutil.copytree(workshop.models / "teacher", directory)
    marker = workshop.directory / "ran"
    (directory / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nclass Model: pass\nclass Config: pass\n")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling.Config",
        "AutoModelForImageTextToText": "modeling.Model",
        "AutoProcessor": "modeling.Model",
    }
    (directory / "config.json").write_text(json.dumps(config))
    recipe = workshop.load(workshop.rows(4), teacher={"model": str(directory)})
    dump(prepare_dump(recipe, progress=False), progress=False)
    assert len(open_cache(recipe.cache_location)) == 4
    assert not marker.exists()
