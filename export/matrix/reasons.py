"""Why cells are red: what a reason means, and where its cause is discussed by those who can remove it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """A cause that has been seen.

    Attributes:
        pattern: regular expression that its reasons hold.
        explanation: one sentence.
        issue: where it is discussed upstream; empty where nobody has been seen to report it.
        target, family: the only ones that it is of; empty for any.
    """

    pattern: str
    explanation: str
    issue: str = ""
    target: str = ""
    family: str = ""


# the first that fits is taken
KNOWN = (
    Known(
        r"stopped after .* the limit", "The time limit of the run was reached; a larger --time-limit repeats the cell."
    ),
    Known(r"stopped at .* GiB", "The memory limit of the run was reached; a larger --memory-limit repeats the cell."),
    Known(
        r"torch\.roll|Tensor\.roll",
        "ncnn has no layer that rolls a map, and pnnx leaves what it cannot take apart in PyTorch's form.",
        "https://github.com/Tencent/ncnn/issues/5574",
        "ncnn",
    ),
    Known(
        r"index_select|Tensor\.index",
        "ncnn has no layer that gathers by indices.",
        "https://github.com/Tencent/ncnn/issues/5092",
        "ncnn",
    ),
    Known(
        r"no layer for what pnnx left.*(axes|batch)",
        "ncnn's tensors have at most four axes and no batch axis: windows and heads that are moved into the batch are "
        "what pnnx leaves in PyTorch's form.",
        "https://github.com/Tencent/ncnn/issues/3542",
        "ncnn",
    ),
    Known(r"no layer for what pnnx left", "pnnx leaves operators for which ncnn has no layer.", target="ncnn"),
    Known(
        r"pnnx crashed|pnnx did not finish|died of SIG",
        "pnnx ends without a word on some graphs of attention, Swin V2's among those reported.",
        "https://github.com/pnnx/pnnx/issues/88",
        "ncnn",
    ),
    Known(
        r"pnnx (failed|wrote no)",
        "pnnx gives up on a graph without saying which operator it was.",
        target="ncnn",
    ),
    Known(
        r"cannot compute|does not run|differs from the model|NaN or infinity, or have another shape",
        "pnnx writes reshapes across the batch axis as if there were none: the file computes something else.",
        "https://github.com/pnnx/pnnx/issues/44",
        "ncnn",
    ),
    Known(
        r"the file differs from the model by \d\.\de-02",
        "Of float16: of regions that are nearly alike others come first once they are rounded, and attention is "
        "computed over those, in the later blocks for about half of the regions.",
        target="coreml",
        family="biformer",
    ),
    Known(
        r"\balias\b",
        "coremltools 9 does not know the operator alias; its next release does.",
        "https://github.com/apple/coremltools/pull/2659",
        "coreml",
    ),
    Known(
        r"Only non-negative indices are allowed|SymInt",
        "litert-torch does not lower open axes.",
        "https://github.com/google-ai-edge/litert-torch/issues/685",
        "litert",
    ),
    Known(
        r"is already in the inputs",
        "ExecuTorch drops copies inside of an XNNPACK part: a tensor that leaves the part beside its own copy is then "
        "two outputs in one, which it refuses.",
        "https://github.com/pytorch/executorch/issues/19152",
        "executorch",
    ),
    Known(
        r"[Rr]esiz(e|ing)",
        "ExecuTorch plans memory ahead, and its plan does not fit another shape.",
        "https://github.com/pytorch/executorch/issues/1350",
        "executorch",
    ),
    Known(
        r"float32 rounding alone|nothing is proved",
        "The filled weights saturate the model: no file of it can be told from a wrong one. With trained weights "
        "(`mixzoo export --checkpoint`) this is another question.",
    ),
    Known(
        r"torch\.export cannot capture|torch\.jit\.trace cannot capture",
        "PyTorch itself cannot make a graph of the model; a fault of mixzoo where the model is of the zoo.",
    ),
    Known(r"no graph was found in", "Arithmetic on symbolic shapes did not end; `--dynamic batch` avoids it."),
    Known(r"died of SIG(KILL|SEGV|ABRT|BUS)", "A library crashed; nothing else in the run was touched."),
)


def explain(record: Mapping[str, Any]) -> Known | None:
    """What is known of the reason of a red cell; None where it is not red or nothing is."""
    if record["status"] != "red":
        return None
    of = (k for k in KNOWN if k.target in ("", record["target"]) and k.family in ("", record["family"]))
    fitting = (k for k in of if re.search(k.pattern, record["reason"]))
    return next(fitting, None)
