"""The entry point: `exo --version` and completion are answered before anything heavy is imported."""

import gc
import sys

INTERRUPTED = 130


def main() -> int:
    """Run `exo`; the return value is the exit code."""
    try:
        return _main(sys.argv[1:])
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        # Or the process looks once more through all that was imported before it ends: tens of milliseconds.
        gc.freeze()


def _main(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-V"]):
        from exo_cli import VERSION_LINE

        try:
            print(VERSION_LINE, flush=True)
            return 0
        except OSError:
            pass  # the long way round tries again and says why it cannot
    elif arguments[:1] == ["__complete"]:
        from exo_cli.commands.complete import complete

        return complete(arguments[1:])
    from exo_cli.cli import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
