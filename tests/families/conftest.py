"""Tiny checkpoints of all families, made once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import build
from PIL import Image

from firstsight.data.samples import Sample, load_samples


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a `model_type`; not to be changed."""
    root: Path = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, root / kind)
        return made[kind]

    return get


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Sample]]:
    """Samples of (images, question, answer); images of several sizes are drawn."""
    for name, size in (
        ("small.png", (40, 60)),
        ("wide.png", (150, 50)),
        ("tall.png", (50, 120)),
        ("large.png", (200, 180)),
    ):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / name)
    turned = Image.effect_noise((120, 50), 80).convert("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)

    def make(*questions: tuple[list[str], str, str | None], system: str | None = None) -> list[Sample]:
        lines = []
        for number, (images, text, answer) in enumerate(questions):
            content: list[dict[str, str]] = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
            messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": content})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            lines.append(json.dumps({"id": f"s{number}", "messages": messages, "images": images}))
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return load_samples(path, tmp_path)

    return make
