"""exo: the machines people already own, as one cluster that runs language models."""

__version__ = "0.1.0"
VERSION_LINE = f"exo {__version__} (independent program, not affiliated with exo-explore/exo)"
