"""How several losses or gradients become one step."""

from mtpeft.balancing.base import Balancer

__all__ = ["Balancer"]
