"""Measuring: load, metrics, the gate, comparison, the report. Knows nothing of terminals."""
