"""The tables of operators are those of the converters that are installed here, so that they cannot rot."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mixzoo.export.check.targets import operators
from mixzoo.export.runtimes import coreml_parts

NAMES = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}


def module(name: str) -> Any:
    """A module; a skip where it is not installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def folder(package: str, *parts: str) -> Path:
    """A folder of an installed package, which is not imported; a skip where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(next(iter(found.submodule_search_locations))).joinpath(*parts)


def of_coremltools() -> set[str]:
    module("coremltools")
    registry = module("coremltools.converters.mil.frontend.torch.torch_op_registry")._TORCH_OPS_REGISTRY
    rewritten = {str(op).split(".")[1].rstrip("_") for op in coreml_parts.IN_PARTS}  # add_ is looked up as add
    # chunk is a node of TorchScript, & and | are and_ and or_ there, alias and detach are taken out before
    return set(registry.name_to_func_mapping) | rewritten | {"chunk", "alias", "detach", "__and__", "__or__"}


def of_litert_torch() -> set[str]:
    registry = module("litert_torch.backend.lowerings.registry").global_registry.registered_ops
    apart = module("litert_torch.fx_infra.decomp").pre_convert_decomp()
    return {str(op).split(".")[1] for op in (*registry, *apart) if str(op).startswith("aten.")}


def of_executorch() -> set[str]:
    text = folder("executorch", "kernels", "portable", "functions.yaml").read_text()
    return {name.partition(".")[0] for name in re.findall(r"^- op: (\S+)", text, re.M)}


def of_xnnpack() -> set[str]:
    folder("executorch")
    configs = module("executorch.backends.xnnpack.partition.config").ALL_PARTITIONER_CONFIGS
    return {config.target_name.partition(".")[0] for config in configs if "quant" not in config.__name__.lower()}


def of_qnn() -> set[str]:
    files = folder("executorch", "backends", "qualcomm", "builders").glob("op_*.py")
    targets = [found for file in files for found in re.findall(r"target = \[(.*?)\]", file.read_text(), re.S)]
    return {name for target in targets for name in re.findall(r'"aten\.(\w+)', target)}


REGISTRIES: dict[str, Callable[[], set[str]]] = {
    "coreml": of_coremltools,
    "litert": of_litert_torch,
    "executorch": of_executorch,
    "xnnpack": of_xnnpack,
    "qnn": of_qnn,
}


@pytest.mark.slow
@pytest.mark.parametrize("table", REGISTRIES)
def test_a_table_is_the_converters_registry(table: str) -> None:
    """A failure after an upgrade names what to add to the table, and what to take out."""
    registered = {name for name in REGISTRIES[table]() if name in NAMES and not name.endswith("_backward")}
    ours = set(operators(table))
    assert (sorted(registered - ours), sorted(ours - registered)) == ([], [])
