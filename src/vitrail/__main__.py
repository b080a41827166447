"""``python -m vitrail``, and the entry point of the installed script."""

from typing import NoReturn

from vitrail.cli.process import claim, starting


def main() -> NoReturn:
    """Run the command line in a process of its own; see ``vitrail.cli.app.main``."""
    claim()
    with starting():
        from vitrail.cli.app import main as command_line
    command_line()


if __name__ == "__main__":
    main()
