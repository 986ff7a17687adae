"""The driver: owns a request from its prompt to its last token, and finds the chain that computes it."""

import exo_cli.wire  # noqa: F401 - before anything imports gRPC: it keeps gRPC's core from writing to stderr
