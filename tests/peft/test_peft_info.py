"""What a host says of its features."""

from __future__ import annotations

import torch

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


def test_info_can_be_asked_first_after_a_mixed_batch():
    method = resolve("methods", "adaptformer")
    host = Host(zoo()["vit"](), [("adaptformer", method(scope="task"))], ["a", "b"]).eval()
    host(torch.zeros(3, 3, 32, 32), ["a", None, "b"])
    assert (host.info.pooled, host.info.channels) == (32, (32,))
