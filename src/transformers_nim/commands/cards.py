# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Make model cards from result files.

    transformers-nim cards FOLDER          # writes what is generated
    transformers-nim cards FOLDER --check  # says what differs

They are made of `card.json` and the result files that it names.
"""

import sys

from ..hub.model_card import card_differences, write_card
from ..utils.cli import make_parser, run_command


def main(argv: list[str] | None = None) -> int:
    """Write or check the generated files of folders; return 1 if some differ.

    Raises:
        ValueError: A folder lacks card.json or a file that it names, or they do not agree.
    """
    parser = make_parser(__doc__, "FOLDER ...")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="with card.json and the files that it names")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    args = parser.parse_args(argv)
    differences = ""
    for folder in args.folders:
        if args.check:
            differences += card_differences(folder)
        else:
            sys.stdout.write(f"{write_card(folder)}\n")
    sys.stdout.write(differences)
    return 1 if differences else 0


if __name__ == "__main__":
    run_command(main)
