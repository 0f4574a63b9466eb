# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The command `transformers-nim`: list its commands, and run one.

It lies beside the package, because importing that loads torch and transformers, for which nobody who asks what
commands there are should wait.
"""

import argparse
import difflib
import sys
from importlib import import_module, metadata


# From a command to its module, and what it does.
COMMANDS = {
    "pretrain": ("commands.pretrain", "pretrain a denoiser (NIM), or a masked autoencoder as its baseline"),
    "finetune": ("commands.finetune", "train a classifier, with the De^3 defense or as one of its baselines"),
    "evaluate": ("commands.evaluate", "measure the accuracy of a classifier under a suite of attacks"),
    "certify": ("commands.certify", "certify the accuracy of De^3, which no attack can lower"),
    "convert": ("conversion.__main__", "convert the authors' checkpoints, ViT-MAE and models of this package"),
    "cards": ("commands.cards", "write or check model cards from result files"),
    "push": ("commands.push", "publish a checkpoint with its card and results on the Hub"),
    "plan": ("commands.plan", "count FLOPs, hours and memory of a long run, and print its command"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(program: str) -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = _Parser(
        prog=program,
        usage="%(prog)s COMMAND [options]",
        description="Image classifiers that denoise before they decide: train, attack, certify and publish them.",
        epilog=f"commands:\n{commands}\n\n{program} COMMAND --help explains a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run the command that `sys.argv` names."""
    program = "python -m transformers_nim" if sys.argv[0].endswith("__main__.py") else "transformers-nim"
    parser = _parser(program)
    # What comes after the command is its own.
    args = parser.parse_args(sys.argv[1:2])
    name = args.command
    if args.version:
        print(f"transformers-nim {metadata.version('transformers-nim')}")
        return
    if name is None:
        parser.print_help()
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        parser.error(f"no command {name!r}; {advice}")
    sys.argv[:2] = [f"{program} {name}"]
    run_command = import_module("transformers_nim.utils.cli").run_command
    run_command(import_module(f"transformers_nim.{COMMANDS[name][0]}").main)
