"""One sample as the teacher saw it: image, question, and the answer token by token with what else was likely.

shown = find_sample(recipe, "cache.zarr", "s17", temperature=1.0, alternatives=5)
print(terminal_text(shown)); Path("s17.html").write_text(html_page(shown))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from PIL import Image

from firstsight.data.samples import Sample, iter_samples
from firstsight.errors import DataError
from firstsight.models.teacher_head import SharedHead, floats
from firstsight.page import picture, render
from firstsight.recipe import Recipe
from firstsight.vocabulary import Token, align_vocabularies, restored_tokens, token_table
from phase1_teacher.cached_student import student_of
from storage.errors import SkippedSample, TemperatureOutOfRange
from storage.exact import ExactCache, open_any_cache
from storage.reader import Cache
from storage.targets import ExactSample, ExactTargets, Targets, Turn
from storage.temperature import at_temperature

_PICTURE = 640  # pixels of the longer side in the page, at most
_CELLS = 56  # characters of a picture's width in the terminal


@dataclass(frozen=True)
class Alternative:
    """A token and its probability."""

    text: str
    p: float


@dataclass(frozen=True, kw_only=True)
class ShownPosition:
    """One answer position."""

    text: str
    """The answer's own token."""
    p: float | None
    """The teacher's probability of it; None: no soft target here."""
    alternatives: tuple[Alternative, ...]
    """The most probable tokens, the answer's own among them where it is one of them."""
    rest: float
    """Probability of all tokens that are not stored."""


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """One of the answers."""

    question: str
    """The user message before it."""
    answer: str | None
    """None: the teacher's own."""
    positions: tuple[ShownPosition, ...]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample and its targets."""

    sample: Sample
    key: str
    conversation: tuple[tuple[str, str], ...]
    """What stands before the first of the turns: role and text of each message, `[image]` where one stands; the recipe's system
    prompt too."""
    images: tuple[Image.Image, ...]
    turns: tuple[ShownTurn, ...]
    temperature: float
    teacher: str


def find_sample(
    recipe: Recipe, location: str, name: str | None = None, *, temperature: float = 1.0, alternatives: int = 5
) -> ShownSample:
    """Look a sample up in the recipe's data and the cache.

    Args:
        recipe: its data are read, and the student's tokenizer; for an exact cache no student.
        location: of the cache.
        name: the sample's id, or its key or the beginning of it (8 digits at least); None: the first that the cache holds.
        temperature: within the cache's nodes.
        alternatives: how many tokens to keep per position.

    Raises:
        DataError: no such sample, or the cache has no targets for it.
        CacheError: no cache, or the temperature lies outside its nodes.
    """
    cache = open_any_cache(location)
    table = token_table(student_of(recipe, cache).tokenizer) if isinstance(cache, Cache) else None
    sample = _first(recipe, cache) if name is None else _find(recipe, name)
    if sample.key not in cache and sample.key not in cache.skipped():
        raise DataError(
            f"{location} has no targets of {sample.place} (sample {sample.id!r}): edited since the dump, or not dumped yet; "
            "run fs-teacher dump"
        )
    try:
        stored = cache[sample.key]
    except SkippedSample as error:
        raise DataError(str(error)) from None
    if isinstance(stored, ExactSample):
        positions = _exact_positions(cast(ExactCache, cache), stored.targets, temperature, alternatives)
    else:
        positions = _top_k_positions(cast(Cache, cache), stored.targets, table or {}, temperature, alternatives)
    turns = stored.all_turns()
    return ShownSample(
        sample=sample,
        key=sample.key,
        conversation=_before(sample.asked()[-len(turns)], recipe.data.system_prompt),
        images=tuple(sample.open_images()),
        turns=_turns(sample, turns, positions),
        temperature=temperature,
        teacher=str(cache.spec["teacher"]["model"]),
    )


def _turns(sample: Sample, turns: Sequence[Turn], positions: tuple[ShownPosition, ...]) -> tuple[ShownTurn, ...]:
    shown, start = [], 0
    for turn, asked in zip(turns, sample.asked()[-len(turns) :], strict=True):
        shown.append(
            ShownTurn(
                question=asked.question,
                answer=asked.answer if turn.hard else None,
                positions=positions[start : start + turn.positions],
            )
        )
        start += turn.positions
    return tuple(shown)


def _top_k_positions(
    cache: Cache, targets: Targets, table: dict[int, Token], temperature: float, alternatives: int
) -> tuple[ShownPosition, ...]:
    log_p, log_r = at_temperature(targets.logprobs, targets.tail, cache.temperatures, temperature)
    positions = []
    for row, target in enumerate(targets.target_ids.tolist()):
        ids = targets.ids[row].tolist()
        p = np.exp(log_p[row])
        soft = bool(targets.soft[row])
        choices = [Alternative(token_text(table, index), float(each)) for index, each in zip(ids, p, strict=True)]
        positions.append(
            ShownPosition(
                text=token_text(table, target),
                p=float(p[ids.index(target)]) if soft else None,
                alternatives=tuple(choices[:alternatives]) if soft else (),
                rest=float(np.exp(log_r[row])) if soft else 0.0,
            )
        )
    return tuple(positions)


def _exact_positions(
    cache: ExactCache, targets: ExactTargets, temperature: float, alternatives: int
) -> tuple[ShownPosition, ...]:
    """By the teacher's whole vocabulary: its head is read."""
    if temperature <= 0:
        raise TemperatureOutOfRange(f"temperature {temperature:g}: expected one above 0")
    table = restored_tokens(cache.head().tokens())
    own = align_vocabularies(table, table, teacher_rows=cache.head_rows, student_rows=cache.head_rows)
    head = SharedHead.of_cache(cache, own, torch.device("cpu"))
    log_p_PS = head.log_probabilities(floats(targets.states, getattr(torch, cache.state_dtype)), temperature)
    columns = {index: column for column, index in enumerate(head.student_ids_S.tolist())}
    positions = []
    for log_p_S, target in zip(log_p_PS, targets.target_ids.tolist(), strict=True):
        top = log_p_S.topk(min(alternatives, len(log_p_S)))
        choices = zip(head.student_ids_S[top.indices].tolist(), top.values.exp().tolist(), strict=True)
        positions.append(
            ShownPosition(
                text=token_text(table, target),
                p=float(log_p_S[columns[target]].exp()) if target in columns else None,
                alternatives=tuple(Alternative(token_text(table, index), p) for index, p in choices),
                rest=0.0,
            )
        )
    return tuple(positions)


