"""Samples: one line of a JSONL file in the `messages` + `images` form that TRL takes, checked and given its key.

    {"id": "...", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]},
                               {"role": "assistant", "content": [{"type": "text", "text": "..."}]}],
     "images": ["images/a.png"], "category": "...", "environment": "..."}

`frames` (with optional `times`, in seconds) may stand in place of `images`: frames of a video, in order.
`options` may list the texts of a multiple choice, in the order of their letters; they serve the evaluation alone.
A content may be a plain string; images without a place then stand before the first user message's text, as in TRL.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from firstsight.errors import DataError

MAX_IMAGE_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few KB of PNG can hold gigabytes of pixels."""

# our own cap is lower; for the whole process, because filters for a block are not for threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

ROLES = ("system", "user", "assistant")
_ON_ITS_SIDE = (5, 6, 7, 8)  # values of EXIF's orientation


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question, its images and, where there is one, its answer."""

    id: str
    prompt: tuple[dict[str, Any], ...]
    """Messages before the answer, each `{"role", "content": [parts]}` with parts `{"type": "image"}` or
    `{"type": "text", "text"}`."""
    answer: str | None
    """Text of the closing assistant message; None: no ground truth."""
    images: tuple[Path, ...]
    times: tuple[float, ...] | None
    """Seconds of the frames, where they are known."""
    category: str | None
    environment: str | None
    place: str
    """`file:line`, for messages."""
    options: tuple[str, ...] = ()
    """Texts of a multiple choice, A first; no part of the key: what the model sees is in the messages."""

    @property
    def question(self) -> str:
        """Text of the last user message."""
        users = [m for m in self.prompt if m["role"] == "user"]
        parts = users[-1]["content"] if users else ()
        return " ".join(part["text"] for part in parts if part["type"] == "text")

    @property
    def key(self) -> str:
        """The identity of the content: 64 hex digits, sha256 over the canonical messages, the bytes of the images and their times.

        Paths and token ids are not part of it: a moved file keeps its key, an edited sample gets another one.
        """
        content = {
            "prompt": self.prompt,
            "answer": self.answer,
            "images": [file_digest(path) for path in self.images],
            "times": self.times,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def open_images(self) -> list[Image.Image]:
        """The images as RGB, upright.

        Raises:
            DataError: a file that is missing, no image, damaged, or larger than `MAX_IMAGE_PIXELS`.
        """
        return [self.open_image(path) for path in self.images]

    def open_image(self, path: Path) -> Image.Image:
        """One of the images as RGB, upright. Raises as `open_images`."""
        with self._checked(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")

    def image_sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image, upright, from the files' headers."""
        sizes = []
        for path in self.images:
            with self._checked(path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation) in _ON_ITS_SIDE
                sizes.append((image.height, image.width) if turned else image.size)
        return sizes

    @contextmanager
    def _checked(self, path: Path) -> Iterator[Image.Image]:
        try:
            with Image.open(path) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise DataError(
                        f"{self.place}: image {path} has {image.width} x {image.height} pixels, more than "
                        f"{MAX_IMAGE_PIXELS:,}; scale it down"
                    )
                yield image
        except FileNotFoundError:
            raise DataError(f"{self.place}: image {path} is not there; check data.root and the row's path") from None
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.place}: image {path} cannot be decoded ({error}); replace the file") from None


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits; remembered while size and modification time stay the same."""
    status = path.stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16_384)
def _file_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_samples(path: Path, root: Path) -> list[Sample]:
    """Read and check a JSONL file; image paths are relative to `root` and stay under it.

    Raises:
        DataError: names file and line, and what is wrong with the row; a missing image is found here, before any model is loaded.
    """
    return list(iter_samples(path, root))


def check_files(paths: Iterable[Path], root: Path, *, progress: bool = False) -> int:
    """Check every row of data files and that its images are there; the number of rows. Raises as `load_samples`."""
    rows = (sample for path in paths for sample in iter_samples(path, root))
    return sum(1 for _ in tqdm(rows, desc="checking samples", unit=" sample", disable=not progress, leave=False))


def iter_samples(path: Path, root: Path) -> Iterator[Sample]:
    """`load_samples`, one sample at a time."""
    if not path.is_file():
        raise DataError(f"data file {path} is not there; check data.root and the file's name in the recipe")
    lines_of_ids: dict[str, int] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            sample = parse_line(line, root, place)
            if (before := lines_of_ids.setdefault(sample.id, number)) != number:
                raise DataError(f"{place}: id {sample.id!r} was used in line {before} already; ids must be unique")
            yield sample


def parse_line(line: str | bytes, root: Path, place: str) -> Sample:
    """The sample in one line of a data file; `place` names the line in messages. Raises as `load_samples`."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: not a JSON object ({error}); repair the line") from None
    return _parse_row(row, root, place)


