"""The only place that imports MLX; always in a process of its own."""

from exo_cli.engine.lean import install

install()
