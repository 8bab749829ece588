"""Entry point. ``--version`` answers before anything heavy is imported."""

import sys

from bellmare import __version__


def main() -> None:
    """Run the command line; exits with its status."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        sys.stdout.write(f"bellmare {__version__}\n")
        return
    from bellmare.cli.commands import app

    app()


if __name__ == "__main__":
    main()
