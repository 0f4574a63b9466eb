# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure the vote of several noise draws as the defense: accuracy over sigma and number of draws.

    python benchmarks/votes.py --model_name_or_path MODEL --dataset_name DATA --output_dir DIR

Attacks held-out training images with EOT-PGD, and counts votes: one try, the worst of ten tries, and the attacker who
knows the noise. Every gradient averages over at least `--num_draws` noise draws, so that no vote is attacked with less
than another. A killed run goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from transformers_nim.data.evaluation_set import EvaluationSet
from transformers_nim.data.loading import ImageSource
from transformers_nim.robustness.classifiers import classifier_maker, load_with_processor, model_hash
from transformers_nim.robustness.figures import measure
from transformers_nim.robustness.protocol import (
    BUDGETS,
    CLEAN,
    CLEAN_NOISE_KNOWN,
    HEADLINE,
    NOISE_KNOWN,
    ModelFacts,
    Suite,
)
from transformers_nim.robustness.runner import KEYS, PROBE, Runner
from transformers_nim.utils.cli import make_parser
from transformers_nim.utils.records import read_records, start_records
from transformers_nim.utils.text_table import percent, render_table, sigma_key


def attack_vote(
    model: Any, processor: Any, images: EvaluationSet, sigma: float, num_samples: int, args: Any
) -> list[str]:
    """Attack the vote of `num_samples` draws at one sigma. Return the cells of its row in the table."""
    make = classifier_maker(model, processor, args.seed, num_samples=num_samples)
    num_draws = max(args.num_draws, num_samples)
    budget = replace(BUDGETS["quick"], num_images=len(images.images), num_check_images=1)
    budget = replace(budget, steps=args.steps, num_draws=num_draws, num_queries=2 * num_draws)
    shape = tuple(images.read(images.images[0].row).shape)
    facts = ModelFacts(sigma, (), model.config.num_labels, True, shape)
    suite = Suite("quick", budget, facts, args.eps, num_samples=num_samples)
    wanted = (CLEAN, HEADLINE, CLEAN_NOISE_KNOWN, NOISE_KNOWN)
    chosen = [one for one in suite.configurations() if one.name in wanted]
    folder = Path(args.output_dir) / f"sigma-{sigma_key(sigma)}-votes-{num_samples}"
    settings = {"model": model_hash(model), "eps": args.eps, "steps": args.steps, "num_draws": num_draws}
    start_records(folder, {**settings, "images": len(images.images), "seed": args.seed}, KEYS, resume=True)
    runner = Runner(make, images, chosen, budget, folder, args.seed, num_samples=num_samples)
    with tqdm(total=int(runner.pending_cost()) + 1, desc=folder.name, unit="pass", unit_scale=True) as bar:
        runner.on_cost = bar.update
        runner.run()
    found: dict[str, dict[int, Any]] = {}
    for record in read_records(folder, KEYS):
        if record["cell"] != PROBE:
            found.setdefault(record["cell"], {})[record["row"]] = record["predictions"][sigma_key(sigma)]
    labels = torch.tensor([image.label for image in images.images]).numpy()
    cells = [sigma_key(sigma), str(num_samples)]
    for name in wanted:
        predictions = torch.tensor([found[name][image.row] for image in images.images]).numpy()
        one_try, ten_tries, _ = measure(predictions, labels)
        shown = [one_try, ten_tries] if name in (CLEAN, HEADLINE) else [one_try]
        cells += [percent(each.mean, each.low, each.high) for each in shown]
    return cells


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="classifier with the defense")
    parser.add_argument("--dataset_name", required=True, help="data set on the Hub or folder of parquet files")
    parser.add_argument("--output_dir", required=True, help="folder of records")
    parser.add_argument("--num_images", type=int, default=64, help="number of held-out training images")
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[15, 25, 37.5, 50, 75], help="sigmas, 0..255 pixels"
    )
    parser.add_argument("--votes", type=int, nargs="+", default=[1, 4, 16], help="noise draws that vote")
    parser.add_argument("--eps", type=float, default=8.0, help="radius of the Linf attack, in x/255")
    parser.add_argument("--steps", type=int, default=20, help="steps of EOT-PGD")
    parser.add_argument("--num_draws", type=int, default=16, help="noise draws per gradient, at least")
    parser.add_argument("--seed", type=int, default=0, help="seed of attacks and noise")
    args = parser.parse_args(argv)
    model, processor = load_with_processor(args.model_name_or_path, torch.device("cpu"))
    data = ImageSource(dataset_name=args.dataset_name, train_val_split=0.04).load(with_labels=True)
    held_out = replace(data, train=data.validation)
    images = EvaluationSet.from_data(held_out, model, processor, args.num_images)
    rows = [
        attack_vote(model, processor, images, sigma, num_samples, args)
        for sigma in args.sigmas
        for num_samples in args.votes
    ]
    columns = ["sigma", "draws", "clean", "clean, ten tries", "attacked", "ten tries", "clean, known", "noise known"]
    print(render_table(columns, rows))


if __name__ == "__main__":
    main()
