"""Loading: processors, the frozen teacher, the student; and the backbone without its head.

Every path that takes a hub id takes a directory as well. Weights come from safetensors only, and no code from a model's
directory is run unless the recipe says so.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor

from firstsight.data.images import file_digest
from firstsight.errors import ModelError
from firstsight.families import family_of, known_families
from firstsight.models.quantization import (
    Quantization,
    check_stored,
    compute_in,
    keep_plain_where_packing_fails,
    quantization_config,
    silence,
    stored_quantization,
)
from firstsight.models.weight_files import cannot_be_loaded, check_fit, check_weight_files, without_report
from firstsight.recipe import Recipe, StudentSection, TeacherSection

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]
_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""What `teacher.device_map` may be besides a device."""


def resolve_directory(recipe: Recipe, section: TeacherSection | StudentSection, *, weights: bool = True) -> Path:
    """The model's directory; a hub id is downloaded first, or found in the local cache.

    Args:
        recipe: relative directories are relative to it.
        section: `recipe.teacher` or `recipe.student`.
        weights: False: only configuration and tokenizer are needed.

    Raises:
        ModelError: the directory was not found, the hub cannot be reached, or there are no safetensors that can be read, or a
            teacher is stored in another quantisation than the recipe's.
    """
    source = recipe.model_source(section)
    kind = kind_of(section)
    directory = Path(source)
    if not directory.is_absolute():  # a hub id, also where the working directory has a folder of that name
        directory = _download(source, section.revision, weights, kind)
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{kind}.model: {directory} has no config.json; give the directory of a transformers checkpoint"
        )
    if weights and not any(directory.glob("*.safetensors")):
        raise ModelError(f"{kind}.model: {directory} has no .safetensors file; weights are read from safetensors only")
    if isinstance(section, TeacherSection):
        check_stored(directory, section)  # a student may be stored quantised where it is not trained
    if weights:
        check_weight_files(directory)
    return directory


def _download(source: str, revision: str | None, weights: bool, kind: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{kind}.model: {source!r} is neither a directory nor reachable on the hub ({reason})"
        ) from None


