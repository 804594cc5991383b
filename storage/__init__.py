"""The logit cache: arrays, bytes and files. Knows nothing of models."""

from storage.errors import CacheError, MissingSample, SkippedSample, SpecMismatch, TemperatureOutOfRange
from storage.plan import PlannedSample, PlannedUnit
from storage.reader import Cache, open_cache
from storage.targets import SampleTargets, Targets
from storage.temperature import at_temperature
from storage.writer import CacheWriter, UnitWriter, create_cache

__all__ = [
    "Cache",
    "CacheError",
    "CacheWriter",
    "MissingSample",
    "PlannedSample",
    "PlannedUnit",
    "SampleTargets",
    "SkippedSample",
    "SpecMismatch",
    "Targets",
    "TemperatureOutOfRange",
    "UnitWriter",
    "at_temperature",
    "create_cache",
    "open_cache",
]
