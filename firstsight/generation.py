"""A model's answers, greedy or sampled, in batches: padded on the left, cut where the model ends them."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from firstsight.prompting import Encoded, Prompter, collate

# B prompts, L tokens so far, V rows of the head


class TokenWatch:
    """Reads the scores of every token of a greedy batch as it is chosen, and keeps two numbers of each. For `generate_answers`.

    The logits of all steps would be gigabytes at a vocabulary of 152 thousand.
    """

    def __init__(self) -> None:
        self._log_p: list[Tensor] = []
        self._table: list[list[float]] | None = None

    def __call__(self, _input_ids_BL: Tensor, scores_BV: Tensor) -> Tensor:
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
        watch: a new one; gets the probability of every greedy token.
        streamer: of transformers, for a single prompt; gets each token as it is made.
        text_only: never generate control tokens other than those that end an answer, since what follows could not be read back. Any
            of these becomes the end of turn, which is how the chat template ends an answer.

    Returns:
        Token ids of each answer, including the token of `stop_ids` that ended it.
    """
    end, stops = prompter.end_of_turn_ids[-1], stop_ids(model, prompter)
    inputs = {name: tensor.to(model.device) for name, tensor in collate(prompts, prompter.pad_id, left=True).items()}
    length = inputs["input_ids"].shape[1]
    # a configuration of our own: a model's may hold a repetition penalty and more, and then greedy is not greedy
    if model not in _told:
        _told.add(model)
        if fields := left_out(model):
            named = ", ".join(f"{name} = {value}" for name, value in sorted(fields.items()))
            _logger.warning("the model's own generation settings are not used: %s", named)
    ours = GenerationConfig(
        max_new_tokens=max_new_tokens, num_beams=1, do_sample=False, eos_token_id=stops, pad_token_id=prompter.pad_id
    )
    if temperature > 0:
        ours.update(do_sample=True, temperature=temperature, top_p=1.0, top_k=0)
    if text_only:
        tokenizer = prompter.tokenizer
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        rows = model.get_output_embeddings().weight.shape[0]
        beyond = range(max(tokenizer.get_vocab().values()) + 1, rows)
        ours.suppress_tokens = sorted((set(tokenizer.all_special_ids) | added | set(beyond)) - set(stops))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=temperature > 0), _configured(model, ours):
        if temperature > 0:
            torch.manual_seed(seed)
        output = model.generate(
            **inputs,
            generation_config=ours,
            logits_processor=LogitsProcessorList([] if watch is None else [watch]),
            streamer=streamer,
        )
    found = [_cut(row, set(stops)) for row in output[:, length:].tolist()]
    if text_only:
        found = [[*ids[:-1], end] if ids and ids[-1] in stops else ids for ids in found]
    return found


def stop_ids(model: Any, prompter: Prompter) -> list[int]:
    """The tokens that end an answer: the end of turn, and those that the model's own generation configuration names."""
    return _stops(getattr(model, "generation_config", None), prompter)


def stored_stop_ids(directory: Path, config: Any, prompter: Prompter) -> list[int]:
    """`stop_ids` of a model that is not loaded.

    Args:
        directory: of the model.
        config: its configuration, used if there is no generation configuration.
        prompter: for it.
    """
    try:
        generation = GenerationConfig.from_pretrained(directory)
    except OSError:  # as from_pretrained of a model does
        generation = GenerationConfig.from_model_config(config)
    return _stops(generation, prompter)


def _stops(generation: Any, prompter: Prompter) -> list[int]:
    own = getattr(generation, "eos_token_id", None)
    own = [] if own is None else own if isinstance(own, list) else [own]
    return list(dict.fromkeys([prompter.end_of_turn_ids[-1], *own]))


def _cut(ids: list[int], stops: set[int]) -> list[int]:
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in stops), ids)


_logger = logging.getLogger(__name__)
_told: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models whose own settings were reported; each is reported once."""


def left_out(model: Any) -> dict[str, Any]:
    """Fields of the model's own generation configuration that would change its answers and are not used."""
    found: dict[str, Any] = model.generation_config.to_diff_dict()
    return {name: value for name, value in found.items() if name not in _OURS and value is not None}


_OURS = {
    "do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "use_cache", "cache_implementation",
    "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
}  # fmt: skip
"""Fields that a recipe decides, or that change no answer."""


@contextmanager
def _configured(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Hide the model's own configuration, from which `generate` would fill what `config` leaves open."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
