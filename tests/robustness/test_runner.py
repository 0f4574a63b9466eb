# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attacks.toys import Linear, Masked, Noisy, boundary_points
from fake_reports import settings as fake_settings

from transformers_nim.attacks import PixelClassifier
from transformers_nim.attacks.randomness import draw_logits
from transformers_nim.data.evaluation_set import EvaluationSet
from transformers_nim.model.noise import draw_noise, resolve_sigma
from transformers_nim.model.outputs_nim import RobustImageClassifierOutput, combine_draws
from transformers_nim.robustness.checks import make_report
from transformers_nim.robustness.classifiers import classifier_maker
from transformers_nim.robustness.figures import measure
from transformers_nim.robustness.protocol import (
    BROKEN_BY,
    CLEAN,
    CLEAN_NOISE_KNOWN,
    HEADLINE,
    NOISE_KNOWN,
    AttackBudget,
    AttackConfiguration,
    ModelFacts,
    Suite,
)
from transformers_nim.robustness.runner import KEYS, PROBE, Runner, kept_path
from transformers_nim.utils.records import read_records, start_records
from transformers_nim.utils.seeding import derive_seed
from transformers_nim.utils.text_table import sigma_key


BUDGET = AttackBudget(6, 4, 12, steps=4, num_draws=3, restarts=1, num_queries=12)
SHAPE = (3, 4, 4)
LINEAR = Linear(classes=3, shape=SHAPE)


class Known:
    """A noisy classifier whose noise never changes."""

    is_deterministic = True

    def __init__(self, noisy):
        self.noisy = noisy

    def __call__(self, pixels):
        generators = [torch.Generator().manual_seed(5) for _ in range(len(pixels))]
        return draw_logits(self.noisy, pixels, 1, generators)[:, 0]


def make_classifier(sigma, gradient="full", fixed_noise=False):
    if not sigma:
        return LINEAR
    noisy = Noisy(LINEAR, scale=sigma / 255)
    return Known(noisy) if fixed_noise else noisy


def make_images(num=6, seed=3):
    pixels = torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(seed))
    labels = LINEAR(pixels).argmax(dim=1)
    # One image that no draw gets right.
    labels[2] = LINEAR(pixels).argmin(dim=1)[2]
    return EvaluationSet.from_tensors(pixels, labels)


def facts(sigma=None, sigmas=(), num_labels=3):
    return ModelFacts(sigma, sigmas, num_labels, has_patches=False, image_shape=SHAPE)


def attacks(**changes):
    return Suite("quick", BUDGET, facts(30.0, [None, 0.0]), 8, [2.0], rows_per_pass=6, **changes).configurations()


def run(folder, images=None, suite=None, resume=False, **options):
    suite = attacks() if suite is None else suite
    start_records(folder, {}, KEYS, resume)
    runner = Runner(make_classifier, images or make_images(), suite, BUDGET, folder, **options)
    runner.run()
    return read(folder)


def read(folder):
    """Return records by attack configuration and row, without the time they took."""
    records = read_records(folder, KEYS)
    return {(record["cell"], record["row"]): {k: v for k, v in record.items() if k != "seconds"} for record in records}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), keep_images=[HEADLINE])


def test_every_image_of_every_attack_has_a_record(records):
    expected = {(one.name, row) for one in attacks() for row in range(one.num_images)}
    assert records.keys() == expected | {(PROBE, row) for row in range(4)}


def test_answers_are_under_every_sigma_of_the_attack(records):
    for one in attacks():
        for row in range(one.num_images):
            predictions = records[one.name, row]["predictions"]
            # One answer where there is nothing random, and as many as were asked for otherwise.
            counts = {"30": 1 if one.fixed_noise else 12, "off": 1, "0": 1}
            keys = {sigma_key(sigma) for sigma in one.defense_sigmas}
            assert {key: len(classes) for key, classes in predictions.items()} == {key: counts[key] for key in keys}


def test_perturbations_are_as_large_as_allowed(records):
    for one in attacks():
        for row in range(one.num_images):
            record = records[one.name, row]
            assert record["distance"] <= one.eps / 255 + 1e-6
            is_lost = row == 2 and one.name != CLEAN and not one.fixed_noise
            assert record["skipped"] is (is_lost or BROKEN_BY in record)
            if one.attack == "eot_pgd" and one.eps == 8 and not record["skipped"]:
                assert record["distance"] > 0.9 * one.eps / 255


