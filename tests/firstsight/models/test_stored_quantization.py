"""Weights that are stored quantised override what a recipe states, so they must be what it states."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from firstsight.errors import ModelError
from firstsight.models.loading import load_student, load_teacher, resolve_directory
from firstsight.models.quantization import stored_quantization
from firstsight.recipe import Recipe, StudentSection, TeacherSection
from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student
from phase2_student.evaluation.candidates import parse_candidates
from phase2_student.release.export import export

INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}


def marked(directory: Path, stored: dict[str, object], part: str | None = None, dtype: str | None = None) -> Path:
    """Let config.json say that the weights are quantised."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    (config if part is None else config[part])["quantization_config"] = stored
    if dtype is not None:
        config["dtype"] = dtype
    file.write_text(json.dumps(config))
    return directory


@pytest.fixture
def copies(models, tmp_path) -> Path:
    return shutil.copytree(models, tmp_path / "models")


def teacher_of(directory: Path, quantization: str, dtype: str = "bfloat16") -> Recipe:
    return Recipe(teacher=TeacherSection(model=str(directory), quantization=quantization, dtype=dtype))


@pytest.mark.parametrize("part", [None, "text_config"])
@pytest.mark.parametrize("quantization", ["int8", "nf4", "none"])
@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (INT8, "int8"),
        (NF4, "nf4"),
        (FP4, "fp4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_a_teacher_is_stored_as_the_recipe_says_or_refused(copies, stored, name, quantization, part):
    directory = marked(copies / "teacher", stored, part)
    recipe = teacher_of(directory, quantization)
    for weights in (False, True):
        if name == quantization:
            assert resolve_directory(recipe, recipe.teacher, weights=weights) == directory
            continue
        with pytest.raises(ModelError, match=r"^teacher\.model: .* holds weights that are quantised ") as caught:
            resolve_directory(recipe, recipe.teacher, weights=weights)
        assert name in str(caught.value)
    if name != quantization:
        with pytest.raises(ModelError, match="quantised"):
            load_teacher(directory, recipe.teacher.model_copy(update={"device_map": "cpu"}))


def test_what_is_not_quantised_has_the_dtype_of_the_recipe(copies):
    directory = marked(copies / "teacher", INT8, dtype="bfloat16")
    recipe = teacher_of(directory, "int8", "float32")
    with pytest.raises(ModelError, match=r"^teacher\.dtype: .* is bfloat16, expected float32; set teacher\.dtype: bf"):
        resolve_directory(recipe, recipe.teacher, weights=False)
    as_stored = teacher_of(directory, "int8")
    assert resolve_directory(as_stored, as_stored.teacher, weights=False) == directory


@pytest.mark.parametrize("content", ["{", "[]", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_configuration_that_is_none_is_left_to_transformers(copies, content):
    (copies / "teacher" / "config.json").write_text(content)
    assert stored_quantization(copies / "teacher") is None
    with pytest.raises(ModelError, match=r"config\.json"):
        load_student(copies / "teacher", StudentSection(), dtype=torch.float32)


def recipe_file(copies: Path) -> Path:
    rows = [{"id": f"s{index}", "question": "red?", "answer": "a lamp"} for index in range(4)]
    (copies.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "teacher": {"model": "models/teacher", "quantization": "none", "dtype": "float32", "device_map": "cpu"},
        "student": {"model": "models/student"},
        "data": {"root": ".", "train": "rows.jsonl", "validation": None},
        "cache": {"path": "cache.zarr", "top_k": 16},
        "training": {"output_dir": "run", "max_steps": 1, "use_cpu": True},
    }
    file = copies.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ((fs_teacher, "plan"), "teacher"),
        ((fs_teacher, "dump"), "teacher"),
        ((fs_student, "train", "--online"), "teacher"),
        ((fs_student, "plan"), "student"),
        ((fs_student, "train"), "student"),
        ((fs_student, "train", "--online"), "student"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:]),
)
@pytest.mark.parametrize("stored", [INT8, NF4], ids=["int8", "nf4"])
def test_the_commands_refuse_it_before_any_cost(copies, command, role, stored):
    marked(copies / role, stored)
    main, *words = command
    result = CliRunner().invoke(main, [*words, "--config", str(recipe_file(copies)), "--no-progress"])
    assert result.exit_code == 2, result.output
    assert f"{role}.model: {copies / role} holds weights that are quantised already" in result.output
    assert not (copies.parent / "cache.zarr").exists()
    assert not (copies.parent / "run").exists()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_stored_teacher_answers_as_one_that_is_quantised_while_it_is_loaded(models, tmp_path, kind):
    directory = export(models / "teacher", tmp_path / kind, StudentSection(dtype="float32"), kind).directory
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_compute_dtype"] = "bfloat16"  # the recipe's dtype counts
    (directory / "config.json").write_text(json.dumps(config))
    section = TeacherSection(quantization=kind, dtype="float32", device_map="cpu")
    ids = torch.arange(40, 72)[None]
    with torch.inference_mode():
        stored, loaded = (
            load_teacher(each, section)(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits
            for each in (directory, models / "teacher")
        )
    assert torch.equal(stored, loaded)
    with pytest.raises(ModelError, match=f"can only be loaded as {kind}"):
        load_teacher(directory, section.model_copy(update={"quantization": "none"}))
    recipe = teacher_of(directory, kind, "float32")
    assert parse_candidates(recipe, ["teacher"])[0].directory == directory
    with pytest.raises(ModelError, match="not unquantised; give the unquantised checkpoint"):
        parse_candidates(recipe, ["teacher-bf16"])


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_stored_student_is_evaluated_and_not_trained(models, tmp_path, kind):
    directory = export(models / "student", tmp_path / kind, StudentSection(), kind).directory
    recipe = Recipe(student=StudentSection(model=str(directory)))
    assert parse_candidates(recipe, ["base"])[0].directory == directory
    with pytest.raises(ModelError, match=rf"quantised already \({kind}\), which cannot be trained"):
        load_student(directory, recipe.student, dtype=torch.float32)
