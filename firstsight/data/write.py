"""Rows of any form written as JSONL in the form `messages`, with their images beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from firstsight.data.forms.parts import MARK
from firstsight.data.images import FetchedImage, ImageSource, InlineImage, image_digest, opened
from firstsight.data.sample import Sample
from firstsight.data.samples import iter_samples
from firstsight.data.source import DataSource
from firstsight.errors import DataError

IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What `convert` wrote."""

    rows: int
    images: int
    """Different images."""
    literal_marks: bool
    """Whether a text contains a literal `<image>` or similar, so that the file must be read with `data.format: trl`."""


def convert(source: DataSource, file: Path, *, progress: bool = False) -> Converted:
    """Write `file`, and its images into `images` beside it, each once and named by its content. The samples keep their keys.

    Raises:
        DataError: a row that cannot be read; `file` exists.
    """
    if file.exists():
        raise DataError(f"{file} exists; give another name, or delete it")
    directory = file.parent / IMAGES
    directory.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    partial = file.with_name(f"{file.name}.partial")
    rows = 0
    literal = False
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        for sample in tqdm(iter_samples(source), desc="converting", unit=" sample", disable=not progress, leave=False):
            images = [_written(image, sample, directory, names) for image in sample.images]
            out.write(json.dumps(canonical_row(sample, images), ensure_ascii=False) + "\n")
            rows += 1
            literal = literal or any(
                part["type"] == "text" and MARK.search(part["text"])
                for message in sample.messages
                for part in message["content"]
            )
    partial.rename(file)
    return Converted(rows=rows, images=len(names), literal_marks=literal)


def canonical_row(sample: Sample, images: list[str]) -> dict[str, Any]:
    """A sample in the form `messages`, with its images as they are named there."""
    messages = [{"role": message["role"], "content": list(message["content"])} for message in sample.messages]
    row: dict[str, Any] = {"id": sample.id, "messages": messages}
    if images:
        row["images" if sample.times is None else "frames"] = images
    for name in ("times", "category", "environment"):
        if (value := getattr(sample, name)) is not None:
            row[name] = value
    for name, texts in (("options", sample.options), ("answers", sample.truths)):
        if texts:
            row[name] = list(texts)
    return row


def _written(image: ImageSource, sample: Sample, directory: Path, names: dict[str, str]) -> str:
    digest = image_digest(image)
    if digest not in names:
        with opened(image, sample.place) as picture:
            kind = picture.format or ""
        suffix = next((ending for ending, name in Image.registered_extensions().items() if name == kind), "")
        suffix = {"JPEG": ".jpg"}.get(kind, suffix)
        path = directory / f"{digest[:32]}{suffix}"
        if isinstance(image, InlineImage):
            path.write_bytes(image.data)
        else:
            shutil.copyfile(image.path if isinstance(image, FetchedImage) else image, path)
        names[digest] = f"{IMAGES}/{path.name}"
    return names[digest]