def _find(recipe: Recipe, name: str) -> Sample:
    count = 0
    for source in recipe.sources():
        for sample in iter_samples(source):
            count += 1
            if sample.id == name or (len(name) >= 8 and sample.key.startswith(name)):
                return sample
    raise DataError(f"no sample has the id {name!r} (or a key that begins with it) among the {count:,} of this recipe")


def _first(recipe: Recipe, cache: Cache | ExactCache) -> Sample:
    for source in recipe.sources():
        for sample in iter_samples(source):
            if sample.key in cache:
                return sample
    raise DataError(
        f"{cache.location} holds none of the samples of this recipe; run fs-teacher dump, or give its recipe by --config"
    )


def _before(asked: Sample, system_prompt: str | None) -> tuple[tuple[str, str], ...]:
    """The messages before a question, as the model sees them."""
    messages = list(asked.prompt)
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    last = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=len(messages))
    return tuple(
        (
            message["role"],
            " ".join(part["text"] if part["type"] == "text" else "[image]" for part in message["content"]),
        )
        for message in messages[:last]
    )


def token_text(table: dict[int, Token], index: int) -> str:
    """A token as it can be shown: white space visible, half characters as replacement characters."""
    text = table[index][0].decode("utf-8", "replace") if index in table else f"<{index}>"
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "→")


def probability_text(p: float) -> str:
    """Three digits, or the order of magnitude of what would be 0.000."""
    return f"{p:.3f}" if p >= 0.0005 or p == 0 else f"{p:.0e}"


def terminal_text(shown: ShownSample, *, color: bool = False) -> str:
    """The sample as lines of text; with `color` the images in half blocks of 24-bit colour."""
    sample = shown.sample
    lines = [f"{sample.id}  {sample.place}  key {shown.key[:16]}"]
    for path, image in zip(sample.images, shown.images, strict=True):
        lines.append(f"image     {path} ({image.width} x {image.height})")
        if color:
            lines.append(half_blocks(image))
    lines.append(f"teacher   {shown.teacher} at T = {shown.temperature:g}")
    lines += [f"{role:<9} {text}" for role, text in shown.conversation]
    for turn in shown.turns:
        lines.append(f"question  {turn.question}")
        lines.append(f"answer    {turn.answer if turn.answer is not None else '(by the teacher)'}")
        lines += _position_lines(turn.positions)
    return "\n".join(lines)


def _position_lines(positions: tuple[ShownPosition, ...]) -> list[str]:
    lines = []
    width = max((len(position.text) for position in positions), default=0)
    for position in positions:
        if position.p is None:
            lines.append(
                f"  {position.text:<{width}}      -  no soft target: the tokenizers cut the answer differently here"
            )
            continue
        bar = "█" * round(10 * position.p)
        others = "  ".join(f"{choice.text} {probability_text(choice.p)}" for choice in position.alternatives)
        lines.append(
            f"  {position.text:<{width}}  {probability_text(position.p):>6} {bar:<10}  {others}  "
            f"(not stored {probability_text(position.rest)})"
        )
    return lines


def half_blocks(image: Image.Image) -> str:
    """An image as text: each character is two pixels, one above the other, in 24-bit colour."""
    height = max(2, round(_CELLS * image.height / image.width / 2) * 2)
    pixels = np.asarray(image.resize((_CELLS, height)))
    lines = []
    for above, below in zip(pixels[0::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀"
            for a, b in zip(above, below, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def html_page(shown: ShownSample) -> str:
    """The sample as one HTML file: no scripts, nothing loaded from elsewhere."""
    pictures = [picture(image, longest=_PICTURE) for image in shown.images]
    return render("phase1_teacher", "sample.html", shown=shown, pictures=pictures, number=probability_text)
