"""What goes over the wire: the generated messages, frames, and mutually authenticated channels."""

import os

# gRPC's core writes to standard error by itself, and reads this once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
