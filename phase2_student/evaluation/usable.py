"""The samples that every model of an evaluation can take; with `cache.on_error: skip` the others are left out and named."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from firstsight.data.samples import Sample, load_samples
from firstsight.errors import DataError
from firstsight.prompting import Prompter
from firstsight.recipe import Recipe
from storage.wording import counted


def usable_samples(
    recipe: Recipe, prompters: Sequence[Prompter], *, limit: int | None, progress: bool
) -> tuple[list[Sample], list[str]]:
    """The validation samples that all models can take, and why each of the others cannot be used. Prepares every image for each model.

    Args:
        recipe: the recipe of the evaluation.
        prompters: the models' prompters.
        limit: use only the first samples, this many.
        progress: show a bar.

    Raises:
        DataError: a model cannot take a sample and the recipe does not skip such samples, or no sample is left.
    """
    source = recipe.source("validation")
    taken: list[Sample] = []
    left_out: list[str] = []
    samples = load_samples(source, left_out=left_out)
    skipped = [recipe.without_roots(reason) for reason in left_out]
    for sample in tqdm(samples, desc="checking samples", unit=" sample", disable=not progress, leave=False):
        if len(taken) == limit:
            break
        try:
            for prompter in prompters:
                prompter.check_length(sample, prompter.sample_tokens(sample))
                if sample.images:
                    prompter.opened_pictures(sample)
                for asked in sample.asked() if recipe.data.turns == "all" else ():
                    prompter.prompt_text(asked)
        except DataError as error:
            if recipe.cache.on_error == "stop":
                raise DataError(f"{error}; or set cache.on_error: skip to leave such samples out") from None
            skipped.append(recipe.without_roots(str(error)))
            continue
        taken.append(sample)
    if not taken:
        raise DataError(f"{source}: none of the {counted(len(skipped), 'sample')} can be used; the first: {skipped[0]}")
    return taken, skipped
