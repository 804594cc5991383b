"""Weights that cannot be read, or are not those of the model, are refused in one line wherever they are loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from firstsight.errors import ModelError
from firstsight.models import loading
from firstsight.models.loading import load_student, load_teacher, resolve_directory
from firstsight.recipe import Recipe, StudentSection, TeacherSection
from phase2_student.evaluation.ask import LoadedStudent
from phase2_student.evaluation.loading import load_for_answers
from phase2_student.release.export import export

CPU = TeacherSection(quantization="none", dtype="float32", device_map="cpu")
FP32 = StudentSection(dtype="float32")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 4988030368\n"


def changed(models, directory, change, role="teacher"):
    """A copy of a model whose weights, by name, went through `change`."""
    shutil.copytree(models / role, directory)
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    return directory


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(*ends):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.endswith(ends)}


WAYS = {
    "student": lambda directory: load_student(directory, FP32, dtype=torch.float32),
    "ask": lambda directory: LoadedStudent(directory, FP32),
    "answers": lambda directory: load_for_answers(directory, FP32),
    "export": lambda directory: export(directory, directory / "out", FP32, "int8"),
    "teacher": lambda directory: load_teacher(directory, CPU),
    "quantised teacher": lambda directory: load_teacher(directory, CPU.model_copy(update={"quantization": "nf4"})),
}


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "model.module."])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_names_with_a_prefix(models, tmp_path, prefix, role):
    directory = changed(models, tmp_path / "m", prefixed(prefix), role)
    with pytest.raises(ModelError, match=r"of the model's .* are not in the files") as caught:
        WAYS[role](directory)
    message = str(caught.value)
    assert str(directory) in message
    assert "\n" not in message
    if not prefix.startswith("model."):  # `model` is a part of the model itself
        assert f"all names in the files begin with {prefix[:-1]!r}" in message
        assert "merge_and_unload" in message


@pytest.mark.parametrize(
    ("ends", "count", "reason"),
    [
        (("lm_head.weight",), 1, "tie_word_embeddings: true"),
        (("layers.0.mlp.up_proj.weight",), 1, "incomplete or of another model"),
        (("layers.0.mlp.up_proj.weight", "norm.weight"), None, "incomplete or of another model"),
        (("embed_tokens.weight",), 1, "incomplete or of another model"),
    ],
)
def test_missing_weights(models, tmp_path, ends, count, reason, capsys):
    directory = changed(models, tmp_path / "m", without(*ends))
    with pytest.raises(ModelError, match=reason) as caught:
        load_teacher(directory, CPU)
    assert count is None or f"{count} of the model's 94 weights is not in the files (" in str(caught.value)
    assert "LOAD REPORT" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("way", WAYS)
def test_every_path_that_loads_weights(models, tmp_path, way):
    directory = changed(models, tmp_path / "m", prefixed("module."), "student")
    with pytest.raises(ModelError, match="begin with 'module'"):
        WAYS[way](directory)
    assert not (directory / "out").exists()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_that_fits_says_nothing(models, role, capsys):
    load_for_answers(models / role, FP32)  # the student's head is tied to its embedding and not in its files
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_export_says_nothing(models, tmp_path, kind, capsys):
    directory = export(models / "student", tmp_path / kind, FP32, kind).directory
    capsys.readouterr()
    load_for_answers(directory, FP32)
    assert "not part of the model" not in capsys.readouterr().err
    weights = without("layers.0.mlp.up_proj.weight")(load_file(directory / "model.safetensors"))
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"the stored form of \S*layers\.0\.mlp\.up_proj\.weight is incomplete"):
        load_for_answers(directory, FP32)


def test_weights_that_the_model_does_not_use_are_named(models, tmp_path, capsys):
    extra = {"value_head.weight": torch.zeros(1, 8), "value_head.bias": torch.zeros(1), "another": torch.zeros(1)}
    directory = changed(models, tmp_path / "m", lambda weights: {**weights, **extra})
    load_teacher(directory, CPU)
    lines = [line for line in capsys.readouterr().err.splitlines() if str(directory) in line]
    assert lines == [
        f"{directory}: 3 stored weights are not part of the model and not used (another, value_head.bias, ...)"
    ]


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_configuration_of_other_shapes(models, tmp_path, role):
    directory = shutil.copytree(models / role, tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["vocab_size"] = 1300
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"another shape than config\.json says: .* in the files, expected 1,300 x "):
        load_for_answers(directory, FP32)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


FILES = [
    (lambda file: file.write_text(POINTER), "is a Git LFS pointer, not the weights; run git lfs pull in"),
    (cut, "is damaged or was not downloaded whole"),
    (lambda file: file.write_bytes(b""), r"is damaged or was not downloaded whole, 0 bytes"),
    (lambda file: file.write_text("<html>404</html>"), "is damaged or was not downloaded whole"),
    (lambda file: (file.parent / "adapter_config.json").write_text("{}"), "holds an adapter"),
]


@pytest.mark.parametrize(("damage", "message"), FILES, ids=["pointer", "cut", "empty", "page", "adapter"])
def test_files_that_cannot_be_read_are_refused_before_and_while_they_are_loaded(models, tmp_path, damage, message):
    directory = shutil.copytree(models / "student", tmp_path / "m")
    damage(directory / "model.safetensors")
    recipe = Recipe(teacher=TeacherSection(model=str(directory)), student=StudentSection(model=str(directory)))
    for section in (recipe.teacher, recipe.student):
        with pytest.raises(ModelError, match=message):
            resolve_directory(recipe, section)
        assert resolve_directory(recipe, section, weights=False) == directory
    with pytest.raises(ModelError, match=message):
        load_for_answers(directory, FP32)


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "gpu", "xla", "meta", "cpu:x", "disk"])
def test_a_device_that_is_not_there(models, name):
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    section = CPU.model_copy(update={"device_map": name})
    with pytest.raises(ModelError, match=rf"teacher\.device_map: {name} is not a device of this machine"):
        load_teacher(models / "teacher", section)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (torch.OutOfMemoryError("full"), True),
        (KeyboardInterrupt(), True),
        (AttributeError("ours"), True),
        (RuntimeError("theirs"), False),
    ],
)
def test_which_errors_of_loading_are_a_line(models, monkeypatch, error, kept):
    class Broken:
        @staticmethod
        def from_pretrained(*_args, **_options):
            raise error

    family = type("Family", (), {"load_class": staticmethod(lambda: Broken)})
    monkeypatch.setattr(loading, "family_of", lambda *_: family)
    with pytest.raises(type(error) if kept else ModelError):
        load_student(models / "student", FP32, dtype=torch.float32)