def test_an_image_that_is_lost_keeps_its_clean_answers(records):
    clean, attacked = records[CLEAN, 2], records[HEADLINE, 2]
    assert attacked["skipped"]
    assert attacked["predictions"] == clean["predictions"]
    assert attacked["scores"] == clean["scores"]
    assert clean["scores"]["30"][0] == 1.0


class Fragile(Linear):
    """Linear, but its gradient is no number on one image, and its logits are none far from another."""

    def __init__(self, cracked, breaking):
        super().__init__(classes=3, shape=SHAPE)
        self.cracked, self.breaking = cracked, breaking

    def __call__(self, pixels):
        logits = super().__call__(pixels)
        near, far = ((pixels - one).abs().amax(dim=(1, 2, 3)) for one in (self.cracked, self.breaking))
        logits = logits + torch.where(near < 0.1, 0 * pixels[:, 0, 0, 0], 1.0).sqrt()[:, None]
        return torch.where((far > 0.02) & (far < 0.1), torch.nan, 1.0)[:, None] * logits


def test_numbers_that_are_not_finite_stop_nothing_and_are_told(tmp_path):
    images = make_images()
    fragile = Fragile(images.read(1), images.read(4))
    suite = [one for one in attacks() if one.name in (CLEAN, HEADLINE, "FGSM", "Square")]
    suite = [replace(one, attack_sigma=None, defense_sigmas=(None,)) for one in suite]
    start_records(tmp_path, {}, KEYS, False)
    runner = Runner(lambda *args: fragile, images, suite, BUDGET, tmp_path)
    runner.run()
    records = read(tmp_path)
    # A gradient that is no number is gone around, and an answer that is none is wrong.
    assert {row for row in range(6) if records[HEADLINE, row].get("not_finite")} == {1, 4}
    assert not any(records[CLEAN, row].get("not_finite") for row in range(6))
    assert records["FGSM", 4]["predictions"] == {"off": [-1]}
    assert records["FGSM", 4]["scores"]["off"][0] == 1.0
    settings = fake_settings(sigma=None, sigmas=[None])
    report = make_report(tmp_path, settings, suite, images, left_out=["A."])
    assert report.left_out[0] == "A."
    assert (
        "the whole strength of EOT-PGD on 2 images (rows [1, 4]): a loss or a gradient was not finite there"
        in report.left_out
    )
    assert not report.correct("FGSM", None)[4]


def test_a_model_whose_answers_are_no_numbers_is_refused(tmp_path):
    images = make_images()
    start_records(tmp_path, {}, KEYS, False)
    runner = Runner(lambda *args: lambda pixels: LINEAR(pixels) * torch.nan, images, attacks()[:1], BUDGET, tmp_path)
    with pytest.raises(FloatingPointError, match="logits of image 0 are NaN without any attack"):
        runner.run()


def test_clean_answers_are_those_of_the_classifier(records):
    images = make_images()
    for position, image in enumerate(images.images):
        record = records[CLEAN, image.row]
        logits = LINEAR(images.read(image.row)[None])[0]
        assert record["predictions"]["off"] == [logits.argmax().item()]
        others = [logit for label, logit in enumerate(logits.tolist()) if label != image.label]
        assert record["scores"]["off"][1] == pytest.approx(max(others) - logits[image.label].item(), abs=1e-5)
        assert record["scores"]["off"][0] == float(position == 2)


def test_attacks_raise_the_loss_of_a_linear_model(records):
    for row in (0, 1, 3, 4, 5):
        before, after = records[HEADLINE, row]["loss"]
        assert after > before == records[CLEAN, row]["loss"][0]


def test_losses_are_of_one_sigma_or_not_told(records):
    for one in attacks():
        is_told = one.defense_sigmas[0] == 30.0 and not one.fixed_noise
        assert all((records[one.name, row]["loss"] is not None) is is_told for row in range(one.num_images))


