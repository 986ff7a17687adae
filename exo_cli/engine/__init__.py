"""The only place that imports MLX; always in a process of its own."""
