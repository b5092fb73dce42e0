"""The text of ncnn's ``.param`` files.

Two lines of counts, then a layer a line: kind, name, numbers of inputs and outputs, their names, and its options as
key=value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

INPUT = "Input"  # kind of layer
_SIDES = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: ("2", "11", "1", "0")}  # keys of a Reshape, by axes

_LEAST = "-3.402823e+38"  # of float32, rounded towards zero


def layers_of(text: str) -> list[list[str]]:
    """The words of every layer."""
    return [line.split() for line in text.splitlines()[2:] if line.strip()]


def made_by(layer: Sequence[str]) -> Sequence[str]:
    """The names of what a layer gives."""
    inputs, outputs = int(layer[2]), int(layer[3])
    return layer[4 + inputs : 4 + inputs + outputs]


def with_shape(text: str, sides: Sequence[int]) -> str:
    """The file with the shape (C, H, W) of its input, which pnnx leaves out."""
    channels, height, width = sides
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if line.split()[0] == INPUT)
    lines[index] += f" 0={width} 1={height} 2={channels}"
    return "\n".join([*lines, ""])


def finite(text: str) -> str:
    """The file with the least float32 for minus infinity, which ncnn cannot read: what pads before a max pool."""
    return text.replace("=-inf", f"={_LEAST}")


def input_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) of the input."""
    layer = next(layer for layer in layers_of(text) if layer[0] == INPUT)
    options = dict(option.split("=") for option in layer if "=" in option)
    return int(options["2"]), int(options["1"]), int(options["0"])


def reshaped(text: str, shapes: Mapping[str, Sequence[int]]) -> str:
    """The file with outputs in other shapes: name -> sides, of one to four axes, without that of the batch."""
    magic, counts, *lines = text.rstrip("\n").splitlines()
    layers, blobs = map(int, counts.split())
    for name, shape in shapes.items():
        inner = f"{name}_as_made"
        at = next(i for i, line in enumerate(lines) if name in made_by(line.split()))
        words = lines[at].split()
        words[4 + int(words[2]) : 4 + int(words[2]) + int(words[3])] = [
            inner if other == name else other for other in made_by(words)
        ]
        lines[at] = " ".join(words)
        sides = " ".join(f"{key}={side}" for key, side in zip(_SIDES[len(shape)], shape, strict=True))
        lines.append(f"Reshape {name}_shape 1 1 {inner} {name} {sides}")
    return "\n".join([magic, f"{layers + len(shapes)} {blobs + len(shapes)}", *lines, ""])
