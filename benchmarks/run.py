# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What training, prediction, attacks and certificates cost on this machine's CPU, against plain alternatives.

    python benchmarks/run.py --output results.json                       # everything, an hour and 13 GB of memory
    python benchmarks/run.py --quick --output results.json               # the 32-pixel model alone, a few minutes
    python benchmarks/run.py --only attack scaling --output results.json

A row is a ratio: the seconds of the alternative over ours, with the same threads, in turns in one run. Both train or
predict on the same images with models of the same sizes; where precisions or draws differ, the row says so. Prints a
table and writes JSON. Leave the machine alone meanwhile.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from cases import vit_mae
from measure import Case, compare, matmul_peaks
from scaling import measure_passes, measure_processes, measure_scaling

import transformers_nim
from transformers_nim import NIMConfig, NIMForPreTraining
from transformers_nim.utils.extras import require
from transformers_nim.utils.text_table import render_table


TINY, BASE = "tiny-patch4-32", "base"


@dataclass(frozen=True)
class Row:
    """A comparison.

    Attributes:
        group: What `--only` chooses by.
        name: What is done.
        alternative: What it is compared with.
        ours: The package's way.
        other: The alternative's.
        precision: In which ours computes, `"fp32"` or `"bf16"`; for the peak that it is held against.
        goal: The ratio that is wanted, or None if there is none.
        share_goal: The share of the peak that is wanted.
        is_large: Whether `--quick` leaves it out.
        repetitions: How often it is measured, where that differs from the rest.
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

        step = {"size": size, "batch_size": batch_size}
        # Freed memory is kept by both, except where a row is about what one gets who does nothing for it.
        others: tuple[tuple[str, str, dict[str, Any], float], ...] = (
            ("bf16", "plain fp32, memory not kept", {"side": "plain", "precision": "fp32", "keep": False}, 2.4),
            ("fp32", "ours, memory not kept", {"side": "ours", "precision": "fp32", "keep": False}, 1.0),
            ("fp32", "plain fp32", {"side": "plain", "precision": "fp32"}, 1.15),
            ("bf16", "plain bf16", {"side": "plain", "precision": "bf16"}, 1.15),
            ("fp32", "ViT-MAE fp32", {"side": "vit_mae", "precision": "fp32"}, 1.0),
            ("bf16", "ViT-MAE bf16", {"side": "vit_mae", "precision": "bf16"}, 1.0),
            ("bf16", "ViT-MAE bf16, eager", {"side": "vit_mae", "precision": "bf16", "attention": "eager"}, 1.0),
        )
        for own, alternative, other, goal in others:
            yield Row(
                "training", f"training step, {size}, batch {batch_size}, {own}", alternative,
                Case("training_step", {**step, "side": "ours", "precision": own}),
                Case("training_step", {**step, **other}), own, goal, shares[own], is_large,
            )  # fmt: skip


def prediction_rows() -> Iterator[Row]:
    for size in (TINY, BASE):
        for num_draws, goal in ((1, 1.2), (16, 3.0)):
            arguments = {"size": size, "num_images": 1, "num_draws": num_draws}
            for precision in ("fp32", "bf16"):
                ours = Case("prediction", {**arguments, "side": "ours", "precision": precision})
                name = f"De^3, {size}, {num_draws} draw{'s' if num_draws > 1 else ''}, {precision}"
                others = {"plain": "plain fp32, a loop", "plain batch": "plain fp32, a batch"}
                for side, alternative in list(others.items())[: 2 if num_draws > 1 else 1]:
                    other = Case("prediction", {**arguments, "side": side, "precision": "fp32"})
                    wanted = goal if side == "plain" else 1.0
                    yield Row("prediction", name, alternative, ours, other, precision, wanted, None, size == BASE)


def attention_rows() -> Iterator[Row]:
    for num_tokens, batch_size in ((65, 64), (197, 16), (577, 4), (1025, 2)):
        arguments = {"batch_size": batch_size, "num_tokens": num_tokens}
        ours, other = (Case("attention", {**arguments, "side": side}) for side in ("ours", "fused"))
        name = f"attention of {batch_size} x {num_tokens} tokens, bf16"
        yield Row("attention", name, "torch's fused kernel", ours, other, "bf16", 1.0)


def attack_rows() -> Iterator[Row]:
    # Both fill the passes that our default makes of them, but that the large one would take minutes.
    for size, num_images, batch_size in ((TINY, 15, 60), (BASE, 2, 40)):
        arguments = {"size": size, "num_images": num_images, "num_draws": 20, "batch_size": batch_size}
        other = Case("eot_step", {**arguments, "side": "torchattacks"})
        ours = Case("eot_step", {**arguments, "side": "ours"})
        name = f"EOT step, {size}, {num_images} x 20 draws, fp32"
        yield Row("attack", name, "torchattacks EOTPGD", ours, other, "fp32", 1.3, None, size == BASE)


def certification_rows(quick: bool) -> Iterator[Row]:
    num_images = 4 if quick else 32
    arguments = {"size": TINY, "num_images": num_images, "n": 1000}
    ours, other = (Case("certification", {**arguments, "side": side}) for side in ("ours", "fixed n"))
    name = f"radius of 0.5 sigma, {TINY}, {num_images} easy images, n = 1000"
    # Minutes of work, and the passes are the same every time.
    yield Row("certification", name, "fixed n (Cohen)", ours, other, goal=5.0, repetitions=1)


def data_rows(folder: Path) -> Iterator[Row]:
    for size, batch_size in ((TINY, 256), (BASE, 8)):
        data = str(folder / size)
        step = {"size": size, "batch_size": batch_size, "side": "ours", "precision": "bf16"}
        pipeline = Case("input_pipeline", {"size": size, "batch_size": batch_size, "data": data})
        yield Row("data", f"decode and augment, {size}", "its training step", pipeline, Case("training_step", step),
                  goal=5.0, is_large=size == BASE)  # fmt: skip
    # More steps than batches that the worker has ready when its turn begins.
    step = {"size": TINY, "batch_size": 256, "side": "ours", "precision": "bf16"}
    yield Row("data", f"8 training steps fed by one worker, {TINY}", "8 with a batch at hand",
              Case("repeated_step", {**step, "steps": 8, "data": str(folder / TINY)}),
              Case("repeated_step", {**step, "steps": 8}), "bf16", goal=0.9)  # fmt: skip


def loading_rows(folder: Path) -> Iterator[Row]:
    own, other = str(folder / "nim"), str(folder / "vit_mae")
    ours = Case("loading", {"folder": own, "side": "ours"})
    for name, case in (
        ("torch.load", Case("loading", {"folder": own, "side": "plain"})),
        ("ViT-MAE from_pretrained", Case("loading", {"folder": other, "side": "vit_mae"})),
    ):
        yield Row("loading", "from_pretrained, base", name, ours, case, goal=1.0, is_large=True)
    # Both load their models when they are asked for.
    models = ("transformers_nim.model.modeling_nim", "transformers.models.vit.modeling_vit")
    for own, other in (("transformers_nim", "transformers"), models):
        pair = [Case("importing", {"module": module}) for module in (own, other)]
        yield Row("loading", f"import {own}", f"import {other}", *pair, goal=1 / 1.1)


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
    """Photo-like pictures to decode, for both sizes: PNG of 32x32 pixels, JPEG of 500x375."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for size, (width, height), number, kind in ((TINY, (32, 32), 2048, "png"), (BASE, (500, 375), 64, "jpg")):
        for index in range(number):
            # Smooth with some grain: a file is then about as large as that of a photograph.
            coarse = torch.rand(1, 3, 8, 8, generator=generator) * 255
            picture = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
            picture = (picture + 10 * torch.randn(picture.shape, generator=generator)).clamp(0, 255)
            path = folder / size / "train" / str(index % 2) / f"{index}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[0].permute(1, 2, 0).to(torch.uint8).numpy()).save(path, quality=90)


