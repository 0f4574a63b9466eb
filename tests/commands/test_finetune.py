# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning script as a user runs it."""

import json

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from other_classifiers import other_classifier
from PIL import Image
from safetensors.torch import load_file
from training_runs import (
    digit_pictures,
    digits_dataset,
    kill_after,
    launch,
    losses,
    main,
    same_weights,
    save_digits,
    save_tiny_config,
    save_tiny_denoiser,
    watch_updates,
)
from transformers import ViTImageProcessor, pipeline

from transformers_nim import NIMForImageClassification, NIMForPreTraining, NIMForRobustImageClassification
from transformers_nim.training.compute import Recipe, in_flops, training_compute
from transformers_nim.training.objectives import TRAIN_ON


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return save_digits(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory) -> str:
    return save_tiny_denoiser(tmp_path_factory.mktemp("denoiser"))


@pytest.fixture(scope="module")
def arguments(data, denoiser) -> list[str]:
    return [
        "--dataset_name", data, "--model_name_or_path", denoiser, "--max_train_steps", "6", "--checkpointing_steps",
        "2", "--logging_steps", "1", "--learning_rate", "1e-3", "--per_device_train_batch_size", "16",
        "--num_workers", "0", "--report_to", "none", "--eval_sigmas", "20",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("uninterrupted")
    # Everything that draws random numbers: crops, RandAugment, erasing, mixup, drop path, noise, attack.
    done = launch("finetune", *arguments, *RANDOM, "--output_dir", output_dir, "--report_to", "tensorboard")
    return done, output_dir


RANDOM = ["--drop_path_rate", "0.2", "--ema_decay", "0.9", "--adversarial_steps", "1", "--eval_steps", "2"]


def test_it_leaves_everything_it_promises(uninterrupted, denoiser):
    done, output_dir = uninterrupted
    for line in ("Fine-tuning", "denoised images of 10 classes", "sigma uniform 0-30", "new, for 10 classes",
                 "PGD-1, Linf 8/255, through the defense, shared noise", "layer_0 0.00027"):  # fmt: skip
        assert line in done.stdout
    model = NIMForRobustImageClassification.from_pretrained(output_dir)
    assert model.config.id2label[3] == "digit 3"
    assert model.config.finetuning_sigma == {"type": "uniform", "low": 0.0, "high": 30.0}
    assert model.config.drop_path_rate == 0.2
    # The denoiser has not moved, the classifier has.
    pretrained = NIMForPreTraining.from_pretrained(denoiser).state_dict()
    assert all(torch.equal(pretrained[name], tensor) for name, tensor in model.denoiser.state_dict().items())
    name = "nim.layers.0.attention.q_proj.weight"
    assert not torch.equal(pretrained[name], model.state_dict()[name])
    picture = digit_pictures()[0][0]
    answers = pipeline("image-classification", model=str(output_dir), seed=0)(picture, top_k=10)
    assert {answer["label"] for answer in answers} == {f"digit {i}" for i in range(10)}
    results = json.loads((output_dir / "all_results.json").read_text())
    assert {"accuracy_off", "accuracy_sigma_20", "accuracy_sigma_20_low"} <= results["metrics"].keys()
    assert results["best"]["metric"] == "accuracy_sigma_20"
    compute = training_compute(model.config, Recipe("finetuning", attack_steps=1))
    assert results["compute"] == {
        "flops_per_image": compute.flops,
        "total_flops": 6 * 16 * compute.flops,
        "denoiser_passes_per_image": 2,
        "classifier_passes_per_image": 2,
    }
    said = f"{in_flops(compute.flops)} per image, {in_flops(96 * compute.flops)} in all"
    assert said in done.stdout
    assert said in (output_dir / "README.md").read_text()
    NIMForRobustImageClassification.from_pretrained(output_dir / "best")
    assert np.asarray(Image.open(output_dir / "pictures" / "denoised.png").convert("L")).std() > 10


def test_resumed_is_the_same_run(uninterrupted, arguments, tmp_path):
    _, reference = uninterrupted
    main("finetune", *arguments, *RANDOM, "--output_dir", tmp_path, "--resume_from_checkpoint",
         reference / "checkpoint-4")  # fmt: skip
    assert losses(tmp_path) == losses(reference)[4:]
    assert same_weights(tmp_path, reference)
    assert same_weights(tmp_path / "checkpoint-6", reference / "checkpoint-6")
    averages = (load_file(folder / "checkpoint-6" / "ema.safetensors") for folder in (tmp_path, reference))
    assert all(torch.equal(one, other) for one, other in zip(*(average.values() for average in averages)))


@pytest.mark.parametrize(
    "train_on", ["denoised", *(pytest.param(name, marks=pytest.mark.slow) for name in TRAIN_ON if name != "denoised")]
)
def test_64_images_are_learned_by_heart(train_on, denoiser, tmp_path):
    parts = datasets.DatasetDict({"train": digits_dataset(64), "validation": digits_dataset(64)})
    parts.save_to_disk(tmp_path / "data")
    results = main(
        "finetune", "--dataset_name", tmp_path / "data", "--model_name_or_path", denoiser, "--train_on", train_on,
        "--output_dir", tmp_path / "out", "--max_train_steps", 150, "--learning_rate", 5e-3, "--layer_decay", 1,
        "--per_device_train_batch_size", 64,
        "--num_workers", 0, "--report_to", "none", "--auto_augment", "none", "--random_erasing", 0, "--mixup", 0,
        "--cutmix", 0, "--label_smoothing", 0, "--drop_path_rate", 0, "--crop_scale", 1, 1, "--horizontal_flip", 0,
        "--eval_sigmas", 10, "--max_grad_norm", 1, "--sigma_high", 10,
    )  # fmt: skip
    if train_on == "denoised":
        # An untrained denoiser in front leaves less to see.
        assert results["metrics"]["accuracy_sigma_10"] > 0.9
    else:
        assert results["metrics"]["accuracy_off"] > 0.95
    has_defense = train_on in ("denoised", "smoothed")
    expected = NIMForRobustImageClassification if has_defense else NIMForImageClassification
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [expected.__name__]
    assert config.get("denoise", True) == (train_on != "smoothed")
    if train_on == "smoothed":
        assert results["metrics"]["accuracy_sigma_10"] > 0.9
        weights = load_file(tmp_path / "out" / "model.safetensors")
        assert not [name for name in weights if name.startswith("denoiser.")]
        assert "There is no denoiser." in " ".join((tmp_path / "out" / "README.md").read_text().split())


@pytest.mark.parametrize(
    "options",
    [
        ["--train_on", "denoised", "--adversarial_steps", 2, "--adversarial_through", "classifier"],
        ["--train_on", "noisy", "--adversarial_steps", 1, "--adversarial_step_size", 4, "--sigma_distribution",
         "constant", "--sigma_value", 25],
        ["--train_on", "clean", "--adversarial_steps", 2, "--adversarial_eps", 4, "--mixed_precision", "bf16"],
        ["--train_on", "denoised", "--gradient_accumulation_steps", 2, "--gradient_checkpointing", "--mixed_precision",
         "bf16", "--best_metric", "accuracy_off"],
        ["--train_on", "smoothed", "--adversarial_steps", 1, "--adversarial_norm", "L2", "--adversarial_eps", 128],
        ["--train_on", "denoised", "--adversarial_steps", 1, "--adversarial_noise", "independent",
         "--adversarial_warmup_ratio", 0.5],
        ["--train_on", "clean", "--label_smoothing", 0.1, "--mixup", 0, "--cutmix", 0, "--eval_steps", "epoch"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)  # fmt: skip
def test_options(options, arguments, tmp_path):
    results = main("finetune", *arguments, "--max_train_steps", 2, "--output_dir", tmp_path, *options)
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path))
    assert results["best"]["metric"] == {"noisy": "accuracy_sigma_20", "clean": "accuracy_off"}.get(
        options[1], "accuracy_off" if "--best_metric" in options else "accuracy_sigma_20"
    )
    summary = (tmp_path / "README.md").read_text()
    assert ("adversarially (PGD-" in summary) == ("--adversarial_steps" in options)


def test_adversarial_training_is_harder(arguments, tmp_path):
    """The first step's loss is that of the same images and weights, attacked or not."""
    first = {}
    for steps in (0, 5):
        main("finetune", *arguments, "--train_on", "noisy", "--max_train_steps", 1, "--adversarial_steps", steps,
             "--adversarial_eps", 64, "--output_dir", tmp_path / f"{steps}", "--ignore_mismatched_sizes",
             "--model_name_or_path", trained_classifier(tmp_path))  # fmt: skip
        first[steps] = losses(tmp_path / f"{steps}")[0][1]
    assert first[5] > first[0] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("train_on", ["denoised", "smoothed"])
def test_two_processes_attack_as_one_does(train_on, arguments, tmp_path):
    """Without dropout and mixup, whose draws belong to no single image."""
    options = [*arguments, "--train_on", train_on, "--drop_path_rate", "0", "--mixup", "0", "--cutmix", "0",
               "--adversarial_steps", "2", "--max_train_steps", "3"]  # fmt: skip
    main("finetune", *options, "--output_dir", tmp_path / "one")
    launch("finetune", *options, "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "two",
           num_processes=2)  # fmt: skip
    one, two = (np.array([loss for _, loss in losses(tmp_path / name)]) for name in ("one", "two"))
    assert np.allclose(one, two, rtol=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(first[name], second[name], atol=1e-3) for name in first)


ALL_ON = [
    *RANDOM, "--train_denoiser", "--denoiser_layer_decay", "0.9", "--denoising_weight", "0.5", "--num_training_draws",
    "2", "--consistency_weight", "1", "--consistency_entropy", "0.1", "--adversarial_norm", "L2",
    "--adversarial_warmup_ratio", "0.5", "--gradient_checkpointing",
]  # fmt: skip


def test_a_denoiser_is_trained_along_and_resumes_exactly(arguments, denoiser, tmp_path):
    results = main("finetune", *arguments, *ALL_ON, "--output_dir", tmp_path / "whole", "--max_train_steps", 4)
    metrics = results["metrics"]
    assert {"psnr_sigma_20", "psnr_noisy_sigma_20", "accuracy_sigma_20"} <= metrics.keys()
    model = NIMForRobustImageClassification.from_pretrained(tmp_path / "whole")
    assert model.config.freeze_denoiser is False
    pretrained, trained = NIMForPreTraining.from_pretrained(denoiser), model.denoiser
    changed = {name for name, p in pretrained.named_parameters() if not torch.equal(p, trained.get_parameter(name))}
    assert changed == {name for name, _ in pretrained.named_parameters()}
    assert "with 2 noise draws each, the denoiser trained along, by" in (tmp_path / "whole" / "README.md").read_text()
    main("finetune", *arguments, *ALL_ON, "--output_dir", tmp_path / "rest", "--max_train_steps", 4,
         "--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-2")  # fmt: skip
    assert losses(tmp_path / "rest") == losses(tmp_path / "whole")[2:]
    assert same_weights(tmp_path / "rest", tmp_path / "whole")
    # Without the option the denoiser is frozen again.
    main("finetune", *arguments, "--model_name_or_path", tmp_path / "whole", "--max_train_steps", 1, "--output_dir",
         tmp_path / "frozen")  # fmt: skip
    frozen = NIMForRobustImageClassification.from_pretrained(tmp_path / "frozen")
    assert frozen.config.freeze_denoiser is True
    assert all(torch.equal(p, frozen.denoiser.get_parameter(name)) for name, p in trained.named_parameters())


@pytest.mark.parametrize("options", [RANDOM[:4], ["--train_on", "smoothed"], ALL_ON], ids=["plain", "smoothed", "all"])
def test_no_update_waits_for_an_accelerator(options, arguments, tmp_path, monkeypatch):
    watched = watch_updates(monkeypatch)
    main("finetune", *arguments, *options, "--max_train_steps", 2, "--logging_steps", 2, "--max_grad_norm", 1,
         "--eval_sigmas", "--output_dir", tmp_path)  # fmt: skip
    assert [waits.found for waits in watched] == [[], []]


@pytest.mark.slow
def test_killed_and_resumed_with_all_of_it_on(arguments, tmp_path):
    main("finetune", *arguments, *ALL_ON, "--output_dir", tmp_path / "whole")
    kill_after("checkpoint-2", tmp_path / "killed", *arguments, *ALL_ON, script="finetune")
    main("finetune", *arguments, *ALL_ON, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "latest")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_training_draws", "0"], "num_training_draws must be an int of at least 1, got 0"),
        (["--num_training_draws", "2", "--train_on", "clean"], "clean images have none; pass 1"),
        (["--consistency_weight", "-1"], "consistency_weight must be at least 0, got -1"),
        (["--consistency_weight", "1"], "pass at least 2 --num_training_draws"),
        (["--consistency_entropy", "1"], "pass that too"),
        (["--train_denoiser", "--train_on", "smoothed"], "--train_on smoothed has none"),
        (["--denoising_weight", "1"], "pass --train_denoiser too"),
    ],
)
def test_draws_and_denoisers_that_cannot_be(options, message, arguments, tmp_path):
    with pytest.raises(ValueError, match=message):
        main("finetune", *arguments, *options, "--output_dir", tmp_path)


