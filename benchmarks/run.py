# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure training, prediction, attacks and certificates on this machine's CPU against plain alternatives.

    python benchmarks/run.py --output results.json                       # everything, an hour and 13 GB of memory
    python benchmarks/run.py --quick --output results.json               # the 32-pixel model alone, a few minutes
    python benchmarks/run.py --only attack scaling --output results.json

Each row is a ratio: the seconds of the alternative over ours, with the same threads, in turns in one run. Both sides
use the same images and models of the same size; where precisions or draws differ, the row says so. Prints a table and
writes JSON. Leave the machine alone meanwhile.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cases
import torch
from measure import Case, compare, matmul_peaks
from scaling import measure_passes, measure_processes, measure_scaling

from transformers_nim import NIMConfig, NIMForPreTraining
from transformers_nim.model.checks_nim import check_counts
from transformers_nim.utils.extras import require
from transformers_nim.utils.text_table import plural, render_table
from transformers_nim.utils.versions import package_versions


TINY, BASE = "tiny-patch4-32", "base"


@dataclass(frozen=True)
class Row:
    """A comparison.

    Attributes:
        group: The group that `--only` selects it by.
        name: The work.
        alternative: What the package is compared with.
        ours: The package's way.
        other: The alternative's way.
        precision: Precision of the package's way, `"fp32"` or `"bf16"`. It selects the peak to compare with.
        goal: The least ratio wanted, or None.
        share_goal: The least share of the peak wanted, or None.
        is_large: Whether `--quick` leaves the row out.
        repetitions: Measurements of this row, or None for the usual number.
    """

    group: str
    name: str
    alternative: str
    ours: Case
    other: Case
    precision: str = "fp32"
    goal: float | None = None
    share_goal: float | None = None
    is_large: bool = False
    repetitions: int | None = None


def training_rows() -> Iterator[Row]:
    for size, batch_size in ((TINY, 256), (BASE, 8)):
        is_large = size == BASE
        shares = {"fp32": 0.9, "bf16": 0.7} if is_large else {"fp32": None, "bf16": None}

        step = partial(cases.training_step, size=size, batch_size=batch_size)
        # Both sides keep freed memory, except in rows about what a user gets who does nothing for it.
        others = (
            ("bf16", "plain fp32, memory not kept", partial(step, side="plain", precision="fp32", keep=False), 2.4),
            ("fp32", "ours, memory not kept", partial(step, side="ours", precision="fp32", keep=False), 1.0),
            ("fp32", "plain fp32", partial(step, side="plain", precision="fp32"), 1.15),
            ("bf16", "plain bf16", partial(step, side="plain", precision="bf16"), 1.15),
            ("fp32", "ViT-MAE fp32", partial(step, side="vit_mae", precision="fp32"), 1.0),
            ("bf16", "ViT-MAE bf16", partial(step, side="vit_mae", precision="bf16"), 1.0),
            ("bf16", "ViT-MAE bf16, eager", partial(step, side="vit_mae", precision="bf16", attention="eager"), 1.0),
        )
        for own, alternative, other, goal in others:
            name = f"training step, {size}, batch {batch_size}, {own}"
            ours = partial(step, side="ours", precision=own)
            yield Row("training", name, alternative, ours, other, own, goal, shares[own], is_large)


def prediction_rows() -> Iterator[Row]:
    for size in (TINY, BASE):
        for num_draws, goal in ((1, 1.2), (16, 3.0)):
            predict = partial(cases.prediction, size=size, num_images=1, num_draws=num_draws)
            for precision in ("fp32", "bf16"):
                ours = partial(predict, side="ours", precision=precision)
                name = f"De^3, {size}, {plural(num_draws, 'draw')}, {precision}"
                others = {"plain": "plain fp32, a loop", "plain batch": "plain fp32, a batch"}
                for side, alternative in list(others.items())[: 2 if num_draws > 1 else 1]:
                    other = partial(predict, side=side, precision="fp32")
                    wanted = goal if side == "plain" else 1.0
                    yield Row("prediction", name, alternative, ours, other, precision, wanted, None, size == BASE)


def attention_rows() -> Iterator[Row]:
    for num_tokens, batch_size in ((65, 64), (197, 16), (577, 4), (1025, 2)):
        attend = partial(cases.attention, batch_size=batch_size, num_tokens=num_tokens)
        name = f"attention of {batch_size} x {num_tokens} tokens, bf16"
        ours, other = partial(attend, side="ours"), partial(attend, side="fused")
        yield Row("attention", name, "torch's fused kernel", ours, other, "bf16", 1.0)


def attack_rows() -> Iterator[Row]:
    # Both sizes fill passes of our default size, but for the large one 60 noisy images would take minutes.
    for size, num_images, batch_size in ((TINY, 15, 60), (BASE, 2, 40)):
        step = partial(cases.eot_step, size=size, num_images=num_images, num_draws=20, batch_size=batch_size)
        name = f"EOT step, {size}, {num_images} x 20 draws, fp32"
        ours, other = partial(step, side="ours"), partial(step, side="torchattacks")
        yield Row("attack", name, "torchattacks EOTPGD", ours, other, "fp32", 1.3, None, size == BASE)


