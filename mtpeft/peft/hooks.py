"""The hook that sits on a module: everything parts do to activations there, in one fixed order.

Hooks are objects, not closures: a deep copy of the host copies them, and then reads its own parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from mtpeft.peft.fork import copied, forked
from mtpeft.peft.lowrank import add_low_rank
from mtpeft.peft.mounts import Mount, PartAtSite
from mtpeft.peft.parts import Part, TokenPart, WeightPart
from mtpeft.peft.route import Pass, PassState, Segment
from mtpeft.peft.weights import BiasMount, WeightMount, changed_bias, replace_rows

_TAG = "_mtpeft_tag"
Call = Callable[[PartAtSite, Any, Tensor, Tensor], Tensor]
"""How a part is run: with its place, the module's input, and what it changes."""


@dataclass
class Tag:
    """What a block's input remembers, so that a checkpoint runs the block again under the same pass."""

    current: Pass
    carried: Tensor | None
    scratch: dict[Any, dict[str, Any]]


class Mounts(TypedDict, total=False):
    """The parts at one module, by kind."""

    middle: MiddleMount
    input: Mount
    token: Mount
    keyvalue: Mount
    overwrite: KeyValueTarget
    gain: WeightMount
    lowrank: WeightMount
    bias: BiasMount
    output: Mount


