"""A random pair in the shapes of Qwen2-VL, for every room; no GPU is seen unless CUDA_VISIBLE_DEVICES is set."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests' bounds are those of float32 on a CPU


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories `teacher` and `student` of a random pair; not to be changed."""
    from firstsight.demo.miniature.build import build_student, build_teacher, build_tokenizer, save_pair_member

    directory = tmp_path_factory.mktemp("pair")
    tokenizer = build_tokenizer()
    save_pair_member(build_teacher(tokenizer, 1), tokenizer, directory / "teacher")
    save_pair_member(build_student(tokenizer, 2), tokenizer, directory / "student")
    return directory
