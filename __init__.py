"""mixzoo: token mixers, the backbones they make, and everything needed to ship them."""

from .blocks.deploy import deploy
from .export import export, swap
from .zoo.registry import create_model, list_models

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "deploy", "export", "list_models", "swap"]
