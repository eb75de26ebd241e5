"""Fidelity against what was recorded: frame metrics, scores with their uncertainty, and the report."""