def test_a_smoothed_model_needs_no_denoiser_and_gives_none(data, tmp_path):
    config = save_tiny_config(tmp_path / "config")
    common = ["--dataset_name", data, "--max_train_steps", 1, "--report_to", "none", "--num_workers", 0]
    main("finetune", *common, "--config_name", config, "--train_on", "smoothed", "--output_dir", tmp_path / "out")
    again = ["--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "again"]
    with pytest.raises(
        ValueError, match=r"has no denoiser, which --train_on denoised needs.* or pass --train_on smoothed"
    ):
        main("finetune", *common, *again, "--train_on", "denoised")
    assert main("finetune", *common, *again)["arguments"]["train_on"] == "smoothed"


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_a_warm_up_that_cannot_be(value, arguments, tmp_path):
    with pytest.raises(ValueError, match=f"adversarial_warmup_ratio must be from 0 to 1, got {value}"):
        main("finetune", *arguments, "--adversarial_warmup_ratio", value, "--output_dir", tmp_path)


def trained_classifier(folder) -> str:
    """A classifier whose head is not uniform, as a new one's is."""
    torch.manual_seed(0)
    model = NIMForImageClassification.from_pretrained(save_tiny_denoiser(folder / "denoiser"), num_labels=10)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder / "classifier")
    return str(folder / "classifier")