def test_probe_finds_the_gradient_of_a_linear_model(records):
    images = make_images()
    for image in images.images[:4]:
        record = records[PROBE, image.row]
        logits = LINEAR(images.read(image.row)[None])[0]
        # The probe's noise may change which class comes second, so that the norm is one of two.
        others = [label for label in range(3) if label != image.label]
        norms = [(LINEAR.weight[other] - LINEAR.weight[image.label]).norm().item() for other in others]
        assert min(abs(record["norm"] - norm) for norm in norms) < 1e-4, logits
        assert min(abs(difference / record["norm"] - 1) for difference in record["differences"]) < 0.01


def test_batches_order_and_processes_change_nothing(tmp_path, records):
    assert run(tmp_path / "one", batch_size=1) == records
    # What is left out depends on the attacks before, and on nothing else.
    whole = [replace(one, skips_broken=False) for one in attacks()]
    in_order = run(tmp_path / "in order", suite=whole)
    assert run(tmp_path / "reversed", suite=[whole[0], *whole[:0:-1]], batch_size=5) == in_order
    assert all(records[key] == in_order[key] for key in records if BROKEN_BY not in records[key])


def test_two_processes_share_the_work(tmp_path, records):
    start_records(tmp_path, {}, KEYS, resume=False)
    barrier = threading.Barrier(2, timeout=60)
    shares = [
        Runner(make_classifier, make_images(), attacks(), BUDGET, tmp_path, batch_size=2, process_index=index,
               num_processes=2, wait=barrier.wait)
        for index in range(2)
    ]  # fmt: skip
    costs = [share.pending_cost() for share in shares]
    assert sum(costs) == sum(one.num_images * one.total_cost(BUDGET) for one in attacks())
    with ThreadPoolExecutor() as pool:
        list(pool.map(Runner.run, shares))
    assert read(tmp_path) == records
    assert (tmp_path / "records-0.jsonl").stat().st_size > 0
    assert (tmp_path / "records-1.jsonl").stat().st_size > 0


def test_an_interrupted_run_goes_on_and_does_nothing_twice(tmp_path, records, monkeypatch):
    count = 0
    original = Runner._append

    def append(self, record):
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        original(self, record)

    monkeypatch.setattr(Runner, "_append", append)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = read_records(tmp_path, KEYS)
    assert len(before) == 24
    monkeypatch.setattr(Runner, "_append", lambda self, record: written.append(record) or original(self, record))
    written = []
    assert run(tmp_path, resume=True) == records
    assert len(written) + len(before) == len(records)


@pytest.mark.parametrize("number", [45, 95])
def test_an_interrupted_run_takes_over_what_a_whole_one_does(tmp_path, monkeypatch, number):
    """A large eps breaks most images, some by several attacks."""
    suite = Suite("quick", BUDGET, facts(30.0, [None, 0.0]), 60, [15.0], rows_per_pass=6).configurations()
    whole = run(tmp_path / "whole", suite=suite)
    assert sum(BROKEN_BY in record for record in whole.values()) > 10
    original, count = Runner._append, iter(range(number))

    def append(self, record):
        if next(count, None) is None:
            raise KeyboardInterrupt
        original(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_append", append)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", suite=suite)
    assert run(tmp_path / "killed", suite=suite, resume=True) == whole


def test_another_seed_gives_other_noise_and_attacks(tmp_path, records):
    other = run(tmp_path, seed=1)
    changed = [key for key in records if key[0] == HEADLINE and other[key]["scores"] != records[key]["scores"]]
    assert len(changed) >= 4


def test_costs_add_up_to_what_was_announced(tmp_path):
    start_records(tmp_path, {}, KEYS, resume=False)
    told = []
    runner = Runner(make_classifier, make_images(), attacks(), BUDGET, tmp_path, on_cost=told.append, batch_size=4)
    announced = runner.pending_cost()
    runner.run()
    assert sum(told) == pytest.approx(announced)
    assert runner.pending_cost() == 0


def test_kept_images_are_the_adversarial_ones(tmp_path):
    run(tmp_path, suite=[one for one in attacks() if one.name in (CLEAN, HEADLINE)], keep_images=[HEADLINE])
    images = make_images()
    for image in images.images:
        path = kept_path(tmp_path, HEADLINE, image.row)
        if image.row == 2:
            assert not path.exists()
            continue
        delta = torch.from_numpy(np.load(path)) - images.read(image.row)
        assert 0.9 * 8 / 255 < delta.abs().max().item() <= 8 / 255 + 1e-6


