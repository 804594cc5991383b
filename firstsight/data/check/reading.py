"""The pass over the rows of a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tqdm import tqdm

from firstsight.data.check.report import DataReport
from firstsight.data.compact import NumberSet
from firstsight.data.images import as_shown, held, image_digest, opened, upright_size
from firstsight.data.sample import Sample
from firstsight.data.samples import SampleFiles
from firstsight.data.source import DataSource, Turns
from firstsight.data.summary import DataSummary
from firstsight.errors import DataError, PictureError

Judge = Callable[[str, Sample, bool], int]
"""(split, sample, whether no row before it has its content) -> tokens of the sample; DataError if a model refuses it."""


def check_data(
    sources: Sequence[DataSource],
    *,
    judge: Judge | None = None,
    turns: Turns = "all",
    images: bool = True,
    progress: bool = False,
) -> DataReport:
    """Read every row and decode every image once.

    Args:
        sources: the splits, training first.
        judge: checks a sample against the models; called if the row and its images are good.
        turns: which assistant messages are answers.
        images: decode the images; else only their headers are read.
        progress: show a bar.
    """
    report = DataReport(summary=DataSummary(turns=turns), tokens=judge is not None, decoded=images)
    seen, bad = NumberSet(), dict[int, DataError]()
    with tqdm(desc="checking samples", unit=" sample", disable=not progress, leave=False) as bar:
        for source in sources:
            try:
                files = SampleFiles(source, report.summary.columns)
            except DataError as error:
                if source.tells_faults:
                    report.row_fault(error)
                continue
            for located in files.located(partial(_fault_of_row, report, source)):
                bar.update()
                sample = located.sample
                report.add_texts(sample)
                try:
                    at_hand = sample
                    if images and sample.images:
                        at_hand = replace(sample, images=tuple(held(image, sample.place) for image in sample.images))
                    new = report.summary.add(source.part, at_hand)
                    _check_images(at_hand, report, seen, bad, decode=images)
                    if turns == "all":
                        sample.check_answers()
                    if judge is not None:
                        report.lengths.append(judge(source.part, sample, new))
                except DataError as error:
                    report.fault(error)
            report.repeated_ids += files.repeated_ids
    return report


def _fault_of_row(report: DataReport, source: DataSource, error: DataError) -> None:
    """Record a row that can be left out like a sample, or one that cannot be used at all."""
    if source.skip and isinstance(error, PictureError):
        report.fault(error)
    else:
        report.row_fault(error)


def _check_images(
    sample: Sample, report: DataReport, seen: NumberSet, bad: dict[int, DataError], *, decode: bool
) -> None:
    for image in sample.images:
        mark = int(image_digest(image)[:16], 16)
        if mark in seen:
            if mark in bad:
                raise DataError(f"{sample.place}: image {image} cannot be used: {bad[mark]}")
            continue
        seen.add(mark)
        try:
            with opened(image, sample.place) as picture:
                several = getattr(picture, "is_animated", False)
                size = upright_size(picture)
                if decode:
                    # of a JPEG every byte is read and decoded, but only an eighth of the rows and columns is produced
                    picture.draft(picture.mode, (1, 1))
                    as_shown(picture)
        except DataError as error:
            bad[mark] = error
            raise
        report.add_picture(size, several=several)
