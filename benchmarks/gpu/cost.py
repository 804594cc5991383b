"""Part (e): GPU-hours of 1, 4 and 16 runs of the reference recipe on one cache, against the teacher in memory in every one.

Computed from the rows of the parts `step` and `dump`, for 5,000 samples; nothing is measured.
"""

from __future__ import annotations

from benchmarks.gpu import dump, step
from benchmarks.gpu.board import Figures
from benchmarks.gpu.setting import Setting

SAMPLES = 5000
RUNS = (1, 4, 16)


def run(setting: Setting) -> None:
    """The rows of this part."""
    board = setting.board
    epochs = int(setting.recipe().training["num_train_epochs"])
    tokens = setting.sizes.dumps[0][0]
    for name, targets, cached, online in (
        ("fp32 masters", "top_k", step.CACHED, step.ONLINE),
        ("bf16 Kahan", "top_k", step.CACHED_KAHAN, step.ONLINE_KAHAN),
        ("exact targets, fp32 masters", "exact", step.EXACT, step.ONLINE),
        ("exact targets, bf16 Kahan", "exact", step.EXACT_KAHAN, step.ONLINE_KAHAN),
    ):
        rates = [
            board.find("dump", dump.row_name("int8", tokens, targets)),
            board.find("step", cached),
            board.find("step", online),
        ]
        for runs in RUNS:
            title = f"{runs} run{'s' if runs > 1 else ''} of {SAMPLES:,} samples, {epochs} epochs, {name}"
            if any(found is None for found in rates):
                board.skip("cost", title, "needs the int8 dump, the cached and the online step of the same run")
            else:
                speeds = [float(found["samples/s"]) for found in rates if found is not None]
                board.add("cost", title, _cost(runs, epochs, *speeds))


def _cost(runs: int, epochs: int, dumped: float, cached: float, online: float) -> Figures:
    """GPU-hours, from samples per second of each."""
    once = SAMPLES / dumped / 3600
    on_cache = once + runs * epochs * SAMPLES / cached / 3600
    with_teacher = runs * epochs * SAMPLES / online / 3600
    return {
        "dump, h": once,
        "cached with dump, h": on_cache,
        "online, h": with_teacher,
        "online / cached": with_teacher / on_cache,
    }
