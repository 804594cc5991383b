"""Scenes and questions as tensors, without PNG files and the chat template in between.

The tensors are those that the processor would make of the same images and messages, but made faster; a test compares the two.

Axes: B rows of a batch, L tokens of the longest row, F frames, P patches of a frame (64), N answer positions of a batch.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2Tokenizer

from firstsight.demo.miniature.build import IMAGE_MEAN, IMAGE_STD
from firstsight.demo.synth.captions import caption
from firstsight.demo.synth.drawing import render
from firstsight.demo.synth.questions import ask
from firstsight.demo.synth.scenes import CATEGORIES, ENVIRONMENTS, Clip, Scene, sample_clip

T = TypeVar("T")

SIDE = 112
PATCH = 14
GRID_THW = (1, SIDE // PATCH, SIDE // PATCH)
VISUAL_TOKENS = (SIDE // PATCH // 2) ** 2
SINGLE_FRAME_CATEGORIES = tuple(category for category in CATEGORIES if category != "temporal")


@dataclass(frozen=True)
class Pool:
    """Clips with their images: `frames_F[first[i] : first[i] + len(clips[i].frames)]` belong to `clips[i]`."""

    clips: list[Clip]
    categories: list[str]
    first: NDArray[np.int64]
    frames_F: NDArray[np.uint8]

    @cached_property
    def scenes(self) -> list[Scene]:
        """What each image of `frames_F` shows."""
        return [frame for clip in self.clips for frame in clip.frames]


@dataclass(frozen=True)
class Branch:
    """One question about a clip: token ids from the question to the end of turn, and where the answer begins in them."""

    ids: list[int]
    answer_start: int
    category: str


@dataclass(frozen=True)
class Row:
    """A clip and questions about it that do not attend to each other: one pass over its images serves them all."""

    prefix: list[int]
    branches: list[Branch]
    frames: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class Batch:
    """Model inputs, and the answer positions: row and column whose next token is `targets_N`, and the branch they are in.

    `frames` are the numbers of the images in the pool.
    """

    inputs: dict[str, Any]
    frames: list[int]
    rows_N: torch.Tensor
    columns_N: torch.Tensor
    branches_N: torch.Tensor
    targets_N: torch.Tensor


def make_pool(seed: int, clips: int, workers: int = 2) -> Pool:
    """`clips` clips drawn from `seed`, balanced over categories and environments; the same for any number of workers."""
    size = 500
    jobs = [(seed, start, min(size, clips - start)) for start in range(0, clips, size)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        parts = list(executor.map(_make_part, jobs))
    all_clips = [clip for part, _ in parts for clip in part]
    counts = np.array([len(clip.frames) for clip in all_clips])
    return Pool(
        clips=all_clips,
        categories=[CATEGORIES[index % len(CATEGORIES)] for index in range(clips)],
        first=np.concatenate([[0], np.cumsum(counts)[:-1]]),
        frames_F=np.concatenate([frames for _, frames in parts]),
    )


def _make_part(job: tuple[int, int, int]) -> tuple[list[Clip], NDArray[np.uint8]]:
    seed, start, count = job
    rng = np.random.default_rng([seed, start])
    clips: list[Clip] = []
    for index in range(start, start + count):
        environment = ENVIRONMENTS[index // len(CATEGORIES) % len(ENVIRONMENTS)]
        clips.append(sample_clip(rng, environment, CATEGORIES[index % len(CATEGORIES)]))
    return clips, np.stack([shrink(render(frame)) for clip in clips for frame in clip.frames])


def shrink(picture: Image.Image) -> NDArray[np.uint8]:
    """The image as the processor resizes it: uint8, (112, 112, 3)."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def to_patches(frames_F: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 frames (F, 112, 112, 3) -> normalised patches, fp32 (F * P, 1176), in the processor's order."""
    scale = (1 / 255) / np.asarray(IMAGE_STD, np.float32)
    shift = np.asarray(IMAGE_MEAN, np.float32) / np.asarray(IMAGE_STD, np.float32)
    normalised = frames_F.astype(np.float32) * scale.astype(np.float32) - shift
    blocks = SIDE // PATCH // 2
    split = normalised.reshape(len(frames_F), blocks, 2, PATCH, blocks, 2, PATCH, 3)
    # (F, block row, block column, row in block, column in block, channel, y, x)
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, PATCH, PATCH)
    return torch.from_numpy(np.repeat(ordered, 2, axis=2).reshape(len(ordered), -1))


