# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make model cards from result files.

python -m transformers_nim.commands.cards FOLDER          # writes what is generated
python -m transformers_nim.commands.cards FOLDER --check  # says what differs
"""

import argparse
import sys

from ..hub.model_card import card_differences, write_card


def main(argv: list[str] | None = None) -> int:
    """Write or check the generated files of folders; return 1 if some differ."""
    parser = argparse.ArgumentParser(prog="python -m transformers_nim.commands.cards", description="Make model cards.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="with card.json and the files that it names")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    args = parser.parse_args(argv)
    differences = ""
    try:
        for folder in args.folders:
            if args.check:
                differences += card_differences(folder)
            else:
                sys.stdout.write(f"{write_card(folder)}\n")
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write(differences)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
