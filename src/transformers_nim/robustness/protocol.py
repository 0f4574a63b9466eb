# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation consists of: which attacks, how strong, on how many images, against which sigma."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..attacks.registry import attack_options


# Images that are attacked in one pass.
_LARGEST_GROUP = 8
# Noise scales in units of 0..255 pixels; None is the defense switched off.
Sigmas = Sequence[float | None]

# In what attacks on a random defense search for adversarial images; what they find is judged in float32.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
DEFAULT_PRECISION = "fp32"

CLEAN = "clean"
HEADLINE = "EOT-PGD"
BPDA = "BPDA"
FGSM = "FGSM"
FEW_STEPS = "EOT-PGD, few steps"
OFF_LARGE = "EOT-PGD, sigma off, large eps"
UNBOUNDED = "EOT-PGD, unbounded"
SQUARE = "Square"
NOISE_KNOWN = "EOT-PGD, noise known"
CLEAN_NOISE_KNOWN = "clean, noise known"


@dataclass(frozen=True)
class Cell:
    """One attack in one setting, on the first so many images.

    Attributes:
        name: Tells it from other cells.
        group: `"clean"`, `"baseline"`, `"white-box"`, `"approximate"`, `"adaptive"`, `"grid"` (another sigma or eps),
            `"black-box"`, `"check"` or `"cross-check"`.
        attack: Name in the registry of attacks.
        eps: Radius in units of 0..255 pixels.
        num_images: How many images are attacked.
        attack_sigma: The sigma that the attacker assumes; `None` is the bare classifier.
        defense_sigmas: Every sigma with which the finished images are classified.
        options: Options of the attack.
        norm: `"Linf"` or `"L2"`.
        gradient: See [`PixelClassifier`].
        fixed_noise: Whether the defense uses the same noise always, and the attacker knows it.
        source: Name of the other model on which the images are made, for transfer attacks.
    """

    name: str
    group: str
    attack: str
    eps: float
    num_images: int
    attack_sigma: float | None
    defense_sigmas: tuple[float | None, ...]
    options: dict[str, Any] = field(default_factory=dict)
    norm: str = "Linf"
    gradient: str = "full"
    fixed_noise: bool = False
    source: str | None = None

    @property
    def is_deterministic(self) -> bool:
        """Whether what is attacked answers equal images equally."""
        return self.fixed_noise or self.source is not None or not self.attack_sigma or self.gradient == "classifier"

    @property
    def cost(self) -> tuple[int, int]:
        """Per image: passes with a gradient, and passes without, every draw counted."""
        options = {**attack_options(self.attack), **self.options}
        draws = 1 if self.is_deterministic else options.get("num_draws", 1)
        runs = options.get("restarts", 1) * len(options.get("losses", ("ce",)))
        if self.attack == "transfer":
            runs, options = 1, {**options, **options["options"]}
        steps = {"none": 0, "uniform_noise": 0, "square": 0, "fgsm": 1, "autoattack": 2000}
        gradients = steps.get(self.attack, options.get("steps", 0)) * runs * draws
        return gradients, options.get("num_queries", 0) + 2 * runs * draws


@dataclass(frozen=True)
class Strength:
    """How much work an evaluation does.

    Attributes:
        num_images: Images.
        num_check_images: Images of those checks that only have to find out whether an attack works at all.
        num_evaluations: Fresh noise draws with which a finished image is classified; at least 11, so that there are
            ten resubmissions and a vote of eleven.
        steps: Steps of the gradient attacks.
        num_draws: Noise draws over which each of their gradients is averaged.
        restarts: Runs with each loss.
        num_queries: Predictions that Square may ask for, draws counted.
    """

    num_images: int
    num_check_images: int
    num_evaluations: int
    steps: int
    num_draws: int
    restarts: int
    num_queries: int

    def __post_init__(self) -> None:
        least = {"num_evaluations": 11, "num_queries": 2 * self.num_draws}
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least.get(name, 1):
                raise ValueError(f"{name} must be an int of at least {least.get(name, 1)}, got {value!r}")


