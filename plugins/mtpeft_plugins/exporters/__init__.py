"""Exporters: trained tasks in the formats of other tools."""
