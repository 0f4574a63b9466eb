# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Command lines that show defaults and report errors in one line."""

import argparse


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
