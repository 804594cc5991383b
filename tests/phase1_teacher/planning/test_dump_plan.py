"""What a dump will take, before anything is loaded."""

import json
import shutil

import pytest
from click.testing import CliRunner
from transformers import Qwen2VLConfig

from benchmarks.gpu.dump import row_name
from benchmarks.gpu.page import GPU_RESULTS, read_board
from firstsight.errors import DataError
from firstsight.models.gpus import GPUS, model_size
from phase1_teacher.cli import main
from phase1_teacher.dump import dump, prepare_dump
from phase1_teacher.planning.cost import UTILIZATION, TeacherWork, device_bytes, forward_flops
from phase1_teacher.planning.plan import plan_dump
from storage.maintenance.status import cache_status
from storage.reader import open_cache

# the published shape of Qwen2-VL-7B-Instruct
SEVEN_BILLION = {
    "text_config": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    "tie_word_embeddings": False,
}


def run(*arguments: str):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="fs-teacher")


def dumped(workshop, rows, **sections):
    recipe = workshop.load(rows, **sections)
    dump(prepare_dump(recipe, progress=False), progress=False)
    return recipe


def test_the_size_of_a_full_teacher_follows_from_its_configuration(workshop):
    size = model_size(Qwen2VLConfig(**SEVEN_BILLION))
    assert size.embedding == size.head == 152_064 * 3584
    assert size.total == 8_291_375_616  # what the hub states for Qwen2-VL-7B-Instruct
    section = workshop.load(workshop.rows(4)).teacher
    as_int8 = device_bytes(size, section.model_copy(update={"quantization": "int8", "dtype": "bfloat16"}))
    as_bf16 = device_bytes(size, section.model_copy(update={"quantization": "none", "dtype": "bfloat16"}))
    assert 8.3e9 < as_int8 < as_bf16 - 5e9
    work = TeacherWork(tokens=1000, squared_tokens=0, patches=0, positions=0)
    assert forward_flops(size, work) == 2000 * size.text


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_the_estimates_are_those_of_a_measured_gpu(workshop, quantization):
    """benchmarks/results/gpu.json: peaks without the CUDA context, at four sizes of a pass, and samples per second."""
    board = read_board(GPU_RESULTS)
    size = model_size(Qwen2VLConfig(**SEVEN_BILLION))
    section = workshop.load(workshop.rows(4)).teacher.model_copy(update={"dtype": "bfloat16"})
    kind = {"int8": "int8", "none": "bf16"}[quantization]
    for tokens in (8192, 16_384, 32_768, 65_536):
        measured = board.find("dump", row_name(kind, tokens))["peak GB"] * 1e9
        wanted = section.model_copy(update={"quantization": quantization, "batch_tokens": tokens})
        assert device_bytes(size, wanted) == pytest.approx(measured + 1e9, rel=0.08)
    sample = TeacherWork(tokens=1300, squared_tokens=1300**2, patches=4 * 1222, positions=40)
    rate = board.find("dump", row_name(kind, 16_384))["samples/s"]
    reached = rate * forward_flops(size, sample) / next(gpu.teraflops for gpu in GPUS if gpu.name == "H200 SXM") / 1e12
    assert pytest.approx(reached, abs=0.01) == UTILIZATION[quantization]
    assert f"{UTILIZATION[quantization]}" in run("plan", "--help").output


def test_the_plan_counts_what_the_dump_then_does(workshop):
    rows = workshop.rows(14)
    config = workshop.recipe(rows)
    without_weights = workshop.directory / "teacher"
    shutil.copytree(workshop.models / "teacher", without_weights, ignore=shutil.ignore_patterns("*.safetensors"))
    output = run("plan", "--config", config, "--set", f"teacher.model={without_weights}", "--json", "--no-progress")
    assert output.exit_code == 0, output.output
    planned = json.loads(output.output)
    assert planned["demand"]["present"] == 0
    assert not planned["measured"]
    recipe = dumped(workshop, rows)
    sums = open_cache(recipe.cache_location).statistics()
    demand = planned["demand"]
    assert demand["samples"] == sums["samples"]
    assert demand["positions"] == sums["positions"]
    assert demand["prompt_tokens"] + demand["image_tokens"] + demand["positions"] == sums["tokens"]
    assert demand["images"] == 7
    after = plan_dump(recipe, utilization=0.5, progress=False)
    assert after.demand.present == 14
    assert after.bytes(1) == pytest.approx(cache_status(recipe.cache_location).bytes)
    assert set(after.hours(1)) == {gpu.name for gpu in GPUS}
    assert after.hours(1000)["L4"] == pytest.approx(1000 * after.hours(1)["L4"])
    text = run("plan", "--config", config, "--no-progress").output
    assert "14 are in" in text
    assert "1,000,000 x" in text
    assert "measured in this cache" in text


def test_the_plan_names_what_is_wrong_with_the_data(workshop):
    config = workshop.recipe(workshop.rows(4, answered=False))
    output = run("plan", "--config", config, "--no-progress")
    assert output.exit_code == 2
    assert "train.jsonl:1: sample 's0' has no answer" in output.output
    generous = run("plan", "--config", config, "--no-progress", "--set", "cache.generate_missing=true")
    assert "4 samples have no answer: the teacher's are counted at their maximum length, 128 tokens" in generous.output


@pytest.mark.parametrize("answer", [" red lamp ", "red lamp\n", "\tred"])
@pytest.mark.parametrize("trimmed", ["teacher", "student"])
def test_an_answer_that_the_templates_spell_differently_is_refused_as_the_dump_does(workshop, trimmed, answer):
    directory = shutil.copytree(workshop.models / trimmed, workshop.directory / "trimmed")
    template = directory / "chat_template.jinja"
    plain = template.read_text()
    template.write_text(plain.replace("{{- part['text'] -}}", "{{- part['text'] | trim -}}"))
    assert template.read_text() != plain
    rows = workshop.rows(6)
    rows[1]["messages"][-1]["content"][0]["text"] = answer
    sections = {trimmed: {"model": str(directory)}}
    recipe = workshop.load(rows, **sections)
    messages = []
    for command in (plan_dump, prepare_dump):
        with pytest.raises(DataError, match=r"train\.jsonl:2: sample 's1': .*remove them in the data") as caught:
            command(recipe, progress=False)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    skipping = workshop.load(rows, **sections, cache={"on_error": "skip"})
    planned = plan_dump(skipping, progress=False)
    assert (planned.demand.unreadable, planned.demand.samples) == (1, 5)
    done = dump(prepare_dump(skipping, progress=False), progress=False)
    assert (len(done.skipped), done.samples) == (1, 5)
