"""What an evaluation holds: the one declaration of the JSON that `fs-student eval` writes and every reader uses.

Fields are in the order in which they are written. A field without a default is always in the file; one with a default was added
later, or is left out if it was not measured. Unknown fields of a newer version are kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_serializer, model_validator

from storage.canonical import digest_of

Role = Literal["teacher", "student"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """The content as plain JSON, without fields that were never set."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class AnswerRecord(_Part):
    """One sample: question, true answer, the model's answer, and how right and how sure it was."""

    id: str
    key: str | None = None
    """Digest of the content of the sample's row; None in older files."""
    category: str | None
    environment: str | None
    question: str
    images: list[str]
    """Paths relative to the root of the data."""
    truth: str | None
    """The true answer; None if there is none."""
    answer: str
    exact: bool | None
    """None without a true answer, like `f1` and `anls`."""
    f1: float | None = None
    anls: float | None = None
    choice: bool | None = None
    """None if the question is not multiple choice."""
    vqa: float | None = None
    """VQA accuracy over several truths; None if the sample does not list them."""
    truths: list[str] = []
    """The answers of several people."""
    undecided: bool | None = None
    """Whether the answer to a multiple choice means none of the options, or more than one; `choice` is False then."""
    empty: bool
    tokens: int
    """Length of the answer, end of turn included."""
    confidence: float | None
    """Geometric mean of the tokens' probabilities; None if a logit was not finite."""
    nonfinite: bool
    """Whether a logit, or the KL to the teacher, was NaN or infinite."""
    cut: bool
    """Whether the answer reached the maximum length without an end of turn."""
    kl_sum: float | None = None
    """Sum of KL(teacher || student) over the answer positions, nats; None if it is not known or not finite."""
    agree: int | None = None
    """Number of answer positions at which the student's most likely token is the teacher's."""
    soft_positions: int | None = None
    """Answer positions with soft targets."""
    nll_sum: float | None = None
    """Negative log-likelihood of the true answer, nats; None if it is not known or not finite."""
    hard_positions: int | None = None
    """Answer positions with a label."""
    seconds: float | None = None
    """Time from the sample's files to the text, at batch 1; None if it was not timed."""

    @model_validator(mode="after")
    def _distance(self) -> Self:
        if (self.kl_sum, self.agree) != (None, None) and None in (self.agree, self.soft_positions):
            raise ValueError("kl_sum, agree and soft_positions belong together")
        if self.nll_sum is not None and self.hard_positions is None:
            raise ValueError("nll_sum and hard_positions belong together")
        return self


class Score(_Part):
    """The mean of a metric over samples, 0 to 1, with its 95% interval: Wilson's for a share, else a bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int | None = None
    """Number of samples that have the metric."""


class MetricScores(_Part):
    """Every metric over a group of samples; metrics that no sample has are left out."""

    exact: Score | None
    """None: no sample has a true answer."""
    f1: Score | None = None
    anls: Score | None = None
    choice: Score | None = None
    vqa: Score | None = None

    def known(self) -> dict[str, Score]:
        """The metrics that are not None, by name."""
        found = {"exact": self.exact, "f1": self.f1, "anls": self.anls, "choice": self.choice, "vqa": self.vqa}
        return {name: score for name, score in found.items() if score is not None}


class GroupedScores(_Part):
    """Scores over all samples, by category and by environment."""

    overall: MetricScores
    category: dict[str, MetricScores]
    environment: dict[str, MetricScores]

    def by(self, kind: Literal["category", "environment"]) -> dict[str, MetricScores]:
        """The scores by category, or by environment."""
        return self.category if kind == "category" else self.environment


class ThroughputRun(_Part):
    """The timing of one batch size."""

    batch: int
    samples: int
    seconds: float


class Throughput(_Part):
    """Samples per second by batch size. In the JSON the batch sizes are keys of their own: `{"1": 50.0, "best_batch": 1, "best": 50.0}`."""

    rates: dict[int, float]
    best_batch: int
    best: float

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, content: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(content, dict) and "rates" not in content:
            sizes = [key for key in content if str(key).isdecimal()]
            rest = {key: value for key, value in content.items() if key not in sizes}
            content = {"rates": {int(size): content[size] for size in sizes}, **rest}
        return handler(content)

    @model_serializer
    def _written(self) -> dict[str, float | int]:
        rates = {str(size): rate for size, rate in self.rates.items()}
        return {**rates, "best_batch": self.best_batch, "best": self.best}


class Concurrency(_Part):
    """Times of requests while several users ask, each again once answered; None if the batch did not fit into memory."""

    samples_per_second: float | None
    p50: float | None
    """Median seconds of a request."""
    p95: float | None
    seconds: list[float] = []
    """Seconds of each request."""


class InputSettings(_Part):
    """How samples were turned into inputs of a model."""

    origin: Literal["run", "recipe"]
    """Where the settings come from: the model's own run, or the recipe of the evaluation."""
    max_pixels: int | None
    """None: the processor's own limit."""
    system_prompt: str | None
    """The system prompt; None: the chat template's default."""
    turns: str | None = None
    """Which answers of a conversation its run trained on; None if that is not known."""
    chat_template: str
    """sha256 of the chat template."""


