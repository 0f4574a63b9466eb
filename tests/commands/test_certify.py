# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certified accuracy of a data set, as a user runs it: figures, two processes, a killed run that goes on."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_config, tiny_model
from PIL import Image

from transformers_nim import NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.utils import records
from transformers_nim.utils.cli import run_command
from transformers_nim.utils.interruption import postpone_signals, release_signals
from transformers_nim.utils.records import read_records
from transformers_nim.utils.seeding import derive_seed_32


datasets = pytest.importorskip("datasets")
SCRIPT = Path(__file__).parents[2] / "examples" / "certify.py"
# Not in the order of the model's classes, whose names are LABEL_0 and so on.
NAMES = ["LABEL_3", "LABEL_0", "LABEL_1", "LABEL_4", "LABEL_2"]
BROKEN = 4
NUM_ROWS = 11
SIGMAS = [10.0, 20.0]


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("transformers_nim.commands.certify")


def encoded(seed):
    buffer = BytesIO()
    random_picture(seed).save(buffer, "png")
    return {"bytes": buffer.getvalue()[: 60 if seed == BROKEN else None], "path": None}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A test split of eleven pictures, one of which is broken, and a training split of others."""
    path = tmp_path_factory.mktemp("data") / "pictures"
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    # As often as it can be the class of the model at sigma 10, to have figures other than 0.
    labels = [NAMES.index(f"LABEL_{true}") for true in (0, 3, 3, 0, 3, 0, 3, 3, 1, 4, 3)]
    rows = {"image": [encoded(seed) for seed in range(NUM_ROWS)], "label": labels}
    split = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": split.select([0]), "test": split}).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def arguments(robust_path, dataset):
    # The model is random.
    fixed = [
        "--allow_untrained",
        "--n0",
        "20",
        "--n",
        "300",
        "--every_k",
        "2",
        "--seed",
        "5",
        "--radii",
        "0.03",
        "0",
        "9",
        "8",
    ]
    sigmas = [str(sigma) for sigma in SIGMAS]
    return ["--model_name_or_path", robust_path, "--dataset_name", str(dataset), "--sigmas", *sigmas, *fixed]


@pytest.fixture(scope="module")
def finished(script, arguments, tmp_path_factory):
    """A run of one process, uninterrupted."""
    output_dir = tmp_path_factory.mktemp("certify") / "out"
    results = script.main([*arguments, "--output_dir", str(output_dir)])
    return results, output_dir


def timeless(results):
    """What must not differ from run to run."""
    results = json.loads(json.dumps(results))
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in results["records"]]
    curves = [{k: v for k, v in curve.items() if k != "mean_seconds"} for curve in results["curves"]]
    return {**results, "records": records, "curves": curves, "num_processes": None}


def launch(arguments, output_dir, *more):
    """Starts two processes. (`--cpu --num_processes 2` would start one, without a word.)"""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*accelerate, "--main_process_port", "0", str(SCRIPT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*command, *arguments, "--output_dir", str(output_dir), *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def num_lines(output_dir):
    return sum(path.read_text().count("\n") for path in output_dir.glob("records*.jsonl"))


def test_records_are_certificates_of_the_model(finished, robust_model, dataset):
    results, output_dir = finished
    assert json.loads((output_dir / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = [0, 2, 4, 6, 8, 10]
    keys = [(record["row"], record["sigma"]) for record in results["records"]]
    assert keys == [(row, sigma) for row in rows for sigma in SIGMAS]
    processor = NIMImageProcessor.from_config(robust_model.config)
    split = datasets.load_from_disk(dataset)["test"].cast_column("image", datasets.Image(decode=False))
    for record in results["records"]:
        row, sigma = record["row"], record["sigma"]
        assert f"LABEL_{record['true_label']}" == NAMES[split[row]["label"]]
        if row == BROKEN:
            assert record["undecodable"]
            continue
        pixel_values = processor(random_picture(row), return_tensors="pt")["pixel_values"]
        generator = [torch.Generator().manual_seed(derive_seed_32(5, "certify", row, sigma))]
        (certificate,) = robust_model.certify(pixel_values, sigma, 20, 300, generator=generator)
        assert (record["label"], record["radius"], record["p_lower"]) == (
            certificate.label,
            certificate.radius,
            certificate.p_lower,
        )
        assert (record["candidate"], record["num_draws"]) == (certificate.candidate, 320)
        assert record["votes"] == certificate.counts[certificate.candidate]


def test_curves_table_and_plot(finished, script, capsys):
    results, output_dir = finished
    assert (results["num_images"], results["undecodable_rows"]) == (5, [BROKEN])
    for curve, sigma in zip(results["curves"], SIGMAS, strict=True):
        own = [record for record in results["records"] if record["sigma"] == sigma and "label" in record]
        right = np.array([record["label"] == record["true_label"] for record in own])
        radii = np.array([record["radius"] for record in own])
        assert curve["radii"] == [0, 0.03, 8, 9]
        assert curve["certified_accuracy"] == [right.mean(), (right & (radii >= 0.03)).mean(), 0, 0]
        assert curve["average_certified_radius"] == pytest.approx((right * radii).mean())
        assert curve["mean_num_draws"] == 320
    shown = results["curves"][0]["certified_accuracy"]
    assert 1 > shown[0] > shown[1] > 0
    table = script.certificate_table(results["curves"])
    assert f"{100 * shown[0]:.1f} [" in table
    assert "sigma 10 (0.0392)" in table
    assert "radius 8" in table
    assert "radius 9" not in table, "nothing is left at radius 8"
    picture = np.asarray(Image.open(output_dir / "certified_accuracy.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(picture, axis=0)) > 50
    assert results["settings"]["alpha"] == 0.001
    assert results["versions"].keys() >= {"torch", "scipy", "transformers_nim"}
    assert "5 images of pictures (test, one of every 2)" in results["protocol"]


@pytest.mark.slow
def test_two_processes_a_kill_and_a_resumed_run_give_the_same(finished, arguments, tmp_path):
    results, _ = finished
    process = launch(arguments, tmp_path / "out")
    deadline = time.monotonic() + 120
    while num_lines(tmp_path / "out") < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    # Workers first: the launcher would end them more gently.
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        member.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    before = read_records(tmp_path / "out", ("row", "sigma"))
    assert 3 <= len(before) < 12, output
    assert not (tmp_path / "out" / "results.json").exists()

    process = launch(arguments, tmp_path / "out", "--resume")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert f"{len(before)} of 12 certificates done; 2 processes on cpu" in output
    assert output.count("certified accuracy in %") == 1
    resumed = json.loads((tmp_path / "out" / "results.json").read_text())
    assert resumed["num_processes"] == 2
    assert timeless(resumed) == timeless(results)
    # What was done was not done again: even its seconds are there.
    assert all(record in resumed["records"] for record in before)


def test_one_process_goes_on(finished, script, arguments, tmp_path, capsys):
    results, output_dir = finished
    lines = (output_dir / "records-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "settings.json").write_text((output_dir / "settings.json").read_text())
    (tmp_path / "records-1.jsonl").write_text("".join(lines[:5]) + lines[5][:30])
    resumed = script.main(
        [*arguments, "--output_dir", str(tmp_path), "--resume", "--per_device_eval_batch_size", "33"]
    )
    output = capsys.readouterr()
    # 7 x 320 draws, and those of the broken image among them.
    assert (
        "5 of 12 certificates done; 1 process on cpu; 7 x 320 = 2,240 noisy images to classify, less than"
        in output.out
    )
    assert "2.24k/2.24k" in output.err
    assert timeless(resumed) == timeless(results)
    # A finished run is not repeated, and not added to by accident.
    again = script.main([*arguments, "--output_dir", str(tmp_path), "--resume"])
    assert again == resumed
    with pytest.raises(ValueError, match="pass --resume"):
        script.main([*arguments, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="seed was 5 and is 6"):
        script.main([*arguments, "--output_dir", str(tmp_path), "--resume", "--seed", "6"])


def test_a_run_does_not_go_on_with_another_model(finished, script, arguments, tmp_path):
    _, output_dir = finished
    other = tiny_model()
    with torch.no_grad():
        other.classifier.bias[0] += 1e-3
    changed = [save_with_processor(other, tmp_path) if "robust" in argument else argument for argument in arguments]
    assert changed != arguments
    with pytest.raises(ValueError, match="the weights or the config of the model are others"):
        script.main([*changed, "--output_dir", str(output_dir), "--resume"])


def test_a_run_goes_on_with_the_same_images_alone(finished, script, arguments, dataset, tmp_path):
    """Wherever they lie; others of the same name and number are refused, and so are other labels."""
    results, output_dir = finished
    for name in ("settings.json", "records-0.jsonl"):
        (tmp_path / name).write_bytes((output_dir / name).read_bytes())
    split = datasets.load_from_disk(dataset)["test"].cast_column("image", datasets.Image(decode=False))

    def resume(place, **changes):
        rows = [{**row, **changes} if number == 6 else row for number, row in enumerate(split)]
        place.parent.mkdir(exist_ok=True)
        changed = datasets.Dataset.from_list(rows, features=split.features)
        datasets.DatasetDict({"test": changed.cast_column("image", datasets.Image())}).save_to_disk(place)
        options = [str(place) if argument == str(dataset) else argument for argument in arguments]
        return script.main([*options, "--output_dir", str(tmp_path), "--resume"])

    again = resume(tmp_path / "elsewhere")
    assert again["settings"] == {**results["settings"], "dataset": "elsewhere"}
    assert [again["curves"], again["images_hash"]] == [results["curves"], results["images_hash"]]
    for what, value in (("image", encoded(99)), ("label", 1 - split[6]["label"])):
        message = f"the {what} in row 6 is another one than that which was certified"
        with pytest.raises(ValueError, match=message):
            resume(tmp_path / what / "pictures", **{what: value})


def test_sequential_runs_take_fewer_draws(script, arguments, tmp_path):
    options = ["--sequential", "--target_radius", "0.01", "--n", "3000", "--max_eval_samples", "2"]
    results = script.main([*arguments, *options, "--output_dir", str(tmp_path)])
    draws = [record["num_draws"] for record in results["records"]]
    assert len(draws) == 4
    assert min(draws) < 500
    assert "sequential (alpha spending)" in results["protocol"]
    assert "content with radius 0.01" in results["protocol"]


def test_what_cannot_be_certified_is_refused_at_once(script, arguments, tmp_path, capsys):
    config = tiny_config(norm_pix_loss=True, patch_statistics="input")
    path = save_with_processor(NIMForRobustImageClassification(config), tmp_path / "leaky")
    leaky = [path if "robust" in argument else argument for argument in arguments]
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="patch_statistics"):
        script.main([*leaky, "--output_dir", str(out)])
    assert not out.exists()
    for options in (["--every_k", "0"], ["--sigmas", "5", "5.0"], ["--sigmas", "10", "0"], ["--alpha", "1"],
                    ["--n", "0"], ["--target_radius", "1"], ["--radii", "-1"]):  # fmt: skip
        with pytest.raises(SystemExit):
            script.main([*arguments, *options, "--output_dir", str(out)])
        assert options[0] in capsys.readouterr().err


def test_an_untrained_denoiser_is_refused(script, arguments, tmp_path):
    """A random one makes nothing that is closer to the images than the noise is."""
    untrained = [argument for argument in arguments if argument != "--allow_untrained"]
    told = r"removes no noise, so it is untrained: at sigma 10 the denoised images have \d.* at sigma 75 the denoised"
    with pytest.raises(ValueError, match=told + r".* \(PSNR of 5 images\)\. Pretrain it first"):
        script.main([*untrained, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_denoiser_is_not_refused(script, arguments, tmp_path):
    smoothed = save_with_processor(tiny_model(denoise=False), tmp_path / "smoothed")
    options = [smoothed if "robust" in one else one for one in arguments if one != "--allow_untrained"]
    results = script.main([*options, "--max_eval_samples", "1", "--output_dir", str(tmp_path / "out")])
    assert results["num_images"] == 1


def test_a_denoiser_that_removes_noise_is_told_apart(script, monkeypatch, caplog):
    model, args = tiny_model(), argparse.Namespace(allow_untrained=False, sigmas=[10.0, 50.0], model_name_or_path="me")
    images = [{"pixel_values": torch.zeros(3, 32, 32), "is_valid": True}]
    figures = {10.0: [25.0, 28.0, 17.0], 50.0: [24.0, 15.0, 17.0], 75.0: [22.0, 12.0, 17.0]}
    monkeypatch.setattr(script, "denoising_figures", lambda denoiser, pixels, sigma: figures[sigma])
    monkeypatch.setattr(script.logger, "propagate", True)
    script.check_denoiser(model, images, [0], args)
    assert [one.message.split(",")[0] for one in caplog.records] == [
        "The denoiser does harm: at sigma 10 the denoised images have 25.0 dB"
    ]
    # Better than the noise alone: so is a patch of one color.
    figures |= {50.0: [16.0, 15.0, 17.0], 75.0: [16.0, 12.0, 17.0]}
    with pytest.raises(ValueError, match="denoiser of me removes no noise"):
        script.check_denoiser(model, images, [0], args)


def test_what_a_denoiser_is_compared_with(script):
    flat = torch.zeros(4, 3, 32, 32)
    denoised, noisy, averages = script.denoising_figures(tiny_model().denoiser, flat, 25.0)
    # 25/255 of noise; the mean of 64 pixels has an eighth of it.
    assert noisy == pytest.approx(-20 * np.log10(25 / 255), abs=0.2)
    assert averages == pytest.approx(noisy + 20 * np.log10(8), abs=0.8)
    assert denoised < noisy


def test_a_signal_says_what_is_kept_and_how_to_go_on(
    finished, script, arguments, tmp_path, capsys, monkeypatch, own_signals
):
    done = []

    def append_record(*record):
        done.append(records.append_record(*record))
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(script, "append_record", append_record)
    monkeypatch.setattr(sys, "orig_argv", ["/bin/python3", "/bin/transformers-nim", "certify", "--resume", "--seed=5"])

    def main():
        # As one of several processes begins.
        release_signals()
        postpone_signals()
        script.main([*arguments, "--output_dir", str(tmp_path)])

    with pytest.raises(SystemExit, match="143"):
        run_command(main)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    assert line.endswith(
        f": interrupted by SIGTERM; 2 of 12 certificates are kept in {tmp_path}. Go on with: transformers-nim"
        " certify --seed=5 --resume"
    )
    monkeypatch.undo()
    resumed = script.main([*arguments, "--output_dir", str(tmp_path), "--resume"])
    assert timeless(resumed) == timeless(finished[0])
