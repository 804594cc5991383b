"""The logit cache: arrays, bytes and files. Knows nothing of models."""

from storage.errors import CacheError, MissingSample, SkippedSample, SpecMismatch, TemperatureOutOfRange, WrongTargets
from storage.exact import ExactCache, open_exact_cache
from storage.head.content import HeadContent
from storage.plan import PlannedSample, PlannedUnit
from storage.reader import Cache, open_cache
from storage.targets import ExactSample, ExactTargets, SampleTargets, Targets, Turn
from storage.temperature import at_temperature
from storage.writer import CacheWriter, UnitWriter, create_cache

__all__ = [
    "Cache",
    "CacheError",
    "CacheWriter",
    "ExactCache",
    "ExactSample",
    "ExactTargets",
    "HeadContent",
    "MissingSample",
    "PlannedSample",
    "PlannedUnit",
    "SampleTargets",
    "SkippedSample",
    "SpecMismatch",
    "Targets",
    "TemperatureOutOfRange",
    "Turn",
    "UnitWriter",
    "WrongTargets",
    "at_temperature",
    "create_cache",
    "open_cache",
    "open_exact_cache",
]
