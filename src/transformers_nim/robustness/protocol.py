# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The protocol of an evaluation: which attacks, with which budget, on how many images, at which sigma."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..attacks.registry import attack_options
from ..model.checks_nim import check_counts
from ..utils.text_table import sigma_key


# Images that are attacked in one pass.
_LARGEST_GROUP = 8

# The precisions in which attacks on a random defense search; what they find is judged in float32.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
FULL_PRECISION = "fp32"
AUTO_PRECISION = "auto"

# Settings that older results do not have, with the values that they were made with.
OLDER_SETTINGS: dict[str, Any] = {"attack_precision": FULL_PRECISION, "num_samples": 1, "vote": "mean"}

CLEAN = "clean"
HEADLINE = "EOT-PGD"
BPDA = "BPDA"
FGSM = "FGSM"
FEW_STEPS = "EOT-PGD, few steps"
OFF_LARGE = "EOT-PGD, sigma off, large eps"
UNBOUNDED = "EOT-PGD, unbounded"
SQUARE = "Square"
TARGETED = "APGD-T"
AUTOATTACK = "AutoAttack"
NOISE_KNOWN = "EOT-PGD, noise known"
# Groups that an attacker may choose from: checks differ in steps or images, cross-checks know the noise.
ATTACK_GROUPS = ("baseline", "white-box", "adaptive", "grid", "approximate", "black-box")
# In the record of an image that an attack left out: the earlier attack that had broken it.
BROKEN_BY = "broken_by"
# Ends the names of attacks that were asked for by name.
DEFAULT_OPTIONS = ", default options"
CLEAN_NOISE_KNOWN = "clean, noise known"


def fast_precision(device: torch.device) -> str:
    """Return the precision in which attacks on a random defense search: `"bf16"` where a device computes in it.

    Emulated, as on older CPUs and GPUs, it is slower than float32. Whether attacks on a model are as strong in it,
    `benchmarks/gradient_precision.py` tells.
    """
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Releases of torch before 2.10 do not tell.
        capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
        is_native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bf16" if is_native else FULL_PRECISION


@dataclass(frozen=True)
class AttackConfiguration:
    """One attack with its options, on the first so many images.

    Attributes:
        name: A name of its own.
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
        fixed_noise: Whether the defense always uses the same noise, which the attacker knows.
        source: Name of the other model on which the images are made, for transfer attacks.
        is_random: Whether the classifier draws noise of its own, which has no sigma.
        skips_broken: Whether images that an earlier attack has broken are not attacked again; see [`Runner`].
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
    is_random: bool = False
    skips_broken: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as results hold them: without newer ones where they are False, as older ones."""
        newer = ("is_random", "skips_broken")
        return {name: value for name, value in asdict(self).items() if name not in newer or value}

    @property
    def is_deterministic(self) -> bool:
        """Tell whether the attacked classifier gives equal images equal answers."""
        has_noise = (self.attack_sigma or self.is_random) and self.gradient != "classifier"
        return self.fixed_noise or self.source is not None or not has_noise

    @property
    def is_one_by_one(self) -> bool:
        """Tell whether images are attacked one by one: noise without generators is one and the same for a batch."""
        if self.source is not None:
            return "num_draws" in self._on_source
        return self.is_random and not self.is_deterministic

    @property
    def _on_source(self) -> dict[str, Any]:
        """Options of the attack on another model; draws are among them if that is random."""
        return self.options.get("options") or {}

    @property
    def num_draws(self) -> int:
        """EOT draws per gradient: predictions, each of which may combine several noise draws."""
        if self.source is not None:
            return int(self._on_source.get("num_draws", 1))
        return 1 if self.is_deterministic else int(self.options.get("num_draws", 1))

    @property
    def cost(self) -> tuple[int, int]:
        """Predictions per image with a gradient, and predictions without; see [`AttackConfiguration.passes`]."""
        options = {**attack_options(self.attack), **self.options}
        draws = 1 if self.is_deterministic else options.get("num_draws", 1)
        runs = options.get("restarts", 1) * len(options.get("losses", ("ce",))) * options.get("num_targets", 1)
        if self.attack == "transfer":
            runs, options, draws = 1, {**options, **options["options"]}, self.num_draws
        # AutoAttack's targeted parts have nine targets each.
        autoattack = 2000 if "apgd-t" in options.get("parts", ()) else 100
        steps = {"none": 0, "uniform_noise": 0, "square": 0, "fgsm": 1, "autoattack": autoattack}
        gradients = steps.get(self.attack, options.get("steps", 0)) * runs * draws
        return gradients, options.get("num_queries", 0) + 2 * runs * draws

    def passes(self, num_samples: int) -> int:
        """Return the passes of a prediction of the attacked classifier, of `num_samples` noise draws where it has any.

        Other models are attacked without a defense.
        """
        has_noise = self.attack_sigma and self.gradient != "classifier" and self.source is None
        return num_samples if has_noise else 1

    def total_cost(self, budget: "AttackBudget", num_samples: int = 1) -> int:
        """Return the passes per image, those that judge it included; one with a gradient counts as two.

        Args:
            budget: The attack budget.
            num_samples: Noise draws that a prediction combines; each is a pass.
        """
        return sum(self.costs(budget, num_samples))

    def costs(self, budget: "AttackBudget", num_samples: int = 1) -> tuple[int, int]:
        """Return the parts of [`AttackConfiguration.total_cost`]: what searches, and what judges."""
        gradients, forwards = self.cost
        judging = num_samples * (budget.num_draws + budget.num_evaluations)
        draws = sum(judging if sigma or self.is_random else 1 for sigma in self.defense_sigmas)
        return self.passes(num_samples) * (2 * gradients + forwards), draws


