"""Schedules: when each task is met."""