def test_models_without_gradients_are_attacked_without_them(tmp_path):
    def make(sigma, gradient="full", fixed_noise=False):
        return lambda pixels: LINEAR(pixels.detach())

    start_records(tmp_path, {}, KEYS, resume=False)
    suite = Suite("quick", BUDGET, facts(), 8).configurations()
    done = Runner(make, make_images(), suite, BUDGET, tmp_path).run()
    assert {one.name for one in done} == {CLEAN, "uniform noise", "Square"}
    assert not any(r["has_gradient"] for r in read_records(tmp_path, KEYS) if r["cell"] == PROBE)


def test_probe_sees_masked_gradients(tmp_path):
    masked = Masked(LINEAR)
    start_records(tmp_path, {}, KEYS, resume=False)
    suite = [AttackConfiguration(CLEAN, "clean", "none", 0.0, 6, None, (None,))]
    Runner(lambda *_: masked, make_images(), suite, BUDGET, tmp_path).run()
    assert [r["norm"] for r in read_records(tmp_path, KEYS) if r["cell"] == PROBE] == [0.0] * 4


def test_transfer_attacks_another_model(tmp_path):
    other = Linear(classes=3, shape=SHAPE, seed=9)
    suite = [c for c in attacks(surrogates=["other"]) if c.name in (CLEAN, "transfer from other")]
    found = run(tmp_path, suite=suite, sources={"other": other})
    images = make_images()
    for image in (image for image in images.images if image.row != 2):
        before, after = found["transfer from other", image.row]["loss"]
        assert after != before
        assert math.isclose(found["transfer from other", image.row]["distance"], 8 / 255, rel_tol=0.1)


def test_the_attack_on_a_linear_model_is_optimal(tmp_path):
    """In the ball of eps the margin of a linear model rises by eps times the L1 norm of its slope, and not more."""
    linear = Linear(classes=2, shape=SHAPE)
    slope = (linear.weight[1] - linear.weight[0]).abs().sum().item()
    eps = 8 / 255
    pixels = torch.cat([boundary_points(linear, 3, 0.9 * eps * slope), boundary_points(linear, 3, 1.1 * eps * slope)])
    images = EvaluationSet.from_tensors(pixels, torch.zeros(6, dtype=torch.long))
    suite = Suite("quick", BUDGET, facts(num_labels=2), 8).configurations()
    start_records(tmp_path, {}, KEYS, resume=False)
    Runner(lambda *_: linear, images, suite, BUDGET, tmp_path).run()
    records = {r["row"]: r for r in read_records(tmp_path, KEYS) if r["cell"] == HEADLINE}
    assert [records[row]["predictions"]["off"] for row in range(6)] == [[1]] * 3 + [[0]] * 3
    for row in range(3):
        assert records[row]["scores"]["off"][1] == pytest.approx(0.1 * eps * slope, rel=0.02)


def test_every_attack_attacks_what_it_says(tmp_path):
    """Sigma, gradient and noise of the attack are those that it says; the finished image meets exact answers."""
    for number, one in enumerate(attacks()[1:]):
        asked = []

        def spy(sigma, gradient="full", fixed_noise=False, asked=asked):
            asked.append((sigma, gradient, fixed_noise))
            return make_classifier(sigma, gradient, fixed_noise)

        folder = tmp_path / str(number)
        start_records(folder, {}, KEYS, resume=False)
        runner = Runner(spy, make_images(), [attacks()[0], one], BUDGET, folder)
        for position in range(4):
            runner._append(runner.probe(position))
        runner._run(attacks()[0], set(), {})
        clean = {record["row"]: record for record in read_records(folder, KEYS) if record["cell"] == CLEAN}
        asked.clear()
        runner._attack(one, [0], clean, 1.0)
        attacked, *classified = asked
        assert attacked == (one.attack_sigma, one.gradient, one.fixed_noise)
        assert classified == [(sigma, "full", one.fixed_noise) for sigma in one.defense_sigmas]


