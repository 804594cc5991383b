"""A small world of a pair: models, rows with and without images, a recipe; and the way through all commands."""

import json
from pathlib import Path

import yaml
from checkpoints import VISION, build
from click.testing import CliRunner
from PIL import Image

from phase1_teacher.cli import main as fs_teacher
from phase2_student.cli import main as fs_student

ANSWERS = ("A red mug on the desk.", "You are in the kitchen.", "Nothing changed.")


def make_world(directory: Path, teacher: str, student: str, **sections) -> Path:
    """Write models, data and a recipe; the recipe's path."""
    build(teacher, directory / "teacher", seed=1, rows=8)
    build(student, directory / "student", seed=2)
    data = directory / "data"
    data.mkdir()
    rows = []
    for index in range(12):
        images = []
        if teacher in VISION and student in VISION:
            images = [[], ["0.png"], ["1.png"], ["2.png", "0.png"]][index % 4]
        content = [*[{"type": "image"}] * len(images), {"type": "text", "text": f"What is it? The small lamp {index}"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWERS[index % 3]}]
        rows.append({"id": f"s{index}", "images": images, "messages": messages})
    for index in range(3):
        Image.effect_noise((60 + 40 * index, 80), 80).convert("RGB").save(data / f"{index}.png")
    for name, part in (("train", rows[:8]), ("validation", rows[8:])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe = {
        "teacher": {"model": "teacher", "quantization": "none", "dtype": "float32", "device_map": "cpu"},
        "student": {"model": "student", "dtype": "float32"},
        "data": {"max_length": 1500},
        "cache": {"top_k": 16},
        "training": {
            "output_dir": "run",
            "max_steps": 5,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    for name, values in sections.items():
        recipe[name] = recipe.get(name, {}) | values
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(main, *arguments):
    """A command; its result, whatever the exit code."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def passes(main, *arguments) -> str:
    """A command that must end well; what it printed."""
    result = run(main, *arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.output


__all__ = ["fs_student", "fs_teacher", "make_world", "passes", "run"]
