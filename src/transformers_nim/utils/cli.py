# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Command lines that show defaults and say errors in one line."""

import argparse


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but not the None of options that say themselves what leaving them out means."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Not `in (None, False)`, where 0 would count too.
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, (list, tuple)):
            # As it is typed.
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def make_parser(description: str | None, required: str = "--output_dir OUTPUT_DIR") -> argparse.ArgumentParser:
    """A parser whose help shows defaults, and whose errors are not preceded by a page of options."""
    return argparse.ArgumentParser(
        usage=f"%(prog)s {required} [options]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
