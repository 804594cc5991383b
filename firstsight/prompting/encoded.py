"""Samples as model inputs, one by one and as a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# B samples, L tokens of the longest, N answer positions of a batch, P of a sample


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as model inputs."""

    input_ids: Tensor
    """int64 [L]: what the model is given and its answers, in the order of the conversation."""
    token_types: dict[str, Tensor]
    """int64 [L] by the model's input name: 1 for image tokens, 0 for text. Empty for families without such an input."""
    images: dict[str, Tensor]
    """Inputs of the model made from the images, by name; empty without images."""
    answer_columns: Tensor
    """int64 [P]: answer positions, each one before its token; one turn after the other."""
    turns: tuple[int, ...]
    """Answer positions of each turn; their sum is P."""

    @property
    def target_ids(self) -> Tensor:
        """int64 [P]: the tokens of all answers, each with its end of turn."""
        return self.input_ids[self.answer_columns + 1]

    @property
    def turn_ids(self) -> list[list[int]]:
        """The tokens of each answer, end of turn included."""
        return [ids.tolist() for ids in torch.split(self.target_ids, list(self.turns))]

    @property
    def positions(self) -> int:
        """P, the number of answer positions."""
        return len(self.answer_columns)

    def with_answer(self, answer_ids: Sequence[int]) -> Encoded:
        """The same with one more answer at its end; none of its tokens is an image token."""
        length, count = len(self.input_ids), len(answer_ids)
        answer = torch.tensor(answer_ids, dtype=torch.int64)
        return Encoded(
            input_ids=torch.cat([self.input_ids, answer]),
            token_types={
                name: torch.cat([types, torch.zeros_like(answer)]) for name, types in self.token_types.items()
            },
            images=self.images,
            answer_columns=torch.cat([self.answer_columns, torch.arange(length - 1, length - 1 + count)]),
            turns=(*self.turns, count),
        )


def collate(
    batch: Sequence[Encoded], pad_id: int, blank: Encoded | None = None, *, left: bool = False
) -> dict[str, Tensor]:
    """Pad samples to one batch of model inputs.

    Args:
        batch: B samples.
        pad_id: of the tokenizer.
        blank: of `Prompter.blank`: becomes an extra row if no sample has an image.
        left: pad on the left, for generation; else on the right.

    Returns:
        input_ids, attention_mask and the family's token types: int64 [B, L]; the inputs made of images, over all images in
        order, if there are any.
    """
    if blank is not None and not any(sample.images for sample in batch):
        batch = [*batch, blank]
    length = max(len(sample.input_ids) for sample in batch)
    inputs = {"input_ids": torch.full((len(batch), length), pad_id, dtype=torch.int64)}
    for name in ("attention_mask", *batch[0].token_types):
        inputs[name] = torch.zeros((len(batch), length), dtype=torch.int64)
    for row, sample in enumerate(batch):
        count = len(sample.input_ids)
        place = slice(length - count, length) if left else slice(count)
        inputs["input_ids"][row, place] = sample.input_ids
        inputs["attention_mask"][row, place] = 1
        for name, types in sample.token_types.items():
            inputs[name][row, place] = types
    return inputs | collate_images([sample.images for sample in batch])


def collate_images(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Image inputs of several samples by name: along the first axis, shorter ones padded with zeros along the others."""
    names = {name: None for part in parts for name in part}
    return {name: _concatenate([part[name] for part in parts if name in part]) for name in names}


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    if all(list(tensor.shape[1:]) == largest for tensor in tensors):
        return torch.cat(list(tensors))
    whole = tensors[0].new_zeros((sum(len(tensor) for tensor in tensors), *largest))
    start = 0
    for tensor in tensors:
        whole[(slice(start, start + len(tensor)), *(slice(size) for size in tensor.shape[1:]))] = tensor
        start += len(tensor)
    return whole


def answer_index(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Rows and columns (int64 [N] each) of the answer positions of a right-padded batch, sample by sample."""
    rows = [torch.full((sample.positions,), row, dtype=torch.int64) for row, sample in enumerate(batch)]
    return torch.cat(rows), torch.cat([sample.answer_columns for sample in batch])