def test_the_approximation_is_searched_and_never_judges(tmp_path):
    """Attacks on noise search in it; those that one rounded answer could stop, do not."""
    exact, approximate = [], []

    def spy(asked):
        def make(sigma, gradient="full", fixed_noise=False):
            asked.append((sigma, gradient, fixed_noise))
            return make_classifier(sigma, gradient, fixed_noise)

        return make

    suite = attacks()
    start_records(tmp_path, {}, KEYS, resume=False)
    runner = Runner(spy(exact), make_images(), suite, BUDGET, tmp_path, make_approximate=spy(approximate))
    runner.probe(0)
    runner.classify(runner.images.read(0), 0, (30.0, None))
    assert len(exact) == 3
    assert not approximate
    clean = {0: {"loss": [1.0]}}
    for one in suite:
        exact.clear()
        approximate.clear()
        runner._attack(one, [0], clean, 1.0)
        attacked = (one.attack_sigma, one.gradient, one.fixed_noise)
        judged = [(sigma, "full", one.fixed_noise) for sigma in one.defense_sigmas]
        assert (approximate, exact) == (([], [attacked, *judged]) if one.is_deterministic else ([attacked], judged))
    assert {one.is_deterministic for one in suite} == {True, False}


def test_probes_see_noise_that_never_changes(tmp_path):
    asked = []

    def spy(sigma, gradient="full", fixed_noise=False):
        asked.append((sigma, gradient, fixed_noise))
        return make_classifier(sigma, gradient, fixed_noise)

    Runner(spy, make_images(), attacks(), BUDGET, tmp_path).probe(0)
    assert asked == [(30.0, "full", True)]


class ByDraw:
    """Right in the first three draws and wrong in all that follow."""

    def __init__(self, label):
        self.label, self.asked = label, 0

    def draw_logits(self, pixels, num_draws, generators):
        right = (torch.arange(num_draws) + self.asked < 3).float()
        self.asked += num_draws
        logits = torch.zeros(len(pixels), num_draws, 3)
        logits[:, :, self.label], logits[:, :, (self.label + 1) % 3] = right, 1 - right
        return logits


@pytest.mark.parametrize("rows_per_pass", [64, 4, 1])
def test_draws_that_choose_are_not_those_that_count(tmp_path, rows_per_pass):
    images = make_images()
    label = images.images[0].label
    runner = Runner(lambda *_: ByDraw(label), images, attacks(), BUDGET, tmp_path, rows_per_pass=rows_per_pass)
    answers, _ = runner.classify(images.read(0), 0, (30.0,))
    assert answers["scores"]["30"] == [0.0, -1.0]
    assert answers["predictions"]["30"] == [(label + 1) % 3] * 12


def test_noise_of_the_evaluation_is_the_images_and_the_same_in_every_attack(tmp_path):
    pixels = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    images = EvaluationSet.from_tensors(pixels, LINEAR(pixels).argmax(dim=1))
    nothing = [AttackConfiguration(name, "clean", "none", 0.0, 2, 30.0, (30.0,)) for name in (CLEAN, "again")]
    found = run(tmp_path, images, nothing)
    assert found[CLEAN, 0]["scores"] != found[CLEAN, 1]["scores"]
    for row in (0, 1):
        assert found["again", row]["scores"] == found[CLEAN, row]["scores"]


def test_every_attack_has_random_numbers_of_its_own(tmp_path):
    noises = [AttackConfiguration(name, "baseline", "uniform_noise", 8.0, 2, None, (None,)) for name in ("one", "two")]
    found = run(tmp_path, suite=[AttackConfiguration(CLEAN, "clean", "none", 0.0, 6, None, (None,)), *noises])
    assert found["one", 0]["distance"] != found["two", 0]["distance"]


def test_an_image_is_attacked_while_one_sigma_of_the_attack_gets_it_right(tmp_path):
    class Wrong:
        is_deterministic = True

        def __call__(self, pixels):
            return -LINEAR(pixels)

    def make(sigma, gradient="full", fixed_noise=False):
        return make_classifier(sigma, gradient, fixed_noise) if sigma else Wrong()

    both = [AttackConfiguration(name, "grid", "fgsm", 8.0, 6, 30.0, sigmas) for name, sigmas in
            (("both", (30.0, None)), ("off alone", (None,)))]  # fmt: skip
    suite = [AttackConfiguration(CLEAN, "clean", "none", 0.0, 6, 30.0, (30.0, None)), *both]
    start_records(tmp_path, {}, KEYS, resume=False)
    Runner(make, make_images(), suite, BUDGET, tmp_path).run()
    found = read(tmp_path)
    labels = {image.row: image.label for image in make_images().images}
    for row, label in labels.items():
        off = label not in found[CLEAN, row]["predictions"]["off"]
        on = label not in found[CLEAN, row]["predictions"]["30"]
        assert found["off alone", row]["skipped"] is off
        assert found["both", row]["skipped"] is (on and off)
    assert any(found["off alone", row]["skipped"] and not found["both", row]["skipped"] for row in labels)


