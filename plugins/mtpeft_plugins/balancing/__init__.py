"""Balancers: how several losses or gradients become one step."""
