"""`firstsight data check` against a plain Pillow loop over the same images, and over rows of text alone.

    python -m benchmarks.data_check [--images 6000 --rows 100000 --repeats 3]

The images are JPEGs of the sizes of photographs, 200 to 1,600 pixels, made in a temporary directory. Check and loop take turns in
processes of their own, on one core; the medians of processor time and their ratio are printed. The loop only opens and decodes
every file. Memory is Python's peak above that of a check of a hundredth of the rows, divided by the number of the other rows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image

_TIMED = """
import sys, time, tracemalloc
from pathlib import Path
path, way = Path(sys.argv[1]), sys.argv[2]
from PIL import Image
from firstsight.data.check import check_data
from firstsight.data.source import DataSource
Image.preinit()
if way == "memory":
    tracemalloc.start()
begin = time.process_time()
if way == "loop":
    for file in sorted((path.parent / "images").iterdir()):
        with Image.open(file) as picture:
            picture.load()
else:
    report = check_data([DataSource(files=(path,), root=path.parent)], images=True)
    assert not report.lost, report.faults[0]
print(time.process_time() - begin, tracemalloc.get_traced_memory()[1])
"""


def make_images(directory: Path, count: int) -> Path:
    """`count` JPEGs that look like photographs to a decoder, and a JSONL file with a question about each."""
    draw = np.random.default_rng(0)
    (directory / "images").mkdir()
    rows = []
    for number in range(count):
        longer = int(200 * 8 ** draw.random())
        shorter = int(longer * draw.uniform(0.5, 1))
        coarse = draw.integers(0, 256, (shorter // 8 + 1, longer // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((longer, shorter), Image.Resampling.BICUBIC)
        picture.save(directory / "images" / f"{number:06d}.jpg", quality=90)
        rows.append(row(number, [f"images/{number:06d}.jpg"]))
    return write(directory / "images.jsonl", rows)


def row(number: int, images: list[str]) -> dict[str, object]:
    """A row of the form `messages`."""
    question = (
        f"What am I holding in my left hand while I stand beside table number {number}, and what is to the right of it?"
    )
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"A red mug, and plate {number}."},
    ]
    return {"messages": messages, "images": images, "category": f"category {number % 7}"}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def timed(path: Path, way: str) -> tuple[float, float]:
    """Seconds of processor time, and the peak of Python's memory in bytes if `way` asks for it."""
    done = subprocess.run([sys.executable, "-c", _TIMED, str(path), way], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak


@click.command()
@click.option("--images", default=6000, show_default=True, help="Images of the comparison with Pillow.")
@click.option("--rows", default=100_000, show_default=True, help="Rows of text.")
@click.option("--repeats", default=3, show_default=True, help="How often check and loop take turns.")
def main(images: int, rows: int, repeats: int) -> None:
    """Time and memory of a check of data."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = make_images(directory, images)
        timed(path, "loop")  # the files come into the page cache
        turns = [(timed(path, "check")[0], timed(path, "loop")[0]) for _ in range(repeats)]
        check, loop = (statistics.median(each) for each in zip(*turns, strict=True))
        ratio = statistics.median(one / other for one, other in turns)
        print(f"{images:,} images: check {check:.2f} s, plain Pillow loop {loop:.2f} s: {ratio:.3f} x")
        many = write(directory / "rows.jsonl", [row(number, []) for number in range(rows)])
        few = write(directory / "few.jsonl", [row(number, []) for number in range(rows // 100)])
        seconds = statistics.median(timed(many, "check")[0] for _ in range(repeats))
        grown = timed(many, "memory")[1] - timed(few, "memory")[1]
        print(f"{rows:,} rows of text: {rows / seconds:,.0f} rows/s, {grown / (rows - rows // 100):.0f} bytes a row")


if __name__ == "__main__":
    main()
