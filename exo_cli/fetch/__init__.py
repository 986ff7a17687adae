"""Bytes of models: where they lie on this machine, how a neighbour gets them, how they are kept."""
