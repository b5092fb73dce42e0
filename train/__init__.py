"""Training: a typed recipe in, a checked checkpoint out.

from mixzoo.train import load_run, train

result = train("shvit_digits", ["schedule.epochs=5"], out="runs/digits")
model = load_run("runs/digits").model
"""

from ..zoo.extras import require

require("pydantic", extra="train")

from .checkpoint import Trained, load_run  # noqa: E402
from .engine import LostError, TrainResult, train  # noqa: E402
from .extract import Extracted, ExtractError, extract  # noqa: E402
from .logs import StorageError  # noqa: E402
from .loop import DivergedError  # noqa: E402
from .recipe import RecipeError, list_recipes, load_recipe  # noqa: E402
from .schema import Recipe  # noqa: E402

__all__ = [
    "DivergedError",
    "ExtractError",
    "Extracted",
    "LostError",
    "Recipe",
    "RecipeError",
    "StorageError",
    "TrainResult",
    "Trained",
    "extract",
    "list_recipes",
    "load_recipe",
    "load_run",
    "train",
]
