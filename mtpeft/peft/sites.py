"""Sites: named places where a part may sit, in one vocabulary over timm's families.

Inside a block the names are ``attn.q attn.k attn.v attn.qkv attn.proj mlp.fc1 mlp.fc2 norm1 norm2``, ``attn``, ``mlp``,
``tokens`` and ``middle`` (the stream between attention and MLP, for input parts); a block itself is ``blocks.3``. Every
parameter is a site too (``blocks.3.attn.proj.bias``), and ``features`` is where side parts sit. A pattern's term is a
name's tail, a whole name, a glob, or a tag (``linear``, ``conv``, ``bias``, ``norm``, ``gain``, ``position``,
``prefix``, ``parameter``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from mtpeft.backbone.extract import input_channels
from mtpeft.errors import MtpeftError, NotApplicable


@dataclass(frozen=True)
class TensorRef:
    """Rows ``start:stop`` of a tensor of a module (``path`` is timm's own)."""

    path: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Site:
    """A place for a part.

    Attributes:
        name: in the common vocabulary, unique in a backbone.
        path: timm's path of the module.
        tags: what kind of place it is.
        module: the module there.
        block: index of the block, or None outside the blocks.
        owner: whose part is being built (filled by the host).
        tensor: the tensor a weight part sees, or None where there is none.
        bias: where the bias of that tensor lies, in order; empty where timm has none.
        bypassed: the module's weight is read without calling the module, so hooks on it never fire.
        model: facts of the whole backbone (`Model`).
    """

    name: str
    path: str
    tags: frozenset[str]
    module: nn.Module
    model: Model
    block: int | None = None
    owner: str = ""
    tensor: TensorRef | None = None
    bias: tuple[TensorRef, ...] = ()
    bypassed: bool = False

    @property
    def rows(self) -> TensorRef:
        """Where `weight` lies.

        Raises:
            MtpeftError: if this site has none.
        """
        if self.tensor is None:
            raise MtpeftError(f"site {self.name} has no weight", hint="weight parts sit on modules or parameters")
        return self.tensor

    @property
    def weight(self) -> Tensor:
        """The frozen tensor (its rows, for a slice of a fused ``qkv``), without gradient."""
        rows = self.rows
        tensor = self.model.original(rows.path, rows.name).detach()
        return tensor[rows.start : rows.stop] if tensor.ndim else tensor

    @property
    def block_path(self) -> str:
        """timm's path of the block around it.

        Raises:
            MtpeftError: outside the blocks.
        """
        if self.block is None:
            raise MtpeftError(f"site {self.name} lies in no block", hint="blocks.3.attn lies in one")
        return self.model.blocks[self.block]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape) if self.tensor is not None else ()

    @property
    def kind(self) -> str:
        """The most telling tag, for people."""
        order = [
            "parameter",
            "slice",
            "linear",
            "conv",
            "grouped-conv",
            "norm",
            "attention",
            "mlp",
            "block",
            "tokens",
            "middle",
            "features",
        ]
        return next((tag for tag in order if tag in self.tags), "module")

    @property
    def in_features(self) -> int:
        """Input channels of a linear or convolution."""
        return self.shape[1] if len(self.shape) > 1 else self.width

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)`` of a linear layer, or of a convolution with its filters flattened.

        Raises:
            NotApplicable: where there is no such weight, as in a norm, a bias or a whole attention.
        """
        out, *inner = self._filters
        return out, math.prod(inner)

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """``(r, in)`` or ``(r, in, kh, kw)``: the first factor of a low-rank update.

        Raises:
            NotApplicable: as `matrix_shape`.
        """
        return (rank, *self._filters[1:])

    @property
    def _filters(self) -> tuple[int, ...]:
        if len(self.shape) not in (2, 4):
            raise NotApplicable(
                f"{self.name} has no weight matrix that could be changed",
                hint='choose linear layers or convolutions with at, such as "attn.q attn.v", "linear" or "conv"',
            )
        return self.shape

    @property
    def out_features(self) -> int:
        """Output channels of a linear or convolution (of the slice, for q, k and v)."""
        return self.shape[0] if self.shape else self.width

    @property
    def keeps_shape(self) -> bool:
        """The module's output has the shape of its input."""
        return self.path in self.model.keeping

    @property
    def width(self) -> int:
        """Channels of the activations at this module's output."""
        return self.model.widths.get(self.path, 0)


@dataclass(eq=False)
class Model:
    """Facts of a backbone that its sites share.

    Attributes:
        modules: path -> module.
        called: paths of the modules that a pass calls.
        channels_first: paths of those whose activations are ``(B, C, H, W)``.
        widths: path -> output channels.
        keeping: paths of modules whose output has the shape of their input.
        blocks: paths of the blocks, in order of the network.
        image_size: height and width of the images that the backbone is built for, in pixels.
        prefix: number of prefix tokens.
        positions: what mixes positions inside attention: ``none``, ``rotary`` or ``relative``.
        tokens: activations between blocks are ``(B, N, C)`` sequences.
        block_widths: channels of each block's output.
        family: class name of the timm model.
    """

    modules: dict[str, nn.Module]
    called: frozenset[str]
    channels_first: frozenset[str]
    widths: dict[str, int]
    blocks: tuple[str, ...]
    image_size: tuple[int, int] = (0, 0)
    keeping: frozenset[str] = frozenset()
    prefix: int = 0
    positions: str = "none"
    tokens: bool = False
    block_widths: tuple[int, ...] = ()
    family: str = ""

    @property
    def input_channels(self) -> int:
        """Channels of the images that the backbone takes."""
        return input_channels(self.modules[""])

    @property
    def patch_inputs(self) -> int:
        """Numbers in one patch (3 x height x width), which initialisations scale with; 0 without a patch embedding."""
        embed = self.modules.get("patch_embed.proj")
        return embed.weight[0].numel() if isinstance(embed, nn.Conv2d) else 0

    def original(self, path: str, name: str) -> Tensor:
        """The frozen tensor, also where a parametrization stands before it."""
        module = self.modules[path]
        for store in (module._parameters, module._buffers):
            tensor = store.get(name)
            if tensor is not None:
                return tensor
        return parametrizations(module, name).original

    def saves(self, path: str, name: str) -> bool:
        """Whether the tensor is in timm's state dict (some buffers are not)."""
        module = self.modules[path]
        if name in module._parameters or name in module._buffers:
            return name not in module._non_persistent_buffers_set
        return "original" not in parametrizations(module, name)._non_persistent_buffers_set


def parametrizations(module: nn.Module, name: str) -> ParametrizationList:
    """What stands before a module's tensor; torch declares no more than a module there."""
    return cast("dict[str, ParametrizationList]", module.parametrizations)[name]


def is_standardised(module: nn.Module) -> bool:
    """A convolution that standardises its weight before use: a gain of rows or columns is lost in the weight."""
    return isinstance(module, (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame))


def is_plain_conv(module: nn.Module) -> bool:
    """A convolution whose forward is torch's own, so that a second one beside it sees the same padding."""
    return type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
