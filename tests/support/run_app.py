"""`exo` with the verb run, whether or not it is in the app yet: `python -m tests.support.run_app run …`."""

import sys

from exo_cli import cli
from exo_cli.commands import run

if __name__ == "__main__":
    if not any(command.name == "run" for command in cli.app.registered_commands):
        run.register(cli.app)
    sys.exit(cli.run(sys.argv[1:]))
