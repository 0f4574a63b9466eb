# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Publish a checkpoint with its card and results on the Hub. Without --push nothing is sent.

    transformers-nim push outputs/de3 --repo_id NAME/nim-vit-tiny-de3          # what would change
    transformers-nim push outputs/de3 --repo_id NAME/nim-vit-tiny-de3 --push

It refuses cards that do not agree with the results (and shows the difference), results of other weights, missing or
broken files, formats that execute code when they are read, secrets and absolute paths. detect-secrets looks for
secrets (pip install 'transformers-nim[push]'); without it, only your token is looked for. What was uploaded is
downloaded again and compared. The branch is exactly the folder afterwards: files that are on the Hub alone are listed,
and removed by --push. Without --push the Hub is only asked for its list of files, and need not be within reach.
"""

import argparse
import re
import sys

from huggingface_hub import ModelCard

from ..hub.publication import Publication, prepare
from ..hub.upload import UnreachableHubError, stale_files, upload
from ..utils.cli import make_parser, run_command
from ..utils.interruption import Interrupted


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "FOLDER --repo_id OWNER/NAME")
    parser.add_argument("folder", help="with weights, configs, card.json and the result files that it names")
    parser.add_argument("--repo_id", required=True, help="repository, OWNER/NAME")
    parser.add_argument("--push", action="store_true", help="send it")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", default="main", help="branch")
    parser.add_argument(
        "--with_code",
        action="store_true",
        help="add the package's Python files, for users without the package who pass trust_remote_code=True",
    )
    parser.add_argument("--token", help="token of the Hub; the one of `hf auth login` by default")
    args = parser.parse_args(argv)
    if not re.fullmatch(r"\w[\w./-]*", args.revision, re.ASCII) or ".." in args.revision:
        parser.error(
            f"--revision {args.revision!r} is no name of a branch; use a-z, A-Z, 0-9, _, and behind the first of them"
            " also -, / and . but no two dots"
        )
    return args


def describe(publication: Publication, args: argparse.Namespace) -> str:
    """Say what would be sent, where to, and what the card says."""
    visibility = "private" if args.private else "public"
    lines = [f"to: {args.repo_id}, branch {args.revision} ({visibility} if it is new)"]
    lines += [f"{publication.size(name):>14,}  {name}" for name in publication.files]
    total = sum(publication.size(name) for name in publication.files)
    lines += [f"{total:>14,}  bytes in {len(publication.files)} files", ""]
    # Of cards that cannot be read the problems tell.
    if "README.md" in publication.files and not publication.problems:
        card = ModelCard(publication.read("README.md").decode(), ignore_metadata_errors=True)
        lines += [*card.text.strip().split("\n\n## ")[0].splitlines(), ""]
        results = getattr(card.data, "eval_results", None) or []
        lines += [f"{result.metric_name}: {result.metric_value:.4g}" for result in results[:20]]
        lines += [f"and {len(results) - 20} more"] if len(results) > 20 else []
        lines += ["no results"] if not results else []
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 1 if the folder must not be published as it is.

    Raises:
        ValueError: The folder, its card or the repository's name is none.
        ConnectionError: The Hub cannot be reached, or refuses.
    """
    args = parse_arguments(argv)
    publication = prepare(args.folder, args.repo_id, args.with_code, args.token)
    print(describe(publication, args))
    if publication.notes:
        print("\nnot checked:", *publication.notes, sep="\n- ")
    if publication.problems:
        print("\nnot ready to be published:", *publication.problems, sep="\n- ", file=sys.stderr)
        return 1
    try:
        stale = stale_files(publication, args.revision, args.token)
    except UnreachableHubError as error:
        if args.push:
            raise
        print(f"\nnot looked at, what is on the Hub but not in the folder and would be removed: {error}")
        stale = []
    if stale:
        print("\non the Hub but not in the folder, to be removed:", *stale, sep="\n- ")
    if not args.push:
        print("\nnothing was sent; pass --push to send it")
        return 0
    try:
        repo_id, commit = upload(publication, args.private, args.revision, args.token)
    except KeyboardInterrupt as error:
        kept = "all files change in one commit or none does, so the Hub holds no half of them; run the command again"
        raise Interrupted.of(error, kept, ()) from None
    print(f"\npublished and compared: {repo_id} at {commit}")
    return 0


if __name__ == "__main__":
    run_command(main)
