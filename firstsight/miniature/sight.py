"""Teach a vision tower to see, before a language model listens to it: what is in every cell of a picture.

Through a language model alone an untrained tower of this size learns colours long before shapes. Here a linear read-out of
each visual token is trained, together with the tower, to name the cell's thing, its colour, the hand's action, the environment
and where in the picture the cell is; then the read-out is thrown away.
"""

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
_CLASSES = (len(_THINGS), len(_PAINTS), len(_ACTIONS), len(ENVIRONMENTS), GRID, GRID)


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """Classes of each cell in reading order, int64 (16, 6): thing, colour, action, environment, row, column."""
    labels = np.zeros((GRID, GRID, len(_CLASSES)), np.int64)
    labels[:, :, 3] = ENVIRONMENTS.index(scene.environment)
    labels[:, :, 4:] = np.moveaxis(np.indices((GRID, GRID)), 0, -1)
    labels[0, scene.landmark_column, 0] = _THINGS.index(scene.landmark)
    for placed in scene.placed:
        labels[placed.row, placed.column, :2] = _THINGS.index(placed.item.kind), _PAINTS.index(placed.item.colour)
    for hand in (scene.left, scene.right):
        cell = labels[HAND_ROW, hand.column]
        cell[2] = _ACTIONS.index(hand.action)
        if hand.item is not None:
            cell[:2] = _THINGS.index(hand.item.kind), _PAINTS.index(hand.item.colour)
    return labels.reshape(GRID * GRID, len(_CLASSES))


def teach_sight(
    model: Qwen2VLForConditionalGeneration, pool: Pool, *, steps: int, batch: int, learning_rate: float, seed: int
) -> float:
    """Train the vision tower of `model` in place.

    Returns:
        Share of the occupied cells whose thing, colour, row and column the read-out named in the last tenth of the steps.
    """
    scenes = [frame for clip in pool.clips for frame in clip.frames]
    rng = np.random.default_rng([seed, 2])
    torch.manual_seed(seed)
    read_out = torch.nn.Linear(model.config.text_config.hidden_size, sum(_CLASSES))
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
        logits = read_out(torch.cat(tuple(features))).split(_CLASSES, dim=1)
        loss = torch.stack([cross_entropy(part, labels_CK[:, i]) for i, part in enumerate(logits)]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        occupied = labels_CK[:, 0] > 0
        named = torch.stack([logits[i].argmax(1) == labels_CK[:, i] for i in (0, 1, 4, 5)]).all(0)
        right.append(float(named[occupied].float().mean()))
        bar.set_postfix(loss=f"{loss.item():.3f}", named=f"{right[-1]:.3f}")
    return float(np.mean(right[-max(1, steps // 10) :]))
