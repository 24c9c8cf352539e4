"""How several losses or gradients become one step."""

from mtpeft.balancing.base import Balancer

builtin: dict[str, str] = {
    "equal": "mtpeft.balancing.equal:Equal",
    "uw": "mtpeft.balancing.uncertainty:UncertaintyWeighting",
    "dwa": "mtpeft.balancing.dynamic:DynamicWeightAverage",
    "rlw": "mtpeft.balancing.random:RandomLossWeighting",
}
"""The balancers that come with mtpeft, as the hook ``register_balancers`` gives them."""

__all__ = ["Balancer", "builtin"]
