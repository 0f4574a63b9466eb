# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Command lines that show defaults and report errors in one line."""

import argparse
from collections.abc import Sequence


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, except None: there the option's help says what leaving it out means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Not `in (None, False)`, where 0 would count too.
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, (list, tuple)):
            # As a user types it.
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def make_parser(description: str | None, required: str = "--output_dir OUTPUT_DIR") -> argparse.ArgumentParser:
    """Return a parser whose help shows defaults and whose errors are not preceded by a list of all options."""
    return argparse.ArgumentParser(
        usage=f"%(prog)s {required} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, required: Sequence[str], counts: Sequence[str]
) -> None:
    """Exit with an error if an argument is missing or a count is below 1.

    Args:
        parser: Shows the error.
        args: What it parsed.
        required: Arguments that must be given.
        counts: Arguments that must be at least 1, if given.
    """
    for name in required:
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    for name in counts:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
