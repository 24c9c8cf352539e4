"""Sites: named places where a part may sit, in one vocabulary over timm's families.

Inside a block the names are ``attn.q attn.k attn.v attn.qkv attn.proj mlp.fc1 mlp.fc2 norm1 norm2``, ``attn``, ``mlp``,
``tokens`` and ``middle`` (the stream between attention and MLP, for input parts); a block itself is ``blocks.3``. Every
parameter is a site too (``blocks.3.attn.proj.bias``), and ``features`` is where side parts sit. A pattern's term is a
name's tail, a whole name, a glob, or a tag (``linear``, ``conv``, ``bias``, ``norm``, ``gain``, ``position``,
``prefix``, ``parameter``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from timm.layers import LayerScale, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

from mtpeft.errors import MtpeftError
from mtpeft.peft.probe import Trace, native_size

_NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase, nn.RMSNorm)
_ALIASES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "patch_embed.proj": "patch_embed", "norm": "final_norm",
    "fc_norm": "final_norm",
}  # fmt: skip
_POSITION_MLP = re.compile(r"\bcpb_mlp\b|\brel_pos\b")
_FUSED = {"qkv": "qkv", "kv": "kv"}


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


def find_sites(backbone: nn.Module, image_size: tuple[int, int] | None = None) -> list[Site]:
    """Every site of a timm backbone, in order of the network (one forward pass finds what is called).

    Args:
        image_size: of the probing pass; default: the backbone's own.
    """
    trace = Trace.of(backbone, image_size)
    height, width = image_size or native_size(backbone)
    paths = block_paths(backbone)
    model = Model(
        modules=dict(backbone.named_modules()),
        called=frozenset(trace.called),
        channels_first=frozenset(trace.channels_first),
        widths=trace.widths,
        keeping=frozenset(trace.keeping),
        blocks=tuple(paths),
        image_size=(height, width),
        prefix=int(getattr(backbone, "num_prefix_tokens", 0)),
        positions=_positions(backbone),
        tokens=len({trace.shapes.get(path) for path in paths}) == 1 and len(trace.shapes.get(paths[0], ())) == 3,
        block_widths=tuple(trace.widths.get(path, 0) for path in paths),
        family=type(backbone).__name__,
    )
    skip = _classifier(backbone)
    sites: list[Site] = []
    parameters: list[Site] = []
    for path, module in backbone.named_modules():
        if path and not any(path == s or path.startswith(s + ".") for s in skip):
            sites += _module_sites(path, module, model)
        if path not in skip:
            parameters += [
                _parameter_site(path, n, t, module, model) for n, t in module.named_parameters(recurse=False)
            ]
    sites += parameters
    if model.tokens:
        for index, path in enumerate(paths):
            module = backbone.get_submodule(path)
            sites.append(Site(f"blocks.{index}.tokens", path, frozenset({"tokens"}), module, model, index))
    sites += _middles(model, trace)
    sites.append(Site("features", "", frozenset({"features"}), backbone, model))
    return sites


def _middles(model: Model, trace: Trace) -> Iterator[Site]:
    """The residual stream between attention and MLP: what enters ``norm2``, or ``mlp`` where norms come last."""
    closing = list(trace.shapes)
    for index, block in enumerate(model.blocks):
        norm, mlp = f"{block}.norm2", f"{block}.mlp"
        if f"{block}.attn" in model.called and {norm, mlp} <= set(closing):
            path = min(norm, mlp, key=closing.index)
            yield Site(f"blocks.{index}.middle", path, frozenset({"middle"}), model.modules[path], model, index)


def block_paths(backbone: nn.Module) -> list[str]:
    """Paths of the blocks: the innermost numbered children that are not single layers."""
    numbered = [
        path
        for path, module in backbone.named_modules()
        if path.rsplit(".", 1)[-1].isdigit() and any(True for _ in module.children())
    ]
    inner = [p for p in numbered if not any(q.startswith(p + ".") for q in numbered)]
    return [p for p in inner if any(True for _ in backbone.get_submodule(p).parameters())]


def _module_sites(path: str, module: nn.Module, model: Model) -> Iterator[Site]:
    block, name = _canonical(path, model)
    called = path in model.called
    bare: dict[str, Any] = {"path": path, "module": module, "model": model, "block": block}
    if isinstance(module, nn.Linear):
        refs = _bias_refs(path, module, model)
        tag = "position" if _POSITION_MLP.search(path) else "linear"
        yield Site(name, tags=frozenset({tag}), tensor=_ref(path, "weight", module.weight), bias=refs,
                   bypassed=not called, **bare)  # fmt: skip
        yield from _slices(name, module, refs, not called, bare)
    elif isinstance(module, nn.Conv2d):
        tag = "conv" if module.groups == 1 else "grouped-conv"
        yield Site(name, tags=frozenset({tag}), tensor=_ref(path, "weight", module.weight),
                   bias=_bias_refs(path, module, model), bypassed=not called, **bare)  # fmt: skip
    elif isinstance(module, _NORMS) and module.weight is not None:
        yield Site(name, tags=frozenset({"norm"}), tensor=_ref(path, "weight", module.weight),
                   bias=_bias_refs(path, module, model), bypassed=not called, **bare)  # fmt: skip
    elif called and path in model.blocks:
        yield Site(name, tags=frozenset({"block"}), **bare)
    elif (
        called
        and block is not None
        and not _POSITION_MLP.search(path)
        and name.rsplit(".", 1)[-1].startswith(("attn", "mlp"))
    ):
        tag = "attention" if name.rsplit(".", 1)[-1].startswith("attn") else "mlp"
        if any(True for _ in module.children()):
            yield Site(name, tags=frozenset({tag}), **bare)


def _slices(
    name: str, module: nn.Linear, bias: tuple[TensorRef, ...], bypassed: bool, bare: dict[str, Any]
) -> Iterator[Site]:
    """The q, k and v rows of a fused projection; none where they take turns head by head (MaxViT)."""
    parent, _, leaf = name.rpartition(".")
    letters = _FUSED.get(leaf)
    interleaved = getattr(bare["model"].modules[bare["path"].rpartition(".")[0]], "head_first", False)
    if letters is None or module.out_features % len(letters) or interleaved:
        return
    step = module.out_features // len(letters)
    for index, letter in enumerate(letters):
        rows = TensorRef(bare["path"], "weight", index * step, (index + 1) * step)
        piece = tuple(_cut(bias, index * step, (index + 1) * step))
        yield Site(f"{parent}.{letter}", tags=frozenset({"slice"}), tensor=rows, bias=piece, bypassed=bypassed, **bare)


def _cut(refs: tuple[TensorRef, ...], start: int, stop: int) -> Iterator[TensorRef]:
    """Rows ``start:stop`` of the vector that ``refs`` make together."""
    offset = 0
    for ref in refs:
        size = ref.stop - ref.start
        low, high = max(start - offset, 0), min(stop - offset, size)
        if low < high:
            yield TensorRef(ref.path, ref.name, ref.start + low, ref.start + high)
        offset += size


def _bias_refs(path: str, module: nn.Module, model: Model) -> tuple[TensorRef, ...]:
    """The module's own bias, or the q, k and v biases that BEiT-like attentions keep beside a bias-free ``qkv``."""
    own = getattr(module, "bias", None)
    if isinstance(own, Tensor):
        return (_ref(path, "bias", own),)
    parent, _, leaf = path.rpartition(".")
    around = model.modules[parent]
    names = [f"{letter}_bias" for letter in "qkv"] if leaf == "qkv" else []
    separate = [(name, tensor) for name in names if isinstance(tensor := getattr(around, name, None), Tensor)]
    if len(separate) == len(names):
        return tuple(_ref(parent, name, tensor) for name, tensor in separate)
    return ()


