"""Weights times orthogonal matrices: OFT, BOFT and HRA."""

from __future__ import annotations

import pytest
import torch
from support.reparameterised import Reparameterised, close, detached

from mtpeft.api import Context
from mtpeft_plugins.partial.boft import possible_factors
from mtpeft_plugins.partial.oft import block_size, cayley_change


def solved(model: Reparameterised, module: str) -> torch.Tensor:
    """``R`` of ``W' = W R``, for a tall ``W``."""
    frozen, folded = model.weight(module)
    return torch.linalg.lstsq(frozen.double(), folded.double()).solution.float()


def orthogonal(matrix: torch.Tensor) -> bool:
    return close(matrix @ matrix.T, torch.eye(len(matrix)), 1e-4)


def test_oft_turns_blocks_of_inputs():
    model = Reparameterised("oft", at="mlp.fc1", block=8)
    rotation = solved(model, "mlp.fc1")
    assert orthogonal(rotation)
    blocks = torch.block_diag(*[rotation[i : i + 8, i : i + 8] for i in range(0, 32, 8)])
    assert close(rotation, blocks, 1e-4)
    assert not close(rotation, torch.eye(32), 1e-2)


def test_oft_is_the_cayley_transform_of_its_upper_triangles():
    part = Reparameterised("oft", at="mlp.fc1", block=4).part("mlp.fc1")
    skew = torch.zeros(8, 4, 4)
    for place, (row, column) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        skew[:, row, column], skew[:, column, row] = part.Q[:, place].detach(), -part.Q[:, place].detach()
    eye = torch.eye(4)
    assert close(eye + part.change().detach(), (eye + skew) @ torch.linalg.inv(eye - skew))


def test_no_rotation_is_no_change_bit_for_bit():
    assert torch.equal(cayley_change(torch.zeros(3, 5, 5)), torch.zeros(3, 5, 5))


@pytest.mark.parametrize(("width", "most", "size"), [(768, 32, 32), (147, 32, 21), (7, 4, 1), (27, 8, 3)])
def test_blocks_divide_the_width(width, most, size):
    assert block_size(width, most) == size


@pytest.mark.parametrize(("factors", "joined"), [(1, 2), (2, 4), (3, 8)])
def test_boft_joins_twice_the_groups_with_each_factor(factors, joined):
    """A factor more doubles the inputs that reach each input, and the rotation stays orthogonal."""
    model = Reparameterised("boft", at="mlp.fc1", block=8, factors=factors)
    gain = model.part("mlp.fc1").gain.detach()
    frozen, folded = model.weight("mlp.fc1")
    rotation = torch.linalg.lstsq(frozen.double(), (folded / gain[:, None]).double()).solution.float()
    assert orthogonal(rotation)
    groups = rotation.view(8, 4, 8, 4).abs().amax((1, 3)) > 1e-4  # groups of half a block
    assert bool((groups.sum(1) == joined).all())
    assert bool(groups.diagonal().all())


def test_one_factor_of_boft_is_block_diagonal():
    model = Reparameterised("boft", at="mlp.fc1", block=8, factors=1)
    t = detached(model.part("mlp.fc1"))
    skew = (t["A"][0] - t["A"][0].mT) / 2
    rotation = torch.block_diag(*[(torch.eye(8) + q) @ torch.linalg.inv(torch.eye(8) - q) for q in skew])
    frozen, folded = model.weight("mlp.fc1")
    assert close(folded, t["gain"][:, None] * (frozen @ rotation))


@pytest.mark.parametrize(
    ("width", "block", "wanted", "count"), [(768, 8, 3, 3), (48, 8, 4, 2), (27, 3, 2, 1), (8, 8, 2, 1)]
)
def test_boft_takes_no_more_factors_than_the_width_allows(width, block, wanted, count):
    assert possible_factors(width, block, wanted) == count


def test_hra_is_a_product_of_reflections():
    model = Reparameterised("hra", at="mlp.fc1", rank=4)
    product = torch.eye(32)
    for u in model.part("mlp.fc1").U.detach().unbind(1):
        product = product @ (torch.eye(32) - 2 * torch.outer(u, u) / u.square().sum())
    frozen, folded = model.weight("mlp.fc1")
    assert orthogonal(product)
    assert close(folded, frozen @ product)


def test_hra_starts_with_pairs_that_cancel_bit_for_bit():
    model = Reparameterised("hra", at="mlp.fc1", rank=4, moved=False)
    columns = model.part("mlp.fc1").U.detach()
    assert torch.equal(columns[:, 0], columns[:, 1])
    assert not torch.equal(columns[:, 1], columns[:, 2])
    assert torch.equal(*model.weight("mlp.fc1"))


def test_hra_penalises_vectors_that_are_not_orthogonal():
    model = Reparameterised("hra", at="mlp.fc1", rank=4, orthogonality=0.5)
    routine, context = model.host.routines["hra"], Context(model.host, ("task",), ("task",))
    units = [part.U.detach() / part.U.detach().norm(dim=0) for part in model.parts.values()]
    skewness = [float((u.T @ u - torch.eye(4)).square().sum()) for u in units]
    assert routine.penalty(context).item() == pytest.approx(0.5 * sum(skewness), rel=1e-5)
    with torch.no_grad():
        for part in model.parts.values():
            part.U.copy_(3 * torch.linalg.qr(torch.randn(part.U.shape)).Q)
    assert routine.penalty(context).item() < 1e-10
    model.host.freeze("shared")
    assert routine.penalty(context) is None


def test_hra_has_no_penalty_unless_asked():
    model = Reparameterised("hra", at="mlp.fc1", rank=4)
    assert "hra" not in model.host.routines
