"""Graphs that leave batch, height and width open: what each mixer's graph computes at sizes that it was not made at."""

from __future__ import annotations

import pytest
import torch
from mixzoo.blocks.deploy import fold
from mixzoo.blocks.mixers import MIXERS
from mixzoo.export.capture import Capture
from mixzoo.export.errors import ExportError
from mixzoo.zoo.fill import fill_
from support import TOLERANCE, image, rel_err

EQUAL = TOLERANCE[torch.float64]
GRID = (14, 14)
SIZES = ((3, 28, 30), (1, *GRID), (2, 9, 13), (1, 7, 7), (1, 5, 4), (1, 3, 2))  # dividing, odd, smaller than a window
CLOSED = {
    "bilevel_routing": "how many regions there are, and their size, both depend on the size of the map",
    "cascaded_group": "a window that is cut short looks at no padding, a whole one does",
    "cosine_window": "the bias of a window that is cut short is measured in other units",
}


@pytest.mark.parametrize(("mixer", "why"), [("cascaded_group", "padding in whole windows"), ("cosine_window", "units")])
def test_mixers_that_cannot_leave_sizes_open_say_why(mixer: str, why: str) -> None:
    module = MIXERS[mixer](48, GRID).eval()
    for axes in (("height", "width"), ("batch", "height", "width")):
        with pytest.raises(ExportError, match=f"{why}.*: heights and widths have to be fixed"):
            _ = Capture(module, image((2, 48, 20, 22)).float(), axes).program
    assert Capture(module, image((2, 48, 20, 22)).float(), ("batch",)).program


@pytest.mark.slow
@pytest.mark.parametrize("traced", ((20, 22), GRID), ids=str)
@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in CLOSED])
def test_graphs_of_mixers_hold_for_any_size(mixer: str, traced: tuple[int, int]) -> None:
    """Made at a size that divides into no windows, and at the model's own, which does and fits every table."""
    module = fold(fill_(MIXERS[mixer](48, GRID).double()).eval()).requires_grad_(False)
    capture = Capture(module, image((2, 48, *traced)), ("batch", "height", "width"))
    with torch.no_grad():
        for batch, height, width in SIZES:
            x = image((batch, 48, height, width), seed=height)
            assert rel_err(capture.run(x), module(x)) < EQUAL
        assert rel_err(capture.run(x.flip(1)), module(x)) > 100 * EQUAL