def _parameter_site(path: str, name: str, tensor: Tensor, module: nn.Module, model: Model) -> Site:
    block, owner = _canonical(path, model) if path else (None, "")
    full = f"{owner}.{name}" if owner else name
    tags = {"parameter"}
    if isinstance(module, _NORMS):
        tags.add("norm-parameter")
    if (name == "bias" or name.endswith("_bias")) and tensor.ndim == 1:
        tags.add("bias")
    if isinstance(module, LayerScale) or name.startswith("gamma"):
        tags.add("gain")
    if "pos_embed" in name or "relative_position" in name or "bias_table" in name:
        tags.add("position")
    if name.endswith(("_token", "cls_token", "reg_token")):
        tags.add("prefix")
    return Site(full, path, frozenset(tags), module, model, block, tensor=_ref(path, name, tensor))


def _canonical(path: str, model: Model) -> tuple[int | None, str]:
    """timm's path to ``(block, name)`` in the common vocabulary."""
    for index, block in enumerate(model.blocks):
        if path == block:
            return index, f"blocks.{index}"
        if path.startswith(block + "."):
            inner = path[len(block) + 1 :]
            head, _, leaf = inner.rpartition(".")
            leaf = _ALIASES.get(leaf, leaf) if leaf.endswith("_proj") else leaf
            return index, f"blocks.{index}.{head + '.' if head else ''}{leaf}"
    return None, _ALIASES.get(path, path)


def _positions(backbone: nn.Module) -> str:
    names = [name for name, _ in backbone.named_parameters()] + [name for name, _ in backbone.named_modules()]
    if any("rope" in name.split(".") for name in names):
        return "rotary"
    return (
        "relative" if any(("relative_position" in n) or ("rel_pos" in n) or ("cpb_mlp" in n) for n in names) else "none"
    )


def _classifier(backbone: nn.Module) -> list[str]:
    """Paths of the classifier, which is a head and no site."""
    config = getattr(backbone, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _ref(path: str, name: str, tensor: Tensor) -> TensorRef:
    return TensorRef(path, name, 0, tensor.shape[0] if tensor.ndim else 0)


def is_standardised(module: nn.Module) -> bool:
    """A convolution that standardises its weight before use: a gain of rows or columns is lost in the weight."""
    return isinstance(module, (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame))


def is_plain_conv(module: nn.Module) -> bool:
    """A convolution whose forward is torch's own, so that a second one beside it sees the same padding."""
    return type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
