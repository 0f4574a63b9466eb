# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure how costs grow with batch, pixels, parameters and draws, and what a second process gains."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import eot_step, prediction, training_step
from measure import Case, fit_exponent, measure_alone

from transformers_nim import NIMConfig, NIMForPreTraining
from transformers_nim.training.precision import faster_cpu_precision
from transformers_nim.utils.extras import require
from transformers_nim.utils.text_table import plural


EXAMPLES = Path(__file__).parents[1] / "examples"


def measure_scaling(size: str, quick: bool, repetitions: int) -> list[dict[str, Any]]:
    """Measure seconds against batch, pixels, parameters and draws. Each result has the exponent of a fitted power.

    Args:
        size: A name of `NIM_SIZES`.
        quick: Whether to leave out the largest value of each.
        repetitions: Measurements of each value.
    """
    config = NIMConfig.from_size(size)
    step = {"size": size, "side": "ours", "precision": "bf16"}
    widths = [config.hidden_size // 2, config.hidden_size, 2 * config.hidden_size]
    sides = [config.image_shape[0] * factor for factor in (1, 2, 3)]

    def model_of(width: int) -> dict[str, Any]:
        return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 32}

    parameters = [NIMForPreTraining(NIMConfig.from_size(size, **model_of(width))).num_parameters() for width in widths]
    series: dict[str, tuple[Sequence[float], list[Case]]] = {
        "batch, training step": (batches := [16, 64, 256], [
            partial(training_step, **step, batch_size=batch) for batch in batches
        ]),
        "pixels, training step of 16": ([side**2 for side in sides], [
            partial(training_step, **step, batch_size=16, overrides={"image_size": side}) for side in sides
        ]),
        "parameters, training step of 64": (parameters, [
            partial(training_step, **step, batch_size=64, overrides=model_of(width)) for width in widths
        ]),
        "draws, De^3 of 1 image": (draws := [1, 4, 16, 64], [
            partial(prediction, size=size, num_images=1, num_draws=num, side="ours", precision="bf16")
            for num in draws
        ]),
    }  # fmt: skip
    rows = []
    with require("tqdm").tqdm(total=sum(len(cases) for _, cases in series.values()), unit="case") as bar:
        for name, (sizes, cases) in series.items():
            bar.set_description(name)
            kept = len(sizes) - 1 if quick else len(sizes)
            seconds = []
            for case in cases[:kept]:
                seconds.append(measure_alone(case, repetitions)["seconds"])
                bar.update()
            exponent = fit_exponent(list(sizes[:kept]), seconds)
            rows.append({"name": name, "sizes": list(sizes[:kept]), "seconds": seconds, "exponent": exponent})
    return rows


def measure_passes(size: str, repetitions: int) -> list[dict[str, Any]]:
    """Measure noisy images per second against noisy images per pass, for predictions and for attacks.

    Args:
        size: A name of `NIM_SIZES`.
        repetitions: Measurements of each value.
    """
    predict = partial(prediction, size=size, num_images=1, num_draws=240, side="ours")
    attack = partial(eot_step, size=size, num_images=24, num_draws=20, side="ours")
    kinds = [
        ("De^3, fp32", partial(predict, precision="fp32"), "max_batch_size"),
        ("De^3, bf16", partial(predict, precision="bf16"), "max_batch_size"),
        ("EOT step, fp32", attack, "batch_size"),
    ]
    # Divisors of 24 images with 20 draws each, in whole images.
    passes = (20, 60, 120, 240)
    rows = []
    with require("tqdm").tqdm(total=len(kinds) * len(passes), unit="case") as bar:
        for name, case, option in kinds:
            rates = []
            for num in passes:
                measured = measure_alone(partial(case, **{option: num}), repetitions)
                rates.append(measured["items"] / measured["seconds"])
                bar.update()
            rows.append({"name": name, "images_per_pass": list(passes), "images_per_second": rates})
    return rows


def measure_processes(data: Path, quick: bool) -> list[dict[str, Any]]:
    """Measure images per second of the pretraining script in one process, and in two with half of the threads each.

    Args:
        data: A folder of images.
        quick: Whether to make fewer steps.
    """
    rows = []
    steps = 8 if quick else 20
    # Chosen once: with other numbers of threads the two might choose differently.
    precision = faster_cpu_precision().name
    for processes, config in ((1, "cpu.yaml"), (2, "cpu_2_processes.yaml")):
        threads = max(1, torch.get_num_threads() // processes)
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "accelerate.commands.launch",
                "--config_file", str(EXAMPLES / "configs" / config), str(EXAMPLES / "pretrain.py"),
                "--dataset_name", str(data), "--train_val_split", "0", "--config_name", "tiny-patch4-32",
                "--output_dir", folder, "--max_train_steps", str(steps), "--logging_steps", "2",
                "--per_device_train_batch_size", str(256 // processes), "--num_workers", "1", "--report_to", "none",
                "--mixed_precision", str(precision),
            ]  # fmt: skip
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
            )
            if done.returncode != 0:
                raise RuntimeError(f"pretraining in {plural(processes, 'process')} failed: {done.stderr[-2000:]}")
            log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
        # The first half is warm-up.
        rates = [row["images_per_second"] for row in log if row.get("images_per_second") and row["step"] > steps / 2]
        row = {"processes": processes, "threads": threads, "precision": precision}
        rows.append({**row, "images_per_second": statistics.median(rates)})
    return rows
