"""DeiT: one stage of equal blocks on patches of 16 x 16, with or without a class token.

Papers: arXiv:2012.12877 and, for the layout, ViT, arXiv:2010.11929. The published variants are timm's, with which the
layout agrees; other families take it with mixers or norms of their own. The official names are timm's too.

With a class token, the classifier reads the token by default (``global_pool="avg"`` reads the mean of the map), and
`forward_features` gives tokens (B, 1 + N, C). Without one, the model is a map to map backbone like any other. The
position table is resized bicubically for other image sizes; an image that does not divide into patches is zero-padded
at the bottom and right. Norms have an epsilon of 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers import LayerNorm2d

from ..blocks.block import MIXER, Branch, Factory
from ..blocks.channel import mlp
from ..blocks.init import pointwise_normal
from ..blocks.mixers import Mixer, MixerFactory
from ..blocks.stage import Stage, TokenStage
from ..blocks.stem import whole_patch_stem
from ..blocks.tables import PositionEmbedding
from ..blocks.tokens import ClassToken
from .keys import KeyMap, Layout, Rule, View, flat_grid, linear_shape, rename
from .spec import BackboneSpec, HeadSpec, StageSpec, Variant, resolve_mixer

block_norm: Factory = partial(LayerNorm2d, eps=1e-6)


def official_keys(*first: Rule, views: Sequence[View | Layout] = (), class_token: bool = True) -> KeyMap:
    """The official names of the layout.

    Args:
        first: rules for a family's own mixers, which come before these.
        views: shapes of a family's own mixers.
        class_token: whether the layout has one.
    """
    places = rename(
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stages\.0\.position\.token$", "cls_token"),
        (r"^stages\.0\.position\.position$", "pos_embed::0"),
        (r"^stages\.0\.position\.table$", "pos_embed::1" if class_token else "pos_embed"),
        (r"^stages\.0\.blocks\.", "blocks."),
        (r"\.mix\.fn\.norm\.", ".norm1."),
        (r"\.mix\.fn\.mixer\.", ".attn."),
        (r"\.ffn\.fn\.norm\.", ".norm2."),
        (r"\.ffn\.fn\.mlp\.", ".mlp."),
        (r"^head\.fc\.", "head."),
    )
    shapes = (
        View(r"(attn\.(qkv|q|kv|proj)|mlp\.fc[12])\.weight$", linear_shape),
        View(r"^(pos_embed|cls_token)(::\d)?$", flat_grid, transposed=True),
    )
    return KeyMap((*first, *places), (*views, *shapes))


def build(
    depth: int = 12,
    dim: int = 192,
    mixers: Sequence[str | MixerFactory] | None = None,
    mlp_ratio: float = 4.0,
    class_token: bool = True,
    norm: Factory = block_norm,
    img_size: int = 224,
    keys: KeyMap | None = None,
) -> BackboneSpec:
    """A DeiT of any depth and width.

    Args:
        depth: number of blocks.
        dim: channels.
        mixers: the token mixer, as a list of one; by default softmax attention with heads 64 channels wide.
        mlp_ratio: expansion of the channel mixer.
        class_token: whether a learned token joins the map and is what the classifier reads.
        norm: in front of both branches, and after the last block.
        img_size: side of the images that the position table is made for.
        keys: official names; by default `official_keys`.
    """
    (mixer,) = mixers or (Mixer("attention", head_dim=64, qkv_bias=True, proj_bias=True),)
    block = (Branch("mix", {"norm": norm, "mixer": MIXER}), Branch("ffn", {"norm": norm, "mlp": mlp(mlp_ratio)}))
    stage = StageSpec(
        depth, dim, block, resolve_mixer(mixer),
        make=TokenStage if class_token else Stage,
        position=ClassToken if class_token else PositionEmbedding,
        prefix=int(class_token),
    )  # fmt: skip
    return BackboneSpec(
        stem=whole_patch_stem(16),
        stages=(stage,),
        norm=norm,
        head=HeadSpec(pool="token" if class_token else "avg"),
        img_size=img_size,
        init=pointwise_normal,
        keys={"official": keys or official_keys(class_token=class_token)},
    )


VARIANTS: tuple[Variant, ...] = ()
