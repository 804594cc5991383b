"""Recipes: one YAML file that describes a run of both phases.

    recipe = load_recipe(Path("recipe.yaml"), ["loss.alpha=0.5", "training.learning_rate=3e-5"])

Relative paths are relative to the recipe's directory. An unknown key is an error that names the nearest known one.
Nothing here imports torch: a typo is found within a second. The `training` section holds `transformers.TrainingArguments`
by name and is checked by `check_training`, which imports them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from firstsight.data.section import DataSection as DataSection
from firstsight.data.source import DataSource
from firstsight.errors import ModelError, RecipeError
from firstsight.recipe_yaml import RecipeLoader, Section, apply_override, nearest
from firstsight.secrets import secret_places


class TeacherSection(Section):
    """The frozen model that is run once."""

    model: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Directory or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    quantization: Literal["int8", "nf4", "none"] = "int8"
    """`int8` and `nf4` by bitsandbytes."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Compute type. float16 overflows are on record for the Qwen2-VL family."""
    max_pixels: Annotated[int, Field(gt=0)] | None = None
    """Images are scaled down to at most this many pixels; None: the processor's own limit."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device_map: str | None = None
    """`auto`, `cpu`, `cuda:0`, ...; None: the first GPU where there is one."""
    batch_tokens: Annotated[int, Field(gt=0)] = 16_384
    """Tokens of one forward pass, padding and images included. LLM.int8 results depend on it, so the cache is bound to it."""
    trust_remote_code: bool = False


class LoraSection(Section):
    """Low-rank adapters, by peft: small matrices are trained beside frozen weights, and merged into them when it is saved."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The adapters' output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Ends of module names; the default is every linear layer of a language model's blocks."""


class StudentSection(Section):
    """The model that is trained."""

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Directory or hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the saved weights, and of weights that LoRA leaves as they are."""
    precision: Literal["fp32_master", "bf16_kahan"] = "fp32_master"
    """How the trained weights are kept. `fp32_master`: in float32, 16 bytes per weight with gradient and AdamW's state.
    `bf16_kahan`: in bfloat16 with a remainder for what that cannot hold, stepped by 8-bit AdamW, 8 bytes per weight."""
    freeze: tuple[Literal["vision", "projector", "embedding"], ...] = ()
    """Parts that are not trained: the vision tower, the layer between it and the language model, the embedding with a
    head tied to it."""
    lora: LoraSection | None = None
    """Train adapters instead of the weights; null: train the weights."""
    max_pixels: Annotated[int, Field(gt=0)] | None = None
    """Images are scaled down to at most this many pixels; None: the processor's own limit."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    padding_free: bool = False
    """Put the samples of a micro-batch into one row without padding; for `flash_attention_2`. Other attention gives the same
    result and pays for the whole row's square."""
    trust_remote_code: bool = False


_UNITS = {
    "": 1,
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)},
}


