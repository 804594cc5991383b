"""A trainer with checkpoints that can be trusted: sealed when complete, kept until the next one is sealed, loaded whole or not at all."""

from __future__ import annotations

import copy
import errno
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer

from phase2_student.runs.checkpoints import keep_newest, newest_whole, seal
from phase2_student.runs.files import give_usual_modes


class SealingTrainer(Trainer):
    """`transformers.Trainer` with sealed checkpoints; `TrainingArguments.save_total_limit` of them are kept."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # checkpoints are deleted here, after the new one is sealed; the arguments belong to the caller
        self.args: Any = copy.copy(self.args)
        self._keep = self.args.save_total_limit
        self.args.save_total_limit = None
        self._resumed: Path | None = None

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """The stock method; the checkpoint that it resumes from is not written again."""
        self._resumed = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write the stock checkpoint, seal it, and only then delete old ones."""
        directory = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
        if self._resumed is not None and directory.name == self._resumed.name:
            return  # no step was taken since: while it is written again, there might be no other
        if self.args.should_save:
            shutil.rmtree(directory, ignore_errors=True)  # left by an interrupted run
        self.accelerator.wait_for_everyone()
        with told_of_full_disk(directory, f"a checkpoint (training.save_total_limit is {self._keep})"):
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.write_state(directory)
                give_usual_modes(directory)
                seal(directory)
        if self.args.should_save and self._keep is not None:
            keep_newest(directory.parent, max(1, self._keep), step=self.state.global_step)

    def write_state(self, directory: Path) -> None:
        """Add what the stock trainer does not write to a checkpoint; process 0 calls it before the seal."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load every weight, or raise an error.

        The stock method looks for the module's own names in a file that has the names of the hub. It finds none of them, warns,
        and continues with the base weights.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        loaded, report = type(model).from_pretrained(
            resume_from_checkpoint, dtype=next(model.parameters()).dtype, output_loading_info=True
        )
        if report["missing_keys"] or report["unexpected_keys"]:
            names = sorted([*report["missing_keys"], *report["unexpected_keys"]])
            raise RuntimeError(
                f"{resume_from_checkpoint}: these are not the weights of this model: {', '.join(names[:3])}, ..."
            )
        model.load_state_dict(loaded.state_dict())


def checkpoint_to_resume(output_dir: Path, *, main: bool) -> str | None:
    """The newest complete checkpoint of a run. Process 0 reads the files, and reports checkpoints that it does not use."""
    from accelerate.utils import broadcast_object_list

    found = newest_whole(output_dir, lambda line: print(line, file=sys.stderr)) if main else None
    names = [None if found is None else str(found)]
    broadcast_object_list(names)
    return names[0]


@contextmanager
def told_of_full_disk(directory: Path, what: str) -> Iterator[None]:
    """Within it a directory is written; if the disk gets full, the part that was written is removed.

    Args:
        directory: it.
        what: it, in words.

    Raises:
        OSError: the disk is full; says what to do.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        shutil.rmtree(directory, ignore_errors=True)
        raise OSError(
            errno.ENOSPC,
            f"no space left for {what}; earlier checkpoints are complete: free some space and run the same command again",
            str(directory),
        ) from error


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch and safetensors wrap the error of the system
    return any(sign in str(error) for sign in ("No space left", "os error 28", "file write failed", "unexpected pos"))
