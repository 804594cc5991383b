"""Which weights are trained, in which number formats, and by which optimiser.

    check_weights(recipe, config)                    # what does not fit is refused before weights are loaded
    model = prepare_weights(model, recipe.student)   # freezes parts, or puts adapters in
    state = plain_state(model)                       # names and values of the stock model, adapters merged

Plain bfloat16 AdamW is not offered: at lr 1e-5 most of its steps are rounded to nothing (benchmarks/bf16_updates.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from firstsight.errors import RecipeError
from firstsight.families.parts import language_modules, meta_model, named_parts
from firstsight.recipe import LoraSection, Recipe, StudentSection
from phase2_student.runs.files import write_json
from phase2_student.training.packing import can_pack

_ADAPTER = "default"


def weights_dtype(section: StudentSection) -> torch.dtype:
    """The dtype in which the weights are loaded. Adapters are always float32."""
    if section.lora is not None:
        kept: torch.dtype = getattr(torch, section.dtype)
        return kept
    return torch.bfloat16 if section.precision == "bf16_kahan" else torch.float32


def check_weights(recipe: Recipe, config: Any) -> None:
    """Check `student.precision`, `student.freeze` and `student.lora` against the student's shape and `training`.

    Args:
        recipe: a recipe with a `training` section that was checked already.
        config: the student's transformers configuration.

    Raises:
        RecipeError: the student does not have a part or a module, or settings exclude each other.
    """
    section = recipe.student
    if section.precision == "bf16_kahan":
        _refuse_keys(
            recipe.training, "student.precision: bf16_kahan", ("optim", "optim_args", "fp16", "deepspeed", "fsdp")
        )
    elif section.lora is not None:
        _refuse_keys(recipe.training, "student.lora", ("fp16", "deepspeed", "fsdp"))
    if section.freeze or section.lora is not None or section.padding_free:
        laid_out = meta_model(config)
        if section.padding_free and not can_pack(laid_out):
            raise RecipeError(f"student.padding_free: is not supported for {config.model_type}; remove the key")
        prepare_weights(laid_out, section)


def _refuse_keys(training: dict[str, Any], way: str, keys: tuple[str, ...]) -> None:
    for key in keys:
        if training.get(key):
            raise RecipeError(f"training.{key}: cannot be combined with {way}; remove one of them")
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise RecipeError(f"{way} cannot be combined with FSDP; use DDP, or set student.precision: fp32_master")


def prepare_weights(model: Any, section: StudentSection, *, seed: int = 0) -> Any:
    """Freeze what is not trained, or add adapters.

    Args:
        model: the student.
        section: the recipe's `student` section.
        seed: seed of the adapters' initial values.

    Returns:
        The same model; with `lora` a `peft.PeftModel` around it.

    Raises:
        RecipeError: the student does not have a part or a module, or peft is not installed.
    """
    for part in section.freeze:
        frozen = [parameter for _, of, parameter in named_parts(model) if of == part]
        if not frozen:
            raise RecipeError(f"student.freeze: the student has no part {part!r} of its own")
        for parameter in frozen:
            parameter.requires_grad_(False)
    return model if section.lora is None else _with_adapters(model, section.lora, seed)


def _with_adapters(model: Any, lora: LoraSection, seed: int) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise RecipeError("student.lora: peft is not installed; pip install firstsight[lora]")
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    modules = dict(model.named_modules())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names: list[str] = []
    for target in lora.target_modules:
        hit = language_modules(model, target)
        if not hit:
            linear = {
                name.rsplit(".", 1)[-1]
                for name, module in modules.items()
                if isinstance(module, torch.nn.Linear) and language_modules(model, name)
            }
            raise RecipeError(
                f"student.lora.target_modules: the student's language model has no module {target!r}; its linear layers are "
                + ", ".join(sorted(name for name in linear if not name.isdigit()))
            )
        if any(modules[name] is end for name in hit for end in ends):
            raise RecipeError(
                f"student.lora.target_modules: {target!r} is the embedding or the head, which take no adapters: the loss "
                "projects with the head's own weight"
            )
        names += hit
    wanted = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    set_seed(seed)
    try:
        with warnings.catch_warnings():
            # peft asks transformers for a name that is deprecated
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return get_peft_model(model, wanted, adapter_name=_ADAPTER)
    except ValueError as error:
        raise RecipeError(f"student.lora: {' '.join(str(error).split())[:240]}") from None


def optimizer_class(section: StudentSection, arguments: Any) -> tuple[Any, dict[str, Any]] | None:
    """`optimizer_cls_and_kwargs` for the trainer; None: `training.optim` decides."""
    if section.precision != "bf16_kahan":
        return None
    from phase2_student.training.kahan import KahanAdamW8bit

    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return KahanAdamW8bit, {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon}


def precision_text(section: StudentSection, arguments: Any) -> str:
    """A run's number formats and optimiser, in words."""
    compute = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    if section.lora is not None:
        kept = f"float32 adapters of rank {section.lora.r} beside frozen {section.dtype} weights"
    elif section.precision == "bf16_kahan":
        kept, compute = "bfloat16 weights with Kahan's remainder, 8-bit AdamW", "bfloat16"
    else:
        kept = "float32 master weights"
    frozen = f"{' and '.join(section.freeze)} frozen, " if section.freeze else ""
    return f"{kept}, {frozen}computing in {compute}, saved as {section.dtype}"


def stock_model(model: Any) -> Any:
    """The transformers model: the one that peft wraps, or the model itself."""
    return model.get_base_model() if _is_adapted(model) else model


@torch.no_grad()
def plain_state(model: Any) -> dict[str, Tensor]:
    """The weights under the stock model's names. Adapters are merged into copies, so the model itself does not change."""
    if not _is_adapted(model):
        state: dict[str, Tensor] = model.state_dict()
        return state
    from peft.tuners.lora import LoraLayer

    stock = model.get_base_model()
    merged = {
        f"{name}.weight": module.get_base_layer().weight.float() + module.get_delta_weight(_ADAPTER).float()
        for name, module in stock.named_modules()
        if isinstance(module, LoraLayer)
    }
    kept = {
        name.replace(".base_layer.", "."): tensor for name, tensor in stock.state_dict().items() if ".lora_" not in name
    }
    return {name: merged.get(name, tensor) for name, tensor in kept.items()}


def save_adapter(model: Any, directory: Path) -> None:
    """Write the adapters separately, in peft's form; does nothing without adapters.

    Adapters are published, so if the base is a directory they name only its last part.
    """
    if _is_adapted(model):
        model.save_pretrained(directory)
        path = directory / "adapter_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        base = content.get("base_model_name_or_path")
        if base and Path(base).is_absolute():
            write_json(path, {**content, "base_model_name_or_path": Path(base).name})
        (directory / "README.md").unlink(missing_ok=True)  # peft's empty template, which names the directory


def _is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")
