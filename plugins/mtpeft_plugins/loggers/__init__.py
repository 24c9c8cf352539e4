"""Loggers: where a training's events are written beside its own log."""
