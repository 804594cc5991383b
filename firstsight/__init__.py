"""FirstSight: offline distillation of vision-language models. This is the Python interface of all four packages.

import firstsight

recipe = firstsight.load_recipe("recipe.yaml")
firstsight.dump(firstsight.prepare_dump(recipe))                # phase 1: the teacher's soft targets
cache = firstsight.open_cache(recipe.cache_location)            # key -> SampleTargets
firstsight.train(firstsight.prepare_training(recipe))           # phase 2: the student

Each name is imported when it is first used: `import firstsight` alone imports neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module, or module:name if the name differs there; the only place in this package that names the phases
_SOURCES = {
    "AlignmentError": "firstsight.errors",
    "Cache": "storage",
    "CacheError": "storage",
    "DataError": "firstsight.errors",
    "DumpJob": "phase1_teacher.planning.job",
    "DumpSummary": "phase1_teacher.dump",
    "EvaluateSettings": "phase2_student.evaluation.evaluate:Settings",
    "ExactCache": "storage",
    "FirstSightError": "firstsight.errors",
    "MissingSample": "storage",
    "ModelError": "firstsight.errors",
    "Recipe": "firstsight.recipe",
    "RecipeError": "firstsight.errors",
    "Sample": "firstsight.data.samples",
    "SampleTargets": "storage",
    "SkippedSample": "storage",
    "SpecMismatch": "storage",
    "TargetError": "firstsight.errors",
    "Targets": "storage",
    "TemperatureOutOfRange": "storage",
    "Timing": "phase2_student.evaluation.measure.timing",
    "TrainResult": "phase2_student.training.train",
    "TrainingError": "firstsight.errors",
    "at_temperature": "storage",
    "check_data": "firstsight.data.check",
    "derive": "phase1_teacher.derive",
    "dump": "phase1_teacher.dump",
    "evaluate": "phase2_student.evaluation.evaluate",
    "evaluation_text": "phase2_student.evaluation.summary:summary_text",
    "find_sample": "phase1_teacher.show",
    "grid_runs": "phase2_student.training.sweep",
    "load_recipe": "firstsight.recipe",
    "load_samples": "firstsight.data.samples",
    "open_cache": "storage",
    "open_exact_cache": "storage",
    "parse_candidates": "phase2_student.evaluation.candidates",
    "prepare_derivation": "phase1_teacher.derive",
    "prepare_dump": "phase1_teacher.planning.job",
    "prepare_training": "phase2_student.training.prepare:prepare",
    "sample_text": "phase1_teacher.show:terminal_text",
    "sweep": "phase2_student.training.sweep",
    "train": "phase2_student.training.train",
    "write_evaluation": "phase2_student.evaluation.files",
}

__all__ = ["__version__", *_SOURCES]

if TYPE_CHECKING:  # the same names for type checkers; a test keeps both lists equal
    from firstsight.data.check import check_data as check_data
    from firstsight.data.samples import Sample as Sample
    from firstsight.data.samples import load_samples as load_samples
    from firstsight.errors import AlignmentError as AlignmentError
    from firstsight.errors import DataError as DataError
    from firstsight.errors import FirstSightError as FirstSightError
    from firstsight.errors import ModelError as ModelError
    from firstsight.errors import RecipeError as RecipeError
    from firstsight.errors import TargetError as TargetError
    from firstsight.errors import TrainingError as TrainingError
    from firstsight.recipe import Recipe as Recipe
    from firstsight.recipe import load_recipe as load_recipe
    from phase1_teacher.derive import derive as derive
    from phase1_teacher.derive import prepare_derivation as prepare_derivation
    from phase1_teacher.dump import DumpSummary as DumpSummary
    from phase1_teacher.dump import dump as dump
    from phase1_teacher.planning.job import DumpJob as DumpJob
    from phase1_teacher.planning.job import prepare_dump as prepare_dump
    from phase1_teacher.show import find_sample as find_sample
    from phase1_teacher.show import terminal_text as _sample_text
    from phase2_student.evaluation.candidates import parse_candidates as parse_candidates
    from phase2_student.evaluation.evaluate import Settings as _EvaluateSettings
    from phase2_student.evaluation.evaluate import evaluate as evaluate
    from phase2_student.evaluation.files import write_evaluation as write_evaluation
    from phase2_student.evaluation.measure.timing import Timing as Timing
    from phase2_student.evaluation.summary import summary_text as _evaluation_text
    from phase2_student.training.prepare import prepare as _prepare_training
    from phase2_student.training.sweep import grid_runs as grid_runs
    from phase2_student.training.sweep import sweep as sweep
    from phase2_student.training.train import TrainResult as TrainResult
    from phase2_student.training.train import train as train
    from storage import Cache as Cache
    from storage import CacheError as CacheError
    from storage import ExactCache as ExactCache
    from storage import MissingSample as MissingSample
    from storage import SampleTargets as SampleTargets
    from storage import SkippedSample as SkippedSample
    from storage import SpecMismatch as SpecMismatch
    from storage import Targets as Targets
    from storage import TemperatureOutOfRange as TemperatureOutOfRange
    from storage import at_temperature as at_temperature
    from storage import open_cache as open_cache
    from storage import open_exact_cache as open_exact_cache

    EvaluateSettings = _EvaluateSettings
    evaluation_text = _evaluation_text
    prepare_training = _prepare_training
    sample_text = _sample_text


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _SOURCES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), original or name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_SOURCES})
