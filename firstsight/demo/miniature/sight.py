"""Teach a vision tower what is in every cell of an image, before the language model is trained on it.

Through a language model alone an untrained tower of this size learns colours long before shapes. Here a linear read-out of
each visual token is trained, together with the tower, to name the cell's thing, its colour, the hand's action, the environment,
where in the image the cell is, what lies next to it, and how many things there are. The read-out is then trained further along with
the language model, so that the tower does not forget, and is dropped at the end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import Qwen2VLForConditionalGeneration

from firstsight.demo.miniature.optimizers import Optimizers
from firstsight.demo.miniature.pool import GRID_THW, Pool, to_patches
from firstsight.demo.synth.scenes import COLOURS, ENVIRONMENTS, GRID, HAND_ROW, KINDS, LANDMARKS, Scene

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
    # how many things of each kind, of each colour and in all: none to eight
    *(9,) * (len(KINDS) + len(COLOURS) + 1),
)


def cell_labels(scene: Scene) -> NDArray[np.int64]:
    """Classes of each cell in reading order, int64 (16, 30).

    Thing, colour, action, environment, row, column, thing with colour; then thing and colour of the cells to the left, to the
    right, behind and in front; then, the same in every cell, how many things on the surface are of each kind, of each colour, and
    how many there are in all.
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
    items = [placed.item for placed in scene.placed]
    kinds, colours = [item.kind for item in items], [item.colour for item in items]
    counts = [*(kinds.count(kind) for kind in KINDS), *(colours.count(colour) for colour in COLOURS), len(items)]
    everywhere = np.broadcast_to(np.array(counts), (GRID, GRID, len(counts)))
    return np.concatenate([own, *around, everywhere], axis=2).reshape(GRID * GRID, -1)


class ReadOut(torch.nn.Linear):
    """Names what each visual token shows, for a model of this `width`."""

    def __init__(self, width: int) -> None:
        super().__init__(width, sum(_CLASSES))

    def loss(self, features_CD: torch.Tensor, labels_CK: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Sum of the cross-entropies, and the share of occupied cells in which everything was named correctly."""
        logits = self(features_CD).split(_CLASSES, dim=1)
        loss = torch.stack([cross_entropy(part, labels_CK[:, i]) for i, part in enumerate(logits)]).sum()
        named = torch.stack([part.argmax(1) == labels_CK[:, i] for i, part in enumerate(logits)]).all(0)
        return loss, float(named[labels_CK[:, 0] > 0].float().mean())


def labels_of(scenes: Sequence[Scene]) -> torch.Tensor:
    """`cell_labels` of several images, int64 (C, K)."""
    return torch.from_numpy(np.concatenate([cell_labels(scene) for scene in scenes]))


def teach_sight(
    model: Qwen2VLForConditionalGeneration, pool: Pool, *, steps: int, batch: int, learning_rate: float, seed: int
) -> tuple[ReadOut, float]:
    """Train the vision tower of `model` in place.

    Returns:
        The read-out, and the share of occupied cells in which it named everything correctly, over the last tenth of the steps.
    """
    rng = np.random.default_rng([seed, 2])
    torch.manual_seed(seed)
    read_out = ReadOut(model.config.text_config.hidden_size)
    named = [*model.model.visual.named_parameters(), *read_out.named_parameters()]
    optimizers = Optimizers(named, learning_rate=learning_rate, steps=steps, warm_up=50)
    model.train()
    right: list[float] = []
    bar = trange(steps, desc="sight", unit=" step")
    for _ in bar:
        chosen = rng.integers(len(pool.scenes), size=batch)
        grid = torch.tensor([GRID_THW] * batch)
        features = model.model.visual(to_patches(pool.frames_F[chosen]), grid_thw=grid).pooler_output
        loss, share = read_out.loss(features, labels_of([pool.scenes[i] for i in chosen]))
        optimizers.step(loss)
        right.append(share)
        bar.set_postfix(loss=f"{loss.item():.3f}", named=f"{share:.3f}")
    return read_out, float(np.mean(right[-max(1, steps // 10) :]))
