"""Runs and an evaluation that nobody trained: the files that a report, a card and a publication read."""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from firstsight.models.loading import weights_digest
from firstsight.recipe import Recipe
from phase2_student.evaluation.results import ModelResult

GOLDEN = Path(__file__).parents[1] / "storage" / "golden" / "v1"
CATEGORIES = ["attributes", "counting", "object_recognition"]
ENVIRONMENTS = ["kitchen", "workshop"]
SAMPLES = 24
HOSTILE = '<script>alert("x")</script> & <b>$\\alpha$</b>'


def make_runs(directory: Path, *, names: tuple[str, ...] = ("hard", "distilled")) -> list[Path]:
    """Directories of finished runs, with `best/`, beside DATA and a cache."""
    data = directory / "data"
    (data / "images").mkdir(parents=True)
    for index in range(SAMPLES):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 10, 3)).astype(np.uint8).repeat(14, 0).repeat(14, 1)
        Image.fromarray(pixels).save(data / "images" / f"{index}.png")
    shutil.copytree(GOLDEN, directory / "cache.zarr")
    return [_make_run(directory, name, number) for number, name in enumerate(names)]


def _make_run(directory: Path, name: str, number: int) -> Path:
    run = directory / "runs" / name
    (run / "best").mkdir(parents=True)
    (run / "best" / "config.json").write_text('{"architectures": ["Qwen2VLForConditionalGeneration"]}')
    (run / "best" / "tokenizer.json").write_text("{}")
    (run / "best" / "model.safetensors").write_bytes(np.random.default_rng(number).bytes(4000))
    recipe = Recipe.model_validate(
        {
            "loss": {"alpha": 0.0 if name == "hard" else 0.7},
            "training": {"output_dir": f"runs/{name}", "num_train_epochs": 4, "learning_rate": 1e-3},
        }
    )
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.dump(), sort_keys=False))
    facts = {
        "identity": {"cache digest": "ab" * 32},
        "student": "Qwen/Qwen2-VL-2B-Instruct",
        "data_root": str(directory / "data"),
        "cache": str(directory / "cache.zarr"),
        "cache_digest": "ab" * 32,
        "precision": "float32 master weights, computing in float32, saved as bfloat16",
        "seed": 0,
        "processes": 1,
        "teacher": None,
        "train_samples": 100,
        "validation_samples": SAMPLES,
        "firstsight": "0.1.0",
        "git_commit": "0123456789abcdef0123456789abcdef01234567-dirty",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    (run / "run.json").write_text(json.dumps(facts))
    history = []
    for epoch in range(1, 5):
        part = {"loss": 3 / epoch + number, "ce": 2 / epoch, "agreement": 1 - 0.5 / epoch}
        part |= {} if name == "hard" else {"kd": 4 / epoch}
        history.append(
            {
                "epoch": epoch,
                "step": 25 * epoch,
                "seconds": 10.0 + number,
                "learning_rate": 1e-3,
                "train": part,
                "validation": {key: 1.1 * value for key, value in part.items()} | {"kd": 4.4 / epoch},
            }
        )
    (run / "training_history.json").write_text(json.dumps(history))
    return run


def make_evaluation(*models: tuple[str, str, float], created: str = "2026-11-25T00:10:00+00:00") -> dict[str, object]:
    """An evaluation of models `(name, role, share of right answers)`, as the JSON that `fs-student eval` writes."""
    return {
        "created": created,
        "data": {"file": "validation.jsonl", "samples": SAMPLES},
        "settings": {
            "device": "CPU, 2 threads",
            "timed": 4,
            "warm_up": 1,
            "repetitions": 1,
            "batch_size": 16,
            "requests": 20,
            "bootstrap_resamples": 200,
        },
        "targets": [],
        "models": [_make_model(name, role, share, number) for number, (name, role, share) in enumerate(models)],
    }


def scores_of(records: list[dict[str, object]]) -> dict[str, object]:
    """The scores of records, as `fs-student eval` writes them."""
    from phase2_student.evaluation.metrics.scores import grouped_scores
    from phase2_student.evaluation.results import AnswerRecord

    return grouped_scores([AnswerRecord.model_validate(record) for record in records]).to_json()


def make_record(**fields: object) -> dict[str, object]:
    """A record with these fields."""
    return {
        **{
            "id": "a",
            "category": None,
            "environment": None,
            "question": "?",
            "images": [],
            "truth": "a",
            "answer": "a",
        },
        **{"exact": True, "f1": 0.0, "anls": 0.0, "choice": None, "empty": False, "tokens": 1, "confidence": 0.5},
        **{"nonfinite": False, "cut": False, "seconds": 0.1},
        **fields,
    }


def make_result(records: list[dict[str, object]]) -> ModelResult:
    """A model with these records, as a reader gets it."""
    return ModelResult.model_validate(
        {**_make_model("m", "student", 0.5, 0), "samples": records, "scores": scores_of(records)}
    )


def _make_model(name: str, role: str, share: float, number: int) -> dict[str, object]:
    rng = np.random.default_rng(number)
    records = []
    for index in range(SAMPLES):
        right = bool(rng.random() < share)
        truth = f"It is number {index}."
        record = {
            "id": f"validation-{index:06d}",
            "category": CATEGORIES[index % 3],
            "environment": ENVIRONMENTS[index % 2],
            "question": HOSTILE if index == 0 else f"Which number is picture {index}?",
            "images": [f"images/{index}.png"],
            "truth": truth,
            "answer": truth if right else ("" if index % 5 == 0 else f"It is {HOSTILE}."),
            "tokens": 6,
            "exact": right,
            "f1": 1.0 if right else 0.25,
            "anls": 1.0 if right else 0.0,
            "choice": None,
            "confidence": None if index == 7 else float(np.clip(0.5 * share + 0.5 * rng.random(), 0, 1)),
            "empty": not right and index % 5 == 0,
            "nonfinite": index == 7,
            "cut": False,
        }
        if index < 4:
            record["seconds"] = 0.02 / (number + 1)
        if role == "student":
            record |= {"kl_sum": 6 * (1 - share), "soft_positions": 6, "agree": 4}
        records.append(record)
    return {
        "name": name,
        "role": role,
        "dtype": "int8" if role == "teacher" else "float32",
        "parameters": 1_650_000 if role == "teacher" else 400_000,
        "size_bytes": 3_500_000 if role == "teacher" else 900_000,
        "load_seconds": 0.4,
        "peak_memory_bytes": 40_000_000 // (number + 1),
        "identity": "cd" * 32,
        "throughput": {
            "1": 50.0 * (number + 1),
            "16": 200.0 * (number + 1),
            "best_batch": 16,
            "best": 200.0 * (number + 1),
        },
        "throughput_runs": [],
        "concurrency": {},
        "energy_joules_per_answer": None,
        "scores": scores_of(records),
        "counts": {"empty": sum(r["empty"] for r in records), "nonfinite": 1, "cut": 0},
        "samples": records,
    }


ALL = (("teacher", "teacher", 0.9), ("base", "student", 0.4), ("hard", "student", 0.65), ("distilled", "student", 0.75))


def with_weights(evaluation: dict[str, object], best: Path) -> dict[str, object]:
    """The evaluation, with the student in `best` as its last model."""
    evaluation["models"][-1]["weights"] = weights_digest(best)
    return evaluation


def write_evaluation(directory: Path, evaluation: dict[str, object]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "evaluation_2026-11-25T001000.json"
    path.write_text(json.dumps(evaluation))
    return path
