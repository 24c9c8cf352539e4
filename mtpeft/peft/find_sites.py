"""Finding the sites of a timm backbone: what its modules and parameters are called in the common vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mtpeft.errors import NotApplicable
from mtpeft.peft.sites import Model, Site, TensorRef
from mtpeft.peft.trace import Trace, native_size

_NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase, nn.RMSNorm)
_ALIASES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "patch_embed.proj": "patch_embed", "norm": "final_norm",
    "fc_norm": "final_norm",
}  # fmt: skip
_POSITION_MLP = re.compile(r"\bcpb_mlp\b|\brel_pos\b")
_FUSED = {"qkv": "qkv", "kv": "kv"}


def find_sites(backbone: nn.Module, image_size: tuple[int, int] | None = None) -> list[Site]:
    """Every site of a timm backbone, in order of the network (one forward pass finds what is called).

    Args:
        image_size: of the probing pass; default: the backbone's own.

    Raises:
        NotApplicable: for weights that are packed, sparse or no floating-point numbers.
    """
    _refuse_packed(backbone)
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


def _refuse_packed(backbone: nn.Module) -> None:
    """Parts are computed from dense weights, and a packed layer would look like no layer at all."""
    hint = "adapt it in float32 or half precision, and quantise what export gives"
    for path, module in backbone.named_modules():
        if ".quantized" in type(module).__module__:
            raise NotApplicable(f"{path} is a quantised layer, whose weight is packed", hint=hint)
    for name, tensor in backbone.named_parameters():
        if tensor.layout is not torch.strided or not tensor.is_floating_point():
            kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
            raise NotApplicable(f"{name} is a tensor of the kind {kind}, and parts need dense numbers", hint=hint)


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
