# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The calculator of long runs against what can be worked out by hand."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from transformers_nim import NIM_SIZES, NIMConfig, NIMForPreTraining
from transformers_nim.commands import finetune, plan, pretrain
from transformers_nim.hub.model_card import empty_model
from transformers_nim.training.arguments import training_sigma
from transformers_nim.training.compute import Recipe
from transformers_nim.utils.processes import launch_file, launch_options
from transformers_nim.utils.text_table import render_table


EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"pretrain": pretrain, "finetune": finetune}


@pytest.fixture(scope="module")
def base():
    """ViT-B/16: 196 patches, encoder 12 x 768, decoder 8 x 512."""
    return plan.measure(NIMConfig.from_size("base"))


def layers_flops(tokens: int, width: int, depth: int) -> int:
    """Matrix products of transformer layers, 2 FLOPs for each multiplication: q, k, v, o and an MLP 4 times as wide
    are 12 width^2 weights; queries times keys and weights times values take the rest."""
    return depth * (2 * 12 * width**2 * tokens + 2 * 2 * tokens**2 * width)


def test_pretraining_flops(base):
    patch = 16 * 16 * 3
    expected = 2 * 196 * patch * 768 + layers_flops(197, 768, 12)
    expected += 2 * 197 * 768 * 512 + layers_flops(197, 512, 8) + 2 * 197 * 512 * patch
    assert base.forward_flops == pytest.approx(expected, rel=1e-3)
    # The backward pass takes twice as many: one product for the weights and one for the input.
    assert base.step_flops == pytest.approx(3 * expected, rel=0.02)
    # The rule of thumb.
    assert base.step_flops == pytest.approx(3 * 2 * 197 * base.trained_parameters, rel=0.06)


def test_masked_flops(base):
    """The encoder sees 49 of 196 patches, the decoder all."""
    mae = plan.measure(NIMConfig.from_size("base"), Recipe(mask_ratio=0.75))
    saved = layers_flops(197, 768, 12) - layers_flops(50, 768, 12) + 2 * (197 - 50) * 768 * 512
    assert base.forward_flops - mae.forward_flops == pytest.approx(saved, rel=1e-3)
    assert mae.step_flops == pytest.approx(3 * mae.forward_flops, rel=0.02)
    assert mae.activation_bytes < 0.6 * base.activation_bytes
    assert mae.trained_parameters == base.trained_parameters + 512


def test_finetuning_flops():
    """The denoiser only goes forward."""
    config = NIMConfig.from_size("tiny", num_labels=1000)
    denoiser, robust = plan.measure(config), plan.measure(config, Recipe("finetuning"))
    classifier = 2 * 196 * 768 * 192 + layers_flops(197, 192, 12) + 2 * 192 * 1000
    assert robust.forward_flops == pytest.approx(denoiser.forward_flops + classifier, rel=1e-3)
    assert robust.step_flops == pytest.approx(denoiser.forward_flops + 3 * classifier, rel=0.02)
    assert robust.frozen_parameters == denoiser.trained_parameters
    assert robust.static_bytes == 22 * robust.trained_parameters + 4 * robust.frozen_parameters


def test_draws_and_a_trained_denoiser():
    """Each draw keeps its activations, and the denoiser those of its own backward pass and AdamW's state."""
    config = NIMConfig.from_size("tiny-patch4-32", num_labels=10, num_hidden_layers=2, decoder_num_hidden_layers=1)
    denoiser, one = plan.measure(config), plan.measure(config, Recipe("finetuning"))
    attacked = plan.measure(config, Recipe("finetuning", num_draws=4, attack_steps=2))
    assert attacked.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=0.01)
    assert attacked.checkpointed_bytes == pytest.approx(4 * one.checkpointed_bytes, rel=0.01)
    assert attacked.static_bytes == one.static_bytes
    along = plan.measure(config, Recipe("finetuning", train_denoiser=True))
    assert along.activation_bytes == pytest.approx(one.activation_bytes + denoiser.activation_bytes, rel=0.05)
    assert along.frozen_parameters == 0
    own = plan.measure(config, Recipe("finetuning", train_denoiser=True, has_denoising_loss=True))
    assert own.activation_bytes == pytest.approx(along.activation_bytes + denoiser.activation_bytes, rel=0.05)
    clean = plan.measure(config, Recipe("finetuning", train_on="clean"))
    assert clean.activation_bytes == pytest.approx(one.activation_bytes, rel=0.01)
    assert (clean.trained_parameters, clean.frozen_parameters) == (one.trained_parameters, 0)


def test_activations(base):
    """In units of tokens x width x bytes. Both layer norms keep their input in float32 (4 + 4), the products their
    inputs in half precision (q, k, v: 3 x 2; o: 2; MLP: 2 and 8), attention q, k, v (3 x 2), GELU its input (8)."""
    expected = 40 * 197 * (12 * 768 + 8 * 512)
    assert base.activation_bytes == pytest.approx(expected, rel=0.05)
    # What enters the layers, in half precision, and one layer, besides what lies around the layers.
    entering, one_layer = 2 * 197 * (12 * 768 + 8 * 512), 40 * 197 * 768
    assert entering + one_layer < base.checkpointed_bytes < 1.5 * (entering + one_layer)


