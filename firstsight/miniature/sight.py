"""Teach a vision tower to see, before a language model listens to it: what is in every cell of a picture.

Through a language model alone an untrained tower of this size learns colours long before shapes. Here a linear read-out of
each visual token is trained, together with the tower, to name the cell's thing, its colour, the hand's action, the environment,
where in the picture the cell is and what lies beside it; then the read-out is thrown away.
"""

from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import Qwen2VLForConditionalGeneration

from firstsight.miniature.pool import GRID_THW, Pool, to_patches
from firstsight.synth.scenes import COLOURS, ENVIRONMENTS, GRID, HAND_ROW, KINDS, LANDMARKS, Scene

_THINGS = ("", *KINDS, *LANDMARKS)
_PAINTS = ("", *COLOURS)
_ACTIONS = ("", "rest", "point", "hold", "use")
# Thing and colour together: what a question about "the red mug" looks for. 0: neither.
_PAIRS = 1 + len(KINDS) * len(COLOURS)
_NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_CLASSES = (
    len(_THINGS),
    len(_PAINTS),
    len(_ACTIONS),
    len(ENVIRONMENTS),
    GRID,
    GRID,
    _PAIRS,
    *(len(names) for _ in _NEIGHBOURS for names in (_THINGS, _PAINTS)),
)
# Things on the surface of the cell's kind, of its colour, and all.
_COUNTS = (9, 9, 9)


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """Classes of each cell in reading order, int64 (16, 18).

    Thing, colour, action, environment, row, column, thing with colour; then thing and colour of the cells to the left, to the
    right, behind and in front; then how many things on the surface are of the cell's kind, of its colour, and how many in all.
    """
    own = np.zeros((GRID, GRID, 7), np.int64)
    own[:, :, 3] = ENVIRONMENTS.index(scene.environment)
    own[:, :, 4:6] = np.moveaxis(np.indices((GRID, GRID)), 0, -1)
    own[0, scene.landmark_column, 0] = _THINGS.index(scene.landmark)
    seen = [(p.row, p.column, p.item) for p in scene.placed]
    for hand in (scene.left, scene.right):
        own[HAND_ROW, hand.column, 2] = _ACTIONS.index(hand.action)
        if hand.item is not None:
            seen.append((HAND_ROW, hand.column, hand.item))
    for row, column, item in seen:
        kind, colour = KINDS.index(item.kind), COLOURS.index(item.colour)
        own[row, column, :2] = _THINGS.index(item.kind), _PAINTS.index(item.colour)
        own[row, column, 6] = 1 + kind * len(COLOURS) + colour
    framed = np.pad(own[:, :, :2], ((1, 1), (1, 1), (0, 0)))
    around = [framed[1 + y : 1 + y + GRID, 1 + x : 1 + x + GRID] for y, x in _NEIGHBOURS]
    counts = np.zeros((GRID, GRID, len(_COUNTS)), np.int64)
    counts[:, :, 2] = len(scene.placed)
    for placed in scene.placed:
        for i, same in enumerate((attrgetter("item.kind"), attrgetter("item.colour"))):
            counts[placed.row, placed.column, i] = sum(same(other) == same(placed) for other in scene.placed)
    return np.concatenate([own, *around, counts], axis=2).reshape(GRID * GRID, -1)


def teach_sight(
    model: Qwen2VLForConditionalGeneration,
    pool: Pool,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    counts: bool,
    seed: int,
) -> float:
    """Train the vision tower of `model` in place; `counts`: to count as well.

    Returns:
        Share of the occupied cells that the read-out named in the last tenth of the steps, with all that it is taught but
        action and environment.
    """
    classes = _CLASSES + _COUNTS if counts else _CLASSES
    named_classes = [i for i in range(len(classes)) if i not in (2, 3)]
    scenes = [frame for clip in pool.clips for frame in clip.frames]
    rng = np.random.default_rng([seed, 2])
    torch.manual_seed(seed)
    read_out = torch.nn.Linear(model.config.text_config.hidden_size, sum(classes))
    parameters = [*model.model.visual.parameters(), *read_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    right: list[float] = []
    bar = trange(steps, desc="sight", unit="step")
    for _ in bar:
        chosen = rng.integers(len(scenes), size=batch)
        labels_CK = torch.from_numpy(np.concatenate([cell_labels(scenes[i]) for i in chosen]))
        grid = torch.tensor([GRID_THW] * batch)
        features = model.model.get_image_features(to_patches(pool.frames_F[chosen]), grid).pooler_output
        logits = read_out(torch.cat(tuple(features))).split(classes, dim=1)
        loss = torch.stack([cross_entropy(part, labels_CK[:, i]) for i, part in enumerate(logits)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        occupied = labels_CK[:, 0] > 0
        named = torch.stack([logits[i].argmax(1) == labels_CK[:, i] for i in named_classes]).all(0)
        right.append(float(named[occupied].float().mean()))
        bar.set_postfix(loss=f"{loss.item():.3f}", named=f"{right[-1]:.3f}")
    return float(np.mean(right[-max(1, steps // 10) :]))