def test_what_an_attack_has_broken_is_not_attacked_again(tmp_path):
    """A large eps breaks all images. By queries, the first four are attacked all the same."""
    eps = 255.0
    first = AttackConfiguration("first", "white-box", "eot_pgd", eps, 6, 30.0, (30.0, None), {"steps": 4})
    suite = [
        AttackConfiguration(CLEAN, "clean", "none", 0.0, 6, 30.0, (30.0, None, 10.0)),
        replace(first, name="check", group="check"),
        first,
        replace(first, name="skips", defense_sigmas=(30.0,), skips_broken=True),
        replace(first, name="skips too", skips_broken=True),
        replace(first, name="smaller eps", eps=8.0, skips_broken=True),
        replace(first, name="off", attack_sigma=None, skips_broken=True),
        replace(first, name="another sigma", attack_sigma=10.0, defense_sigmas=(10.0,), skips_broken=True),
        replace(first, name="more sigmas", defense_sigmas=(30.0, None, 10.0), skips_broken=True),
        replace(first, name="does not skip"),
        replace(first, name="queries", group="black-box", skips_broken=True),
    ]
    found = run(tmp_path, suite=suite)
    for row in range(6):
        assert found["queries", row]["skipped"] is (row in (2, 4, 5))
        if row == 2:  # wrong without an attack
            continue
        record = found["first", row]
        assert [record["scores"][key][0] for key in ("30", "off")] == [1, 1]
        for name in ("skips", "skips too", "off"):
            taken = found[name, row]
            assert (taken["skipped"], taken[BROKEN_BY], taken["distance"]) == (True, "first", record["distance"])
            for field in ("predictions", "scores"):
                keys = taken[field].keys()
                assert taken[field] == {key: record[field][key] for key in keys}
        # Another ball, and sigmas that it was not judged at.
        for name in ("smaller eps", "more sigmas", "another sigma", "does not skip", "first"):
            assert not found[name, row]["skipped"]


def test_there_is_work_for_every_process(tmp_path):
    start_records(tmp_path, {}, KEYS, resume=False)
    costs = [
        Runner(make_classifier, make_images(), attacks(), BUDGET, tmp_path, process_index=index, num_processes=3)
        .pending_cost()
        for index in range(3)
    ]  # fmt: skip
    assert min(costs) > 0.5 * max(costs)