def test_tensors_without_contents_are_measured_like_others():
    config = NIMConfig.from_size("tiny-patch4-32")
    measured = plan.measure(config).activation_bytes
    torch.manual_seed(0)
    model = NIMForPreTraining(config)
    model.set_attn_implementation("fused")
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())

    def loss(images):
        logits = model.restore(images, torch.zeros(len(images)))[1]
        return torch.nn.functional.mse_loss(logits.float(), model.patch_targets(images))

    one, three = (plan.saved_bytes(lambda n=n: loss(torch.randn(n, 3, 32, 32))) for n in (1, 3))
    assert measured == pytest.approx((three - one) / 2, rel=0.01)


def test_batches(base):
    fits = plan.largest_batch(base, 80e9, 0.1)
    assert base.static_bytes + fits * base.activation_bytes <= 0.9 * 80e9
    assert base.static_bytes + (fits + 1) * base.activation_bytes > 0.9 * 80e9
    assert plan.largest_batch(base, 80e9, 0.1, gradient_checkpointing=True) > 5 * fits
    assert plan.largest_batch(base, 1e9, 0.1) == 0
    assert plan.split_batch(4096, 8, 642) == (512, 1)
    assert plan.split_batch(4096, 8, 500) == (256, 2)
    assert plan.split_batch(96, 8, 5) == (4, 3)
    assert plan.split_batch(4096, 8, 0) is None
    with pytest.raises(ValueError, match="7 GPUs cannot share a total_batch_size of 4096"):
        plan.split_batch(4096, 7, 500)


def test_hours(base):
    hardware = plan.Hardware(num_gpus=2, peak_tflops=100, bytes_per_gpu=80e9)
    per_second = 2 * 100e12 * 0.5 / base.step_flops
    assert plan.hours(base, 3600 * per_second, hardware, utilization=0.5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("script", "arguments", "total", "epochs"),
    [
        ("pretrain", ["--config_name", "tiny"], 4096, 800),
        ("pretrain", ["--config_name", "tiny", "--pretext", "mae", "--total_batch_size", "2048"], 2048, 800),
        ("finetune", ["--config_name", "tiny", "--task", "finetuning", "--gradient_checkpointing"], 1024, 100),
        (
            "finetune",
            [
                "--config_name",
                "tiny",
                "--task",
                "finetuning",
                "--train_on",
                "smoothed",
                "--adversarial_steps",
                "2",
                "--num_training_draws",
                "4",
            ],
            1024,
            100,
        ),
    ],
)
def test_its_commands_are_accepted(script, arguments, total, epochs, capsys, monkeypatch):
    """By Accelerate and by the commands, and they make up the batch that was asked for."""
    text = plan.main(arguments)
    assert text in capsys.readouterr().out
    assert "40% of their peak" in text
    commands = commands_in(text)
    launches: list[list] = []
    monkeypatch.setattr("transformers_nim.utils.cli.launch", lambda *call: launches.append(call))
    assert len(commands) == len(plan.HARDWARE) == 4
    assert text.count("\n| ") == 2 + 4
    for command, hardware in zip(commands, plan.HARDWARE.values()):
        words = shlex.split(command.replace("\\\n", " ").replace("$RANK", "3").replace("$ADDRESS", "10.0.0.1"))
        assert words[:2] == ["transformers-nim", script]
        with pytest.raises(SystemExit):
            SCRIPTS[script].parse_arguments(words[2:])
        module, _, choice, arguments_of_command = launches.pop()
        assert module == f"transformers_nim.commands.{script}"
        options = ["--config_file", str(launch_file(choice[0])), *launch_options(launch_command_parser(), choice[1:])]
        launch = launch_command_parser().parse_args([*options, "-m", module, *arguments_of_command])
        assert launch.num_processes == hardware.num_gpus
        args = SCRIPTS[script].parse_arguments(launch.training_script_args)
        assert args.num_train_epochs == epochs
        batch = args.per_device_train_batch_size * launch.num_processes * args.gradient_accumulation_steps
        assert batch == total
        assert args.mixed_precision == (None if hardware.precision == "bf16" else hardware.precision)
        assert args.gradient_checkpointing == ("--gradient_checkpointing" in arguments)
        if "--train_on" in arguments:
            assert (args.train_on, args.adversarial_steps, args.num_training_draws) == ("smoothed", 2, 4)
    assert "machine_rank=" in commands[-1]


