"""Readers of real data: what ``READER:PATH?option=value`` names, one layout in one file."""