def _parse_row(row: Any, root: Path, place: str) -> Sample:
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}")
    if not isinstance(row.get("id"), str | int):
        raise DataError(f"{place}: key 'id' must be a string, got {row.get('id')!r}")
    if "images" in row and "frames" in row:
        raise DataError(f"{place}: 'images' and 'frames' exclude each other; keep one of them")
    files = row.get("images", row.get("frames", []))
    if not isinstance(files, list):
        raise DataError(f"{place}: 'images' must be a list of paths, got {type(files).__name__}")
    images = tuple(image_path(file, root, place) for file in files)
    messages = _parse_messages(row.get("messages"), len(images), place)
    answer = None
    if messages[-1]["role"] == "assistant":
        answer = "".join(part["text"] for part in messages[-1]["content"])
        messages = messages[:-1]
        if not answer.strip():
            raise DataError(f"{place}: the answer is empty; remove the assistant message if there is no ground truth")
    if not any(message["role"] == "user" for message in messages):
        raise DataError(f"{place}: 'messages' has no user message before the answer")
    return Sample(
        id=str(row["id"]),
        prompt=tuple(messages),
        answer=answer,
        images=images,
        times=_parse_times(row.get("times"), len(images), place),
        category=_name(row.get("category")),
        environment=_name(row.get("environment")),
        place=place,
        options=_parse_options(row.get("options"), place),
    )


def image_path(file: Any, root: Path, place: str) -> Path:
    """A row's image under `root`. DataError: it is not there, or lies outside."""
    if not isinstance(file, str):
        raise DataError(f"{place}: an image must be a path relative to data.root, got {type(file).__name__}")
    path = root / file
    inside = os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
    if not inside:
        raise DataError(f"{place}: image {file!r} lies outside data.root ({root}); move it under it")
    if not path.is_file():
        raise DataError(f"{place}: image {path} is not there; check data.root and the row's path")
    return path


def _name(value: Any) -> str | None:
    return None if value is None else str(value)


def _parse_times(times: Any, count: int, place: str) -> tuple[float, ...] | None:
    if times is None:
        return None
    if not isinstance(times, list) or len(times) != count or not all(isinstance(t, int | float) for t in times):
        raise DataError(f"{place}: 'times' must list one number (seconds) per frame, {count} here, got {times!r}")
    return tuple(float(t) for t in times)


def _parse_options(options: Any, place: str) -> tuple[str, ...]:
    if options is None:
        return ()
    if isinstance(options, dict):  # {"A": "a mug", "B": "a bottle"}
        options = [options[letter] for letter in sorted(options)]
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise DataError(f"{place}: 'options' must list the texts of a multiple choice, A first, got {options!r}")
    if not 2 <= len(options) <= 26:
        raise DataError(f"{place}: 'options' must list 2 to 26 texts, got {len(options)}")
    return tuple(options)


def _parse_messages(messages: Any, images: int, place: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{place}: 'messages' must be a list of messages, got {messages!r}")
    parsed = [_parse_message(message, place) for message in messages]
    placed = sum(part["type"] == "image" for message in parsed for part in message["content"])
    if placed == 0 and images:
        first = next((m for m in parsed if m["role"] == "user"), None)
        if first is not None:
            first["content"] = [{"type": "image"}] * images + first["content"]
            placed = images
    if placed != images:
        raise DataError(
            f"{place}: the messages have places for {placed} images, the row lists {images}; make them equal"
        )
    if any(part["type"] == "image" for part in parsed[-1]["content"]) and parsed[-1]["role"] == "assistant":
        raise DataError(f"{place}: an answer cannot hold an image")
    return parsed


def _parse_message(message: Any, place: str) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise DataError(f"{place}: a message's role must be one of {', '.join(ROLES)}, got {role!r}")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, list):
        raise DataError(f"{place}: a message's content must be a string or a list of parts, got {content!r}")
    return {"role": role, "content": [_parse_part(part, place) for part in content]}


def _parse_part(part: Any, place: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image", "video_frame"):
        return {"type": "image"}
    raise DataError(f"{place}: a part must be {{'type': 'image'}} or {{'type': 'text', 'text': ...}}, got {part!r}")
