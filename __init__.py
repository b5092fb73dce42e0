"""mixzoo: token mixers, the backbones they make, and everything needed to ship them."""

__version__ = "0.1.0"
