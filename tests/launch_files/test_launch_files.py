# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The launch files of Accelerate work. The tests launch this file as a script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from training_runs import environment, losses, main, same_weights, save_digits, save_tiny_config

from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.training import launch as launch_module
from transformers_nim.utils.processes import LAUNCH_FILES, launch_file


EXPECTED = {
    "cpu": ("NO", 1, "no"),
    "cpu_2_processes": ("MULTI_GPU", 2, "no"),
    "single_gpu": ("NO", 1, "bf16"),
    "ddp": ("MULTI_GPU", 8, "bf16"),
    "multi_node": ("MULTI_GPU", 64, "bf16"),
    "fsdp2": ("FSDP", 8, "bf16"),
    "deepspeed_zero2": ("DEEPSPEED", 8, "bf16"),
}
# A denoiser that is trained along, under attack: passes of the attack and of the denoiser alone go past the wrappers.
ALONG = [
    "--train_denoiser", "--denoising_weight", "0.5", "--num_training_draws", "2", "--consistency_weight", "1",
    "--adversarial_steps", "1", "--gradient_checkpointing",
]  # fmt: skip
needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")


def launch(config: str, jobs: list[list], *options: str, backend: str = "") -> str:
    """Runs scripts one after the other in the processes that Accelerate starts by a launch file."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_file(config)),
            "--main_process_port", "0", *options, __file__, json.dumps([list(map(str, job)) for job in jobs]), backend,
        ],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=path, DS_ACCELERATOR="cpu"),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-9000:]
    return done.stdout


def run_jobs(jobs: list[list[str]], backend: str) -> None:
    """What the launched processes do. With a backend, they take their CPUs for GPUs, without which Accelerate would
    neither shard by FSDP nor use DeepSpeed."""
    if backend:
        initialize = Accelerator.__init__
        Accelerator.__init__ = lambda self, cpu=None, **kwargs: initialize(self, **kwargs)
        PartialState._prepare_backend = lambda *args: (backend, DistributedType.MULTI_GPU)
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    # Processes that met once stay together: they would not find each other again.
    PartialState.destroy_process_group = lambda *args: None
    if os.environ.get("RANK", "0") != "0":
        # One process measures, or they would not always agree.
        launch_module.faster_cpu_precision = None
    for script, *arguments in jobs:
        main(script, *arguments)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Of both scripts, without what is random per process: mixup and stochastic depth."""
    folder = tmp_path_factory.mktemp("data")
    return [
        "--dataset_name", save_digits(folder / "digits", num_train=100, num_validation=40),
        "--max_train_steps", "4", "--checkpointing_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-3",
        "--num_workers", "0", "--report_to", "none", "--eval_sigmas", "25",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pretraining(arguments, tmp_path_factory) -> list[str]:
    return ["pretrain", *arguments, "--config_name", save_tiny_config(tmp_path_factory.mktemp("config"))]


@pytest.fixture(scope="module")
def finetuning(arguments) -> list[str]:
    return ["finetune", *arguments, "--mixup", "0", "--cutmix", "0", "--drop_path_rate", "0"]


@pytest.fixture(scope="module")
def one_process(pretraining, finetuning, tmp_path_factory) -> Path:
    """Both scripts with the batch of an update, 8, in one process."""
    folder = tmp_path_factory.mktemp("one")
    batch = ["--per_device_train_batch_size", 8]
    main(*pretraining, *batch, "--output_dir", folder / "nim")
    main(*finetuning, *batch, "--model_name_or_path", folder / "nim", "--output_dir", folder / "robust")
    main(*finetuning, *ALONG, *batch, "--model_name_or_path", folder / "nim", "--output_dir", folder / "along")
    return folder


def check_losses(folder: Path, reference: Path, tolerance: float = 1e-4) -> None:
    expected = losses(reference)
    assert [step for step, _ in expected] == [1, 2, 3, 4]
    assert losses(folder) == [(step, pytest.approx(loss, rel=tolerance)) for step, loss in expected]


def check_model(folder: Path, reference: Path) -> None:
    """Not weight by weight: Adam makes whole steps of gradients that are nothing but rounding, as are those of keys'
    biases."""
    cls = NIMForPreTraining if folder.name == "nim" else NIMForRobustImageClassification
    assert json.loads((folder / "config.json").read_text())["architectures"] == [cls.__name__]
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        outputs, expected = (
            net(torch.ones(1, 1, 8, 8), sigma=0, **({} if folder.name == "nim" else {"output_draws": True}))
            for net in (model, cls.from_pretrained(reference))
        )
    for name in ("logits", "denoised_pixel_values"):
        torch.testing.assert_close(outputs[name], expected[name], rtol=1e-3, atol=1e-4)


def num_processes(folder: Path) -> int:
    return json.loads((folder / "all_results.json").read_text())["num_processes"]


def test_there_is_a_test_for_each_file():
    assert {path.stem for path in LAUNCH_FILES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_what_accelerate_reads(name):
    path = launch_file(name)
    config = load_config_from_file(str(path))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == EXPECTED[name]
    # Unknown fields of these are ignored without a word.
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert {f"--{field}" for field in (*config.fsdp_config, *config.deepspeed_config)} <= known
    text = path.read_text()
    assert text.startswith("# ")
    assert f"transformers-nim pretrain --launch {name} " in text


@pytest.mark.slow
def test_cpu(pretraining, finetuning, one_process, tmp_path):
    batch, nim, robust = ["--per_device_train_batch_size", 8], tmp_path / "nim", tmp_path / "robust"
    jobs = [
        [*pretraining, *batch, "--output_dir", nim],
        [*finetuning, *batch, "--model_name_or_path", nim, "--output_dir", robust],
    ]
    launch("cpu", jobs)
    for folder in (nim, robust):
        assert num_processes(folder) == 1
        assert losses(folder) == losses(one_process / folder.name)
        assert same_weights(folder, one_process / folder.name)


@pytest.mark.slow
@needs_distributed
def test_cpu_2_processes(pretraining, finetuning, one_process, tmp_path):
    batch, nim, robust = ["--per_device_train_batch_size", 4], tmp_path / "nim", tmp_path / "robust"
    along = tmp_path / "along"
    jobs = [
        [*pretraining, *batch, "--output_dir", nim],
        [*finetuning, *batch, "--model_name_or_path", one_process / "nim", "--output_dir", robust],
        [*finetuning, *ALONG, *batch, "--model_name_or_path", one_process / "nim", "--output_dir", along],
        [*pretraining, *batch, "--mixed_precision", "auto", "--output_dir", tmp_path / "auto"],
    ]
    printed = launch("cpu_2_processes", jobs)
    for folder in (nim, robust, along):
        assert num_processes(folder) == 2
        check_losses(folder, one_process / folder.name)
        check_model(folder, one_process / folder.name)
    one, two = (
        json.loads((path / "all_results.json").read_text())["metrics"] for path in (one_process / "robust", robust)
    )
    assert two == pytest.approx(one, abs=0.03)
    assert "(measured: linear layers in bf16 are" in printed
    check_losses(tmp_path / "auto", one_process / "nim", tolerance=0.05)


@pytest.mark.slow
@needs_distributed
def test_fsdp2(pretraining, finetuning, one_process, tmp_path):
    """Two processes that share the weights learn what one does, and leave checkpoints that load and resume."""
    check_sharded("fsdp2", pretraining, finetuning, one_process, tmp_path)
    assert list((tmp_path / "nim" / "checkpoint-2").rglob("*.distcp")), "the weights were not shared"
    # Losses are not rounded to bf16, of which the mean of two processes has no more bits.
    in_bf16 = torch.tensor([loss for _, loss in losses(tmp_path / "bf16")])
    assert (in_bf16.view(torch.int32) & 0xFFF).any()


@pytest.mark.slow
@needs_distributed
def test_deepspeed(pretraining, finetuning, one_process, tmp_path):
    pytest.importorskip("deepspeed")
    check_sharded("deepspeed_zero2", pretraining, finetuning, one_process, tmp_path)
    assert list((tmp_path / "nim" / "checkpoint-2").rglob("zero_*_optim_states.pt")), "nothing was shared"


def check_sharded(config: str, pretraining, finetuning, one_process, tmp_path) -> None:
    batch = ["--per_device_train_batch_size", 4]
    jobs = [
        [*pretraining, *batch, "--output_dir", tmp_path / "nim"],
        [
            *pretraining, *batch, "--resume_from_checkpoint", tmp_path / "nim" / "checkpoint-2",
            "--output_dir", tmp_path / "resumed",
        ],
        [*pretraining, *batch, "--mixed_precision", "bf16", "--output_dir", tmp_path / "bf16"],
        [*finetuning, *batch, "--model_name_or_path", one_process / "nim", "--output_dir", tmp_path / "robust"],
        [
            *finetuning, *ALONG, *batch, "--model_name_or_path", one_process / "nim",
            "--output_dir", tmp_path / "along",
        ],
    ]  # fmt: skip
    printed = launch(config, jobs, "--num_processes", "2", "--mixed_precision", "no", backend="gloo")
    assert "NIMForPreTraining," in printed
    for folder in (tmp_path / "nim", tmp_path / "robust", tmp_path / "along"):
        assert num_processes(folder) == 2
        check_losses(folder, one_process / folder.name)
    check_losses(tmp_path / "bf16", one_process / "nim", tolerance=0.05)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "nim")[2:]
    assert same_weights(tmp_path / "resumed", tmp_path / "nim")
    for name in ("nim", "robust", "along"):
        check_model(tmp_path / name, one_process / name)


if __name__ == "__main__":
    run_jobs(json.loads(sys.argv[1]), sys.argv[2])
