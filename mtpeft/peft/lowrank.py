"""Low-rank parts on activations: one product with all factors of a module, whatever rows and samples they serve."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.parts import LowRankPart, sees_input
from mtpeft.peft.route import Segment
from mtpeft.peft.weights import WeightMount


def add_low_rank(mount: WeightMount, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """``y + sum_e scale_e B_e project_e(x, A_e)`` over the parts ``e`` that act, each on its own samples and output
    rows.

    Plain parts share one product with all their ``A`` stacked; where a part serves some samples only, the others'
    columns are set to zero, which is exact. Routed parts project their own samples.

    Args:
        x: the module's input, ``(B', ..., in)`` or ``(B', in, H, W)``; ``B'`` may be a multiple of the batch (windows).
        y: the module's output.
    """
    entries = _entries(mount)
    if not entries:
        return y
    size, channel = mount.pass_state.current.route.size, 1 if isinstance(module, nn.Conv2d) else -1
    times = len(x) // size
    hidden: list[Tensor | None] = []
    backs, plain = [], []
    for placed, index, first, segments in entries:
        with mount.using(placed, index, first) as part:
            a, b, scale = part.factors()
            if b.shape[1] == 0:  # a rank of zero adds nothing, and convolutions refuse it
                continue
            backs.append(_rows(b if scale == 1 else b * scale, placed, y.shape[channel]))
            if sees_input(part):
                hidden.append(_projected(mount, part, x, a, segments))
            else:
                plain.append((a, segments))
                hidden.append(None)
    if not backs:
        return y
    stacked = iter(_stacked(module, x, plain, size, times))
    parts = [next(stacked) if h is None else h for h in hidden]
    z = parts[0] if len(parts) == 1 else torch.cat(parts, channel)
    return _add(module, y, z, torch.cat(backs, 1))


def _entries(mount: WeightMount) -> list[tuple[PartAtSite, int, Segment, list[Segment] | None]]:
    """``(part, segment index, the samples it runs on, its segments; None for the whole batch)``."""
    spans = mount.spans()
    if len(spans) == 1:
        index, segment, plan = spans[0]
        return [(placed, index, segment, None) for placed in plan]
    whole = mount.pass_state.current.route.whole
    found: dict[tuple[int, int], tuple[PartAtSite, int, Segment, list[Segment]]] = {}
    for index, segment, plan in spans:
        for placed in plan:
            per_task_gradients = placed.per_task or mount.pass_state.current.views is not None
            key = (id(placed), index if per_task_gradients else -1)
            found.setdefault(key, (placed, index, segment, []))[3].append(segment)
    return [(p, i, whole, None) if len(s) == len(spans) else (p, i, first, s) for p, i, first, s in found.values()]


def _rows(b: Tensor, placed: PartAtSite, out: int) -> Tensor:
    """``B (rows, k)`` placed at its rows of the module's output: ``(out, k)``."""
    ref = placed.site.rows
    return b if len(b) == out else F.pad(b, (0, 0, ref.start, out - ref.stop))


def _projected(mount: WeightMount, part: LowRankPart, x: Tensor, a: Tensor, segments: list[Segment] | None) -> Tensor:
    """``project(x, A)`` on the samples of some segments, and zero elsewhere; None stands for all."""
    if segments is None:
        return part.project(x, a)
    times = len(x) // mount.pass_state.current.route.size
    pieces, at = [], 0
    for segment in segments:
        mount.pass_state.rows = slice(segment.start, segment.stop)
        start, stop = segment.start * times, segment.stop * times
        z = part.project(x[start:stop], a)
        pieces += [z.new_zeros(start - at, *z.shape[1:]), z]
        at = stop
    return torch.cat([*pieces, z.new_zeros(len(x) - at, *z.shape[1:])])


def _stacked(module: nn.Module, x: Tensor, plain: list, size: int, times: int) -> list[Tensor]:
    """The plain parts' projections, by one product."""
    if not plain:
        return []
    a = torch.cat([a for a, _ in plain]) if len(plain) > 1 else plain[0][0]
    if isinstance(module, nn.Conv2d):
        channel, z = 1, F.conv2d(x, a, None, module.stride, module.padding, module.dilation)
    else:
        channel, z = -1, F.linear(x, a)
    if any(segments is not None for _, segments in plain):
        z = z * _mask(plain, z, size, times, channel == 1)
    return list(z.split([len(a) for a, _ in plain], channel))


def _mask(plain: list, z: Tensor, size: int, times: int, channels_first: bool) -> Tensor:
    """1 where a column's part serves the sample, else 0; broadcast over positions."""
    columns = []
    for a, segments in plain:
        column = z.new_zeros(size) if segments is not None else z.new_ones(size)
        for segment in segments or ():
            column[segment.start : segment.stop] = 1
        columns.append(column[:, None].expand(size, len(a)))
    mask = torch.cat(columns, 1).repeat_interleave(times, 0)  # (B', sum of r)
    middle = [1] * (z.ndim - 2)
    return mask.view(*mask.shape, *middle) if channels_first else mask.view(len(mask), *middle, -1)


def _add(module: nn.Module, y: Tensor, z: Tensor, b: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return y + F.conv2d(z, b[:, :, None, None].to(z.dtype))
    return torch.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1]), b.t()).view_as(y)