def load_processor(directory: Path, section: TeacherSection | StudentSection) -> Any:
    """The model's processor (of a text model: its tokenizer), with the section's `max_pixels` applied.

    Raises:
        ModelError: an unknown family, no usable processor, or a `max_pixels` that the family cannot keep.
    """
    config = load_config(directory, section)
    family = family_of(config, f"{kind_of(section)}.model: {directory}")
    try:
        processor = family.load_processor(directory, config, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"{directory}: the processor cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from None
    if section.max_pixels is not None:
        family.limit_pixels(processor, section.max_pixels, f"{kind_of(section)}.max_pixels")
    return processor


def kind_of(section: TeacherSection | StudentSection) -> Literal["teacher", "student"]:
    """The name of a section in the recipe."""
    return "teacher" if isinstance(section, TeacherSection) else "student"


def load_config(directory: Path, section: TeacherSection | StudentSection) -> Any:
    """The model's configuration; ModelError for one that transformers does not know."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{kind_of(section)}.model: {directory}: transformers cannot read config.json "
            f"({' '.join(str(error).split())[:160]}); supported are {known_families()}"
        ) from None


def head_rows(config: Any) -> int:
    """V, rows of the head, padding included."""
    return int(config.get_text_config().vocab_size)


def max_positions(config: Any) -> int | None:
    """The longest sequence that the model was made for, in tokens; None if the configuration does not say."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found


def default_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def hide_bars() -> None:
    """Loading and saving show no bars from now on."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def load_teacher(directory: Path, section: TeacherSection) -> Any:
    """The frozen teacher, quantised as the recipe says, in eval mode.

    Raises:
        ModelError: the weights cannot be loaded, or not onto `device_map`, or are stored in another quantisation.
    """
    _check_device(section.device_map)
    check_stored(directory, section)
    options: dict[str, Any] = {}
    stored = stored_quantization(directory) is not None
    if stored:
        silence()
    elif section.quantization != "none":
        options["quantization_config"] = quantization_config(section.quantization, getattr(torch, section.dtype))
    model = _load(directory, section, device_map=section.device_map or str(default_device()), **options)
    if stored:
        compute_in(model, getattr(torch, section.dtype))
    model.requires_grad_(False)
    model.eval()
    return model


def _check_device(name: str | None) -> None:
    """Raise ModelError for a `teacher.device_map` that is not a device of this machine; words such as `auto` are transformers'."""
    if name is None or name in _PLACEMENTS:
        return
    try:
        torch.empty(1, device=name).tolist()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        gpus = torch.cuda.device_count()
        raise ModelError(
            f"teacher.device_map: {name} is not a device of this machine, which has {gpus or 'no'} "
            f"{'GPU' if gpus == 1 else 'GPUs'} that torch can use ({' '.join(str(error).split())[:120]}); use cpu, "
            f"cuda:NUMBER or {', '.join(_PLACEMENTS)}, or remove the key"
        ) from None


def load_student(directory: Path, section: StudentSection, *, dtype: torch.dtype) -> Any:
    """The student with weights of `dtype`, on the CPU: the trainer places it. Raises ModelError for quantised ones, too."""
    check_stored(directory, section)
    hide_bars()  # it loads and saves in seconds, and its bars would break the training's
    return _load(directory, section, dtype=dtype)


def load_quantized(directory: Path, section: StudentSection) -> Any:
    """A student whose weights are quantised in its directory (`fs-student export`), on the default device."""
    silence()
    # what is not quantised keeps the type it has in the directory: scales and norms of two types do not work together
    return _load(directory, section, dtype="auto", device_map=str(default_device()))


def quantize(directory: Path, section: StudentSection, kind: Quantization) -> Any:
    """A student quantised while it is loaded, on the default device."""
    config = quantization_config(kind, getattr(torch, section.dtype))
    return _load(directory, section, device_map=str(default_device()), quantization_config=config)


def _load(directory: Path, section: TeacherSection | StudentSection, **options: Any) -> Any:
    """The model in a directory, every weight of it from there. Raises ModelError."""
    check_weight_files(directory)
    load_class = family_of(load_config(directory, section), str(directory)).load_class()
    options.setdefault("dtype", getattr(torch, section.dtype))
    try:
        with without_report() as tables:
            model, report = load_class.from_pretrained(
                directory,
                attn_implementation=section.attn_implementation,
                use_safetensors=True,
                trust_remote_code=section.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused here, by name
                **options,
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise cannot_be_loaded(directory, error, tables) from error
    check_fit(directory, model, report)
    keep_plain_where_packing_fails(model)
    return model


def save_weights(model: Any, directory: Path, dtype: torch.dtype, weights: dict[str, Tensor] | None = None) -> None:
    """Write weights rounded to `dtype` and the configuration; weights that are tied are written once.

    If a model is sharded over processes, all of them take part: the first calls this, the others call `gather_weights`.

    Args:
        model: of transformers.
        directory: to fill.
        dtype: of the file.
        weights: by name, instead of the model's own.
    """
    rounded: dict[int, Tensor] = {}
    state = {}
    for name, tensor in (model.state_dict() if weights is None else weights).items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        state[name] = rounded.setdefault(own.data_ptr(), _whole(tensor.detach()).to("cpu", dtype))
    model.save_pretrained(directory, state_dict=state)
    config = type(model.config).from_pretrained(directory)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        part.dtype = dtype
    config.save_pretrained(directory)


def gather_weights(model: Any) -> None:
    """What the other processes call while the first is in `save_weights`."""
    for tensor in model.state_dict().values():
        _whole(tensor.detach())


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_digest(directory: Path) -> str:
    """sha256 over the digests of all safetensors files in name order, 64 hex digits."""
    files = sorted(directory.glob("*.safetensors"))
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(file_digest, files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; a GPU gets it through pinned memory, so that the host does not wait for the GPU's current work."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def backbone_states(model: Any, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """Hidden states at the answer positions; no logits are made.

    Args:
        model: with a head (`ForConditionalGeneration`).
        inputs: of `prompting.collate`.
        rows: int64 [N], from `prompting.answer_index`.
        columns: int64 [N], likewise.

    Returns:
        [N, D] in the model's dtype.
    """
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    states: Tensor = hidden[rows.to(hidden.device), columns.to(hidden.device)]
    return states
