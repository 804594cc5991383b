"""Answers of a model, greedy or sampled, batched: padded on the left, cut at the end of turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from firstsight.prompting import Encoded, Prompter

# B prompts, L tokens so far, V rows of the head


class TokenWatch:
    """Looks at the scores of every token of a greedy batch as it is chosen, and keeps two numbers of each.

    The logits of all steps would be gigabytes at a vocabulary of 152 thousand. Handed to `generate_answers`.
    """

    def __init__(self) -> None:
        self._log_p: list[Tensor] = []
        self._table: list[list[float]] | None = None

    def __call__(self, input_ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
        """A logits processor that changes nothing."""
        scores = scores_BV.float()
        self._table = None
        self._log_p.append(scores.amax(dim=-1) - scores.logsumexp(dim=-1))
        return scores_BV

    def log_probabilities(self, row: int, length: int) -> list[float]:
        """Natural log of the probability of each of the first `length` tokens of an answer; NaN where a logit was not finite."""
        if self._table is None:  # one copy from the device for all rows and tokens
            self._table = torch.stack(self._log_p, dim=1).tolist() if self._log_p else [[]] * (row + 1)
        return self._table[row][:length]


def confidence(log_probabilities: Sequence[float]) -> float | None:
    """Geometric mean of the tokens' probabilities, 0 to 1; None where one of them is not a number."""
    if not log_probabilities or not all(map(math.isfinite, log_probabilities)):
        return None
    return math.exp(math.fsum(log_probabilities) / len(log_probabilities))


@torch.inference_mode()
def generate_answers(
    model: Any,
    prompter: Prompter,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    text_only: bool = False,
    watch: TokenWatch | None = None,
    streamer: Any = None,
) -> list[list[int]]:
    """The model's continuation of each prompt.

    Args:
        prompts: encoded without an answer.
        max_new_tokens: longest answer, end of turn included.
        temperature: 0: greedy; else sampled from the whole vocabulary at this temperature.
        seed: of the sampling; the global random state is left as it was.
        watch: a new one; is told the probability of every greedy token.
        streamer: of transformers, for a single prompt: is handed each token as it is made.
        text_only: never generate control tokens other than the end of turn: what follows could not be read back.

    Returns:
        Token ids of each answer, the end of turn included where the model reached it.
    """
    end = prompter.end_of_turn_ids[-1]
    length = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), prompter.pad_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    types = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, length - len(prompt.input_ids) :] = prompt.input_ids
        mask[row, length - len(prompt.input_ids) :] = 1
        types[row, length - len(prompt.input_ids) :] = prompt.mm_token_type_ids
    inputs = {"input_ids": input_ids, "attention_mask": mask, "mm_token_type_ids": types}
    if any(prompt.pixel_values is not None for prompt in prompts):
        inputs["pixel_values"] = torch.cat([p.pixel_values for p in prompts if p.pixel_values is not None])
        inputs["image_grid_thw"] = torch.cat([p.image_grid_thw for p in prompts if p.image_grid_thw is not None])
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    if text_only:
        tokenizer = prompter.tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        rows = model.get_output_embeddings().weight.shape[0]
        beyond = range(max(tokenizer.get_vocab().values()) + 1, rows)
        sampling["suppress_tokens"] = sorted((set(tokenizer.all_special_ids) | added | set(beyond)) - {end})
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=temperature > 0):
        if temperature > 0:
            torch.manual_seed(seed)
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            num_beams=1,
            eos_token_id=end,
            pad_token_id=prompter.pad_id,
            logits_processor=LogitsProcessorList([] if watch is None else [watch]),
            streamer=streamer,
            **sampling,
        )
    return [_cut(row, end) for row in output[:, length:].tolist()]


def _cut(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end) + 1] if end in ids else ids
