"""Agent attention: positions look at each other through pooled queries (arXiv:2312.08874)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ...kernels.agent_attention import agent_attention
from ...kernels.dispatch import known
from ..geometry import Size, num_heads_for, resize_table
from ..pooling import adaptive_avg_pool
from ..projection import joint_projection
from ..tables import GridModule
from ..tokens import pack_tokens, unpack_tokens
from .attention import join_heads, split_heads

COARSE = 7  # side of the block bias, at any size of the map


@register_notrace_module
class AgentBias(GridModule):
    """Bias between agents and positions: a coarse map, resized bilinearly, plus one value per row and per column.

    ``forward(size, agents)`` gives (heads, n, prefix + N) for a map of ``size`` and a grid of n agents. Tables of
    another grid are resized bilinearly, first over positions, then over agents.

    Args:
        num_heads: number of heads.
        grid: (h, w) of the map that rows and columns are made for.
        agents: side of the grid of agents that the tables are made for.
        prefix: class tokens in front of the positions.
    """

    grid_tables = ("rows", "columns")
    resize_mode = "bilinear"

    def __init__(self, num_heads: int, grid: Size, agents: int, prefix: int = 0) -> None:
        super().__init__()
        count = agents * agents
        self.grid, self.agents = grid, agents
        self.coarse = nn.Parameter(torch.zeros(num_heads, count, COARSE, COARSE))
        self.rows = nn.Parameter(torch.zeros(num_heads, count, grid[0], 1))
        self.columns = nn.Parameter(torch.zeros(num_heads, count, 1, grid[1]))
        self.token = nn.Parameter(torch.zeros(num_heads, count, prefix)) if prefix else None
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, size: Size, agents: Size) -> Tensor:
        bias = resize_table(self.coarse, size, "bilinear")
        bias = bias + resize_table(self.rows, (size[0], 1), "bilinear")
        bias = (bias + resize_table(self.columns, (1, size[1]), "bilinear")).flatten(2)  # (heads, n, N)
        if self.token is not None:
            bias = torch.cat((self.token, bias), dim=2)
        if agents == (self.agents, self.agents):
            return bias
        square = bias.transpose(1, 2).unflatten(2, (self.agents, self.agents))  # (heads, N, side, side)
        return F.interpolate(square, size=agents, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)

    def folded(self) -> nn.Module:
        return FixedAgentBias(self)


class FixedAgentBias(nn.Module):
    """An `AgentBias` with the bias of its own grid computed beforehand."""

    expanded: Tensor

    def __init__(self, source: AgentBias) -> None:
        super().__init__()
        self.tables = copy.deepcopy(source)
        self.own = (source.grid, (source.agents, source.agents))
        self.register_buffer("expanded", source(*self.own).detach().clone(), persistent=False)

    def forward(self, size: Size, agents: Size) -> Tensor:
        return self.expanded if known(*size) and (size, agents) == self.own else self.tables(size, agents)


@register_notrace_module
class AgentAttention(nn.Module):
    """Softmax attention through agents, the queries averaged to a small grid: (B, C, H, W) -> (B, C, H, W).

    Agents gather values from all positions, positions read from the agents, both with a bias (`AgentBias`); a depthwise
    3x3 convolution of the values is added, and all is projected. O(N n C) for N = H * W positions and n agents.

    With class tokens, the tokens attend and are attended to, and pooling and convolution leave them out.

    Args:
        dim: channels C.
        grid: (h, w) of the map at the model's ``img_size``; the bias is resized for other maps.
        num_heads: by default the divisor of C nearest to C / 32.
        agents: side of the grid of agents that the bias is made for.
        pooled: (h, w) of the grid of agents, where it is another; the bias is resized.
        projection: makes the layer from C channels to queries, keys and values.
        prefix: class tokens in front of the map.
    """

    takes_prefix = True
    input_layers = ("qkv",)  # take the affine map of a norm before the mixer, when the model is folded
    output_layer = "proj"  # takes a scale that follows the mixer, when the model is folded

    def __init__(
        self,
        dim: int,
        grid: Size,
        num_heads: int | None = None,
        agents: int = 7,
        pooled: Size | None = None,
        projection: Callable[[int], nn.Module] = joint_projection,
        prefix: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads or num_heads_for(dim, 32)
        self.scale = (dim // self.num_heads) ** -0.5
        self.pooled = pooled or (agents, agents)
        self.qkv = projection(dim)
        self.bias_in = AgentBias(self.num_heads, grid, agents, prefix)
        self.bias_out = AgentBias(self.num_heads, grid, agents, prefix)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        tokens, grid = size is not None, size or (x.shape[-2], x.shape[-1])
        q, k, v = self.qkv(x).chunk(3, dim=1)
        agents = adaptive_avg_pool(unpack_tokens(q, grid)[1] if tokens else q, self.pooled)
        out = agent_attention(
            *(split_heads(t, self.num_heads) for t in (q, k, v, agents)),
            self.scale,
            self.bias_in(grid, self.pooled),
            self.bias_out(grid, self.pooled).transpose(1, 2),
        )
        out = join_heads(out, x)
        if not tokens:
            return self.proj(out + self.local(v))
        first, rest = unpack_tokens(out, grid)
        return self.proj(pack_tokens(first, rest + self.local(unpack_tokens(v, grid)[1])))
