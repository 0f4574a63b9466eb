# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The command line of the training scripts: what it says and what it makes of what it is told."""

import argparse
import importlib
import json
import re
from pathlib import Path

import pytest

from transformers_nim import NIMConfig
from transformers_nim.data.loading import ImageData
from transformers_nim.model.noise import ConstantSigma, GammaSigma, UniformSigma
from transformers_nim.training import arguments
from transformers_nim.training.arguments import (
    add_sigma_arguments,
    config_from_arguments,
    parse_overrides,
    public_arguments,
    training_sigma,
)
from transformers_nim.training.launch import Plan, make_plan, steps_of
from transformers_nim.utils.cli import CommandParser, make_parser


EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("pretrain", "finetune")
UNIT = "in units of 0..255 pixels"


def load(script: str):
    return importlib.import_module(f"transformers_nim.commands.{script}")


def parse(script: str, *argv: str) -> argparse.Namespace:
    return load(script).parse_arguments(["--output_dir", "outputs/run", *argv])


def parser_of(script: str, monkeypatch) -> argparse.ArgumentParser:
    parsers = []

    def stop(parser, argv):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(CommandParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        load(script).parse_arguments([])
    return parsers[0]


@pytest.fixture(params=SCRIPTS)
def parser(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return parser_of(request.param, monkeypatch)


def entries(parser) -> dict[str, str]:
    """The help of each option on one line."""
    found = re.findall(r"^  (--\w+)(.*\n(?:   .*\n)*)", parser.format_help(), flags=re.MULTILINE)
    return {option: " ".join(text.split()) for option, text in found}


def test_every_option_is_explained(parser):
    for action in parser._actions:
        assert action.help, action.dest
        assert action.help[0].islower(), action.help
        assert not action.help.endswith("."), action.help
    # In labelled groups, with nothing left over.
    titles = [group.title for group in parser._action_groups if group._group_actions]
    if "Fine-tune" in parser.description:
        assert [titles.pop(2), titles.pop(2)] == ["adversarial training", "draws and denoiser"]
    assert titles == ["options", "task", "model", "data", "augmentation", "optimization", "run"]
    assert [action.dest for action in parser._optionals._group_actions] == ["help", "launch"]


def test_defaults_are_shown_and_nothing_else(parser):
    """All that are values, 0 included; None is explained in words."""
    help_text = parser.format_help()
    assert "None" not in help_text
    assert "SUPPRESS" not in help_text
    assert "%(" not in help_text
    shown = entries(parser)
    for action in parser._actions:
        if action.dest in ("help", "launch"):
            continue
        default, text = action.default, shown[action.option_strings[0]]
        if default is None or default is False:
            assert "(default" not in text, text
        else:
            values = default if isinstance(default, (list, tuple)) else [default]
            assert f"(default: {' '.join(map(str, values))})" in text, text
    assert "(default: 0)" in shown["--seed"]
    assert "(default: 0.5)" in shown["--horizontal_flip"]
    for option, words in (("--sigma_low", "0"), ("--sigma_high", "30"), ("--eval_sigmas", "25, 50, 75")):
        assert f"if left out, {words}" in shown[option]


def test_units_are_given(parser):
    shown = entries(parser)
    assert {"--gamma_scale", "--eval_sigmas"} < shown.keys()
    for option in ("--gamma_scale", "--sigma_low", "--sigma_high", "--sigma_value", "--eval_sigmas",
                   "--defense_sigma"):  # fmt: skip
        assert option not in shown or UNIT in shown[option], option
    for option in ("--adversarial_eps", "--adversarial_step_size"):
        assert option not in shown or "x/255" in shown[option], option


def test_the_command_to_type_is_on_a_line_of_its_own(parser):
    (line,) = [line for line in parser.format_help().splitlines() if line.startswith("    transformers-nim")]
    assert re.fullmatch(r"    transformers-nim (pretrain|finetune)( --\w+ \S+)+", line)


def test_what_is_explained_is_what_there_is(parser):
    """Options that a help text names exist."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        assert set(re.findall(r"--\w+", action.help)) <= options, action.help


@pytest.mark.parametrize("script", SCRIPTS)
def test_paper_s_recipe_is_the_default(script):
    args = parse(script)
    shared = {"config_name": "base", "weight_decay": 0.05, "warmup_ratio": 0.05, "lr_scheduler_type": "cosine"}
    own = {
        "pretrain": {"num_train_epochs": 800, "crop_scale": (0.2, 1.0)},
        "finetune": {"num_train_epochs": 100, "layer_decay": 0.65, "drop_path_rate": 0.1, "mixup": 0.8, "cutmix": 1.0,
                     "label_smoothing": 0.1, "random_erasing": 0.25, "crop_scale": (0.08, 1.0)},
    }  # fmt: skip
    for name, value in {**shared, **own[script]}.items():
        assert getattr(args, name) == value, name
    sigma = {"pretrain": GammaSigma(25, 3), "finetune": UniformSigma(0, 30)}[script]
    assert training_sigma(args, sigma.type, None) == sigma
    # With as many images and GPUs.
    rate = {"pretrain": 1.5e-4 * 4096 / 256, "finetune": 5e-4 * 1024 / 256}[script]
    task, num_processes = {"pretrain": ("pretraining", 64), "finetune": ("finetuning", 16)}[script]
    plan = make_plan(args, ImageData("ImageNet", range(1_281_167), None, "image"), num_processes, task)
    assert (args.per_device_train_batch_size, plan.learning_rate) == (64, pytest.approx(rate))
    # The defaults of the command line and of the config are one recipe.
    field = {"pretrain": "pretraining_sigma", "finetune": "finetuning_sigma"}[script]
    assert getattr(NIMConfig(), field) == sigma.to_dict()


@pytest.mark.parametrize("script", SCRIPTS)
def test_mistakes_on_the_command_line(script, capsys):
    for argv, message in (
        ([], "--output_dir"),
        (["--output_dir", "x", "--learningrate", "1"], "--learningrate 1 (did you mean --learning_rate?)"),
        # Abbreviations would change their meaning with the next option that is added.
        (["--output_dir", "x", "--learning", "1"], "--learning"),
        (["--output_dir", "x", "--lr_scheduler_type", "polynomial"], "choose from"),
        (["--output_dir", "x", "--sigma_distribution", "normal"], "choose from"),
        (["--output_dir", "x", "--crop_scale", "0.5"], "--crop_scale"),
    ):
        with pytest.raises(SystemExit) as error:
            load(script).parse_arguments(argv)
        assert error.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_tokens_are_nobody_s_business(script):
    secrets = ("hf_secret_one", "hf_secret_two")
    args = parse(script, "--token", secrets[0], "--hub_token", secrets[1])
    assert (args.token, args.hub_token) == secrets
    public = public_arguments(args)
    assert public.keys() == vars(args).keys() - {"token", "hub_token"}
    text = json.dumps(public)
    assert not any(secret in text for secret in secrets)
    assert list(public) == sorted(public)
    # A token by another name would have to be added to the secrets.
    assert not [name for name in public if "token" in name or "key" in name or "secret" in name]


def test_public_arguments_are_json():
    args = argparse.Namespace(
        path=Path("a/b"),
        output_dir="/home/someone/model",
        crop_scale=(0.2, 1.0),
        report_to=["none"],
        seed=0,
        token="x",
        rate=None,
    )
    assert json.loads(json.dumps(public_arguments(args))) == {
        "crop_scale": [0.2, 1.0],
        "output_dir": "model",
        "path": "a/b",
        "rate": None,
        "report_to": ["none"],
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("hidden_size=256,norm_pix_loss=true", {"hidden_size": 256, "norm_pix_loss": True}),
        (" hidden_size = 256 , norm_pix_loss = False ,", {"hidden_size": 256, "norm_pix_loss": False}),
        ("drop_path_rate=0.1,layer_norm_eps=1e-5", {"drop_path_rate": 0.1, "layer_norm_eps": 1e-5}),
        ("patch_statistics=input,vote=majority", {"patch_statistics": "input", "vote": "majority"}),
        ("defense_sigma=none,num_labels=7", {"defense_sigma": None, "num_labels": 7}),
        ("defense_sigma=-1,num_samples=08", {"defense_sigma": -1, "num_samples": 8}),
    ],
)
def test_overrides(text, expected):
    parsed = parse_overrides(text)
    assert parsed == expected
    assert [type(value) for value in parsed.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "part",
    ["hiden_size=256", "hidden_size", "=256", "to_dict=1", "image_shape=32", "patch_grid=2", "save_pretrained=1"],
)
def test_overrides_that_are_none(part):
    """Methods and computed properties are no fields."""
    with pytest.raises(ValueError, match=f"config_overrides: '{part}' is not FIELD=VALUE with a field of NIMConfig"):
        parse_overrides(f"hidden_size=64,{part}")


def config_arguments(tmp_path=None, **changed) -> argparse.Namespace:
    parser = make_parser(None)
    arguments.add_config_arguments(parser)
    arguments.add_data_arguments(parser)
    return argparse.Namespace(**{**vars(parser.parse_args([])), **changed})


def test_config_of_a_size():
    args = config_arguments(config_name="tiny-patch4-32", config_overrides="hidden_size=96,num_labels=4")
    config = config_from_arguments(args, drop_path_rate=0.2, hidden_size=48)
    # What is asked for by name goes before what a script fills in.
    assert (config.hidden_size, config.num_labels, config.drop_path_rate) == (96, 4, 0.2)
    assert (config.image_size, config.patch_size, config.num_hidden_layers) == (32, 4, 6)
    assert config_from_arguments(config_arguments()).hidden_size == 768


def test_saved_config(tmp_path):
    NIMConfig(hidden_size=64, num_attention_heads=4, image_size=[32, 64], num_labels=3).save_pretrained(tmp_path)
    args = config_arguments(config_name=str(tmp_path), config_overrides="num_attention_heads=8")
    config = config_from_arguments(args, pretraining_sigma=5)
    assert (config.hidden_size, config.num_attention_heads, config.image_shape) == (64, 8, (32, 64))
    assert config.pretraining_sigma == {"type": "constant", "value": 5}
    # A size that does not exist is taken for a config's name; here the path spares the test a look at the Hub.
    with pytest.raises(OSError, match=r"config_name '.*/enormous' is no size \(tiny, small, .*\), and no config"):
        config_from_arguments(config_arguments(config_name=str(tmp_path / "enormous")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("hidden_size=65", "hidden_size 65 must be a multiple"),
        ("hidden_size=many", "hidden_size"),
        ("norm_pix_loss=1.5", "norm_pix_loss"),
        ("vote=loudest", "vote"),
        ("pretraining_sigma=50", "pretraining_sigma is what is trained on; use --sigma_distribution"),
        ("finetuning_sigma=50", "use --sigma_distribution"),
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_config_values_that_cannot_be(tmp_path, overrides, message, saved):
    NIMConfig().save_pretrained(tmp_path)
    args = config_arguments(config_name=str(tmp_path) if saved else "tiny", config_overrides=overrides)
    with pytest.raises(ValueError, match=message):
        config_from_arguments(args)


def sigma_arguments(*argv: str) -> argparse.Namespace:
    parser = make_parser(None)
    add_sigma_arguments(parser, "gamma")
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], GammaSigma(25, 3)),
        (["--gamma_concentration", "4", "--gamma_scale", "10"], GammaSigma(4, 10)),
        (["--sigma_distribution", "uniform"], UniformSigma(0, 30)),
        (["--sigma_distribution", "uniform", "--sigma_low", "5", "--sigma_high", "6"], UniformSigma(5, 6)),
        (["--sigma_distribution", "constant"], ConstantSigma(70)),
        (["--sigma_distribution", "constant", "--sigma_value", "0"], ConstantSigma(0)),
    ],
)
def test_sigma(argv, expected):
    args = sigma_arguments(*argv)
    assert training_sigma(args, "gamma", None) == expected
    # Results record what was trained with, and the same arguments give it again.
    assert args.sigma_distribution == expected.type
    again = sigma_arguments("--sigma_distribution", expected.type)
    for name in {"gamma": ("gamma_concentration", "gamma_scale"), "uniform": ("sigma_low", "sigma_high"),
                 "constant": ("sigma_value",)}[expected.type]:  # fmt: skip
        setattr(again, name, getattr(args, name))
    assert training_sigma(again, "gamma", None) == expected


def test_a_sigma_that_a_checkpoint_was_trained_with():
    saved = {"type": "uniform", "low": 0.0, "high": 100.0}
    args = sigma_arguments()
    assert training_sigma(args, "gamma", saved) == UniformSigma(0, 100)
    assert (args.sigma_distribution, args.sigma_low, args.sigma_high) == ("uniform", 0.0, 100.0)
    # One argument, and it is described by arguments alone.
    assert training_sigma(sigma_arguments("--gamma_scale", "2"), "gamma", saved) == GammaSigma(25, 2)
    args = sigma_arguments("--sigma_distribution", "uniform", "--sigma_low", "5")
    assert training_sigma(args, "gamma", saved) == UniformSigma(5, 30)
    with pytest.raises(
        ValueError, match=r"sigma_high describes a uniform distribution of sigma, and this one is gamma"
    ):
        training_sigma(sigma_arguments("--sigma_high", "60"), "gamma", saved)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gamma_scale", "0"], "scale of a gamma sigma must be a finite number greater than 0, got 0"),
        (["--gamma_concentration", "nan"], "concentration of a gamma sigma.*got nan"),
        (["--sigma_distribution", "uniform", "--sigma_low", "40"], "high of a uniform sigma.*at least 40, got 30"),
        (["--sigma_distribution", "constant", "--sigma_value", "-1"], "sigma must be .*at least 0, got -1"),
    ],
)
def test_sigma_that_cannot_be(argv, message):
    with pytest.raises(ValueError, match=message):
        training_sigma(sigma_arguments(*argv), "gamma", None)


def plan_of(*argv: str, num_images: int | None = 100, num_processes: int = 2) -> Plan:
    train = iter(()) if num_images is None else range(num_images)
    args = parse("pretrain", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "3", *argv)
    return make_plan(args, ImageData("blocks", train, None, "image"), num_processes, "pretraining")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        # 24 images per update, 4.17 updates per epoch; the last one is finished.
        (["--num_train_epochs", "10"], Plan(24, 42, 100 / 24, 2, 1.5e-4)),
        (["--num_train_epochs", "0.01"], Plan(24, 1, 100 / 24, 0, 1.5e-4)),
        (["--max_train_steps", "7", "--warmup_ratio", "0.5"], Plan(24, 7, 100 / 24, 4, 1.5e-4)),
        (["--max_train_steps", "7", "--num_warmup_steps", "1", "--learning_rate", "1"], Plan(24, 7, 100 / 24, 1, 1.0)),
        (["--max_train_steps", "7", "--base_learning_rate", "0.256"], Plan(24, 7, 100 / 24, 0, pytest.approx(0.024))),
    ],
)  # fmt: skip
def test_plans(argv, expected):
    assert plan_of(*argv) == expected


def test_plan_of_a_stream():
    plan = plan_of("--max_train_steps", "7", num_images=None)
    assert (plan.total_steps, plan.steps_per_epoch) == (7, 0)
    assert steps_of("eval_steps", "3", plan) == 3
    with pytest.raises(ValueError, match=r"eval_steps must be .* or 'epoch' \(not for streams\), got 'epoch'"):
        steps_of("eval_steps", "epoch", plan)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be an int of at least 1, got 0"),
        (["--per_device_eval_batch_size", "-1"], "per_device_eval_batch_size must be an int of at least 1, got -1"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be an int of at least 1, got 0"),
        (["--max_train_steps", "0"], "max_train_steps must be an int of at least 1, got 0"),
        (["--logging_steps", "0"], "logging_steps must be an int of at least 1, got 0"),
        (["--checkpoints_total_limit", "0"], "checkpoints_total_limit must be an int of at least 1, got 0"),
        (["--num_train_epochs", "0"], "num_train_epochs must be greater than 0, got 0"),
        (["--max_grad_norm", "0"], "max_grad_norm must be greater than 0, got 0"),
        (["--max_grad_norm", "nan"], "max_grad_norm must be greater than 0, got nan"),
        (["--num_workers", "-1"], "num_workers must be at least 0, got -1"),
        (["--max_decoded_gb", "-1"], "max_decoded_gb must be at least 0, got -1"),
        (["--warmup_ratio", "3"], "warmup_ratio must be from 0 to 1, got 3"),
        (["--horizontal_flip", "-1"], "horizontal_flip must be from 0 to 1, got -1"),
        (["--streaming"], "pass --max_train_steps"),
        (["--config_name", "tiny", "--config_overrides", "hidden_size=65"], "hidden_size 65 must be a multiple"),
        (["--train_dir", "x"], "give either a dataset_name or a train_dir"),
        # At once, not at a validation that comes hours later.
        (["--eval_steps", "0"], "eval_steps must be a number of at least 1"),
        (["--eval_sigmas", "25", "-5"], "sigma must be .*at least 0, got -5"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_that_cannot_be(script, argv, message):
    """Told before images and models are looked for, of which there are none here."""
    checkpoint = ["--model_name_or_path", "no/model"] if "--config_name" not in argv else []
    arguments = ["--dataset_name", "no/data", "--output_dir", "no/folder", *checkpoint, *argv]
    with pytest.raises(ValueError, match=message):
        load(script).main(arguments)


@pytest.mark.parametrize(
    ("num_images", "num_processes", "size"),
    [(None, 1, 64), (1_281_167, 64, 64), (768, 1, 64), (767, 1, 32), (243, 1, 16), (243, 2, 8), (90, 1, 8), (5, 1, 4)],
)
def test_few_images_make_small_batches(num_images, num_processes, size):
    args = parse("finetune", "--max_train_steps", "1")
    train = iter(()) if num_images is None else range(num_images)
    plan = make_plan(args, ImageData("blocks", train, None, "image"), num_processes, "finetuning")
    assert args.per_device_train_batch_size == size
    assert plan.total_batch_size == size * num_processes
    assert bool(plan.batch_reason) == (size < 64)
    # Results record what was trained with.
    assert plan.learning_rate == pytest.approx(5e-4 * min(max(plan.total_batch_size, 256), 1024) / 256)


def test_an_update_of_more_images_than_there_are():
    with pytest.raises(ValueError, match=r"an update of 384 images \(64 x 2 x 3\) needs more than the 100 images"):
        plan_of("--per_device_train_batch_size", "64")


def test_a_learning_rate_of_zero_is_not_taken_for_none():
    assert plan_of("--learning_rate", "0", "--max_train_steps", "1").learning_rate == 0


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("7", 7), ("epoch", 5)])
def test_numbers_of_updates(value, expected):
    assert steps_of("eval_steps", value, plan_of()) == expected


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "epochs", ""])
def test_numbers_of_updates_that_cannot_be(value):
    with pytest.raises(ValueError, match=f"eval_steps must be a number of at least 1 or 'epoch'.*got '{value}'"):
        steps_of("eval_steps", value, plan_of())
