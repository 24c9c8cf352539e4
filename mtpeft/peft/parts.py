"""The kinds of part: small trained modules at a site. The kind says what a part sees; the author writes only that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.errors import MtpeftError
from mtpeft.peft.module_map import ModuleMap

if TYPE_CHECKING:
    from mtpeft.backbone.features import Features
    from mtpeft.peft.route import PassState, TokenLayout


class Part(nn.Module):
    """What every part can ask for while it runs. Derive from one of the kinds below, not from this."""

    pass_state: PassState

    def bind(self, pass_state: PassState, common: nn.Module | None) -> None:
        """Called once by the host. ``common`` is kept outside the module tree, so it is counted and saved once."""
        self.__dict__["pass_state"], self.__dict__["_common"] = pass_state, common
        for module in self.modules():
            if isinstance(module, PerTask):
                module.bind(pass_state)

    @property
    def common(self) -> Any:
        """What the method's `Method.common` built for this part's owner."""
        return self.__dict__["_common"]

    @property
    def scratch(self) -> dict[str, Any]:
        """What this method's parts leave for later ones within a pass, for the samples they see; empty at first."""
        pass_state: PassState = self.__dict__["pass_state"]
        return pass_state.current.scratch.setdefault(pass_state.scratch_key, {})

    def given(self, name: str) -> Tensor | None:
        """What `Method.encode` handed to `Host.run` under this name, for the samples that the part sees ``(B, ...)``.

        None where nothing was, as in the probe that attaching makes. A checkpoint finds it again.
        """
        pass_state: PassState = self.__dict__["pass_state"]
        tensor = pass_state.current.given.get(name)
        return None if tensor is None else tensor[pass_state.rows]

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for saved tensors of these names and shapes, which are read in next.

        Only for a part whose tensors the data decides: how many weights it trains, or whether it trains any.
        """

    @property
    def added(self) -> int | None:
        """How many tokens, or keys and values, it adds now, where parts of one method may differ in that.

        A batch whose tasks add different numbers takes a pass for each task. None: all of the method add as many.
        """
        return None

    @property
    def layout(self) -> TokenLayout:
        """How tokens lie in this pass: ``prefix`` count, ``height`` and ``width`` of the grid."""
        return self.__dict__["pass_state"].current.layout


class PerTask(nn.Module):
    """One copy per task of a parameter or module inside a part: saved, isolated and removed with its task.

    Args:
        factory: builds one copy; called when a task is added.

    Example::

        self.gate = PerTask(lambda: nn.Parameter(torch.zeros(4)))
        ...
        weights = self.gate.current.softmax(0)     # the copy of the task in force

    Attributes:
        together: all copies act for every task, not that of the task in force alone.
    """

    together = False

    def __init__(self, factory: Callable[[], nn.Module | nn.Parameter]) -> None:
        super().__init__()
        self.factory = factory
        self.copies = ModuleMap()

    def bind(self, pass_state: PassState) -> None:
        self.__dict__["pass_state"] = pass_state

    def add_copy(self, task: str, like: Tensor) -> None:
        """A copy for ``task`` with the device and dtype of ``like``."""
        copy = self.factory()
        if isinstance(copy, nn.Parameter):
            copy.data = copy.data.to(like.device, like.dtype)
        self.copies[task] = copy if isinstance(copy, nn.Parameter) else copy.to(like.device, like.dtype)

    def remove(self, task: str) -> None:
        del self.copies[task]

    @property
    def current(self) -> Any:
        """The copy of the task in force.

        Raises:
            MtpeftError: if the task is not known in this pass.
        """
        task = self.__dict__["pass_state"].task
        if task is None or task not in self.copies:
            raise MtpeftError(
                f"this method keeps something for each task, and the task in force is {task!r}",
                hint="give the task: host(images, task=NAME)",
            )
        return self.copies[task]


class WeightPart(Part):
    """A function of the site's weight; mergeable by definition.

    ``forward(weight) -> weight`` sees the site's tensor (for a q, k or v site its rows of a fused ``qkv``) and returns
    one of the same shape. ``bias`` may replace the bias; it gets None where the module has none.

    Attributes:
        replaces: ``forward`` takes no notice of its weight; behind a part that changes the weight, which would be lost,
            it is refused.
    """

    replaces = False

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor: ...

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        """``(out,)`` or None; ``weight`` is the weight before this part."""
        return bias

    def on_input(self, x: Tensor) -> Tensor:
        """The same change made to the module's input ``(..., in)``: gains of columns. See `on_output`."""
        return x

    def on_output(self, y: Tensor) -> Tensor:
        """The same change, of the bias too, made to the site's rows of the module's output ``(..., out)``.

        A part that overrides this or `on_input` is run there where the module is called and all its parts can be: the
        frozen weight then needs no gradient, and samples of several tasks share one pass.
        """
        return y


