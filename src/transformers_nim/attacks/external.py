# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Attacks of torchattacks and AutoAttack, without their side effects.

They print, seed the global random state of torch, Python and NumPy, switch modes, and average neither gradients nor
acceptance as a random defense needs. They are for comparison; do not report them as the headline.
"""

import contextlib
import io
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..utils.extras import require
from ..utils.seeding import derive_seed, forked_rng
from .geometry import Ball
from .not_finite import FiniteGradient
from .randomness import Classifier, Generators, draw_logits, is_deterministic
from .registry import Attack, OnStep, register_attack
from .restarts import BATCH_SIZE, run_restarts


# The parts of AutoAttack, and how many classes each needs.
_CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}


@register_attack("torchattacks_fgsm")
@dataclass(frozen=True, kw_only=True)
class TorchattacksFGSM(Attack):
    """FGSM of torchattacks (the extra `attacks`), with the noise of each image's seed. `on_step` is not called.

    Attributes:
        batch_size: Images that are attacked at once.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf",)
    batch_size: int = BATCH_SIZE
    # Name in torchattacks, and its names of options.
    _theirs: ClassVar[str] = "FGSM"
    _options: ClassVar[dict[str, str]] = {}

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        make: Callable[..., Any] = getattr(require("torchattacks"), self._theirs)
        options = {theirs: getattr(self, ours) for theirs, ours in self._options.items()}

        def run(clean: Tensor, labels: Tensor, generators: Generators) -> list[Tensor]:
            with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
                made = make(_Logits(classifier, generators), eps=ball.eps, **options)
                made.set_device(clean.device)
                return [ball.project(clean, made(clean, labels))]

        runs = {f"torchattacks/{self._theirs}": run}
        return run_restarts(classifier, pixels, labels, seeds, runs, 1, self.batch_size)


@register_attack("torchattacks_pgd")
@dataclass(frozen=True, kw_only=True)
class TorchattacksPGD(TorchattacksFGSM):
    """PGD of torchattacks (the extra `attacks`), with one noise draw per step. `on_step` is not called.

    The noise is that of each image's seed, but the random start depends on the image's place in the batch.

    Attributes:
        steps: Gradient steps.
        step_size: Length of a step in pixels of [0, 1].
        batch_size: Images that are attacked at once.
    """

    steps: int = 10
    step_size: float = 2 / 255
    _theirs: ClassVar[str] = "PGD"
    _options: ClassVar[dict[str, str]] = {"steps": "steps", "alpha": "step_size"}


@register_attack("torchattacks_eotpgd")
@dataclass(frozen=True, kw_only=True)
class TorchattacksEOTPGD(TorchattacksPGD):
    """EOT-PGD of torchattacks, which asks for one draw after the other and returns the last iterate.

    Further options are those of [`TorchattacksPGD`].

    Attributes:
        num_draws: Noise draws over which each gradient is averaged.
    """

    num_draws: int = 20
    _theirs: ClassVar[str] = "EOTPGD"
    _options: ClassVar[dict[str, str]] = {"steps": "steps", "alpha": "step_size", "eot_iter": "num_draws"}


@register_attack("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """AutoAttack (arXiv 2003.01690) in the form of the package pyautoattack, for deterministic classifiers.

    With the default options it is the standard version. Images that it does not break come back clean. The classifier
    must be deterministic, such as `PixelClassifier(model, fixed_noise=True)`: one lucky draw would count as a success.
    The tool has one seed, which is derived from those of all images; `on_step` is not called.

    Attributes:
        parts: Attacks to run one after the other, of `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"`, `"fab-t"` and
            `"square"`. `"apgd-t"` needs 4 classes, `"apgd-dlr"` needs 3.
        steps: Steps of APGD and FAB.
        num_queries: Queries of Square.
        batch_size: Images that are attacked at once.
    """

    parts: Sequence[str] = ("apgd-ce", "apgd-t", "fab-t", "square")
    steps: int = 100
    num_queries: int = 5000
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.parts, str) or not self.parts or not set(self.parts) <= set(_CLASSES):
            raise ValueError(f"parts must be one or more of {sorted(_CLASSES)} in a list, got {self.parts!r}")

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        if not is_deterministic(classifier):
            raise ValueError(
                "autoattack drops an image after one lucky draw, so it needs a deterministic classifier; pass"
                " PixelClassifier(model, fixed_noise=True), or attack the noise with 'eot_apgd_ce'"
            )
        package = require("pyautoattack")
        with torch.no_grad():
            num_classes = classifier(pixels[:1]).shape[-1]
        short = [part for part in self.parts if _CLASSES[part] > num_classes]
        if short:
            raise ValueError(f"{short} need more than the classifier's {num_classes} classes; leave them out of parts")

        labels = labels.to(pixels.device)
        with _contained(pixels.device):
            seed = derive_seed("autoattack", *seeds) % 2**32
            common = {"norm": ball.norm, "eps": ball.eps, "seed": seed, "device": pixels.device}
            made = package.AutoAttack(_Logits(classifier), version="custom", attacks=list(self.parts), **common)
            # The settings of its standard version, with no more targets than there are other classes.
            targets = min(9, num_classes - 1)
            made.apgd.n_restarts = made.fab.n_restarts = made.apgd_targeted.n_restarts = 1
            made.apgd_targeted.n_target_classes = made.fab.n_target_classes = targets
            for part in (made.apgd, made.apgd_targeted):
                # Derived from the steps when it was made.
                part.n_iter = part.n_iter_orig = self.steps
                part.n_iter_2, part.n_iter_min = max(int(0.22 * self.steps), 1), max(int(0.06 * self.steps), 1)
                part.size_decr = max(int(0.03 * self.steps), 1)
            made.fab.n_iter, made.square.n_queries = self.steps, self.num_queries
            adversarial, _ = made.run_standard_evaluation(pixels.detach(), labels, batch_size=self.batch_size)
        return ball.project(pixels, adversarial)


class _Logits(nn.Module):
    """A classifier as these tools want it: a module whose logits they may overwrite, with noise from generators."""

    def __init__(self, classifier: Classifier, generators: Generators | None = None) -> None:
        super().__init__()
        # A list keeps it out of their .eval(), .train() and .to().
        self._classifier, self._generators = [classifier], generators
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = FiniteGradient.apply(pixels)
        if self._generators is None:
            logits = self._classifier[0](pixels)
        else:
            logits = draw_logits(self._classifier[0], pixels, 1, self._generators)[:, 0]
        return logits.clone()


@contextlib.contextmanager
def _contained(device: torch.device) -> Iterator[None]:
    """Keep a block from printing and from changing the global random states and the trace function."""
    states, trace = (random.getstate(), np.random.get_state()), sys.gettrace()
    try:
        with forked_rng(device), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if sys.gettrace() is not trace:
            sys.settrace(trace)
