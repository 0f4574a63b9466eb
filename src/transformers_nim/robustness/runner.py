# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Run attack configurations image by image, so that a run may be killed, resumed and shared by processes.

Everything random has a seed of its own. An attack's is derived from the run's seed, the attack configuration and the
image; that of the noise of the final classification from the run's seed, the image and sigma. So figures depend
neither on batches nor on processes, the clean and the attacked image meet the same noise, and no attack has seen it.

An image is broken if the noise draws by which the attacker chooses are all wrong: further attacks could take next to
nothing from it. Those that skip such images ([`AttackConfiguration`]) take over the record of the attack that broke
it, at no larger eps and at every sigma that they are judged with. The draws that count take no part in that. The first
few images are attacked by queries in any case, so that a check can compare on images that no attack has chosen.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..attacks.geometry import perturbation_norm
from ..attacks.losses import Objective, adversarial_loss
from ..attacks.not_finite import finite_loss
from ..attacks.randomness import Classifier, draw_logits, is_deterministic
from ..attacks.registry import make_attack
from ..attacks.restarts import effective_draws
from ..data.evaluation_set import EvaluationSet
from ..model.outputs_nim import answers
from ..utils.records import SETTINGS, append_record, read_records
from ..utils.seeding import derive_seed, forked_rng
from ..utils.text_table import plural, sigma_key
from .classifiers import MakeClassifier
from .protocol import ATTACK_GROUPS, BROKEN_BY, CLEAN, AttackBudget, AttackConfiguration


KEYS = ("cell", "row")
PROBE = "gradient probe"
# In the record of an attacked image where a loss or a gradient was not finite.
NOT_FINITE = "not_finite"
# Lengths, in L2 over pixels of [0, 1], over which a gradient is compared with a difference.
_PROBE_STEPS = (1e-2, 1e-3, 2e-4)
_NEEDS_NO_GRADIENT = ("none", "uniform_noise", "square", "transfer")


