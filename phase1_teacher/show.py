"""One sample as the teacher saw it: image, question, and the answer token by token with what else was likely.

shown = find_sample(recipe, "cache.zarr", "s17", temperature=1.0, alternatives=5)
print(terminal_text(shown)); Path("s17.html").write_text(html_page(shown))
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from firstsight.errors import DataError
from firstsight.identity import student_identity
from firstsight.models import load_processor, resolve_directory
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from firstsight.samples import Sample, iter_samples
from firstsight.vocabulary import Token, token_table
from storage.errors import SkippedSample
from storage.reader import open_cache
from storage.temperature import at_temperature

_PICTURE = 640  # pixels of the longer side in the page
_CELLS = 56  # characters of a picture's width in the terminal


@dataclass(frozen=True)
class Choice:
    """A token and its probability."""

    text: str
    p: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """One answer position."""

    text: str
    """The answer's own token."""
    p: float | None
    """The teacher's probability of it; None: no soft target here."""
    alternatives: tuple[Choice, ...]
    """The most probable tokens, the answer's own among them where it is one of them."""
    rest: float
    """Probability of all tokens that are not stored."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample and its targets."""

    sample: Sample
    key: str
    images: tuple[Image.Image, ...]
    positions: tuple[Position, ...]
    hard: bool
    temperature: float
    teacher: str


def find_sample(recipe: Recipe, location: str, name: str, *, temperature: float, alternatives: int) -> Shown:
    """Look a sample up in the recipe's data and the cache.

    Args:
        recipe: its data and the student's tokenizer are read.
        location: of the cache.
        name: the sample's id, or its key or the beginning of it (8 digits at least).
        temperature: within the cache's nodes.
        alternatives: how many tokens to keep per position.

    Raises:
        DataError: no such sample, or the cache has no targets for it.
        CacheError: no cache, or the temperature lies outside its nodes.
    """
    cache = open_cache(location)
    student = Prompter(
        load_processor(resolve_directory(recipe, recipe.student, weights=False), recipe.student),
        max_length=recipe.data.max_length,
        system_prompt=recipe.data.system_prompt,
    )
    if cache.spec["student"] != student_identity(student):
        raise DataError(
            f"{location} was made for another student vocabulary than that of student.model = {recipe.student.model}; "
            "give the recipe of this cache with --config"
        )
    sample = _find(recipe, name)
    if sample.key not in cache and sample.key not in cache.skipped():
        raise DataError(
            f"{location} has no targets of {sample.place} (sample {sample.id!r}): edited since the dump, or not dumped yet; "
            "run fs-teacher dump"
        )
    try:
        stored = cache[sample.key]
    except SkippedSample as error:
        raise DataError(str(error)) from None
    targets = stored.targets
    log_p, log_r = at_temperature(targets.logprobs, targets.tail, cache.temperatures, temperature)
    table = token_table(student.tokenizer)
    positions = []
    for row, target in enumerate(targets.target_ids.tolist()):
        ids = targets.ids[row].tolist()
        p = np.exp(log_p[row])
        soft = bool(targets.soft[row])
        choices = [Choice(token_text(table, index), float(each)) for index, each in zip(ids, p, strict=True)]
        positions.append(
            Position(
                text=token_text(table, target),
                p=float(p[ids.index(target)]) if soft else None,
                alternatives=tuple(choices[:alternatives]) if soft else (),
                rest=float(np.exp(log_r[row])) if soft else 0.0,
            )
        )
    return Shown(
        sample=sample,
        key=sample.key,
        images=tuple(sample.open_images()),
        positions=tuple(positions),
        hard=stored.hard,
        temperature=temperature,
        teacher=str(cache.spec["teacher"]["model"]),
    )


def _find(recipe: Recipe, name: str) -> Sample:
    count = 0
    for split in ("train", "validation"):
        for sample in iter_samples(recipe.file(split), recipe.data_root):
            count += 1
            if sample.id == name or (len(name) >= 8 and sample.key.startswith(name)):
                return sample
    raise DataError(f"no sample has the id {name!r} (or a key that begins with it) among the {count:,} of this recipe")


def token_text(table: dict[int, Token], index: int) -> str:
    """A token as it can be shown: white space visible, half characters as replacement characters."""
    text = table[index][0].decode("utf-8", "replace") if index in table else f"<{index}>"
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "→")