def test_labels_of_a_folder_and_a_stream(denoiser, data, tmp_path):
    for part, start in (("train", 0), ("validation", 100)):
        for index, row in enumerate(digits_dataset(40, start)):
            folder = tmp_path / part / f"number {row['label']}"
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{index}.png")
    common = ["--model_name_or_path", denoiser, "--max_train_steps", 2, "--report_to", "none", "--num_workers", 0]
    results = main("finetune", *common, "--train_dir", tmp_path / "train", "--validation_dir",
                   tmp_path / "validation", "--output_dir", tmp_path / "a")  # fmt: skip
    assert results["num_eval_images"] == 40
    model = NIMForRobustImageClassification.from_pretrained(tmp_path / "a")
    assert model.config.label2id == {f"number {i}": i for i in range(10)}
    main("finetune", *common, "--dataset_name", data, "--streaming", "--output_dir", tmp_path / "b")
    model = NIMForRobustImageClassification.from_pretrained(tmp_path / "b")
    assert model.config.id2label[7] == "digit 7"


def test_other_classes_need_a_new_head(data, tmp_path, capsys):
    classifier = trained_classifier(tmp_path)
    model = NIMForImageClassification.from_pretrained(classifier)
    model.config.id2label = {i: f"old {i}" for i in range(3)}
    NIMForImageClassification(model.config).save_pretrained(tmp_path / "three")
    common = ["--dataset_name", data, "--model_name_or_path", tmp_path / "three", "--train_on", "clean",
              "--max_train_steps", 1, "--report_to", "none", "--num_workers", 0]  # fmt: skip
    main("finetune", *common, "--output_dir", tmp_path / "a")
    assert "head           new, for 10 classes instead of the checkpoint's 3" in capsys.readouterr().out
    assert NIMForImageClassification.from_pretrained(tmp_path / "a").classifier.out_features == 10
    # Other weights of another size are not made anew without a word.
    wider = ["--config_overrides", "intermediate_size=96", "--output_dir", tmp_path / "b"]
    with pytest.raises(ValueError, match=r"weights of other sizes .*fc1.*pass --ignore_mismatched_sizes"):
        main("finetune", *common, *wider)
    main("finetune", *common, *wider, "--ignore_mismatched_sizes")


