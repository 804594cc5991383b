"""A random miniature pair, synthetic samples and a cache of them: what most tests of the training side start from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

TRAIN, VALIDATION = 26, 6


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/recipe.yaml, DIR/models, DIR/data, DIR/cache.zarr."""
    from firstsight.demo.miniature.build import build_student, build_teacher, build_tokenizer, save_pair_member
    from firstsight.demo.synth.writing import write_dataset
    from firstsight.recipe import load_recipe
    from phase1_teacher.dump import dump, prepare_dump

    directory = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer()
    save_pair_member(build_teacher(tokenizer, seed=1), tokenizer, directory / "models" / "teacher")
    save_pair_member(build_student(tokenizer, seed=2), tokenizer, directory / "models" / "student")
    write_dataset(directory / "data", train=TRAIN, validation=VALIDATION, seed=0, progress=False)
    recipe = {
        "teacher": {"model": "models/teacher", "quantization": "none", "dtype": "float32"},
        "student": {"model": "models/student", "dtype": "float32"},
        "data": {"root": "data", "max_length": 512},
        "cache": {"path": "cache.zarr", "top_k": 64},
        "training": {
            "output_dir": "runs/a",
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    dump(prepare_dump(load_recipe(directory / "recipe.yaml")), progress=False)
    return directory


@pytest.fixture
def world(made_world: Path, tmp_path: Path) -> Path:
    """A directory of its own with the recipe of `made_world`; models, data and cache are shared and not to be changed."""
    shutil.copy(made_world / "recipe.yaml", tmp_path / "recipe.yaml")
    for name in ("models", "data", "cache.zarr"):
        (tmp_path / name).symlink_to(made_world / name)
    return tmp_path


@pytest.fixture
def _one_thread() -> Iterator[None]:
    from run_cases import one_thread  # type: ignore[import-not-found]

    with one_thread():
        yield


@pytest.fixture(scope="session")
def made_run(made_world: Path) -> Path:
    """The run of `made_world`'s recipe to its end, by one thread: to compare with and to copy, not to be changed."""
    from run_cases import one_thread, run

    directory = made_world / "runs" / "whole"
    with one_thread():
        done = run(
            "train", "--config", made_world / "recipe.yaml", "--no-progress", "--set", "training.output_dir=runs/whole"
        )
    assert done.exit_code == 0, done.output
    return directory


@pytest.fixture(scope="session")
def made_exact(made_world: Path) -> Path:
    """An exact cache of `made_world` in float32."""
    from firstsight.recipe import load_recipe
    from phase1_teacher.dump import dump, prepare_dump

    recipe = yaml.safe_load((made_world / "recipe.yaml").read_text())
    recipe["cache"] = {"path": "exact.zarr", "targets": "exact", "unit_positions": 200}
    (made_world / "exact.yaml").write_text(yaml.safe_dump(recipe))
    dump(prepare_dump(load_recipe(made_world / "exact.yaml"), progress=False), progress=False)
    return made_world / "exact.zarr"


@pytest.fixture
def exact_world(world: Path, made_exact: Path) -> Path:
    """`world`, whose cache is an exact one; its recipe says nothing of the kind."""
    (world / "exact.zarr").symlink_to(made_exact)
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["cache"] = {"path": "exact.zarr"}
    (world / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return world
