# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Several runs of an attack, and the choice between what they find.

Images go through the network in groups of a fixed size, and each has random numbers of its own. So what an attack
finds does not depend on which other images are there, on their order or on how many are passed at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from ..model.outputs_nim import combine_draws
from ..utils.seeding import derive_seed, forked_rng, image_generators
from .geometry import check_images
from .losses import adversarial_loss
from .randomness import Classifier, draw_logits, is_deterministic


# How many images, their draws counted, pass through the network at once.
BATCH_SIZE = 64

# One run on a group: clean images, labels and one generator for each image, to candidates in the images' shape.
Run = Callable[[torch.Tensor, torch.Tensor, list[torch.Generator]], list[torch.Tensor]]


def effective_draws(classifier: Classifier, num_draws: int) -> int:
    """How many draws it takes: one if answers do not vary.

    Raises:
        ValueError: `num_draws` is not an int of at least 1.
    """
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
        raise ValueError(f"num_draws must be an int of at least 1, got {num_draws!r}")
    return 1 if is_deterministic(classifier) else num_draws


def run_restarts(
    classifier: Classifier,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    seeds: Sequence[int],
    runs: Mapping[str, Run],
    num_draws: int,
    batch_size: int = BATCH_SIZE,
    vote: bool = False,
) -> torch.Tensor:
    """Runs an attack several times and returns, for each image, the candidate that does best on fresh draws.

    Candidates are compared on `num_draws` draws that no run has seen, and that are the same for all candidates of an
    image: more wrong answers win, and of equally many the higher mean margin. An image that is wrong in all of these
    draws is not attacked again. If there is but one candidate, nothing is compared.

    Args:
        classifier: What is attacked.
        pixels: Images of shape `(batch, channels, height, width)` in [0, 1].
        labels: True classes `(batch,)`, or probabilities `(batch, classes)`, for which candidates are compared by
            cross entropy.
        seeds: One for each image.
        runs: The runs, in order. The name of a run is part of its seed.
        num_draws: Draws of the noise, per pass and for the choice.
        batch_size: How many images, draws counted, pass at once. Every group is filled up to the same size.
        vote: Whether the choice is by the vote of the draws instead of by each.

    Returns:
        Adversarial images of the shape of `pixels`.

    Raises:
        ValueError: Pixels, labels, seeds or batch size are wrong.
    """
    check_images(pixels, labels, seeds)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}")
    labels, size = labels.to(pixels.device), max(1, batch_size // num_draws)
    best = pixels.detach().clone()
    best_score = torch.full((len(pixels),), -torch.inf, dtype=torch.float64, device=pixels.device)
    is_lost = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)

    def groups(active: torch.Tensor, purpose: str) -> Iterator[tuple[torch.Tensor, torch.Tensor, list]]:
        """Positions in the batch, the same filled up to a whole group, and generators for the latter."""
        for part in active.split(size):
            index = torch.cat([part, part[-1:].expand(size - len(part))])
            chosen = [seeds[position] for position in index.tolist()]
            # For classifiers whose noise comes from the global state.
            torch.manual_seed(derive_seed(chosen[0], purpose, "global"))
            yield part, index, image_generators(chosen, purpose, pixels.device)

    def choose(active: torch.Tensor, candidates: torch.Tensor) -> None:
        for part, index, generators in groups(active, "selection"):
            with torch.no_grad():
                logits = draw_logits(classifier, candidates[index], num_draws, generators)
            score, all_wrong = _judge(logits[: len(part)], labels[part], vote)
            better = score > best_score[part]
            best[part] = torch.where(better[:, None, None, None], candidates[part], best[part])
            best_score[part] = torch.where(better, score, best_score[part])
            is_lost[part] |= all_wrong

    with forked_rng(pixels.device):
        for name, run in runs.items():
            active = (~is_lost).nonzero().flatten()
            if not len(active):
                break
            found: list[torch.Tensor] = []
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


def _judge(logits: torch.Tensor, labels: torch.Tensor, vote: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of candidates, higher for better ones, and whether all their draws are wrong; both `(batch,)`."""
    if labels.is_floating_point():
        loss = adversarial_loss("vote" if vote else "ce", logits, labels)
        return loss.to(torch.float64), torch.zeros_like(loss, dtype=torch.bool)
    if vote:
        logits = combine_draws(logits, "mean")[:, None]
    num_wrong = (logits.argmax(dim=-1) != labels[:, None]).sum(dim=1)
    margin = adversarial_loss("margin", logits, labels).to(torch.float64)
    # Squashed into (-1/2, 1/2), so that it decides between equally many wrong answers alone.
    return num_wrong + 0.5 * margin / (1 + margin.abs()), num_wrong == logits.shape[1]
