# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Run an attack several times and choose between what the runs find.

Images pass through the network in groups of a fixed size, and each has random numbers of its own. So what an attack
finds for an image does not depend on the other images, on their order or on how many there are.
A model with noise of its own gives a whole group the noise of its first image: with it this holds in groups of one.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..model.outputs_nim import answers, combine_draws
from ..utils.seeding import derive_seed, image_generators
from .geometry import Ball
from .losses import Objective, adversarial_loss, check_losses
from .not_finite import finite_loss, set_group
from .randomness import Classifier, Generators, draw_logits, is_deterministic
from .registry import Attack, OnStep


# Images, draws counted, that pass through the network at once.
BATCH_SIZE = 64

# One run on a group: clean images, labels and one generator per image, to candidates of the images' shape.
Run = Callable[[Tensor, Tensor, Generators], list[Tensor]]


def effective_draws(classifier: Classifier, num_draws: int) -> int:
    """Return how many draws tell all: one for a deterministic classifier, otherwise `num_draws`."""
    return 1 if is_deterministic(classifier) else num_draws


def run_restarts(
    classifier: Classifier,
    pixels: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    runs: Mapping[str, Run],
    num_draws: int,
    batch_size: int = BATCH_SIZE,
    vote: bool = False,
) -> Tensor:
    """Run an attack several times and return, for each image, the candidate that does best on fresh draws.

    All candidates of an image are compared on the same `num_draws` draws, which no run has seen. More wrong answers
    win; of equally many, the higher mean margin. An image that is wrong in all of these draws is not attacked again.
    A single candidate is returned without a comparison. The global random state changes.

    Args:
        classifier: The classifier to attack.
        pixels: Images in [0, 1], shape `(batch, channels, height, width)`.
        labels: True classes `(batch,)`, or probabilities `(batch, classes)`. With probabilities, candidates are
            compared by cross entropy.
        seeds: One seed per image.
        runs: The runs, in order. The name of a run is part of its seed.
        num_draws: Noise draws per pass and for the comparison.
        batch_size: Images, draws counted, that pass at once. Every group is filled up to the same size.
        vote: Whether candidates are compared by the vote of the draws instead of by each draw.

    Returns:
        Adversarial images of the shape of `pixels`.
    """
    labels, size = labels.to(pixels.device), max(1, batch_size // num_draws)
    best = pixels.detach().clone()
    best_score = torch.full((len(pixels),), -torch.inf, dtype=torch.float64, device=pixels.device)
    is_lost = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)

    def groups(active: Tensor, purpose: str) -> Iterator[tuple[Tensor, Tensor, list]]:
        """Yield positions in the batch, the same filled up to a whole group, and generators for the group."""
        for part in active.split(size):
            index = torch.cat([part, part[-1:].expand(size - len(part))])
            set_group(index)
            chosen = [seeds[position] for position in index.tolist()]
            # For classifiers whose noise comes from the global random state.
            torch.manual_seed(derive_seed(chosen[0], purpose, "global"))
            yield part, index, image_generators(chosen, purpose, pixels.device)

    def choose(active: Tensor, candidates: Tensor) -> None:
        for part, index, generators in groups(active, "selection"):
            with torch.no_grad():
                logits = draw_logits(classifier, candidates[index], num_draws, generators)
            score, all_wrong = _judge(logits[: len(part)], labels[part], vote)
            better = score > best_score[part]
            best[part] = torch.where(better[:, None, None, None], candidates[part], best[part])
            best_score[part] = torch.where(better, score, best_score[part])
            is_lost[part] |= all_wrong

    for name, run in runs.items():
        active = (~is_lost).nonzero().flatten()
        if not len(active):
            break
        found: list[Tensor] = []
        for part, index, generators in groups(active, name):
            for number, candidate in enumerate(run(pixels[index], labels[index], generators)):
                if number == len(found):
                    found.append(pixels.detach().clone())
                found[number][part] = candidate[: len(part)].detach()
        if len(runs) == len(found) == 1:
            return found[0]
        for candidates in found:
            choose(active, candidates)
    return best


def _judge(logits: Tensor, labels: Tensor, vote: bool) -> tuple[Tensor, Tensor]:
    """Return the scores of candidates and whether all their draws are wrong; both of shape `(batch,)`."""
    if labels.is_floating_point():
        loss = adversarial_loss("vote" if vote else "ce", logits, labels)
        return finite_loss(loss).to(torch.float64), torch.zeros_like(loss, dtype=torch.bool)
    if vote:
        logits = combine_draws(logits, "mean")[:, None]
    num_wrong = (answers(logits) != labels[:, None]).sum(dim=1)
    margin = finite_loss(adversarial_loss("margin", logits, labels)).to(torch.float64)
    # The margin is squashed into (-1/2, 1/2): it only decides between equal numbers of wrong answers.
    return num_wrong + 0.5 * margin / (1 + margin.abs()), num_wrong == logits.shape[1]


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """Steps along gradients that are averaged over noise draws (EOT, Athalye et al., arXiv 1802.00420).

    With each loss there are `restarts` runs, each from another random start. The best point that a run visits is
    judged by the loss averaged over the draws. What the runs find is compared on fresh draws; see [`run_restarts`].

    Attributes:
        losses: Each one of `"ce"`, `"margin"`, `"dlr"` or `"vote"`; see [`adversarial_loss`]. Probabilities as labels
            need `"ce"` or `"vote"`.
        steps: Gradient steps of a run.
        restarts: Runs with each loss.
        num_draws: Noise draws over which gradients and losses are averaged, and on which the runs are compared.
        batch_size: Images, draws counted, that pass to the classifier at once.

    Raises:
        ValueError: An option is out of range.
    """

    losses: Sequence[str] = ("ce", "margin")
    steps: int = 100
    restarts: int = 3
    num_draws: int = 20
    batch_size: int = BATCH_SIZE
    # The seed of a run is derived from its name.
    _run_name: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "losses", check_losses(self.losses))

    def _perturb(
        self, classifier: Classifier, pixels: Tensor, labels: Tensor, ball: Ball, seeds: Sequence[int], on_step: OnStep
    ) -> Tensor:
        num_draws = effective_draws(classifier, self.num_draws)
        runs: dict[str, Run] = {}
        for restart in range(self.restarts):
            for loss in self.losses:
                objective = Objective(classifier, loss, num_draws)
                runs[self._run_name.format(loss, restart)] = partial(self._run, objective, ball, on_step)
        vote = self.losses == ("vote",)
        return run_restarts(classifier, pixels, labels, seeds, runs, num_draws, self.batch_size, vote)

    @abstractmethod
    def _run(
        self, objective: Objective, ball: Ball, on_step: OnStep, clean: Tensor, labels: Tensor, generators: Generators
    ) -> list[Tensor]:
        """Return what one run on a group of images finds: one or more candidates of the images' shape."""