STRENGTHS = {
    "quick": Strength(64, 16, 11, steps=20, num_draws=8, restarts=1, num_queries=1600),
    "full": Strength(1000, 64, 33, steps=100, num_draws=20, restarts=3, num_queries=20_000),
}


def sigma_key(sigma: float | None) -> str:
    """A sigma as results name it."""
    return "off" if sigma is None else f"{sigma:g}"


def make_suite(
    suite: str,
    strength: Strength,
    *,
    eps: float,
    sigma: float | None,
    sigmas: Sigmas = (),
    eps_grid: Sequence[float] = (),
    norm: str = "Linf",
    sources: Sequence[str] = (),
    num_labels: int = 1000,
    has_patches: bool = True,
    image_shape: tuple[int, ...] = (3, 224, 224),
    rows_per_pass: int = 64,
    autoattack: bool = False,
    further_attacks: Sequence[str] = (),
) -> list[Cell]:
    """The cells of an evaluation, the clean images first.

    `"quick"` crosses two lines: every sigma at the main eps, and every eps at the main sigma. `"full"` fills the grid.
    A finished image is classified under every sigma, so the matrix of assumed and used sigma costs no attack more.

    Args:
        suite: `"quick"` or `"full"`.
        strength: How much work each cell does.
        eps: The main radius in units of 0..255 pixels.
        sigma: The main sigma of the defense; `None` for a model that has none.
        sigmas: Further ones.
        eps_grid: Further radii.
        norm: `"Linf"` or `"L2"`.
        sources: Names of models from which attacks are transferred.
        num_labels: Classes of the model; the DLR loss needs three.
        has_patches: Whether the model has patches, whose statistics an attack can shift.
        image_shape: Channels, height and width, for the radius without bound in L2.
        rows_per_pass: Noisy images per pass through the network, as attacks group them.
        autoattack: Whether to cross-check on fixed noise with pyautoattack.
        further_attacks: Names of other registered attacks, which are run with their own defaults.

    Raises:
        ValueError: A name or a number is out of range.
    """
    if suite not in STRENGTHS:
        raise ValueError(f"suite must be one of {list(STRENGTHS)}, got {suite!r}")
    for radius in (eps, *eps_grid):
        if not 0 < radius < math.inf:
            raise ValueError(f"eps must be positive and finite (in units of 0..255 pixels), got {radius!r}")
    everywhere = tuple(dict.fromkeys([sigma, *sigmas]))
    n, checks = strength.num_images, min(strength.num_images, strength.num_check_images)
    iterative = {"steps": strength.steps, "num_draws": strength.num_draws, "restarts": strength.restarts}

    def cell(name: str, group: str, attack: str, options: dict | None = None, **changes: Any) -> Cell:
        made = Cell(name, group, attack, eps, n, sigma, everywhere, dict(options or {}), norm)
        made = replace(made, **changes)
        if "batch_size" in attack_options(attack):
            draws = 1 if made.is_deterministic else made.options.get("num_draws", 1)
            # Groups are filled up: those larger than a batch would waste passes.
            group_size = min(_LARGEST_GROUP, max(1, rows_per_pass // draws))
            if attack == "autoattack" or attack.startswith("torchattacks_"):
                # Their random starts belong to the batch and not to the image.
                group_size = 1
            made = replace(made, options={**made.options, "batch_size": group_size * draws})
        return made

    def pgd(name: str, group: str, **changes: Any) -> Cell:
        return cell(name, group, "eot_pgd", iterative, **changes)

    here = (sigma,)
    cells = [
        cell(CLEAN, "clean", "none", eps=0.0),
        cell("uniform noise", "baseline", "uniform_noise", defense_sigmas=here),
        cell(FGSM, "baseline", "fgsm", {"num_draws": strength.num_draws}, defense_sigmas=here),
        cell("PGD-10, one draw", "baseline", "pgd", defense_sigmas=here),
        pgd(HEADLINE, "white-box"),
        cell("EOT-APGD-CE", "white-box", "eot_apgd_ce", iterative),
    ]
    if num_labels >= 3:
        cells.append(cell("EOT-APGD-DLR", "white-box", "eot_apgd_dlr", iterative))
    if sigma:
        known: dict[str, Any] = {"fixed_noise": True, "defense_sigmas": here}
        # The clean twin of the next: one draw of the noise may be kinder to some images than another.
        cells.append(cell(CLEAN_NOISE_KNOWN, "clean", "none", eps=0.0, **known))
        cells.append(pgd(NOISE_KNOWN, "white-box", **known))
        if autoattack:
            # Targeted attacks need classes to choose from.
            parts = {} if num_labels >= 4 else {"parts": ("apgd-ce", "square")}
            cells.append(
                cell("AutoAttack, noise known", "cross-check", "autoattack", parts, num_images=checks, **known)
            )
    if sigma is not None:
        cells.append(pgd(BPDA, "approximate", gradient="bpda", defense_sigmas=here))
        if has_patches:
            cells.append(cell("patch statistics", "adaptive", "patch_statistics", iterative, defense_sigmas=here))
        cells.append(cell("vote", "adaptive", "vote", iterative, defense_sigmas=here))
    smooth = {**iterative, "resolution": max(1, min(8, min(image_shape[1:]) // 2))}
    cells.append(cell("low frequency", "adaptive", "low_frequency", smooth, defense_sigmas=here))
    for other in everywhere[1:]:
        cells.append(pgd(sigma_name(other), "grid", attack_sigma=other))
    radii = sorted(set(eps_grid) - {eps})
    for radius in radii:
        for other in everywhere if suite == "full" else here:
            name = f"{HEADLINE if other == sigma else sigma_name(other)}, eps {radius:g}"
            sees = everywhere if suite == "full" else here
            cells.append(pgd(name, "grid", eps=radius, attack_sigma=other, defense_sigmas=sees))
    square = {"num_queries": strength.num_queries, "num_draws": strength.num_draws}
    cells.append(cell(SQUARE, "black-box", "square", square, defense_sigmas=here))
    for source in sources:
        made = {"attack": "eot_apgd_ce", "options": {"steps": strength.steps, "restarts": 1, "batch_size": 8}}
        cells.append(
            cell(f"transfer from {source}", "black-box", "transfer", made, source=source, defense_sigmas=here)
        )
    for name in further_attacks:
        # Some attacks are there already, with the suite's options and under their own names.
        cells.append(cell(f"{name}, default options", "white-box", name, defense_sigmas=here))
    whole = 255.0 if norm == "Linf" else 255.0 * math.prod(image_shape) ** 0.5
    few = {**iterative, "steps": max(1, strength.steps // 10)}
    cells += [
        cell(FEW_STEPS, "check", "eot_pgd", few, defense_sigmas=here),
        pgd(large_eps_name(eps, norm), "check", eps=large_eps(eps, norm), num_images=checks, defense_sigmas=here),
        pgd(UNBOUNDED, "check", eps=whole, num_images=checks, defense_sigmas=here),
    ]
    if sigma is not None:
        off = {"attack_sigma": None, "defense_sigmas": (None,)}
        cells.append(pgd(OFF_LARGE, "check", eps=large_eps(eps, norm), num_images=checks, **off))
    names = [made.name for made in cells]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{twice} would be run twice; name every attack, eps and surrogate once")
    return cells


def sigma_name(sigma: float | None) -> str:
    """Name of the cell whose attacker assumes another sigma than the main one."""
    return f"{HEADLINE}, sigma {sigma_key(sigma)}"


def large_eps(eps: float, norm: str) -> float:
    """A radius at which every attack that works should leave next to nothing."""
    return max(32.0, 4 * eps) if norm == "Linf" else 8 * eps


def large_eps_name(eps: float, norm: str) -> str:
    """Name of the cell with that radius."""
    return f"{HEADLINE}, eps {large_eps(eps, norm):g} (check)"