def terminal_text(shown: Shown, *, color: bool = False) -> str:
    """The sample as lines of text; with `color` the images in half blocks of 24-bit colour."""
    sample = shown.sample
    lines = [f"{sample.id}  {sample.place}  key {shown.key[:16]}"]
    for path, image in zip(sample.images, shown.images, strict=True):
        lines.append(f"image     {path} ({image.width} x {image.height})")
        if color:
            lines.append(half_blocks(image))
    lines.append(f"question  {sample.question}")
    lines.append(f"answer    {sample.answer if sample.answer is not None else '(by the teacher)'}")
    lines.append(f"teacher   {shown.teacher} at T = {shown.temperature:g}")
    width = max(len(position.text) for position in shown.positions)
    for position in shown.positions:
        if position.p is None:
            lines.append(
                f"  {position.text:<{width}}      -  no soft target: the tokenizers cut the answer differently here"
            )
            continue
        bar = "█" * round(10 * position.p)
        others = "  ".join(f"{choice.text} {choice.p:.3f}" for choice in position.alternatives)
        lines.append(
            f"  {position.text:<{width}}  {position.p:6.3f} {bar:<10}  {others}  (not stored {position.rest:.3f})"
        )
    return "\n".join(lines)


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


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
img { max-width: 100%; border-radius: 4px; margin: 0 .5rem .5rem 0; }
.answer { font-size: 1.2rem; line-height: 2; }
.answer span { padding: .1rem .15rem; border-radius: 3px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
code { background: #f3f3f3; padding: 0 .2rem; border-radius: 3px; white-space: pre; }
code.own { background: #cfe8d5; }
.bar { display: inline-block; height: .7rem; background: #4a8f5d; }
.note { color: #666; }
"""


def html_page(shown: Shown) -> str:
    """The sample as one HTML file: no scripts, nothing loaded from elsewhere."""
    sample = shown.sample
    pictures = "".join(f'<img alt="" src="{_data_url(image)}">' for image in shown.images)
    answer = "".join(_token_span(position) for position in shown.positions)
    rows = "".join(_table_row(number, position) for number, position in enumerate(shown.positions, start=1))
    source = "ground truth" if shown.hard else "the teacher's own answer"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(sample.id)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(sample.id)}</h1><p class=note>{html.escape(sample.place)}, key {shown.key}</p>{pictures}"
        f"<h2>Question</h2><p>{html.escape(sample.question)}</p>"
        f"<h2>Answer <small class=note>{source}; the greener a token, the surer the teacher</small></h2>"
        f"<p class=answer>{answer}</p>"
        f"<h2>Token by token <small class=note>{html.escape(shown.teacher)} at T = {shown.temperature:g}</small></h2>"
        "<table><tr><th>#<th>token<th>probability<th>most probable<th>not stored</tr>"
        f"{rows}</table></body></html>\n"
    )


def _token_span(position: Position) -> str:
    text = html.escape(position.text)
    if position.p is None:
        return f'<span title="no soft target">{text}</span>'
    others = html.escape("\n".join(f"{choice.text}  {choice.p:.3f}" for choice in position.alternatives))
    return f'<span style="background: rgb(74 143 93 / {0.05 + 0.6 * position.p:.2f})" title="{others}">{text}</span>'


def _table_row(number: int, position: Position) -> str:
    token = f"<code>{html.escape(position.text)}</code>"
    if position.p is None:
        return f"<tr><td>{number}<td>{token}<td colspan=3 class=note>no soft target: the tokenizers cut the answer differently here</tr>"
    others = " ".join(
        f"<code{' class=own' if choice.text == position.text else ''}>{html.escape(choice.text)}</code>&nbsp;{choice.p:.3f}"
        for choice in position.alternatives
    )
    bar = f'<span class=bar style="width: {5 * position.p:.2f}rem"></span>'
    return f"<tr><td>{number}<td>{token}<td>{position.p:.3f} {bar}<td>{others}<td>{position.rest:.3f}</tr>"


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_PICTURE, _PICTURE))
    if small.width < _PICTURE // 2 and small.height < _PICTURE // 2:  # a tiny picture is shown pixel by pixel
        times = _PICTURE // 2 // max(small.size)
        small = (
            small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST) if times > 1 else small
        )
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