@pytest.mark.parametrize(
    ("name", "words", "is_kept"),
    [
        ("digit {}", "that of the checkpoint, for the same 10 classes", True),
        ("LABEL_{}", "that of the checkpoint, for the same 10 classes", True),
        ("animal {}", "new, since the checkpoint's 10 classes are called otherwise", False),
    ],
)
def test_as_many_classes_that_are_others_need_a_new_head(name, words, is_kept, data, tmp_path, capsys):
    model = NIMForImageClassification.from_pretrained(trained_classifier(tmp_path))
    model.config.id2label = {i: name.format(i) for i in range(10)}
    model.save_pretrained(tmp_path / "start")
    options = ["--max_train_steps", 1, "--report_to", "none", "--num_workers", 0, "--learning_rate", 1e-6]
    main("finetune", "--dataset_name", data, "--model_name_or_path", tmp_path / "start", *options, "--output_dir",
         tmp_path / "out")  # fmt: skip
    assert words in capsys.readouterr().out
    tuned = NIMForImageClassification.from_pretrained(tmp_path / "out").classifier.weight
    assert torch.allclose(tuned, model.classifier.weight, atol=1e-4) == is_kept
    assert is_kept or tuned.abs().max() < 1e-3


def test_what_a_checkpoint_was_trained_for_is_inherited(arguments, denoiser, tmp_path, capsys):
    start = NIMForRobustImageClassification.from_pretrained(
        denoiser, num_labels=3, defense_sigma=40, num_samples=3, vote="majority",
        finetuning_sigma={"type": "uniform", "low": 5, "high": 90},
    )  # fmt: skip
    start.save_pretrained(tmp_path / "start")
    options = [*arguments[: arguments.index("--eval_sigmas")], "--max_train_steps", 1, "--model_name_or_path",
               tmp_path / "start"]  # fmt: skip
    results = main("finetune", *options, "--output_dir", tmp_path / "out")
    printed = capsys.readouterr().out
    expected = "denoised images, defense sigma 40, 3 noise draws per prediction (majority vote), sigma of training"
    assert f"{expected} uniform 5-90, images of 8x8" in printed
    assert "On these pictures the denoiser is" in printed
    assert "Without an attack" in printed
    assert f"transformers-nim evaluate --model_name_or_path {tmp_path / 'out'}" in printed
    config = NIMForRobustImageClassification.from_pretrained(tmp_path / "out").config
    for field in ("defense_sigma", "num_samples", "vote", "finetuning_sigma"):
        assert getattr(config, field) == getattr(start.config, field), field
    # The sigma of the defense is measured, and chooses the best model.
    assert {"accuracy_sigma_40", "psnr_sigma_40"} < results["metrics"].keys()
    assert results["best"]["metric"] == "accuracy_sigma_40"
    recorded = {name: results["arguments"][name] for name in ("sigma_high", "defense_sigma", "train_on")}
    assert recorded == {"sigma_high": 90.0, "defense_sigma": 40.0, "train_on": "denoised"}
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.license) == ("start", None)
    assert "beginning with `start`" in card.text
    assert "This card names no license" in card.text
    # Arguments come first.
    main("finetune", *options, "--sigma_high", 60, "--defense_sigma", 20, "--output_dir", tmp_path / "own")
    config = NIMForRobustImageClassification.from_pretrained(tmp_path / "own").config
    assert config.finetuning_sigma == {"type": "uniform", "low": 0.0, "high": 60.0}
    assert config.defense_sigma == {"type": "constant", "value": 20.0}


