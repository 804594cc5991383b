"""The miniature pair: a small Qwen2-VL teacher, trained on synthetic first-person scenes, and a smaller student base.

    build       tokenizer, processor and untrained models
    words       words that give the tokenizer its vocabulary
    pool        scenes and questions as tensors
    sight       teaches the vision tower before the language model
    optimizers  Muon and AdamW as one
    train       python -m firstsight.demo.miniature.train --out DIR

`teacher/` and `student/` next to this file are the shipped checkpoints, in the form that `from_pretrained` takes.
"""

from pathlib import Path

TEACHER_DIR = Path(__file__).parent / "teacher"
STUDENT_DIR = Path(__file__).parent / "student"
