"""The entry point: `exo --version` is answered before anything heavy is imported."""

import sys


def main() -> int:
    """Run `exo`; the return value is the exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from exo_cli import __version__

        print(f"exo {__version__} (independent program, not affiliated with exo-explore/exo)")
        return 0
    from exo_cli.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
