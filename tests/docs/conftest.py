"""A directory as the pages assume it: a recipe, a small random pair, and data."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

RECIPE = {
    "teacher": {"model": "models/teacher", "quantization": "int8", "dtype": "float32"},
    "student": {"model": "models/student"},
    "data": {"root": "data", "max_length": 512},
    "cache": {"path": "cache.zarr"},
    "training": {
        "output_dir": "runs/reference",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    },
}


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """recipe.yaml, models, data, rows.json, and pictures; not to be changed."""
    from firstsight.demo.synth.writing import write_dataset

    directory = tmp_path_factory.mktemp("start")
    shutil.copytree(models, directory / "models")
    write_dataset(directory / "data", train=8, validation=4, seed=0, progress=False)
    (directory / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    rows = [{"id": f"r{n}", "question": f"What is {n}?", "answer": "A number."} for n in range(60)]
    (directory / "rows.json").write_text(json.dumps(rows))
    picture = next((directory / "data" / "images").iterdir())
    for name in ("a.jpg", "1.jpg", "2.jpg"):
        shutil.copy(picture, directory / name)
    return directory