def certification_rows(quick: bool) -> Iterator[Row]:
    num_images = 4 if quick else 32
    certify = partial(cases.certification, size=TINY, num_images=num_images, n=1000)
    name = f"radius of 0.5 sigma, {TINY}, {num_images} easy images, n = 1000"
    ours, other = partial(certify, side="ours"), partial(certify, side="fixed n")
    # Once: it takes minutes, and the number of passes is the same every time.
    yield Row("certification", name, "fixed n (Cohen)", ours, other, goal=5.0, repetitions=1)


def data_rows(folder: Path) -> Iterator[Row]:
    step = partial(cases.training_step, side="ours", precision="bf16")
    for size, batch_size in ((TINY, 256), (BASE, 8)):
        decode = partial(cases.input_pipeline, size=size, batch_size=batch_size, data=str(folder / size))
        other = partial(step, size=size, batch_size=batch_size)
        name = f"decode and augment, {size}"
        yield Row("data", name, "its training step", decode, other, goal=5.0, is_large=size == BASE)
    # More steps than the worker has batches ready when its turn begins.
    at_hand = partial(cases.repeated_step, steps=8, size=TINY, batch_size=256, side="ours", precision="bf16")
    fed = partial(at_hand, data=str(folder / TINY))
    name = f"8 training steps fed by one worker, {TINY}"
    yield Row("data", name, "8 with a batch at hand", fed, at_hand, "bf16", goal=0.9)


def loading_rows(folder: Path) -> Iterator[Row]:
    nim, vit_mae = str(folder / "nim"), str(folder / "vit_mae")
    ours = partial(cases.loading, folder=nim, side="ours")
    for name, other in (
        ("torch.load", partial(cases.loading, folder=nim, side="plain")),
        ("ViT-MAE from_pretrained", partial(cases.loading, folder=vit_mae, side="vit_mae")),
    ):
        yield Row("loading", "from_pretrained, base", name, ours, other, goal=1.0, is_large=True)
    # Both packages import their models on first use.
    models = ("transformers_nim.model.modeling_nim", "transformers.models.vit.modeling_vit")
    for own, alternative in (("transformers_nim", "transformers"), models):
        pair = [partial(cases.importing, module=module) for module in (own, alternative)]
        yield Row("loading", f"import {own}", f"import {alternative}", *pair, goal=1 / 1.1)


GROUPS = (
    "training",
    "attention",
    "prediction",
    "attack",
    "certification",
    "data",
    "loading",
    "scaling",
    "passes",
    "processes",
)


