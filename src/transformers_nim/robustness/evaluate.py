# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Measure the robustness of any image classifier in one call."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..attacks.geometry import DEFAULT_EPS, NORMS
from ..data.evaluation_set import EvaluationSet, find_split, picture_reader
from ..model.noise import FROM_CONFIG
from ..model.pixel_classifier_nim import timm_settings
from ..utils.output_folder import hold_folder
from ..utils.processes import OneProcess
from .classifiers import Subject, has_defense, make_subject
from .evaluation import Defense, Evaluation, EvaluationOptions
from .protocol import FULL_PRECISION
from .report import RobustnessReport


logger = logging.get_logger(__name__)

# Images on which it is found out whether a model draws noise of its own.
_LISTENED = 4


def evaluate_robustness(
    model: Any,
    images: Any,
    labels: torch.Tensor | Sequence[int] | None = None,
    *,
    eps: float | None = None,
    norm: str = "Linf",
    eps_grid: Sequence[float] | None = None,
    sigma: float | str | None = FROM_CONFIG,
    sigmas: Sequence[float | None] | None = None,
    num_samples: int | None = None,
    vote: str | None = None,
    image_processor: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    suite: str = "quick",
    num_images: int | None = None,
    budget_minutes: float | None = None,
    budget: Mapping[str, int] | None = None,
    attacks: Sequence[str] = (),
    surrogates: Mapping[str, Any] | None = None,
    attack_precision: str = FULL_PRECISION,
    autoattack: bool = True,
    split: str | None = None,
    labels_by_index: bool = False,
    name: str | None = None,
    output_dir: str | os.PathLike | None = None,
    resume: bool = True,
    seed: int = 0,
    random: bool | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 8,
    rows_per_pass: int = 64,
    accelerator: Any = None,
    progress: bool = True,
) -> RobustnessReport | None:
    """Measure the accuracy of an image classifier under a suite of attacks that does not flatter random defenses.

    A model that gives equal pixels different answers is noticed: attacks then average over its noise, every finished
    image is classified under fresh noise, and the report has the worst of ten tries. It is asked 16 times for its
    answers to the first four images. Rare noise can be missed, and then the accuracy is that of lucky draws; see
    [`~PixelClassifier.find_noise`].

    Args:
        model: The classifier, in eval mode: any `torch.nn.Module` from pixels in [0, 1] to logits, a model of
            transformers or timm, a De^3 model, a `pipeline("image-classification")`, or the name or path of a
            checkpoint of transformers.
        images: Pixels in [0, 1] of shape `(images, channels, height, width)`, of the size that the model takes; a data
            set of `datasets` or its name; a folder with one folder of pictures per class; a torch `Dataset` of pairs
            of a picture and a class number, or a `DataLoader`. Data sets are shuffled, always in the same order.
        labels: True classes of a tensor of images, as the model numbers them, shape `(images,)`.
        eps: Main radius in pixels of [0, 1]; 8/255 for Linf and 128/255 for L2 by default.
        norm: `"Linf"` or `"L2"`.
        eps_grid: Further radii in pixels of [0, 1]; by default a quarter and a half of the main one.
        sigma: Main sigma of a De^3 model in units of 0..255 pixels; `None` is the defense switched off. The config's
            by default. This and the next three arguments are for De^3 models alone.
        sigmas: Further ones, for the trade-off curve; off, 0, 25, 50, 75 and 100 by default.
        num_samples: Noise draws that a prediction combines; the config's by default. This vote is what is attacked.
        vote: How they are combined, `"mean"` or `"majority"`; the config's by default.
        image_processor: The model's image processor. Needed for pictures of any size, and for the normalization of a
            model of transformers that was not loaded by name.
        image_mean: Per-channel mean of the normalization. By default that of the image processor, config or timm; a
            module that has none of them takes pixels as they are.
        image_std: Per-channel standard deviation, likewise.
        suite: `"quick"`, or `"full"`: more images, steps, restarts and sigmas, and AutoAttack.
        num_images: Number of images; 64 for the quick suite and 1000 for the full one by default.
        budget_minutes: Time there is. What has to be cut for it is said in the report.
        budget: Fields of the suite's [`AttackBudget`] to change, such as `{"steps": 50}`.
        attacks: Further attacks by their names; see [`available_attacks`].
        surrogates: Other models by name, of any kind that `model` may be, from which attacks are transferred.
        attack_precision: The precision in which attacks on a random defense search, `"fp32"` or `"bf16"`; `"auto"`
            is bfloat16 where the device computes in it. Accuracies are always judged in float32.
        autoattack: Whether the full suite runs AutoAttack, where pyautoattack is installed.
        split: Split of a data set; by default the test split, otherwise one for validation, otherwise the only one.
        labels_by_index: Whether the data's classes have the model's numbers, whatever their names are.
        name: What the report calls the model.
        output_dir: Folder in which every result is kept at once. With it, an interrupted evaluation goes on where it
            stopped. Without it, nothing is left behind.
        resume: Whether to go on with the evaluation in `output_dir`, if there is one. It must be the same.
        seed: Seed of attacks and noise. Figures depend on it alone.
        random: For models without a sigma: whether the model draws noise of its own. `True` says so even where it
            is too rare to be noticed. `False` is taken on trust, which the report says. By default it is found out.
        device: Where the model goes. By default it stays where it is; one that is loaded goes to the GPU, if any.
        batch_size: Images that are attacked together.
        rows_per_pass: Noisy images per pass through the network.
        accelerator: An `Accelerator` whose processes share the work, in a script that `accelerate launch` starts.
        progress: Whether to show a progress bar.

    Returns:
        The report: `print(report)` shows its tables, `report.plot(folder)` draws pictures, `report.save(path)` keeps
        it as JSON. `None` on processes other than the main one.

    Raises:
        ValueError: An argument is out of range, unknown, or for another kind of model; the images do not fit the
            model; or `output_dir` holds another evaluation or cannot be written.
        OutputFolderError: Another run uses `output_dir`; or it vanishes, or its disk fills up.
        ImportError: A data set needs the package `datasets`.

    Example:

    ```python
    >>> import torch
    >>> from transformers_nim.robustness import evaluate_robustness

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5)).eval()
    >>> images = torch.rand(4, 3, 8, 8)
    >>> few = {"steps": 2, "num_queries": 16, "num_check_images": 2}
    >>> report = evaluate_robustness(model, images, model(images).argmax(dim=1), budget=few, progress=False)
    >>> report.row("clean", None).accuracy.mean
    1.0
    ```"""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {list(NORMS)}, got {norm!r}")
    radii = [DEFAULT_EPS[norm] / 255 if eps is None else eps, *(eps_grid or ())]
    for radius in radii:
        if not radius > 0 or (norm == "Linf" and radius > 1):
            raise ValueError(
                f"eps must be positive, and at most 1 for Linf, for pixels in [0, 1]; got {radius!r}. For x of 255"
                " levels pass x / 255"
            )
    if output_dir is None and accelerator is not None and accelerator.num_processes > 1:
        raise ValueError("several processes share their results in a folder: pass output_dir")
    # In tenths of billionths, so that 8 / 255 is exactly 8 of 255.
    main, *further = (round(255 * radius, 10) for radius in radii)
    changed = dict(budget or {}) | ({} if num_images is None else {"num_images": num_images})
    is_main = accelerator is None or accelerator.is_main_process
    temporary = tempfile.TemporaryDirectory() if output_dir is None else nullcontext(output_dir)
    with temporary as folder, hold_folder(folder, "the same call", is_main):
        options = EvaluationOptions(
            output_dir=Path(folder), suite=suite, norm=norm, eps=main, eps_grid=None if eps_grid is None else further,
            sigma=sigma, sigmas=sigmas, num_samples=num_samples, vote=vote, attacks=attacks, budget=changed,
            attack_precision=attack_precision, with_autoattack=autoattack, budget_minutes=budget_minutes,
            resume=resume, seed=seed, batch_size=batch_size, rows_per_pass=rows_per_pass,
            labels_by_index=labels_by_index,
        )  # fmt: skip
        device = accelerator.device if device is None and accelerator is not None else device
        subject = make_subject(model, name, image_processor, image_mean, image_std, device, random)
        # Options for another kind of model are refused before the images are read.
        Defense.of(subject, options)
        if sigmas and not has_defense(subject.model):
            raise ValueError(f"{type(subject.core).__name__} has no defense: leave sigmas ({list(sigmas)}) out")
        found = find_images(images, labels, subject, options.attack_budget().num_images, split, labels_by_index)
        workers = OneProcess(subject.device) if accelerator is None else accelerator
        others = {name: make_subject(other, device=subject.device) for name, other in (surrogates or {}).items()}
        return evaluate(subject, found, options, others, workers, show_progress=progress)


