"""Comparing methods at one budget: every method on every task, chosen on validation alone, tested once."""
