"""Text to token ids and back: tokenizers, chat templates, stop strings, thinking tags.

Everything a driver needs to know of a model's language, without MLX and without transformers. Knows
nothing of requests, processes or the network.
"""