@dataclass(frozen=True)
class AttackBudget:
    """Work that an evaluation may do.

    Attributes:
        num_images: Images.
        num_check_images: Images of those checks that only have to find out whether an attack works at all.
        num_evaluations: Fresh noise draws with which a finished image is classified; at least 11, for ten
            resubmissions and a vote of eleven.
        steps: Steps of the gradient attacks.
        num_draws: EOT draws per gradient.
        restarts: Restarts per loss.
        num_queries: Predictions that Square may ask for; every noise draw counts.
    """

    num_images: int
    num_check_images: int
    num_evaluations: int
    steps: int
    num_draws: int
    restarts: int
    num_queries: int

    def __post_init__(self) -> None:
        check_counts(**asdict(self))
        for name, least in (("num_evaluations", 11), ("num_queries", 2 * self.num_draws)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {getattr(self, name)}")

    def votes(self, num_samples: int) -> int:
        """Return the predictions of `num_samples` noise draws per gradient: as many as `num_draws` hold, at least one.

        So a step costs `num_draws` passes, or `num_samples` if these are more.
        """
        return max(1, self.num_draws // num_samples)

    def queries(self, num_samples: int) -> int:
        """Return the predictions that Square may ask for: as many steps as with single draws."""
        return self.num_queries * self.votes(num_samples) // self.num_draws


BUDGETS = {
    "quick": AttackBudget(64, 16, 11, steps=20, num_draws=8, restarts=1, num_queries=1600),
    "full": AttackBudget(1000, 64, 33, steps=100, num_draws=20, restarts=3, num_queries=20_000),
}


# Classes that targeted attacks try to reach; 9 are what AutoAttack tries.
_NUM_TARGETS = {"quick": 3, "full": 9}


@dataclass(frozen=True)
class ModelFacts:
    """What decides which attacks a model has to withstand.

    Attributes:
        sigma: The main sigma of the defense in units of 0..255 pixels; `None` for a model without one.
        sigmas: Further ones.
        num_labels: Number of classes; the DLR loss needs three, its targeted form four.
        has_patches: Whether the model has patches, whose statistics an attack can shift.
        image_shape: Channels, height and width.
        own_noise: Noise that a model without a sigma draws: `"seeded"` if a seed repeats it, `"unseeded"` if none
            does, `None` if there is none.
    """

    sigma: float | None
    sigmas: Sequence[float | None] = ()
    num_labels: int = 1000
    has_patches: bool = True
    image_shape: tuple[int, ...] = (3, 224, 224)
    own_noise: str | None = None

    @property
    def is_random(self) -> bool:
        """Tell whether the model gives equal images different answers, at its main sigma if it has one."""
        return bool(self.sigma) or self.own_noise is not None

    @property
    def all_sigmas(self) -> tuple[float | None, ...]:
        """Every sigma once, the main one first."""
        return tuple(dict.fromkeys([self.sigma, *self.sigmas]))


def check_radii(norm: str, radii: Sequence[float]) -> None:
    """Check radii of attacks, in units of 0..255 pixels.

    Raises:
        ValueError: One is out of range.
    """
    for radius in radii:
        if not 0 < radius < math.inf:
            raise ValueError(f"eps must be positive and finite (in units of 0..255 pixels), got {radius!r}")
        if norm == "Linf" and radius > 255:
            raise ValueError(f"eps must be at most 255 for Linf (in units of 0..255 pixels), got {radius!r}")


@dataclass(frozen=True)
class Suite:
    """The attacks of an evaluation.

    `"quick"` crosses two lines: every sigma at the main eps, and every eps at the main sigma. `"full"` fills the grid.
    A finished image is classified with every sigma, so the matrix of assumed and used sigma costs no further attack.

    Attributes:
        name: `"quick"` or `"full"`.
        budget: How much work the attacks may do.
        model: The model.
        eps: The main radius in units of 0..255 pixels.
        eps_grid: Further radii.
        norm: `"Linf"` or `"L2"`.
        surrogates: Names of models from which attacks are transferred.
        rows_per_pass: Noisy images per pass through the network, as attacks group them.
        with_autoattack: Whether to run AutoAttack of pyautoattack: as one of the attacks where equal images get equal
            answers at the main sigma, otherwise as a cross-check on fixed noise.
        further_attacks: Names of other registered attacks, which run with their default options.
        num_samples: Noise draws that a prediction combines. The vote is what is attacked.
        random_surrogates: Names of surrogates that draw noise of their own, over which attacks on them average.

    Raises:
        ValueError: A name or a number is out of range.
    """

    name: str
    budget: AttackBudget
    model: ModelFacts
    eps: float
    eps_grid: Sequence[float] = ()
    norm: str = "Linf"
    surrogates: Sequence[str] = ()
    rows_per_pass: int = 64
    with_autoattack: bool = False
    further_attacks: Sequence[str] = ()
    num_samples: int = 1
    random_surrogates: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples)
        if self.name not in BUDGETS:
            raise ValueError(f"suite must be one of {list(BUDGETS)}, got {self.name!r}")
        check_radii(self.norm, (self.eps, *self.eps_grid))

    def configurations(self) -> list[AttackConfiguration]:
        """Return the attack configurations, the clean images first.

        Raises:
            ValueError: Two have the same name.
        """
        made = [
            *self._baselines(),
            *self._white_box(),
            *self._known_noise(),
            *self._approximate_and_adaptive(),
            *self._grid(),
            *self._black_box(),
            # Some attacks are there already, with the suite's options and under their own names.
            *(self._make(f"{name}{DEFAULT_OPTIONS}", "white-box", name) for name in self.further_attacks),
            *self._checks(),
        ]
        names = [one.name for one in made]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{twice} would be run twice; name every attack, eps and surrogate once")
        return made

    @property
    def _iterative(self) -> dict[str, Any]:
        return {"steps": self.budget.steps, "num_draws": self._votes, "restarts": self.budget.restarts}

    @property
    def _votes(self) -> int:
        return self.budget.votes(self.num_samples)

    def _make(
        self, name: str, group: str, attack: str, options: dict[str, Any] | None = None, **changes: Any
    ) -> AttackConfiguration:
        """Return an attack configuration: made for the main sigma and measured with it, unless changed."""
        sigma = self.model.sigma
        made = AttackConfiguration(
            name, group, attack, self.eps, self.budget.num_images, sigma, (sigma,), dict(options or {}), self.norm
        )
        made = replace(made, is_random=self.model.own_noise is not None, **changes)
        if "batch_size" not in attack_options(attack):
            return made
        # Groups are filled up, so large ones waste passes on the last few images. Half a pass is as fast per image.
        rows = made.num_draws * made.passes(self.num_samples)
        group_size = min(_LARGEST_GROUP, max(1, self.rows_per_pass // (2 * rows)))
        if made.is_one_by_one or attack == "autoattack" or attack.startswith("torchattacks_"):
            # Their random starts, or the model's own noise, belong to the batch and not to the image.
            group_size = 1
        return replace(made, options={**made.options, "batch_size": group_size * made.num_draws})

    def _pgd(self, name: str, group: str, **changes: Any) -> AttackConfiguration:
        return self._make(name, group, "eot_pgd", self._iterative, **changes)

    def _baselines(self) -> Iterator[AttackConfiguration]:
        yield self._make(CLEAN, "clean", "none", eps=0.0, defense_sigmas=self.model.all_sigmas)
        yield self._make("uniform noise", "baseline", "uniform_noise")
        yield self._make(FGSM, "baseline", "fgsm", {"num_draws": self._votes})
        yield self._make("PGD-10, one draw", "baseline", "pgd")

    def _white_box(self) -> Iterator[AttackConfiguration]:
        everywhere = self.model.all_sigmas
        yield self._pgd(HEADLINE, "white-box", defense_sigmas=everywhere)
        both = {"defense_sigmas": everywhere, "skips_broken": True}
        yield self._make("EOT-APGD-CE", "white-box", "eot_apgd_ce", self._iterative, **both)
        if self.model.num_labels >= 3:
            yield self._make("EOT-APGD-DLR", "white-box", "eot_apgd_dlr", self._iterative, **both)
        if self.model.is_random:
            return
        # What AutoAttack adds to the above, and itself: a random defense would be counted out by one lucky draw.
        if self.model.num_labels >= 4:
            targets = {"num_targets": min(_NUM_TARGETS[self.name], self.model.num_labels - 1)}
            options = {**self._iterative, **targets}
            yield self._make(TARGETED, "white-box", "apgd_t", options, **both)
        if self.with_autoattack:
            # All images, as its figure is what others are compared with.
            yield self._make(AUTOATTACK, "white-box", "autoattack", self._autoattack_parts)

    @property
    def _autoattack_parts(self) -> dict[str, Any]:
        # Targeted attacks need classes to choose from.
        return {} if self.model.num_labels >= 4 else {"parts": ("apgd-ce", "square")}

    def _known_noise(self) -> Iterator[AttackConfiguration]:
        if not self.model.is_random or self.model.own_noise == "unseeded":
            return
        # The clean twin of the next: one draw of the noise may be kinder to some images than another.
        yield self._make(CLEAN_NOISE_KNOWN, "clean", "none", eps=0.0, fixed_noise=True)
        yield self._pgd(NOISE_KNOWN, "white-box", fixed_noise=True)
        if self.with_autoattack:
            images = {"num_images": self._num_checks, "fixed_noise": True}
            yield self._make("AutoAttack, noise known", "cross-check", "autoattack", self._autoattack_parts, **images)

    def _approximate_and_adaptive(self) -> Iterator[AttackConfiguration]:
        if self.model.sigma is not None:
            yield self._pgd(BPDA, "approximate", gradient="bpda")
            if self.model.has_patches:
                yield self._make(
                    "patch statistics", "adaptive", "patch_statistics", self._iterative, skips_broken=True
                )
        if self.model.sigma is not None or self.model.is_random:
            yield self._make("vote", "adaptive", "vote", self._iterative, skips_broken=True)
        resolution = max(1, min(8, min(self.model.image_shape[1:]) // 2))
        options = {**self._iterative, "resolution": resolution}
        yield self._make("low frequency", "adaptive", "low_frequency", options, skips_broken=True)

    def _grid(self) -> Iterator[AttackConfiguration]:
        main, everywhere = self.model.sigma, self.model.all_sigmas
        for sigma in everywhere[1:]:
            # What is made for no noise is cheap, and a check compares it with the headline on all images.
            options = {"defense_sigmas": everywhere, "skips_broken": bool(sigma)}
            yield self._pgd(headline_at(sigma), "grid", attack_sigma=sigma, **options)
        sigmas = everywhere if self.name == "full" else (main,)
        for radius in sorted(set(self.eps_grid) - {self.eps}):
            for sigma in sigmas:
                name = f"{HEADLINE if sigma == main else headline_at(sigma)}, eps {radius:g}"
                yield self._pgd(name, "grid", eps=radius, attack_sigma=sigma, defense_sigmas=sigmas)

    def _black_box(self) -> Iterator[AttackConfiguration]:
        square = {"num_queries": self.budget.queries(self.num_samples), "num_draws": self._votes}
        yield self._make(SQUARE, "black-box", "square", square, skips_broken=True)
        for source in self.surrogates:
            options = {"steps": self.budget.steps, "restarts": 1, "batch_size": 8}
            if source in self.random_surrogates:
                options |= {"num_draws": self.budget.num_draws, "batch_size": self.budget.num_draws}
            on_it = {"attack": "eot_apgd_ce", "options": options}
            yield self._make(f"transfer from {source}", "black-box", "transfer", on_it, source=source)

    @property
    def _num_checks(self) -> int:
        return min(self.budget.num_images, self.budget.num_check_images)

    def _checks(self) -> Iterator[AttackConfiguration]:
        few = {**self._iterative, "steps": max(1, self.budget.steps // 10)}
        yield self._make(FEW_STEPS, "check", "eot_pgd", few)
        large = {"eps": large_eps(self.eps, self.norm), "num_images": self._num_checks}
        yield self._pgd(large_eps_name(self.eps, self.norm), "check", **large)
        whole = 255.0 if self.norm == "Linf" else 255.0 * math.prod(self.model.image_shape) ** 0.5
        yield self._pgd(UNBOUNDED, "check", eps=whole, num_images=self._num_checks)
        if self.model.sigma is not None:
            yield self._pgd(OFF_LARGE, "check", **large, attack_sigma=None, defense_sigmas=(None,))


def headline_at(sigma: float | None) -> str:
    """Return the name of the headline attack made for another sigma than the main one."""
    return f"{HEADLINE}, sigma {sigma_key(sigma)}"


def large_eps(eps: float, norm: str) -> float:
    """Return a radius at which every attack that works should leave next to nothing."""
    return min(255.0, max(32.0, 4 * eps)) if norm == "Linf" else 8 * eps


def large_eps_name(eps: float, norm: str) -> str:
    """Return the name of the headline attack with that radius."""
    return f"{HEADLINE}, eps {large_eps(eps, norm):g} (check)"