def test_own_gpus_that_are_too_small(capsys):
    arguments = ["--config_name", "huge", "--gpu_peak_tflops", "65", "--num_gpus", "2", "--bytes_per_gpu", "12e9"]
    text = plan.main(arguments)
    assert "does not fit" in text
    assert "transformers-nim pretrain" not in text
    with pytest.raises(SystemExit):
        plan.main(["--utilization", "40"])
    assert "--utilization has to be more than 0 and at most 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan.main(["--adversarial_steps", "2"])
    assert "--adversarial_steps is for --task finetuning" in capsys.readouterr().err


PAGE = (EXAMPLES.parent / "docs" / "imagenet.md").read_text()
PLANS = [shlex.split(command) for command in re.findall(r"`transformers-nim plan ?(.*?)`", PAGE)]


def commands_in(text: str) -> list[str]:
    return re.findall(r"^transformers-nim .*?(?=\n```|\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_on_imagenet_has_what_the_command_prints(base, capsys):
    printed = {tuple(arguments): plan.main(arguments) for arguments in PLANS}
    tables = [
        re.search(r"^\| GPUs .*?(?=\n\n)", printed[key], re.M | re.S)[0] for key in ((), ("--task", "finetuning"))
    ]
    assert re.findall(r"^\| GPUs .*?(?=\n\n)", PAGE, re.M | re.S) == tables
    shown = commands_in(PAGE)
    assert {word for command in shown for word in ("tiny", "small", "base", "large", "huge") if f" {word} " in command}
    assert len(shown) == len(set(shown)) == 8
    assert set(shown) <= {command for text in printed.values() for command in commands_in(text)}


@pytest.mark.slow
def test_the_page_on_imagenet_has_the_sizes():
    costs = {size: plan.measure(NIMConfig.from_size(size)) for size in NIM_SIZES if "patch" not in size}
    rows = []
    for size, cost in costs.items():
        width, depth, heads, patch, image_size, *decoder = NIM_SIZES[size]
        assert (image_size, decoder) == (224, [512, 8, 16])
        name = f"ViT-{size.capitalize()}/{patch}"
        needed = [plan.hours(cost, 800 * 1_281_167, hardware, 0.4) for hardware in plan.HARDWARE.values()]
        rows.append(
            [
                f"`{size}`",
                name,
                f"{depth} x {width}",
                str(heads),
                f"{cost.trained_parameters / 1e6:,.1f} M",
                f"{cost.step_flops / 1e9:,.1f}",
                *(f"{one:,.1f}" for one in needed),
                f"{8 * needed[1]:,.0f}",
            ]
        )
    columns = ["`--config_name`", "model", "layers x width", "heads", "parameters", "GFLOPs", *plan.HARDWARE]
    assert render_table([*columns, "GPU hours, A100"], rows) in PAGE


def test_figures_in_the_text_of_the_page_on_imagenet(base):
    text = " ".join(PAGE.split())
    assert (
        f"An image takes {base.forward_flops / 1e9:.1f} GFLOPs forward and {base.step_flops / 1e9:.1f} forward and"
        f" backward, and keeps {base.activation_bytes / 1e6:.0f} MB of activations." in text
    )
    config = NIMConfig.from_size("base", num_labels=1000)
    robust = plan.measure(config, Recipe("finetuning"))
    trained, frozen = robust.trained_parameters, robust.frozen_parameters
    # Two independent counts.
    model = empty_model({**config.to_dict(), "architectures": ["NIMForRobustImageClassification"]})
    assert sum(parameter.numel() for parameter in model.parameters()) == trained + frozen
    assert (
        f"has {(trained + frozen) / 1e6:.0f} M parameters: {frozen / 1e6:.1f} M of the frozen denoiser, and"
        f" {trained / 1e6:.1f} M that are fine-tuned" in text
    )
    assert f"An image takes {robust.step_flops / 1e9:.1f} GFLOPs." in text
    mae = plan.measure(NIMConfig.from_size("base"), Recipe(mask_ratio=0.75))
    assert f"an update takes {mae.step_flops / base.step_flops:.0%} of the FLOPs" in text
    assert f"{mae.step_flops / 1e9:.1f} instead of {base.step_flops / 1e9:.1f} GFLOPs per image" in text
    args = finetune.parse_arguments(["--model_name_or_path", "x", "--output_dir", "y"])
    training_sigma(args, "uniform", None)
    assert f"sigma uniform from {args.sigma_low:g} to {args.sigma_high:g} and a drop path rate of" in text
    assert f"a drop path rate of {args.drop_path_rate:g}." in text


def test_figures_as_json(tmp_path, capsys):
    plan.main(["--config_name", "tiny", "--output_file", str(tmp_path / "plan.json")])
    text, record = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert record["config_name"] == "tiny"
    assert record["step_flops"] == plan.measure(NIMConfig.from_size("tiny", num_labels=1000)).step_flops
    assert [one["name"] for one in record["plans"]] == list(plan.HARDWARE)
    for one in record["plans"]:
        assert f"{one['hours']:,.1f}" in text
        assert one["command"] in text