class Brightness(torch.nn.Module):
    """A defense by noise alone: right in two of three draws, and by the vote of many draws nearly always."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            image_mean=[0.0], image_std=[1.0], defense_sigma=100, num_samples=1, vote="mean", num_channels=1
        )
        self.device, self.denoiser, self.rows = torch.device("cpu"), None, 0
        self.eval()

    def forward(
        self, pixel_values, sigma="config", num_samples=1, vote="mean", generator=None, max_batch_size=None,
        output_draws=False,
    ):  # fmt: skip
        draws = pixel_values.unsqueeze(1)
        if sigma is not None:
            scale, noise = draw_noise(
                pixel_values, resolve_sigma(sigma, None, len(draws)), num_samples, None, generator
            )
            draws = draws + scale[..., None, None, None] / 255 * noise
        self.rows += draws.shape[0] * draws.shape[1]
        bright = 2 * (draws.mean(dim=(2, 3, 4)) - 0.5)
        logits = torch.stack([bright, -bright], dim=-1)
        return RobustImageClassifierOutput(
            logits=combine_draws(logits, vote), draw_logits=logits, denoised_pixel_values=draws
        )


class TestVote:
    S, SIGMA, SEED = 32, 100.0, 7

    def evaluate(self, folder, num_samples, vote="mean"):
        labels = torch.arange(6) % 2
        pixels = torch.where(labels == 0, 0.6, 0.4)[:, None, None, None].expand(-1, 1, 2, 2).clone()
        images, model = EvaluationSet.from_tensors(pixels, labels), Brightness()
        facts = ModelFacts(self.SIGMA, [None], 2, has_patches=False, image_shape=(1, 2, 2))
        suite = Suite("quick", BUDGET, facts, 8, num_samples=num_samples).configurations()
        make = classifier_maker(model, None, self.SEED, num_samples=num_samples, vote=vote)
        costs = []
        start_records(folder, {}, KEYS, False)
        runner = Runner(
            make, images, suite, BUDGET, folder, self.SEED, keep_images=[HEADLINE, NOISE_KNOWN],
            num_samples=num_samples, on_cost=costs.append,
        )  # fmt: skip
        pending = runner.pending_cost()
        runner.run()
        assert sum(costs) == pytest.approx(pending)
        assert pending == sum(one.num_images * one.total_cost(BUDGET, num_samples) for one in suite)
        return pixels, labels, images, read(folder), model

    def figures(self, records, name, labels):
        predictions = np.array([records[name, row]["predictions"]["100"] for row in range(6)])
        return [figure.mean for figure in measure(predictions, labels.numpy())]

    def by_hand(self, pixels, row, vote):
        """Votes on an image, each of draws in their order, from a generator of the image."""
        generator = torch.Generator().manual_seed(derive_seed(self.SEED, "evaluation", row, "100"))
        votes = []
        for _ in range(BUDGET.num_draws + BUDGET.num_evaluations):
            single = PixelClassifier(Brightness(), sigma=self.SIGMA, num_samples=1)
            draws = single.draw_logits(pixels[None], self.S, [generator])[0]
            shares = draws.softmax(dim=-1) if vote == "mean" else torch.nn.functional.one_hot(draws.argmax(dim=-1), 2)
            votes.append(int(shares.double().mean(dim=0).argmax()))
        return votes[BUDGET.num_draws :]

    @pytest.mark.parametrize("vote", ["mean", "majority"])
    def test_all_figures_are_of_votes(self, tmp_path, vote):
        pixels, labels, images, records, _ = self.evaluate(tmp_path / "votes", self.S, vote)
        for position, image in enumerate(images.images):
            assert records[CLEAN, image.row]["predictions"]["100"] == self.by_hand(pixels[position], image.row, vote)
            found = torch.from_numpy(np.load(kept_path(tmp_path / "votes", HEADLINE, image.row)))
            assert records[HEADLINE, image.row]["predictions"]["100"] == self.by_hand(found, image.row, vote)
        known = PixelClassifier(
            Brightness(), sigma=self.SIGMA, num_samples=self.S, vote=vote, fixed_noise=True, seed=self.SEED
        )
        for row in range(6):
            found = torch.from_numpy(np.load(kept_path(tmp_path / "votes", NOISE_KNOWN, row)))
            for name, shown in ((CLEAN_NOISE_KNOWN, pixels[row]), (NOISE_KNOWN, found)):
                assert records[name, row]["predictions"]["100"] == [int(known(shown[None]).argmax())]
        _, _, _, single, _ = self.evaluate(tmp_path / "single", 1)
        one_shot, worst, _ = self.figures(single, CLEAN, labels)
        assert 0.5 < one_shot < 0.9
        assert worst < 0.5
        assert min(self.figures(records, CLEAN, labels)) > 0.9
        assert self.figures(records, HEADLINE, labels)[0] > self.figures(single, HEADLINE, labels)[0] + 0.15

    def test_as_many_passes_as_are_counted(self, tmp_path):
        *_, model = self.evaluate(tmp_path / "votes", self.S)
        facts = ModelFacts(self.SIGMA, [None], 2, has_patches=False, image_shape=(1, 2, 2))
        suite = Suite("quick", BUDGET, facts, 8, num_samples=self.S).configurations()
        counted = 0
        for one in suite:
            gradients, _ = one.cost
            counted += one.num_images * (one.total_cost(BUDGET, self.S) - one.passes(self.S) * gradients)
        # Upper bounds: some attacks ask for less than they may, and starts and groups of attacks add a little.
        assert 0.6 * counted < model.rows < 1.6 * counted
