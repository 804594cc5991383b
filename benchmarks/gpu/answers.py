"""Part (d): answers at batch 1, from a file to text: latency, throughput and memory of the teacher and of the student as it is deployed.

40 new tokens after a prompt of about 1,260, greedy, as in `fs-student eval`. Random weights hardly ever end a turn; `tokens`
is the number of tokens generated.

Estimated for an H100: weights of 9.4 GB for the teacher in int8, 4.4 for the student in bf16, 2.4 in int8, 1.5 in nf4. The time of a
token is that of launching its kernels: 15 to 20 ms in bf16, 40 to 80 in int8. Six answers of each model: 25 s for the teacher, 30 s
for the three students, 10 s to make them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.gpu.board import Figures
from benchmarks.gpu.setting import Setting
from firstsight.data.samples import Sample
from firstsight.generation import generate_answers
from phase2_student.evaluation.measure.timing import Stopwatch, Timing

MODELS = {"teacher-int8": 30.0, "student-bf16": 15.0, "student-int8": 20.0, "student-nf4": 15.0}
"""Estimated seconds for each, including making the model."""


def run(setting: Setting) -> None:
    """The rows of this part."""
    for name, about in MODELS.items():
        setting.keep(name)
        setting.board.measure("answers", name.replace("-", " "), about=about, work=partial(_answers, setting, name))
    setting.keep()


def _answers(setting: Setting, name: str) -> Figures:
    model = setting.model(name)
    prompter = setting.pair.teacher if name.startswith("teacher") else setting.pair.student
    tokens: list[int] = []

    def answer(samples: Sequence[Sample], most: int) -> object:
        prompts = [prompter.encode(sample, []) for sample in samples]
        ids = generate_answers(model, prompter, prompts, max_new_tokens=most)
        tokens.append(len(ids[0]))
        return [prompter.answer_text(each) for each in ids]

    weights = torch.cuda.memory_allocated() if setting.on_gpu else 0  # no other model is in memory
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    timing = Timing(timed=setting.sizes.answers, warm_up=1)
    seconds = Stopwatch(answer, setting.samples, timing, setting.sizes.new_tokens).latencies
    figures: Figures = {
        "p50 s": statistics.median(seconds),
        "answers/s": len(seconds) / sum(seconds),
        "tokens": statistics.mean(tokens),
        "tokens/s": sum(tokens[1:]) / sum(seconds),
    }
    if setting.on_gpu:
        figures["weights GB"] = weights / 1e9
        figures["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return figures
