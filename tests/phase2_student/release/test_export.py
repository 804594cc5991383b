"""Quantised students: what is written loads with plain transformers, has the size computed on paper, and answers alike."""

import json
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, Qwen2VLConfig

from firstsight.errors import ModelError
from firstsight.models.quantization import stored_quantization, weight_bytes
from firstsight.recipe import StudentSection
from phase2_student.cli import main
from phase2_student.evaluation.ask import LoadedStudent
from phase2_student.evaluation.loading import load_for_answers
from phase2_student.release.export import export, plan_export

BF16 = StudentSection()


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    return {kind: export(models / "student", directory / kind, BF16, kind) for kind in ("int8", "nf4")}


def logits_of(model):
    ids = torch.arange(40, 72)[None]
    with torch.inference_mode():
        return model(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits.float()


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.05), ("nf4", 0.3)])
def test_plain_transformers_loads_it_and_it_answers_alike(exported, models, kind, error):
    quantised = AutoModelForImageTextToText.from_pretrained(exported[kind].directory)
    whole = AutoModelForImageTextToText.from_pretrained(models / "student", dtype=torch.float32)
    assert stored_quantization(exported[kind].directory) == kind
    assert quantised.get_output_embeddings().weight is quantised.get_input_embeddings().weight
    expected, got = logits_of(whole), logits_of(quantised)
    assert (got - expected).norm() < error * expected.norm()


def test_nf4_of_widths_that_bitsandbytes_does_not_pack_answers_on_a_cpu(models, tmp_path):
    """A vision tower of width 96: 64 weights share a scale."""
    directory = export(models / "teacher", tmp_path / "odd", BF16, "nf4").directory
    Image.new("RGB", (112, 112), "red").save(tmp_path / "red.png")
    answer = LoadedStudent(directory, StudentSection()).ask("What is it?", [tmp_path / "red.png"], max_new_tokens=4)
    assert answer.tokens
    assert answer.confidence is not None
    model, _ = load_for_answers(directory, BF16)
    states = {module: getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules()}
    odd = [module for module, state in states.items() if state is not None and state.shape[1] % state.blocksize]
    assert odd
    for module in odd:  # each is its own stored matrix
        matrix = dequantize_4bit(module.weight.data, states[module]).float()
        given = torch.randn(3, matrix.shape[1])
        with torch.inference_mode():
            got = module(given) - (0 if module.bias is None else module.bias.float())
        expected = given @ matrix.T
        assert (got - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_size_on_paper_is_the_size_of_the_tensors(exported, kind):
    with safe_open(exported[kind].directory / "model.safetensors", "pt") as file:
        size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    descriptions = 100 if kind == "nf4" else 0  # the length of NF4's JSON depends on the numbers in it
    assert exported[kind].paper_bytes == pytest.approx(size, abs=descriptions)


def test_what_lies_beside_the_weights(exported, models):
    directory = exported["int8"].directory
    for name in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (directory / name).read_bytes() == (models / "student" / name).read_bytes()
    assert json.loads((directory / "export.json").read_text())["quantization"] == "int8"


def test_the_2b_on_paper():
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
    )
    sizes = {kind: weight_bytes(config, kind) for kind in (None, "int8", "nf4")}
    # counted by hand: matrices of a text layer and of a vision block, the merger, the patch embedding, embedding and the rest
    text = 28 * (1536 * (1536 + 256 + 256) + 1536 * 1536 + 3 * 1536 * 8960)
    vision = 32 * (1280 * 3840 + 1280 * 1280 + 2 * 1280 * 5120) + 5120 * 5120 + 5120 * 1536
    embedding, patches = 151_936 * 1536, 1280 * 3 * 2 * 14 * 14
    assert sizes[None] == pytest.approx(2 * (text + vision + embedding + patches), rel=1e-3)
    assert sizes["int8"] == pytest.approx(text + vision + 2 * (embedding + patches), rel=3e-3)
    assert sizes["nf4"] == pytest.approx(0.516 * (text + vision) + 2 * (embedding + patches), rel=3e-3)
    assert sizes["int8"] < 2.6e9
    assert sizes["nf4"] < 2.0e9


def test_refusals(exported, models, tmp_path):
    with pytest.raises(ModelError, match="quantised already"):
        plan_export(exported["int8"].directory, tmp_path / "out", BF16, "nf4")
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_export(tmp_path, tmp_path / "out", BF16, "int8")
    with pytest.raises(ModelError, match="the student itself"):
        plan_export(models / "student", models / "student", BF16, "int8")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(ModelError, match="not an export"):
        plan_export(models / "student", tmp_path / "letters", BF16, "int8")


def test_the_command(models, tmp_path):
    student = shutil.copytree(models / "student", tmp_path / "best")
    run = CliRunner()
    dry = run.invoke(main, ["export", "--int8", "--model", str(student), "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "would be about 0.001 GB" in dry.output
    assert not (tmp_path / "best-int8").exists()
    for _ in range(2):  # an earlier export is replaced
        done = run.invoke(main, ["export", "--int8", "--model", str(student)])
        assert done.exit_code == 0, done.output
    assert stored_quantization(tmp_path / "best-int8") == "int8"
    assert run.invoke(main, ["export", "--model", str(student)]).exit_code == 2
    assert run.invoke(main, ["export", "--nf4"]).exit_code == 2
    both = ["export", "--int8", "--nf4", "--model", str(student)]
    refused = run.invoke(main, [*both, "--output", str(tmp_path / "one")])
    assert refused.exit_code == 2
    assert "--output is one directory" in refused.output
    (tmp_path / "best-nf4").mkdir()
    (tmp_path / "best-nf4" / "letter.txt").write_text("dear")
    shutil.rmtree(tmp_path / "best-int8")
    assert run.invoke(main, both).exit_code == 2
    assert not (tmp_path / "best-int8").exists()  # refused before the first is written
    shutil.rmtree(tmp_path / "best-nf4")
    done = run.invoke(main, both)
    assert done.exit_code == 0, done.output
    assert [stored_quantization(tmp_path / f"best-{kind}") for kind in ("int8", "nf4")] == ["int8", "nf4"]
    without = run.invoke(main, ["export", "--int8", "--model", str(student), "--set", "student.max_pixels=1"])
    assert "give its --config" in without.output
    assert without.exit_code == 2
    (tmp_path / "link").symlink_to(student)
    assert run.invoke(main, ["export", "--nf4", "--model", str(tmp_path / "link")]).exit_code == 0
    assert stored_quantization(tmp_path / "link-nf4") == "nf4"