class Sampler:
    """Draws rows from a pool, with the chat template's token ids."""

    def __init__(self, pool: Pool, tokenizer: Qwen2Tokenizer) -> None:
        self.pool = pool
        self._tokenizer = tokenizer
        self._by_category = {
            category: [i for i, own in enumerate(pool.categories) if own == category] for category in CATEGORIES
        }
        special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
        picture = (
            [special["<|vision_start|>"]] + [special["<|image_pad|>"]] * VISUAL_TOKENS + [special["<|vision_end|>"]]
        )
        self._head = self.encode("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
        self._picture = picture
        self._turn = self.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.end = special["<|im_end|>"]
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text without any template."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def branch(self, question: str, answer: str, category: str) -> Branch:
        """The turn of a question with its answer."""
        asked = self._cache.get(question)
        if asked is None:
            asked = self._cache[question] = self.encode(question) + self._turn
        return Branch([*asked, *self.encode(answer), self.end], len(asked), category)

    def row(self, index: int, branches: list[Branch]) -> Row:
        """Clip `index` with these branches."""
        count = len(self.pool.clips[index].frames)
        first = int(self.pool.first[index])
        return Row(self._head + self._picture * count, branches, tuple(range(first, first + count)))

    def own_question(self, rng: np.random.Generator, index: int) -> Branch:
        """A question of the category for which clip `index` was drawn."""
        category = self.pool.categories[index]
        return self.branch(*ask(rng, self.pool.clips[index], category), category)

    def draw(self, rng: np.random.Generator, temporal: float, questions: int, captions: float, counting: float) -> Row:
        """A random clip with its own question, perhaps a caption, and, if it has one frame, more questions, one of them about space.

        Args:
            rng: source of everything random.
            temporal: share of clips with several frames.
            questions: number of questions about a clip of one frame; from 2 on, one of them is always about space.
            captions: share of clips that are described in full.
            counting: share of the clips of one frame that are drawn for counting, in addition to those drawn evenly; above 0
                the further questions about such clips are about other counts instead of other categories.
        """
        if rng.random() < temporal:
            kind = "temporal"
        elif counting and rng.random() < counting:
            kind = "counting"
        else:
            kind = _pick(rng, SINGLE_FRAME_CATEGORIES)
        index = _pick(rng, self._by_category[kind])
        clip = self.pool.clips[index]
        branches = [self.own_question(rng, index)]
        if counting and kind == "counting":
            subjects = _subjects(clip)
            for i in rng.choice(len(subjects), size=min(len(subjects), questions - 1), replace=False):
                branches.append(self.branch(*ask(rng, replace(clip, **subjects[int(i)]), kind), kind))
        elif kind != "temporal":
            others = [category for category in SINGLE_FRAME_CATEGORIES if category != kind]
            count = max(0, questions - 2)
            chosen = [others[int(i)] for i in rng.choice(len(others), size=count, replace=False)]
            if questions > 1:
                chosen.append("spatial_reasoning")
            # A scene drawn for a description or for counting suits other questions only without its focus.
            branches += [self.branch(*ask(rng, _without_focus(clip), category), category) for category in chosen]
        if rng.random() < captions:
            branches.append(self.branch(*caption(rng, clip), "caption"))
        return self.row(index, branches)


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _without_focus(clip: Clip) -> Clip:
    return replace(clip, focus=None, subject="")


def _subjects(clip: Clip) -> list[dict[str, Any]]:
    """Everything on the surface that can be counted, as the `focus` and `subject` of a clip."""
    items = [placed.item for placed in clip.frames[0].placed]
    kinds = [{"focus": "kind", "subject": kind} for kind in sorted({item.kind for item in items})]
    colours = [{"focus": "colour", "subject": colour} for colour in sorted({item.colour for item in items})]
    return [*kinds, *colours, {"focus": "all", "subject": ""}]


def collate(rows: Sequence[Row], pool: Pool, pad: int, image_pad: int, *, grey: bool = False) -> Batch:
    """Right-padded model inputs with their 3-D rotary positions; `grey` replaces every pixel by mid-grey.

    The branches of a row all follow its prefix: each takes the positions after it and attends to it and to itself.
    """
    width = max(len(row) for row in rows)
    ids_BL = np.full((len(rows), width), pad, np.int64)
    positions_3BL = np.zeros((3, len(rows), width), np.int64)
    # 0: the prefix, to which everything attends; 1, 2, ...: the branches; -1: padding, which attends to the prefix.
    branch_BL = np.full((len(rows), width), -1, np.int64)
    answers: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        end = len(row.prefix)
        ids_BL[number, :end] = row.prefix
        prefix_positions = rotary_positions(np.asarray(row.prefix), image_pad)
        positions_3BL[:, number, :end] = prefix_positions
        branch_BL[number, :end] = 0
        after = prefix_positions.max() + 1
        for index, branch in enumerate(row.branches):
            start, end = end, end + len(branch.ids)
            ids_BL[number, start:end] = branch.ids
            positions_3BL[:, number, start:end] = after + np.arange(end - start)
            branch_BL[number, start:end] = index + 1
            answers.extend((number, column, index) for column in range(start + branch.answer_start - 1, end - 1))
    numbers = [number for row in rows for number in row.frames]
    frames = pool.frames_F[numbers]
    if grey:
        frames = np.full_like(frames, 128)
    ids = torch.from_numpy(ids_BL)
    owner_BL = torch.from_numpy(branch_BL)
    causal_LL = torch.ones(width, width, dtype=torch.bool).tril()
    sees_BLL = ((owner_BL[:, None, :] == owner_BL[:, :, None]) | (owner_BL[:, None, :] == 0)) & causal_LL
    rows_N, columns_N, branches_N = torch.tensor(answers).unbind(1)
    inputs = {
        "input_ids": ids,
        "attention_mask": {"full_attention": sees_BLL[:, None]},
        "position_ids": torch.from_numpy(positions_3BL),
        "pixel_values": to_patches(frames),
        "image_grid_thw": torch.tensor([GRID_THW] * len(frames)),
    }
    return Batch(inputs, numbers, rows_N, columns_N, branches_N, ids[rows_N, columns_N + 1])


def rotary_positions(ids_L: NDArray[np.int64], image_pad: int) -> NDArray[np.int64]:
    """M-RoPE positions (time, height, width) of a prompt whose images all have 4 x 4 visual tokens: (3, L)."""
    side = SIDE // PATCH // 2
    positions = np.zeros((3, len(ids_L)), np.int64)
    column, nearest = 0, 0
    while column < len(ids_L):
        if ids_L[column] != image_pad:
            positions[:, column] = nearest
            column, nearest = column + 1, nearest + 1
            continue
        cell = np.arange(VISUAL_TOKENS)
        positions[:, column : column + VISUAL_TOKENS] = nearest + np.stack([cell * 0, cell // side, cell % side])
        column, nearest = column + VISUAL_TOKENS, nearest + side
    return positions
