"""Recipes: one YAML file that describes a run of both phases.

    recipe = load_recipe(Path("recipe.yaml"), ["loss.alpha=0.5", "training.learning_rate=3e-5"])

Relative paths are relative to the recipe's directory. An unknown key is an error that names the nearest known one.
Nothing here imports torch: a typo is found within a second. The `training` section holds `transformers.TrainingArguments`
by name and is checked by `check_training`, which imports them.
"""

from firstsight.data.section import DataSection
from firstsight.recipe.cache import CacheSection
from firstsight.recipe.loading import check_training, load_recipe, load_recipe_content
from firstsight.recipe.loss import LossSection
from firstsight.recipe.models import LoraSection, StudentSection, TeacherSection
from firstsight.recipe.whole import Recipe

__all__ = [
    "CacheSection",
    "DataSection",
    "LoraSection",
    "LossSection",
    "Recipe",
    "StudentSection",
    "TeacherSection",
    "check_training",
    "load_recipe",
    "load_recipe_content",
]