def is_gain(part: Part) -> bool:
    """A weight part that acts on activations."""
    rows = isinstance(part, WeightPart) and type(part).on_output is not WeightPart.on_output
    return rows or gains_columns(part)


def gains_columns(part: Part) -> bool:
    return isinstance(part, WeightPart) and type(part).on_input is not WeightPart.on_input


class LowRankPart(WeightPart):
    """``W + scale * B A``; the host runs it on activations where the module is called.

    The author writes `factors`. A part whose update depends on the input (a router) overrides `project` and says so
    with ``input_dependent``; it then has no weight view and does not merge.

    Attributes:
        dropout: on the update's input, in training; the frozen weight sees all of it.
    """

    input_dependent = False
    dropout = 0.0

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor, float]:
        """``A (r, in)`` or ``(r, in, kh, kw)``, ``B (out, k)`` and the scale; ``k = r`` unless `project` differs."""

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        """``x (..., in)`` and ``A (r, in)`` to ``(..., k)``, which ``B (out, k)`` takes to the output."""
        return F.linear(F.dropout(x, self.dropout, self.training), a)

    def forward(self, weight: Tensor) -> Tensor:
        a, b, scale = self.factors()
        return weight + scale * (b @ a.flatten(1)).view_as(weight)


def sees_input(part: Part) -> bool:
    """A low-rank part that must run on activations, because it does something of its own with them."""
    if not isinstance(part, LowRankPart):
        return False
    return part.input_dependent or part.dropout > 0 or type(part).project is not LowRankPart.project


class InputPart(Part):
    """``forward(x) -> x`` at a module's input, channels last."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """``M (C, C)`` and ``c (C,)`` if ``forward(x) = x M^T + c``; it then merges into the module."""
        return None


class OutputPart(Part):
    """``forward(x, y) -> y`` at a module's output, channels last; ``x`` is the module's input."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor: ...

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """``M (C, C)`` and ``c (C,)`` if ``forward(x, y) = y M^T + c``; it then merges into the module."""
        return None


class TokenPart(Part):
    """Extra tokens for a block: inserted behind the prefix tokens at its input, cut at its output.

    ``carry = True`` takes the block's outputs for these tokens on to the next block (VPT-shallow); no block boundary
    ever shows them, so dense heads keep their grid.
    """

    carry = False

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """``x (B, N, C)``, the block's input, to tokens ``(B or 1, p, C)``."""

    def returned(self, tokens: Tensor) -> None:
        """Called with what the block made of these tokens, ``(B, p, C)``."""


class KeyValuePart(Part):
    """Extra keys and values for an attention (prefix tuning)."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x (B, N, C)``, the attention's input, to keys and values, each ``(B or 1, p, C)``, heads joined."""


class SidePart(Part):
    """A network beside the backbone: sees the finished features and each block's output (``features.taps``).

    The backbone runs without gradient unless another part needs one in it.
    """

    @abstractmethod
    def forward(self, features: Features) -> Features: ...


def zeros(*shape: int) -> nn.Parameter:
    """A trained tensor that starts at zero."""
    return nn.Parameter(torch.zeros(*shape))


KINDS = (WeightPart, InputPart, OutputPart, TokenPart, KeyValuePart, SidePart)
"""What `Method.part` may give."""