class ModelResult(_Part):
    """One model: what it is, what it costs, and one record per sample."""

    name: str
    role: Role
    weights: str | None = None
    """Digest of the weights' files."""
    dtype: str
    """`int8`, `nf4`, or the dtype of the weights."""
    parameters: int
    size_bytes: int
    """Size of the weights on disk."""
    load_seconds: float
    peak_memory_bytes: int | None
    """Peak above what was in use before the model was loaded; None if the system does not report it."""
    throughput: Throughput | None = None
    """None if nothing was timed."""
    throughput_runs: list[ThroughputRun] = []
    concurrency: dict[str, Concurrency]
    """By number of users."""
    energy_joules_per_answer: float | None
    answer_tokens: float | None = None
    """Mean length of the answers."""
    counts: dict[str, int] = {}
    """Number of answers that are empty, not finite or cut, and of undecided choices."""
    distance_unknown: str | None = None
    """Why the distance to the teacher is not known."""
    distance_targets: Literal["top_k", "tail_rank", "exact"] | None = None
    """What the distance was measured on: stored entries and the rest as one outcome (a lower bound), stored entries and a tail with a
    shape (an estimate), or whole distributions."""
    distance_digest: str | None = None
    """Digest of the teacher's targets that the distance was measured on; None if it is not known, and in older files."""
    preprocessing: InputSettings | None = None
    """How its inputs were prepared."""
    scores: GroupedScores
    samples: Annotated[list[AnswerRecord], Field(min_length=1)]
    identity: str | None = None
    """Digest of everything that the result depends on."""
    measured: str | None = None
    """When it was measured, ISO 8601."""

    @property
    def questions(self) -> list[str] | None:
        """Digests of what was asked, in their order, whatever the samples are called; None in older files."""
        keys = [record.key for record in self.samples]
        return (
            None
            if None in keys
            else [digest_of([key, record.question]) for key, record in zip(keys, self.samples, strict=True)]
        )

    def asked_as(self, other: ModelResult) -> bool:
        """Whether both were asked the same, in the same order: by content, or by the samples' ids if one is from an older file."""
        mine, theirs = self.questions, other.questions
        return self.sample_ids == other.sample_ids if mine is None or theirs is None else mine == theirs

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the samples, in their order."""
        return [record.id for record in self.samples]


class Goal(_Part):
    """How a student did on one goal; `got` and `passed` are None if a measurement is missing."""

    name: str
    model: str
    against: str
    """The teacher's name."""
    wanted: str
    got: float | None
    passed: bool | None


class EvaluationData(_Part):
    """The samples that were asked."""

    file: str
    samples: int
    """Number of answers that were asked for, without those of skipped rows."""
    rows: int | None = None
    """Number of rows that they belong to; None: the same number."""
    answered: int | None = None
    """Number of samples with a true answer; None: all."""
    skipped: list[str] = []
    """The reason for each sample that was skipped with `cache.on_error: skip`."""


class EvaluationSettings(_Part):
    """How every model was measured."""

    batch_size: int
    """Samples answered at once while the answers are scored."""
    max_new_tokens: int | None = None
    timed: int
    """Number of answers timed at batch 1; 0: nothing was timed."""
    warm_up: int
    repetitions: int
    batch_sizes: list[int] = []
    users: list[int] = []
    requests: int
    anls_threshold: float | None = None
    bootstrap_resamples: int | None = None
    device: str
    versions: dict[str, str] = {}


class Evaluation(_Part):
    """An evaluation: models side by side on the same samples, in the same order."""

    created: str
    """When it was written, ISO 8601."""
    data: EvaluationData
    settings: EvaluationSettings
    goals: Annotated[list[Goal], Field(alias="targets")]
    models: Annotated[list[ModelResult], Field(min_length=1)]
