"""ExecuTorch's passes without what takes more than half of their time and nobody asks for.

Thousands of passes run over a model and its parts. After each, torch.fx writes a graph as Python code and compiles it,
that of the whole model and of all of its parts, though passes interpret graphs. And each copies, for every node, what
is said of the nodes that it was made from, with all that came before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.traceback import NodeSource


@contextmanager
def light_passes() -> Iterator[None]:
    """Let graphs become code where they are called, and nodes share what is said of their sources."""
    compile_now = GraphModule.recompile

    def compile_later(self: GraphModule) -> None:
        self._code = ""  # what is printed
        if isinstance(codegen := self._graph._codegen, _PyTreeCodeGen):
            self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec

        def forward(self: GraphModule, *args: Any, **options: Any) -> Any:
            compile_now(self)  # puts another forward in this one's place
            return self.forward(*args, **options)

        type(self).forward = forward  # every graph module has a class of its own

    GraphModule.recompile = compile_later  # type: ignore[assignment, method-assign]
    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    try:
        yield
    finally:
        GraphModule.recompile = compile_now  # type: ignore[method-assign]
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]