def make_checkpoints(folder: Path) -> None:
    """The same weights for both ways of loading ours, and a ViT-MAE of that size."""
    config = NIMConfig.from_size(BASE)
    model = NIMForPreTraining(config)
    model.save_pretrained(folder / "nim")
    torch.save(model.state_dict(), folder / "nim" / "plain.pt")
    vit_mae(config).save_pretrained(folder / "vit_mae")


def measure_row(row: Row, repetitions: int, on_step: Any) -> dict[str, Any]:
    """A row of the results, which `compare_with_peaks` completes."""
    measured = compare(row.ours, row.other, repetitions, on_step)
    # Where forward passes are what counts, the goal is about them.
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
    """Raises the peaks of the results to `peaks`, and holds all rows against them."""
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
    """The rows for a terminal."""
    verdicts = {True: "met", False: "missed", None: ""}
    cells = []
    for row in rows:
        share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} %"
        if row["share_goal"] is not None:
            share += f" (goal {100 * row['share_goal']:.0f} {verdicts[row['is_share_met']]})"
        ratio = f"{row['ratio']:.2f}"
        if "cost_ratio" in row:
            ratio += f" ({row['cost_ratio']:.1f} in passes)"
        memory = row["peak_memory_mb"]
        cells.append(
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
    return render_table(columns, cells)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what the JSON file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 32-pixel model alone, and fewer repetitions")
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="ROW", default=list(GROUPS),
                        help=f"groups of rows to measure: {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--repetitions", type=int, help="of every row; 9; with --quick 5, of the large model 3")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args(argv)
    if args.repetitions is not None and args.repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, got {args.repetitions}")

    args.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"quick": args.quick, "threads": torch.get_num_threads()}
    results: dict[str, Any] = {
        "settings": settings | {"cpu_capability": torch.backends.cpu.get_cpu_capability()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "transformers_nim": transformers_nim.__version__},
        "rows": [],
    }  # fmt: skip
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
        if any(row.ours.function == "loading" for row in rows):
            make_checkpoints(root)
        usual = 5 if args.quick else 9
        repeats = [args.repetitions or row.repetitions or (3 if row.is_large else usual) for row in rows]
        with require("tqdm").tqdm(total=sum(repeats), unit="pair") as bar:
            for row, repetitions in zip(rows, repeats):
                bar.set_description(row.name)
                results["rows"].append(measure_row(row, repetitions, bar.update))
                compare_with_peaks(results, peaks)
                # Whatever happens to a later row.
                args.output.write_text(json.dumps(results, indent=2) + "\n")
        if "scaling" in args.only:
            results["scaling"] = measure_scaling(TINY, args.quick, args.repetitions or 3)
        if "passes" in args.only:
            results["passes"] = measure_passes(TINY, args.repetitions or 3)
        if "processes" in args.only:
            results["processes"] = measure_processes(root / TINY, args.quick)
    # Once more, as another program may have been busy the first time.
    compare_with_peaks(results, matmul_peaks())
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)
    return results


def print_results(results: dict[str, Any]) -> None:
    """What a person reads of the results."""
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