def _bytes(value: Any) -> Any:
    """A number of bytes from text such as `512 MiB` or `2 GB`; anything else as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("must be a number of bytes, or a size such as 512 MiB or 2 GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


class CacheSection(Section):
    """The cache of soft targets."""

    path: str = "cache.zarr"
    """Directory, or s3:// gs:// az:// prefix."""
    top_k: Annotated[int, Field(ge=2, le=65_535)] = 64
    """Stored entries per answer position. The answer's own token is one of them, the teacher's most likely one another."""
    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0, 1.5, 2.0, 4.0)
    """Node temperatures at which the mass of the tail is stored; training may use any temperature between them."""
    unit_positions: Annotated[int, Field(gt=0)] = 4096
    """Answer positions of one unit of work."""
    on_error: Literal["stop", "skip"] = "stop"
    """`skip`: a sample that cannot be dumped is recorded as skipped, with the reason, and the dump goes on."""
    generate_missing: bool = False
    """The teacher answers the samples that have no answer; training applies no hard-label loss to them."""
    generate_max_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest generated answer, end of turn included."""
    generate_temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: greedy; else the answers are sampled at this temperature."""
    generate_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of sampled answers."""
    memory: Annotated[int, BeforeValidator(_bytes), Field(gt=0)] = 256 * 2**20
    """Bytes of decoded units that a training or an evaluation keeps in memory, in each of its processes: a whole number, or a
    size such as `512 MiB`."""
    scratch: Path | None = None
    """Local directory for decoded units, shared by all processes on a machine; relative to the recipe. For a shuffled pass over
    a cache that is much larger than `memory`, or that lies in a bucket. null: none."""

    @field_validator("temperatures")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("must be in ascending order, each once")
        if value[0] > 1.0:
            raise ValueError("must begin at 1 or below: the stored log-probabilities are those of T = 1")
        return value


_BETAS = {"skewed_kl": 0.1, "js": 0.5}
"""Divergences that have a `loss.beta`, and its default."""


class LossSection(Section):
    """The distillation loss: alpha * divergence at a temperature + (1 - alpha) * cross-entropy."""

    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Within the range of cache.temperatures."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Weight of the divergence; 0: hard labels only."""
    divergence: Literal["forward_kl", "reverse_kl", "skewed_kl", "js", "tv"] = "forward_kl"
    """What is minimised between teacher p and student q. `forward_kl`: KL(p || q); `reverse_kl`: KL(q || p); `skewed_kl`:
    KL(p || beta p + (1 - beta) q); `js`: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; `tv`: half the
    sum of |p - q|. On a top_k cache that of the stored entries and the rest as one outcome, a lower bound."""
    beta: Annotated[float | None, Field(validate_default=True)] = None
    """Between 0 and 1, of `skewed_kl` (default 0.1) and `js` (default 0.5); the others have none."""
    tail: Literal["bucket", "renormalize", "none"] = "bucket"
    """What stands for the entries that are not stored."""

    @field_validator("beta")
    @classmethod
    def _beta_of_the_divergence(cls, value: float | None, info: ValidationInfo) -> float | None:
        divergence = info.data.get("divergence")
        if value is None or divergence is None:  # a divergence that does not exist is reported by its own field
            return _BETAS.get(str(divergence))
        if divergence not in _BETAS:
            raise ValueError(f"{divergence} has no beta; remove the key, or take one that has it: {', '.join(_BETAS)}")
        if not 0 < value < 1:
            ends = {"skewed_kl": "forward_kl is its limit at 0", "js": "forward_kl and reverse_kl stand for 0 and 1"}
            raise ValueError(f"must lie between 0 and 1, both excluded ({ends[divergence]})")
        return value