def test_a_finished_model_is_not_overwritten(arguments, denoiser, tmp_path):
    options = [*arguments, "--max_train_steps", 1, "--output_dir", tmp_path / "out"]
    main("finetune", *options)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "pictures" / "mine.png").touch()
    for more in ([], ["--resume_from_checkpoint", "latest"]):
        with pytest.raises(ValueError, match=r"holds the model of an earlier run.*--overwrite_output_dir to replace"):
            main("finetune", *options, *more)
    with pytest.raises(ValueError, match="is the checkpoint to start from, too; pass another --output_dir"):
        main("finetune", *options, "--model_name_or_path", tmp_path / "out", "--overwrite_output_dir")
    with pytest.raises(ValueError, match=r"removes .*best, the start of this run; pass another output_dir"):
        main("finetune", *options, "--model_name_or_path", tmp_path / "out" / "best", "--overwrite_output_dir")
    # Nothing is removed for arguments that do not fit together.
    with pytest.raises(ValueError, match="ema_decay must be"):
        main("finetune", *options, "--overwrite_output_dir", "--ema_decay", 2)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    main("finetune", *options, "--overwrite_output_dir", "--seed", 1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    # What no run has made stays.
    assert (tmp_path / "out" / "pictures" / "mine.png").is_file()


def test_a_checkpoint_in_half_precision_is_trained_in_full(arguments, denoiser, tmp_path):
    NIMForPreTraining.from_pretrained(denoiser, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    main("finetune", *arguments, "--model_name_or_path", tmp_path / "half", "--max_train_steps", 1, "--output_dir",
         tmp_path / "out")  # fmt: skip
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_classifier_of_another_kind(arguments, denoiser, tmp_path):
    classifier, _ = other_classifier("resnet", num_channels=1, num_labels=10, id2label=None, label2id=None)
    processor = ViTImageProcessor(image_mean=[0.5], image_std=[0.25], size={"height": 16, "width": 16})
    model = NIMForRobustImageClassification.from_denoiser(denoiser, classifier, processor)
    model.save_pretrained(tmp_path / "start")
    options = [*arguments, "--model_name_or_path", tmp_path / "start", "--output_dir", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"layer_decay 0\.65.*another kind; pass 1"):
        main("finetune", *options)
    results = main("finetune", *options, "--layer_decay", "1", "--ema_decay", "0.9")
    # Its layers are not known.
    assert results["compute"] is None
    tuned = NIMForRobustImageClassification.from_pretrained(tmp_path / "out")
    assert tuned.config.id2label[3] == "digit 3"
    before, after = model.state_dict(), tuned.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier_model"}
    assert len(pipeline("image-classification", model=str(tmp_path / "out"), seed=0)(digit_pictures()[0][0])) == 5
    # Whose classifier it is, training cannot know.
    assert "license: unknown" in (tmp_path / "out" / "README.md").read_text()


def test_a_defense_needs_a_denoiser(data, tmp_path):
    config = save_tiny_config(tmp_path / "config")
    common = ["--dataset_name", data, "--config_name", config, "--output_dir", tmp_path / "out", "--max_train_steps",
              1, "--report_to", "none", "--num_workers", 0]  # fmt: skip
    with pytest.raises(ValueError, match="model_name_or_path"):
        main("finetune", *common)
    assert main("finetune", *common, "--train_on", "clean")["steps"] == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main("finetune", "--help")
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "uniform from 0 to 30" in shown
    assert "in x/255" in shown