def make_pictures(folder: Path) -> None:
    """Write photo-like pictures for both sizes: PNG of 32x32 pixels, JPEG of 500x375."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for size, (width, height), number, kind in ((TINY, (32, 32), 2048, "png"), (BASE, (500, 375), 64, "jpg")):
        for index in range(number):
            # Smooth with some grain, so that a file is about as large as that of a photograph.
            coarse = torch.rand(1, 3, 8, 8, generator=generator) * 255
            picture = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
            picture = (picture + 10 * torch.randn(picture.shape, generator=generator)).clamp(0, 255)
            path = folder / size / "train" / str(index % 2) / f"{index}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[0].permute(1, 2, 0).to(torch.uint8).numpy()).save(path, quality=90)


def make_checkpoints(folder: Path) -> None:
    """Write a checkpoint of ours, its weights for `torch.load`, and a ViT-MAE of the same size."""
    config = NIMConfig.from_size(BASE)
    model = NIMForPreTraining(config)
    model.save_pretrained(folder / "nim")
    torch.save(model.state_dict(), folder / "nim" / "plain.pt")
    cases.vit_mae(config).save_pretrained(folder / "vit_mae")


def measure_row(row: Row, repetitions: int, on_step: Any) -> dict[str, Any]:
    """Measure a row. `compare_with_peaks` completes the result."""
    measured = compare(row.ours, row.other, repetitions, on_step)
    # The goal of a row that counts noisy images is about them, not about seconds.
    reached = measured.get("cost_ratio", measured["ratio"])
    return {
        "group": row.group,
        "repetitions": repetitions,
        "name": row.name,
        "alternative": row.alternative,
        **measured,
        "goal": row.goal,
        "is_met": None if row.goal is None else reached >= row.goal,
        "precision": row.precision,
        "share_goal": row.share_goal,
        "items_per_second": measured["items"] / measured["seconds"]["ours"],
    }


def compare_with_peaks(results: dict[str, Any], peaks: dict[str, float]) -> None:
    """Raise the peaks of the results to `peaks`, and compare all rows with them."""
    known = results.setdefault("matmul_peak_gflops", {})
    for name, rate in peaks.items():
        known[name] = max(known.get(name, 0.0), rate / 1e9)
    for row in results["rows"]:
        peak = known["bfloat16" if row["precision"] == "bf16" else "float32"] * 1e9
        share = row["flops"] / row["seconds"]["ours"] / peak if row["flops"] else None
        row["share_of_peak"] = share
        goal = row["share_goal"]
        row["is_share_met"] = None if goal is None or share is None else share >= goal


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    verdicts = {True: "met", False: "missed", None: ""}
    texts = []
    for row in rows:
        share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} %"
        if row["share_goal"] is not None:
            share += f" (goal {100 * row['share_goal']:.0f} {verdicts[row['is_share_met']]})"
        ratio = f"{row['ratio']:.2f}"
        if "cost_ratio" in row:
            ratio += f" ({row['cost_ratio']:.1f} in passes)"
        memory = row["peak_memory_mb"]
        texts.append(
            [
                row["name"],
                row["alternative"],
                f"{row['seconds']['ours']:.3g}",
                f"{row['items_per_second']:.3g}",
                ratio,
                f"{row['spread'][0]:.2f} to {row['spread'][1]:.2f}" if row["repetitions"] > 1 else "",
                "" if row["goal"] is None else f"{row['goal']:.2f} {verdicts[row['is_met']]}",
                share,
                " / ".join("?" if value is None else str(value) for value in memory.values()),
            ]
        )
    columns = ["work", "against", "seconds", "items/s", "ratio", "half of the ratios", "goal", "of the peak", "MB"]
    return render_table(columns, texts)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line. Return what the JSON file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 32-pixel model alone, and fewer repetitions")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="ROW", default=list(GROUPS),
                        help=f"groups of rows to measure: {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument(
        "--repetitions", type=int, help="measurements of every row; by default 9, with --quick 5, of the large model 3"
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args(argv)
    check_counts(repetitions=args.repetitions)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"quick": args.quick, "threads": torch.get_num_threads()}
    results: dict[str, Any] = {
        "settings": settings | {"cpu_capability": torch.backends.cpu.get_cpu_capability()},
        "versions": package_versions(),
        "rows": [],
    }
    peaks = matmul_peaks()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [
            *training_rows(),
            *attention_rows(),
            *prediction_rows(),
            *attack_rows(),
            *certification_rows(args.quick),
        ]
        rows += [*data_rows(root), *loading_rows(root)]
        rows = [row for row in rows if row.group in args.only and not (args.quick and row.is_large)]
        if any(group in args.only for group in ("data", "processes")):
            make_pictures(root)
        if any(row.ours.func is cases.loading for row in rows):
            make_checkpoints(root)
        usual = 5 if args.quick else 9
        repeats = [args.repetitions or row.repetitions or (3 if row.is_large else usual) for row in rows]
        with require("tqdm").tqdm(total=sum(repeats), unit="pair") as bar:
            for row, repetitions in zip(rows, repeats):
                bar.set_description(row.name)
                results["rows"].append(measure_row(row, repetitions, bar.update))
                compare_with_peaks(results, peaks)
                # Written after every row, in case a later one fails.
                args.output.write_text(json.dumps(results, indent=2) + "\n")
        if "scaling" in args.only:
            results["scaling"] = measure_scaling(TINY, args.quick, args.repetitions or 3)
        if "passes" in args.only:
            results["passes"] = measure_passes(TINY, args.repetitions or 3)
        if "processes" in args.only:
            results["processes"] = measure_processes(root / TINY, args.quick)
    # Measured again, since another program may have been busy the first time.
    compare_with_peaks(results, matmul_peaks())
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print the results as tables."""
    peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in results["matmul_peak_gflops"].items())
    print(f"\n{results['settings']}, matrix products in GFLOP/s: {peaks}\n")
    if results["rows"]:
        print(table_of(results["rows"]))
    if "scaling" in results:
        lines = [
            [row["name"], ", ".join(f"{size:g}" for size in row["sizes"]),
             ", ".join(f"{seconds:.3g}" for seconds in row["seconds"]), f"{row['exponent']:.2f}"]
            for row in results["scaling"]
        ]  # fmt: skip
        print(f"\n{render_table(['cost against', 'sizes', 'seconds', 'exponent'], lines)}")
    if "passes" in results:
        rows = results["passes"]
        lines = [[row["name"], *(f"{rate:.0f}" for rate in row["images_per_second"])] for row in rows]
        columns = ["images/s with", *(f"{num} per pass" for num in rows[0]["images_per_pass"])]
        print(f"\n{render_table(columns, lines)}")
    if "processes" in results:
        lines = [[str(row["processes"]), str(row["threads"]), f"{row['images_per_second']:.0f}"]
                 for row in results["processes"]]  # fmt: skip
        print(f"\n{render_table(['processes', 'threads of each', 'images/s'], lines)}")


if __name__ == "__main__":
    main()