def evaluate(
    subject: Subject,
    images: EvaluationSet,
    options: EvaluationOptions,
    surrogates: Mapping[str, Subject],
    workers: Any,
    say: Any = logger.info,
    show_progress: bool = True,
) -> RobustnessReport | None:
    """Evaluate a subject; see [`Evaluation`]. Whether the models draw noise of their own is found out first."""
    some = torch.stack([images.read(image.row) for image in images.images[:_LISTENED]])
    subject = subject.listen(some)
    evaluation = Evaluation(subject, images, options, surrogates, workers, say, show_progress)
    evaluation.check_surrogates()
    return replace(evaluation, surrogates={name: one.listen(some) for name, one in surrogates.items()}).run()


def find_images(
    images: Any,
    labels: Any,
    subject: Subject,
    num_images: int,
    split: str | None = None,
    labels_by_index: bool = False,
) -> EvaluationSet:
    """Return the images of an evaluation, whatever they come as; see [`evaluate_robustness`].

    Raises:
        ValueError: They are none of these, or do not fit the model.
    """
    if not isinstance(images, (str, os.PathLike, Mapping, Dataset, DataLoader)) and not hasattr(images, "features"):
        try:
            pixels = torch.as_tensor(images)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                "images must be a tensor of pixels in [0, 1], a data set, its name, a folder or a DataLoader, got a"
                f" {type(images).__name__}"
            ) from error
        if labels is None:
            raise ValueError("a tensor of images needs labels, one class number per image")
        return EvaluationSet.from_tensors(pixels, labels, num_images)
    if labels is not None:
        raise ValueError(f"a {type(images).__name__} has labels of its own: leave labels out")
    processor = subject.image_processor or _timm_processor(subject)
    if isinstance(images, (Dataset, DataLoader)) and not hasattr(images, "features"):
        classifier = subject.maker(0)(None, "full", False)
        process, to_pixels = picture_reader(classifier, processor)
        return EvaluationSet.from_pairs(
            images, num_images, lambda picture: to_pixels(process(picture, return_tensors="pt")["pixel_values"][0])
        )
    data, chosen = find_split(images, split)
    found = EvaluationSet.from_data(
        data, subject.model, processor, num_images, labels_by_index, subject.image_mean, subject.image_std
    )
    return found.of_split(chosen)


def _timm_processor(subject: Subject) -> Any:
    """Return the image processor of a model of timm; `None` for other models."""
    settings = timm_settings(subject.core)
    if not settings or not isinstance(subject.core, nn.Module):
        return None
    from transformers import TimmWrapperImageProcessor

    return TimmWrapperImageProcessor(dict(settings))
