"""fs-student ask: the answer and its time, streamed and whole alike, several images, and what is refused in one line."""

import re

import pytest
from click.testing import CliRunner
from PIL import Image

from firstsight.recipe import StudentSection
from phase2_student.cli import main
from phase2_student.release.export import export

QUESTION = "What is the red thing?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    for name in ("red", "blue"):
        Image.new("RGB", (112, 112), name).save(directory / f"{name}.png")
    return directory


def ask(model, *arguments):
    return CliRunner().invoke(main, ["ask", "--model", str(model), "--max-new-tokens", "6", *map(str, arguments)])


def test_streamed_and_whole_are_the_same_answer(models, pictures):
    images = ["--image", pictures / "red.png", "--image", pictures / "blue.png"]
    whole = ask(models / "student", *images, QUESTION)
    streamed = ask(models / "student", *images, "--stream", QUESTION)
    assert whole.exit_code == streamed.exit_code == 0, whole.output + streamed.output
    assert whole.stdout == streamed.stdout
    assert re.search(
        r"\d+ tokens in [\d.]+ s: [\d.]+ s to the first, then [\d.]+ tokens/s; confidence 0\.\d+; float32 on ",
        whole.stderr,
    )


def test_an_export_answers(models, pictures, tmp_path):
    export(models / "student", tmp_path / "int8", StudentSection(), "int8")
    result = ask(tmp_path / "int8", "--image", pictures / "red.png", QUESTION)
    assert result.exit_code == 0, result.output
    assert "int8 on " in result.stderr


def test_refusals_are_one_line(models, tmp_path):
    (tmp_path / "letter.png").write_text("dear")
    for model, arguments, said in [
        (tmp_path, [QUESTION], "no config.json"),
        (models / "student", ["--image", tmp_path / "letter.png", QUESTION], "cannot be decoded"),
        (models / "student", ["--image", tmp_path / "none.png", QUESTION], "does not exist"),
        (models / "student", ["look: <|image_pad|>"], "<|image_pad|>"),
    ]:
        result = ask(model, *arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.output
