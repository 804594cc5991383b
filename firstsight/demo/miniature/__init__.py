"""The miniature pair: a small Qwen2-VL teacher, trained on synthetic first-person scenes, and a smaller student base.

    build   tokenizer, processor and untrained models
    pool    scenes and questions as tensors
    train   python -m firstsight.demo.miniature.train --out DIR
    exact   exact-match accuracy over held-out questions

`teacher/` and `student/` beside this file are the shipped checkpoints, in the form `from_pretrained` takes.
"""

from pathlib import Path

TEACHER_DIR = Path(__file__).parent / "teacher"
STUDENT_DIR = Path(__file__).parent / "student"