@dataclass
class Runner:
    """One process's share of an evaluation.

    Attributes:
        make_classifier: The model, which judges finished images and whose gradients are probed.
        images: The images.
        configurations: The attack configurations, that of the clean images first.
        budget: How many noise draws are taken.
        folder: Where the records go; [`start_records`] has to prepare it.
        seed: Seed of the run.
        sources: Other models by name, for transfer attacks.
        keep_images: Names of attack configurations whose adversarial images are kept, to be looked at.
        num_kept: How many images of each are kept.
        batch_size: Images that are attacked together, and lost together if the process is killed.
        rows_per_pass: Noisy images per pass when a finished image is classified.
        device: Where the model is.
        process_index: Number of this process.
        num_processes: How many there are.
        wait: Returns when all processes have called it.
        on_cost: Called with the number of passes that were just done.
        make_approximate: A faster approximation of the model, in which attacks on a random defense search. Attacks on
            a deterministic one stop at the first wrong answer of one pass, which rounding could undo; they search in
            `make_classifier`.
        num_samples: Noise draws that a prediction of the model combines. A draw of the budget is such a prediction.
        make_probed: The model whose gradients are probed, `make_classifier` by default: a majority has none of its
            own that could be compared with differences.
    """

    make_classifier: MakeClassifier
    images: EvaluationSet
    configurations: Sequence[AttackConfiguration]
    budget: AttackBudget
    folder: str | Path
    seed: int = 0
    sources: Mapping[str, Classifier] = field(default_factory=dict)
    keep_images: Sequence[str] = ()
    num_kept: int = 6
    batch_size: int = 8
    rows_per_pass: int = 64
    device: torch.device | str = "cpu"
    process_index: int = 0
    num_processes: int = 1
    wait: Callable[[], object] = lambda: None
    on_cost: Callable[[float], object] = lambda cost: None
    make_approximate: MakeClassifier | None = None
    num_samples: int = 1
    make_probed: MakeClassifier | None = None
    # By row: the attacks that broke the image at some sigma, with their records, in order.
    _broken: dict[int, list[tuple[AttackConfiguration, Mapping[str, Any]]]] = field(init=False, default_factory=dict)

    def run(self) -> list[AttackConfiguration]:
        """Run this process's pending attacks.

        Returns:
            The attack configurations that were run. Gradient attacks are left out for a model without gradients.
        """
        done = self._done()
        # Nobody appends before everybody has read what is done.
        self.wait()
        for part in self._share([n for n in range(self._num_probed) if (PROBE, self._row(n)) not in done]):
            for position in part:
                self._append(self.probe(position))
        for one in self.configurations:
            if one.name == CLEAN:
                self._run(one, done, {})
        self.wait()
        records = read_records(self.folder, KEYS)
        clean = {record["row"]: record for record in records if record["cell"] == CLEAN}
        by_name: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            by_name.setdefault(record["cell"], []).append(record)
        # In the order of the attacks, so that a resumed run finds the same earlier ones.
        for one in self.configurations:
            for record in by_name.get(one.name, ()):
                self._note(one, record)
        has_gradients = any(record["has_gradient"] for record in records if record["cell"] == PROBE)
        runnable = [one for one in self.configurations if has_gradients or one.attack in _NEEDS_NO_GRADIENT]
        done = {(record["cell"], record["row"]) for record in records}
        self.wait()
        for one in runnable:
            if one.name != CLEAN:
                self._run(one, done, clean)
        self.wait()
        return runnable

    def pending_cost(self) -> float:
        """Return the passes through the network that this process has still to do, at most."""
        done = self._done()
        total = 0.0
        for one in self.configurations:
            pending = self._pending(one, done)
            total += sum(len(part) for part in self._share(pending)) * one.total_cost(self.budget, self.num_samples)
        return total

    def _done(self) -> set[tuple[str, int]]:
        return {(record["cell"], record["row"]) for record in read_records(self.folder, KEYS)}

    def _row(self, position: int) -> int:
        return self.images.images[position].row

    @property
    def _num_probed(self) -> int:
        return min(len(self.images.images), self.budget.num_check_images)

    def _pending(self, one: AttackConfiguration, done: set[tuple[str, int]]) -> list[int]:
        return [n for n in range(one.num_images) if (one.name, self._row(n)) not in done]

    def _share(self, positions: Sequence[int]) -> list[Sequence[int]]:
        """Return the batches of this process, which has the same images in all attacks: records build on others."""
        own = [n for n in positions if n % self.num_processes == self.process_index]
        return [own[n : n + self.batch_size] for n in range(0, len(own), self.batch_size)]

    def _append(self, record: Mapping[str, Any]) -> None:
        append_record(self.folder, self.process_index, record)

    def _run(
        self, one: AttackConfiguration, done: set[tuple[str, int]], clean: Mapping[int, Mapping[str, Any]]
    ) -> None:
        pending = self._pending(one, done)
        cost = one.total_cost(self.budget, self.num_samples)
        settled = {n: known for n in pending if (known := self._settled(one, n, clean)) is not None}
        for part in self._share(list(settled)):
            for position in part:
                self._take_over(one, position, settled[position])
            self.on_cost(cost * len(part))
        for part in self._share([n for n in pending if n not in settled]):
            for group in [[n] for n in part] if one.is_one_by_one else [part]:
                self._attack(one, group, clean, cost)

    def _settled(
        self, one: AttackConfiguration, position: int, clean: Mapping[int, Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        """Return the record that tells what an attack would find: of the clean image, or of an earlier attack."""
        if self._is_lost(one, position, clean):
            return clean[self._row(position)]
        is_compared = one.group == "black-box" and position < self.budget.num_check_images
        if not one.skips_broken or is_compared:
            return None
        keys = [sigma_key(sigma) for sigma in one.defense_sigmas]
        for earlier, record in self._broken.get(self._row(position), ()):
            if earlier.eps <= one.eps and all(_is_broken(record, key) for key in keys):
                return record
        return None

    def _take_over(self, one: AttackConfiguration, position: int, record: Mapping[str, Any]) -> None:
        # The same noise would give the same answers.
        keys = [sigma_key(sigma) for sigma in one.defense_sigmas]
        kept: dict[str, Any] = {name: {key: record[name][key] for key in keys} for name in ("predictions", "scores")}
        is_clean = record["cell"] == CLEAN
        if not is_clean:
            kept[BROKEN_BY] = record.get(BROKEN_BY, record["cell"])
        loss = record["loss"] if is_clean and self._has_clean_loss(one) else None
        distance = 0.0 if is_clean else record["distance"]
        self._record(one, position, skipped=True, distance=distance, **kept, loss=loss, seconds=0.0)

    def _note(self, one: AttackConfiguration, record: Mapping[str, Any]) -> None:
        """Remember where an attack, which any attacker may choose, has broken an image."""
        if one.group in ATTACK_GROUPS and not one.fixed_noise and any(_is_broken(record, k) for k in record["scores"]):
            self._broken.setdefault(record["row"], []).append((one, record))

    def _is_lost(self, one: AttackConfiguration, position: int, clean: Mapping[int, Mapping[str, Any]]) -> bool:
        """Return whether an image is wrong without any attack, in every noise draw at every sigma."""
        if one.name == CLEAN or one.fixed_noise:
            return False
        record, label = clean[self._row(position)], self.images.images[position].label
        return all(label not in record["predictions"][sigma_key(sigma)] for sigma in one.defense_sigmas)

    def _has_clean_loss(self, one: AttackConfiguration) -> bool:
        """Return whether the loss of the clean images was measured at the same sigma, on fresh noise."""
        return not one.fixed_noise and one.defense_sigmas[0] == self.configurations[0].defense_sigmas[0]

    def _attack(
        self,
        one: AttackConfiguration,
        positions: Sequence[int],
        clean: Mapping[int, Mapping[str, Any]],
        cost: float,
    ) -> None:
        started = time.perf_counter()
        pixels = torch.stack([self.images.read(self._row(n)) for n in positions]).to(self.device)
        labels = torch.tensor([self.images.images[n].label for n in positions], device=self.device)
        seeds = [derive_seed(self.seed, "attack", one.name, self._row(n)) for n in positions]
        options = dict(one.options)
        if one.source is not None:
            options["source"] = self.sources[one.source]
        steps_so_far = 0
        not_finite: set[int] = set()

        def on_step() -> None:
            # How many steps there will be is only known roughly: some attacks stop early.
            nonlocal steps_so_far
            steps_so_far += 1
            if steps_so_far <= expected:
                self.on_cost(cost * len(positions) / (expected + 1))

        groups = -(-len(positions) // max(1, one.options.get("batch_size", 8) // one.num_draws))
        expected = max(1, groups * one.cost[0] // one.num_draws)
        make = self.make_classifier if one.is_deterministic else self.make_approximate or self.make_classifier
        classifier = make(one.attack_sigma, one.gradient, one.fixed_noise)
        attack = make_attack(one.attack, **options)
        adversarial = attack(
            classifier, pixels, labels, norm=one.norm, eps=one.eps / 255, seeds=seeds, on_step=on_step,
            on_not_finite=not_finite.update,
        )  # fmt: skip
        distances = perturbation_norm(adversarial - pixels, one.norm).tolist()
        attack_seconds = (time.perf_counter() - started) / len(positions)
        for index, position in enumerate(positions):
            started = time.perf_counter()
            if one.name in self.keep_images and position < self.num_kept:
                self._keep(one, position, adversarial[index])
            found, loss = self.classify(adversarial[index], position, one.defense_sigmas, one.fixed_noise)
            if one.attack == "none" and any(-1 in classes for classes in found["predictions"].values()):
                raise FloatingPointError(
                    f"the model's logits of image {self._row(position)} are NaN without any attack; check its weights"
                )
            before = loss if one.name == CLEAN else clean[self._row(position)]["loss"][0]
            losses = [before, loss] if self._has_clean_loss(one) else None
            seconds = round(attack_seconds + time.perf_counter() - started, 3)
            distance = distances[index]
            if index in not_finite:
                found[NOT_FINITE] = True
            self._record(one, position, skipped=False, distance=distance, **found, loss=losses, seconds=seconds)
        self.on_cost(cost * len(positions) * (1 - min(steps_so_far, expected) / (expected + 1)))

    def _record(self, one: AttackConfiguration, position: int, **result: Any) -> None:
        record = {"cell": one.name, "row": self._row(position), **result}
        self._append(record)
        self._note(one, record)

    def _keep(self, one: AttackConfiguration, position: int, adversarial: torch.Tensor) -> None:
        path = kept_path(self.folder, one.name, self._row(position))
        # Not a folder that has vanished, where nothing else would be.
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.save(file, adversarial.cpu().numpy(), allow_pickle=False)
        os.replace(partial, path)

    @torch.no_grad()
    def classify(
        self, pixels: torch.Tensor, position: int, sigmas: Sequence[float | None], fixed_noise: bool = False
    ) -> tuple[dict[str, Any], float]:
        """Classify a finished image with the defense, under fresh noise.

        Every image passes by itself, so that rounding does not depend on its neighbors. By the first noise draws the
        attacker chooses between attacks; the rest are those that count.

        Args:
            pixels: The image in [0, 1], shape `(channels, height, width)`.
            position: Its place among the images.
            sigmas: Sigmas of the defense in units of 0..255 pixels.
            fixed_noise: Whether the defense always uses the same noise.

        Returns:
            `{"predictions": {sigma: classes}, "scores": {sigma: [share of wrong answers, mean margin]}}`, and the
            cross entropy at the first sigma. The class is -1, which is wrong, where logits are NaN.
        """
        label = torch.tensor([self.images.images[position].label], device=self.device)
        found: dict[str, Any] = {"predictions": {}, "scores": {}}
        first_loss = None
        for sigma in sigmas:
            seed = derive_seed(self.seed, "evaluation", self._row(position), sigma_key(sigma))
            classifier = self.make_classifier(sigma, "full", fixed_noise)
            # A single draw where equal images get equal answers.
            chosen = effective_draws(classifier, self.budget.num_draws)
            total = effective_draws(classifier, chosen + self.budget.num_evaluations)
            generators = [torch.Generator(self.device).manual_seed(seed)]
            at_once = max(1, self.rows_per_pass // self.num_samples)
            with forked_rng(pixels.device):
                # For classifiers whose noise comes from the global state.
                torch.manual_seed(seed)
                parts = [
                    draw_logits(classifier, pixels[None], min(at_once, total - done), generators)
                    for done in range(0, total, at_once)
                ]
            logits = torch.cat(parts, dim=1)
            attackers, counted = (logits, logits) if total == 1 else (logits[:, :chosen], logits[:, chosen:])
            wrong = (answers(attackers) != label).double().mean().item()
            margin = finite_loss(adversarial_loss("margin", attackers, label)).item()
            found["predictions"][sigma_key(sigma)] = answers(counted[0]).tolist()
            found["scores"][sigma_key(sigma)] = [wrong, margin]
            if first_loss is None:
                first_loss = finite_loss(adversarial_loss("ce", attackers, label)).item()
        assert first_loss is not None
        return found, first_loss

    def probe(self, position: int) -> dict[str, Any]:
        """Compare the gradient of the margin, at fixed noise, with differences of the margin along it.

        Args:
            position: Place of the image among the images.

        Returns:
            A record with `has_gradient`, the gradient's L2 `norm`, and a difference quotient per step length.
        """
        pixels = self.images.read(self._row(position)).to(self.device)[None]
        label = torch.tensor([self.images.images[position].label], device=self.device)
        seed = derive_seed(self.seed, "probe", self._row(position))

        def generators() -> list[torch.Generator]:
            return [torch.Generator(self.device).manual_seed(seed)]

        make = self.make_probed or self.make_classifier
        objective = Objective(make(self.configurations[0].attack_sigma, "full", True), "margin", 1)

        def margin(at: torch.Tensor) -> float:
            with torch.no_grad():
                return objective.draws(at, label, generators())[0].double().item()

        record = {"cell": PROBE, "row": self._row(position), "has_gradient": True, "norm": 0.0, "differences": []}
        with forked_rng(pixels.device):
            torch.manual_seed(seed)
            try:
                gradient = objective.gradient(pixels, label, generators())[2]
            except ValueError:
                return {**record, "has_gradient": False}
            norm = torch.linalg.vector_norm(gradient.double()).item()
            if norm == 0 or not is_deterministic(objective.classifier):
                # Of noise that no seed repeats, differences say nothing.
                return {**record, "norm": norm}
            direction = (gradient.double() / norm).to(gradient.dtype)
            differences = []
            for step in _PROBE_STEPS:
                torch.manual_seed(seed)
                above = margin(pixels + step * direction)
                torch.manual_seed(seed)
                differences.append((above - margin(pixels - step * direction)) / (2 * step))
        return {**record, "norm": norm, "differences": differences}


def describe_progress(folder: str | Path) -> str:
    """Say how much of an evaluation is done and kept in its folder."""
    path = Path(folder) / SETTINGS
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if measured is None:
        return "nothing is measured yet"
    strength = measured["strength"]
    probes = min(strength["num_images"], strength["num_check_images"])
    total = probes + sum(cell["num_images"] for cell in measured["cells"])
    done = len(read_records(folder, KEYS))
    return f"{done:,} of {plural(total, 'record')}, each of an image under an attack, are kept in {folder}"


def _is_broken(record: Mapping[str, Any], key: str) -> bool:
    """Return whether an attack broke an image at a sigma, by its name; False if it was not judged with that."""
    return record["scores"].get(key, (0.0, 0.0))[0] == 1


def kept_path(folder: str | Path, name: str, row: int) -> Path:
    """Return where an adversarial image of an attack configuration is kept."""
    return Path(folder) / "adversarial" / f"{name.replace(' ', '_').replace(',', '')}-{row}.npy"