@dataclass(eq=False)
class ModuleHook:
    """Hooks of one module.

    At its input: the tag of a checkpoint, input parts, gains, extra tokens. At its output: gains, changes of the stream
    inside the block, extra tokens cut, low-rank parts, a bias that timm lacks, output parts, and the block's tap.

    Attributes:
        mounts: the parts here.
        rotary: timm's attentions of this block that rotate all but their first tokens, with how many those are.
    """

    pass_state: PassState
    channels_last: bool = True
    path: str = ""
    block: bool = False
    mounts: Mounts = field(default_factory=Mounts)
    rotary: dict[Any, int] = field(default_factory=dict)
    inserted: int = 0
    carrying: int = 0
    keys: Tensor | None = None
    made: list[tuple[int, Segment, list[tuple[PartAtSite, int]]]] = field(default_factory=list)
    entry: tuple[int, ...] = ()
    change: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without what a pass left here."""
        return {**vars(self), "keys": None, "change": None}

    def register(self, module: nn.Module) -> list[Any]:
        return [module.register_forward_pre_hook(Before(self)), module.register_forward_hook(After(self))]

    def before(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        if self.block:
            if self.pass_state.tagging:
                self._restore(x)
            x = self._fork(x)
            self.entry, self.change = x.shape, None  # a pass that broke off, or a checkpoint, may have left a change
        if "middle" in self.mounts:
            x = self._between(self.mounts["middle"], x)
        if "input" in self.mounts:
            x = self._run(self.mounts["input"], on_value, x)
        if "gain" in self.mounts:
            x = self._run(self.mounts["gain"], on_input, x)
        if "token" in self.mounts:
            x = self._insert(self.mounts["token"], x)
        if "keyvalue" in self.mounts:
            x = self._pad(self.mounts["keyvalue"], x)
        return (x, *args[1:])

    def after(self, module: nn.Module, x: Tensor, y: Any) -> Any:
        if "gain" in self.mounts:
            y = self._run(self.mounts["gain"], on_output, x, y)
        if "keyvalue" in self.mounts and self.keys is not None:
            real = y.shape[1] - self.keys.shape[2]
            x, y = x[:, :real], y[:, :real]
        if "overwrite" in self.mounts:
            y = overwrite(self.mounts["overwrite"], y)
        if self.change is not None:
            y, self.change = y + self.change.view_as(y), None
        if "token" in self.mounts:
            x, y = self._cut(x, y)
        if "lowrank" in self.mounts:
            y = add_low_rank(self.mounts["lowrank"], module, x, y)
        if "bias" in self.mounts:
            y = self._missing_bias(self.mounts["bias"], y)
        if "output" in self.mounts:
            y = self._run(self.mounts["output"], on_channels, x, y)
        if self.block:
            self._leave(y)
        return y

    def _fork(self, x: Tensor) -> Tensor:
        """From here on, each task's own copy of its samples; the pass before stays as it was for its checkpoints."""
        current = self.pass_state.current
        if current.fork is None or current.fork.block != self.path:
            return x
        self.pass_state.enter(forked(current, current.fork))
        return copied(x, current.fork.rows, current.fork.size)

    def _run(self, mount: Mount, call: Call, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The output, or without one the input, after ``call`` of each part on its own samples, channels last."""
        value, spans = x if y is None else y, mount.spans()
        if not any(plan for _, _, plan in spans):
            return value
        if not self.channels_last:
            x, value = x.movedim(1, -1), value.movedim(1, -1)
        times = len(x) // mount.pass_state.current.route.size
        pieces = []
        for index, segment, plan in spans:
            rows = slice(segment.start * times, segment.stop * times) if len(spans) > 1 else slice(None)
            inner, piece = x[rows], value[rows]
            for placed in plan:
                with mount.using(placed, index, segment) as part:
                    piece = call(placed, part, inner, piece)
            pieces.append(piece)
        result = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return result if self.channels_last else result.movedim(-1, 1)

    def _insert(self, mount: Mount, x: Tensor) -> Tensor:
        """Tokens carried from the block before and this block's own, behind the prefix tokens."""
        current = self.pass_state.current
        carried, current.carried = current.carried, None
        own, keep = self._own_tokens(mount, x)
        tokens = [t for t in (carried, *own) if t is not None]
        self.carrying = (0 if carried is None else carried.shape[1]) + keep
        self.inserted = sum(t.shape[1] for t in tokens)
        for module, first in self.rotary.items():
            # prompts count among the first tokens, which get no rotation
            module.num_prefix_tokens = first + self.inserted
        prefix = current.layout.prefix
        return torch.cat([x[:, :prefix], *tokens, x[:, prefix:]], 1) if tokens else x

    def _own_tokens(self, mount: Mount, x: Tensor) -> tuple[list[Tensor], int]:
        """Tokens to carry on first, then the others; and how many are carried."""
        kept: list[list[Tensor]] = []
        cut: list[list[Tensor]] = []
        self.made = []
        for index, segment, plan in mount.spans():
            rows = x[segment.start : segment.stop]
            made = [(p, mount.run(p, index, segment, rows).expand(len(rows), -1, -1)) for p in plan]
            made.sort(key=lambda pair: not pair[0].part.carry)
            kept.append([t for p, t in made if p.part.carry])
            cut.append([t for p, t in made if not p.part.carry])
            self.made.append((index, segment, [(p, t.shape[1]) for p, t in made]))
        groups = [torch.cat([torch.cat(t, 1) for t in group]) for group in (kept, cut) if group[0]]
        return groups, sum(t.shape[1] for t in kept[0])

    def _cut(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Input and output of the block without the extra tokens."""
        if not self.inserted:
            return x, y
        current = self.pass_state.current
        start, stop = current.layout.prefix, current.layout.prefix + self.inserted
        current.carried = y[:, start : start + self.carrying] if self.carrying else None
        self._return(y[:, start:stop])
        return torch.cat([x[:, :start], x[:, stop:]], 1), torch.cat([y[:, :start], y[:, stop:]], 1)

    def _return(self, tokens: Tensor) -> None:
        """Hand what the block made of the extra tokens, ``(B, carried and own, C)``, to the parts that gave them."""
        for index, segment, made in self.made:
            end = tokens.shape[1]
            for placed, count in reversed(made):
                if wants_return(placed.part):
                    with self.mounts["token"].using(placed, index, segment) as part:
                        part.returned(tokens[segment.start : segment.stop, end - count : end])
                end -= count

    def _between(self, mount: MiddleMount, x: Tensor) -> Tensor:
        """Input parts on the stream between attention and MLP; the block's output gets their change too."""
        shape = mount.outer.entry
        spatial = len(shape) == 4 and x.ndim == 3 and x.shape[1] == shape[1] * shape[2]
        stream = x.view(len(x), *shape[1:3], -1) if spatial else x
        changed = self._run(mount, on_value, stream)
        if changed is not stream:
            mount.outer.change = changed - stream
        return changed.reshape(x.shape)

    def _pad(self, mount: Mount, x: Tensor) -> Tensor:
        """Room for extra keys and values behind the tokens; the projection's hook fills it."""
        pieces = []
        for index, segment, plan in mount.spans():
            rows = x[segment.start : segment.stop]
            own = [mount.run(placed, index, segment, rows) for placed in plan]
            both = [torch.stack([t.expand(len(rows), -1, -1) for t in pair]) for pair in own]
            if both:
                pieces.append(torch.cat(both, 2))
        self.keys = torch.cat(pieces, 1) if pieces else None  # (2, B, p, C)
        return x if self.keys is None else torch.cat([x, x.new_zeros(len(x), self.keys.shape[2], x.shape[2])], 1)

    def _missing_bias(self, mount: BiasMount, y: Tensor) -> Tensor:
        for placed in mount.in_force:
            bias = changed_bias(mount.weights, placed, mount.pass_state.task, None)
            if bias is not None:
                ref = placed.site.rows
                zeros = bias.new_zeros(y.shape[-1 if self.channels_last else 1])
                full = replace_rows(zeros, ref.start, ref.stop, bias)
                y = y + (full if self.channels_last else full[:, None, None])
        return y

    def _restore(self, x: Tensor) -> None:
        tag = getattr(x, _TAG, None)
        if tag is None:
            setattr(x, _TAG, self._tag())
            return
        self.pass_state.enter(tag.current)
        tag.current.carried, tag.current.scratch = tag.carried, snapshot(tag.scratch)

    def _leave(self, y: Tensor) -> None:
        if self.pass_state.current.taps is not None:
            self.pass_state.current.taps.append(y if self.channels_last else y.movedim(1, -1))
        if self.pass_state.tagging:
            setattr(y, _TAG, self._tag())

    def _tag(self) -> Tag:
        current = self.pass_state.current
        return Tag(current, current.carried, snapshot(current.scratch))


@dataclass(eq=False, kw_only=True)
class MiddleMount(Mount):
    """Input parts inside a block, on its residual stream; ``outer``: the block's hook, whose output they change too."""

    outer: ModuleHook


@dataclass(eq=False, kw_only=True)
class KeyValueTarget(Mount):
    """Marks a projection whose last rows an attention's extra keys and values overwrite."""

    attention: ModuleHook
    letters: str


def snapshot(scratch: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {span: dict(left) for span, left in scratch.items()}


def overwrite(target: KeyValueTarget, y: Tensor) -> Tensor:
    """Put the attention's keys and values into the padded rows of its projection's output ``(B, N + p, ...)``."""
    keys = target.attention.keys
    if keys is None:
        return y
    count, width = keys.shape[2], keys.shape[3]
    query = y[:, -count:, :width]
    columns = {"qkv": [query, keys[0], keys[1]], "kv": [keys[0], keys[1]], "k": [keys[0]], "v": [keys[1]], "q": [query]}
    return torch.cat([y[:, :-count], torch.cat(columns[target.letters], -1).to(y.dtype)], 1)


def on_value(placed: PartAtSite, part: Any, x: Tensor, value: Tensor) -> Tensor:
    """Run an input part."""
    return part(value)


def on_channels(placed: PartAtSite, part: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run an output part."""
    return on_rows(placed, partial(part, x), y)


def on_input(placed: PartAtSite, part: Any, x: Tensor, value: Tensor) -> Tensor:
    """Run a weight part's gains of columns."""
    return part.on_input(value).to(value.dtype)


def on_output(placed: PartAtSite, part: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run a weight part's gains of rows."""
    return on_rows(placed, part.on_output, y).to(y.dtype)


def on_rows(placed: PartAtSite, change: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """A change of the output; on a q, k or v site of a fused projection it sees those channels only."""
    if "slice" not in placed.site.tags:
        return change(y)
    start, stop = placed.site.rows.start, placed.site.rows.stop
    return torch.cat([y[..., :start], change(y[..., start:stop]), y[..., stop:]], -1)


@dataclass(eq=False)
class Before:
    hook: ModuleHook

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.hook.before(args)


@dataclass(eq=False)
class After:
    hook: ModuleHook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.hook.after(module, args[0], output)


def wants_return(part: Part) -> bool:
    return isinstance(part, TokenPart) and type(part).returned is not TokenPart.returned


def adds_missing_bias(placed: PartAtSite) -> bool:
    """A weight part that gives a bias to a module which has none."""
    part = placed.part
    return isinstance(part, WeightPart) and not placed.site.bias and part.bias(placed.site.weight, None) is not None