class Recipe(Section):
    """A run of both phases."""

    teacher: TeacherSection = TeacherSection()
    student: StudentSection = StudentSection()
    data: DataSection = DataSection()
    cache: CacheSection = CacheSection()
    loss: LossSection = LossSection()
    training: dict[str, Any] = Field(default_factory=dict)
    """`transformers.TrainingArguments` by name."""
    directory: Path = Field(default=Path(), exclude=True)
    """Directory of the recipe file."""

    @model_validator(mode="after")
    def _temperature_within_nodes(self) -> Recipe:
        low, high = self.cache.temperatures[0], self.cache.temperatures[-1]
        if not low <= self.loss.temperature <= high:
            raise PydanticCustomError(
                "temperature_range",
                "loss.temperature: must lie within cache.temperatures, {low} to {high}, got {got}",
                {"low": f"{low:g}", "high": f"{high:g}", "got": f"{self.loss.temperature:g}"},
            )
        return self

    def source(self, split: Literal["train", "validation"]) -> DataSource:
        """The files of a split and how their rows are to be understood."""
        data = self.data
        given = data.train if split == "train" or data.share else data.validation
        return DataSource(
            files=tuple(
                self.data_root / path.expanduser() for path in (given if isinstance(given, tuple) else (given,))
            ),
            root=self.image_root,
            format=data.format,
            columns=data.columns,
            ignore_columns=frozenset(data.ignore_columns),
            share=data.share,
            part=split,
        )

    def sources(self) -> list[DataSource]:
        """Both splits, training first."""
        return [self.source("train"), self.source("validation")]

    @property
    def data_root(self) -> Path:
        """Directory of the data files."""
        return self._path(self.data.root)

    @property
    def image_root(self) -> Path:
        """Directory that the rows' image paths are relative to."""
        return self.data_root if self.data.image_root is None else self._path(self.data.image_root)

    def _path(self, path: Path) -> Path:
        """A path of the recipe: relative to its directory, `~` expanded."""
        return self.directory / path.expanduser()

    @property
    def cache_location(self) -> str:
        """Directory or URL of the cache."""
        return self.cache.path if "://" in self.cache.path else str(self._path(Path(self.cache.path)))

    @property
    def cache_scratch(self) -> Path | None:
        """Directory for decoded units of the cache."""
        scratch = self.cache.scratch
        return None if scratch is None else self._path(scratch)

    @property
    def output_dir(self) -> Path:
        """Directory of the training run."""
        return self._path(Path(str(self.training.get("output_dir", "runs/student"))))

    @model_validator(mode="after")
    def _one_way_to_train(self) -> Recipe:
        student = self.student
        if student.lora is not None and (student.freeze or student.precision != "fp32_master"):
            key = "freeze" if student.freeze else "precision"
            raise PydanticCustomError(
                "lora",
                "student.{key}: does not go with student.lora, which freezes everything but float32 adapters; remove one of them",
                {"key": key},
            )
        return self

    def model_source(self, section: TeacherSection | StudentSection) -> str:
        """A directory as a path, else the hub id.

        Raises:
            ModelError: the name can only be a directory, and the directory is not there.
        """
        local = (self.directory / Path(section.model).expanduser()).resolve()
        if local.is_dir():
            return str(local)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", section.model) or section.model.startswith((".", "~")):
            kind = "teacher" if isinstance(section, TeacherSection) else "student"
            raise ModelError(f"{kind}.model: directory {local} is not there; give a directory or a hub id")
        return section.model

    def dump(self) -> dict[str, Any]:
        """The recipe as plain YAML types, defaults included."""
        return self.model_dump(mode="json")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides, check it.

    Raises:
        RecipeError: names the file and the key, what was expected and what was found.
    """
    if not path.is_file():
        raise RecipeError(f"recipe {path} is not there")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected sections such as `teacher:`, got {type(content).__name__}")
    for override in overrides:
        apply_override(content, override)
    return load_recipe_content(content, directory=path.resolve().parent, name=str(path))


def load_recipe_content(content: dict[str, Any], *, directory: Path, name: str) -> Recipe:
    """Check a recipe that is no file.

    Args:
        content: sections by name.
        directory: relative paths are relative to it.
        name: for messages.

    Raises:
        RecipeError: names the key, what was expected and what was found.
    """
    content = {key: value for key, value in content.items() if key != "directory"}
    if secret := next(secret_places(content), None):
        raise RecipeError(
            f"{name}: {secret}: looks like a secret, and a recipe is written into runs, reports and published folders; remove it, and "
            "give it to the program that needs it by the environment (HF_TOKEN, AWS_SECRET_ACCESS_KEY, ...)"
        )
    try:
        return Recipe.model_validate({**content, "directory": directory})
    except ValidationError as error:
        raise RecipeError(f"{name}: {_first_error(error)}") from None


def check_training(training: dict[str, Any]) -> None:
    """Check the names of the `training` section against `transformers.TrainingArguments` (imports them: seconds).

    Raises:
        RecipeError: an unknown name, with the nearest known one.
    """
    import dataclasses

    from transformers import TrainingArguments

    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for name in training:
        if name not in known:
            raise RecipeError(f"training.{name}: no such key in TrainingArguments{nearest(name, known)}")


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    dotted = ".".join(place)
    if first["type"] == "extra_forbidden":
        owner: Any = Recipe
        for part in place[:-1]:
            owner = _section(owner.model_fields[part].annotation)
        known = [name for name in owner.model_fields if name != "directory"]
        return f"{dotted}: no such key{nearest(place[-1], known)}"
    message = first["msg"].removeprefix("Value error, ")
    if not place:
        return message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def _section(annotation: Any) -> Any:
    """The section class of a field that holds one, or one or nothing."""
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
