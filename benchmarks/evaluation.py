# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure an evaluation of two versions of this package on the same images: their time, and their strength.

    git worktree add ../before COMMIT
    python benchmarks/evaluation.py --before ../before --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

Runs `transformers-nim evaluate` of the other version and of this one with the same further options, on one thread, and
prints the processor time of both and the differences of all accuracies, paired over images. A run that is there
already is not made again. Processor time, since other programs lengthen the time on the clock.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.compare import compare
from transformers_nim.utils.cli import make_parser
from transformers_nim.utils.records import replace_file


def evaluate(checkout: Path, folder: Path, options: list[str]) -> float:
    """Run an evaluation with the package of a checkout; return its seconds of processor time."""
    time = folder / "processor_seconds"
    if not time.exists():
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "transformers_nim", "evaluate", *options, "--output_dir", str(folder)]
        subprocess.run(command, env=environment, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        replace_file(time, f"{seconds:.1f}\n")
    return float(time.read_text())


def main(argv: list[str] | None = None) -> None:
    """Run the command. Options that it does not know are those of `transformers-nim evaluate`."""
    parser = make_parser(__doc__)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other version")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of both evaluations")
    args, options = parser.parse_known_args(argv)
    checkouts = {"before": args.before, "after": Path(__file__).parents[1]}
    folders = {name: args.output_dir / name for name in checkouts}
    seconds = {name: evaluate(checkouts[name], folders[name], options) for name in checkouts}
    reports = [RobustnessReport.load(folder / "results.json") for folder in folders.values()]
    print(compare(*reports))
    before, after = seconds.values()
    print(f"\nProcessor seconds: {before:.0f} before, {after:.0f} after: {before / after:.2f} times as fast.")


if __name__ == "__main__":
    main()
