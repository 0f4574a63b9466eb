# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Whole evaluations of models of which it is known how robust they are."""

from dataclasses import asdict, replace

import fake_reports
import numpy as np
import pytest
import torch
from attacks.toys import Linear, Masked, NormBall

from transformers_nim.data.evaluation_set import EvaluationSet
from transformers_nim.robustness import RobustnessReport
from transformers_nim.robustness.checks import make_report, run_checks
from transformers_nim.robustness.protocol import FGSM, HEADLINE, SQUARE, AttackBudget, ModelFacts, Suite
from transformers_nim.robustness.runner import KEYS, Runner
from transformers_nim.utils.records import start_records
from transformers_nim.utils.statistics import paired_difference


SHAPE = (1, 6, 6)
FALLS = "accuracy falls to about 0 at a large eps"
NUM = 24
BUDGET = AttackBudget(NUM, 12, 11, steps=20, num_draws=2, restarts=1, num_queries=300)


def evaluate(classifier, pixels, labels, folder, num_labels=3, eps=8.0):
    settings = {
        **fake_reports.settings(),
        "sigma": None,
        "sigmas": [None],
        "eps": eps,
        "strength": asdict(BUDGET),
    }
    facts = ModelFacts(None, num_labels=num_labels, has_patches=False, image_shape=SHAPE)
    suite = Suite("quick", BUDGET, facts, eps, eps_grid=[eps / 2])
    images = EvaluationSet.from_tensors(pixels, labels)
    start_records(folder, settings, KEYS, resume=False)
    done = Runner(lambda *_: classifier, images, suite.configurations(), BUDGET, folder).run()
    return make_report(folder, settings, done, images)


def failed(report):
    return {check["name"] for check in report.checks if check["passed"] is False}


def gray(scale=0.02, seed=0):
    pixels = 0.5 + scale * torch.randn(NUM, *SHAPE, generator=torch.Generator().manual_seed(seed))
    # By far the outermost, so that the gradient of the largest distance is not at a kink.
    pixels[:, 0, 2, 3] = 0.6
    return pixels


class Saturated:
    """Probabilities so close to one and zero that the cross entropy has no gradient left."""

    is_deterministic = True

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, pixels):
        return 1e4 * self.classifier(pixels)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pixels):
        return pixels.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient.roll(1, dims=-1)


class Misleading:
    """The same answers, and gradients that point somewhere else."""

    is_deterministic = True

    def __init__(self, classifier):
        self.classifier = classifier

    def __call__(self, pixels):
        return self.classifier(WrongGradient.apply(pixels))


@pytest.fixture(scope="module")
def linear():
    classifier = Linear(classes=3, shape=SHAPE)
    pixels = torch.rand(2000, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = classifier(pixels).argmax(dim=1)
    # As many of one class as of the others: a model that calls all images alike is at chance.
    chosen = torch.cat([(labels == 1).nonzero()[: NUM // 2], (labels != 1).nonzero()[: NUM // 2]])[:, 0]
    return classifier, pixels[chosen], labels[chosen]


def test_an_undefended_model_falls_and_passes_every_check(tmp_path, linear):
    report = evaluate(*linear, tmp_path, eps=96.0)
    assert report.correct("clean", None).all()
    assert report.correct(HEADLINE, None).mean() == 0
    assert not failed(report)
    judged = [check for check in report.checks if check["passed"]]
    assert len(judged) >= 10
    assert any("figures are of no defense" in check["detail"] for check in report.checks)


def test_a_model_that_is_robust_by_construction_is_reported_as_such(tmp_path):
    """No pixel is farther than 26/255 from gray, and up to 100/255 all is one class: 32/255 can do nothing."""
    report = evaluate(NormBall("Linf", 100 / 255), gray(), torch.zeros(NUM, dtype=torch.long), tmp_path)
    assert all(report.correct(cell["name"], None).all() for cell in report.cells if cell["eps"] <= 32)
    assert report.correct("EOT-PGD, unbounded", None).mean() == 0
    # So small an eps would not tell it from attacks that do not work.
    assert failed(report) == {"attacks at the main eps take something"}
    assert {check["name"]: check["passed"] for check in report.checks}[FALLS] is None


def test_a_model_with_masked_gradients_is_flagged(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(Masked(classifier, levels=32), pixels, labels, tmp_path, eps=96.0)
    names = failed(report)
    assert "gradients are there and not zero" in names
    assert "gradients agree with finite differences, at fixed noise" in names
    # It looks robust to attacks by gradients, and a query attack shows that it is not.
    assert report.correct(HEADLINE, None).mean() > report.correct(SQUARE, None).mean() + 0.2
    assert "white-box attacks beat transfer and query attacks" in names


def test_a_model_with_misleading_gradients_is_flagged(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(Misleading(classifier), pixels, labels, tmp_path, eps=96.0)
    assert "gradients agree with finite differences, at fixed noise" in failed(report)
    assert "gradients are there and not zero" not in failed(report)


def test_a_model_without_gradients_is_flagged_and_still_attacked(tmp_path, linear):
    classifier, pixels, labels = linear
    report = evaluate(lambda x: classifier(x.detach()), pixels, labels, tmp_path, eps=96.0)
    assert "gradients are there and not zero" in failed(report)
    assert report.correct(SQUARE, None).mean() < 0.5
    assert HEADLINE not in {cell["name"] for cell in report.cells}


def test_saturation_does_not_hide_a_model(tmp_path, linear):
    """The margin loss sees what the cross entropy does not."""
    classifier, pixels, labels = linear
    report = evaluate(Saturated(classifier), pixels, labels, tmp_path, eps=96.0)
    assert report.correct(HEADLINE, None).mean() == 0


def test_checks_are_not_judged_without_their_attacks(tmp_path, linear):
    report = evaluate(*linear, tmp_path, eps=96.0)
    report = replace(report, cells=[cell for cell in report.cells if cell["name"] in ("clean", HEADLINE, FGSM)])
    checks = {(check["name"], check["passed"]) for check in run_checks(report, [])}
    assert ("white-box attacks beat transfer and query attacks", None) in checks
    assert ("gradients are there and not zero", None) in checks
    assert ("accuracy falls to about 0 at a large eps", None) in checks


GOOD = {
    "clean": 0.9, "uniform noise": 0.9, FGSM: 0.6, "PGD-10, one draw": 0.55, HEADLINE: 0.4, "EOT-APGD-CE": 0.4,
    "EOT-APGD-DLR": 0.4, "EOT-PGD, noise known": 0.3, "clean, noise known": 0.9, "BPDA": 0.6, "patch statistics": 0.8,
    "vote": 0.4, "low frequency": 0.6, "EOT-PGD, sigma off": 0.6, "EOT-PGD, eps 4": 0.7, SQUARE: 0.7,
    "transfer from other": 0.7, "EOT-PGD, few steps": 0.5, "EOT-PGD, eps 32 (check)": 0.0, "EOT-PGD, unbounded": 0.0,
    "EOT-PGD, sigma off, large eps": 0.0,
}  # fmt: skip
PROBES = [{"has_gradient": True, "norm": 2.0, "differences": [2.01, 1.5]}] * 10


def report_of(shares, probes=PROBES, losses=(0.1, 2.0), off=0.0, num=100):
    """Return a made-up evaluation in which each attack leaves a given share of the images, and its probes."""
    budget = AttackBudget(num, num, 11, steps=20, num_draws=2, restarts=1, num_queries=300)
    attacks = Suite("quick", budget, ModelFacts(50.0, [None]), 8, [4], surrogates=["other"]).configurations()
    records = []
    for one in attacks:
        for row in range(num):
            label = row % 2
            right = {"50": row < num * {**GOOD, **shares}[one.name], "off": row < num * off}
            if one.name == "clean":
                right["off"] = row < 0.9 * num
            elif one.name == "EOT-PGD, sigma off, large eps":
                right["off"] = right["50"]
            keys = ["off" if sigma is None else "50" for sigma in one.defense_sigmas]
            records.append({
                "cell": one.name, "row": row, "skipped": False, "distance": 0.0, "loss": list(losses), "seconds": 0.0,
                "predictions": {
                    key: [label if right[key] else 1 - label] * (11 if key == "50" else 1) for key in keys
                },
                "scores": {key: [0.0 if right[key] else 1.0, 0.0] for key in keys},
            })  # fmt: skip
    images = [{"row": row, "image": str(row), "label": row % 2} for row in range(num)]
    report = RobustnessReport(fake_reports.settings(), [asdict(one) for one in attacks], images, records)
    return report, probes


def verdicts(*args, **options):
    checks = run_checks(*report_of(*args, **options))
    return {check["name"] for check in checks if check["passed"] is False}, checks


def test_a_good_evaluation_passes_and_everything_is_judged():
    bad, checks = verdicts({})
    assert not bad
    assert [check for check in checks if check["passed"] is None] == []


@pytest.mark.parametrize(
    ("shares", "name"),
    [
        ({"EOT-PGD, eps 32 (check)": 0.1, "EOT-PGD, unbounded": 0.1}, "accuracy falls to about 0 at a large eps"),
        ({"EOT-PGD, eps 32 (check)": 0.1, "EOT-PGD, unbounded": 0.06}, FALLS),
        ({"EOT-PGD, eps 4": 0.2}, "a larger eps leaves no more"),
        ({"EOT-PGD, few steps": 0.2}, "more steps leave no more"),
        ({FGSM: 0.2}, "iterative attacks beat"),
        ({"PGD-10, one draw": 0.2}, "iterative attacks beat"),
        ({"uniform noise": 0.2}, "iterative attacks beat"),
        ({SQUARE: 0.2}, "white-box attacks beat"),
        ({"transfer from other": 0.2}, "white-box attacks beat"),
        ({"BPDA": 0.2}, "exact gradients beat"),
        ({"EOT-PGD, sigma off": 0.2}, "exact gradients beat"),
        ({"EOT-PGD, noise known": 0.7}, "an attacker who knows the noise"),
    ],
)
def test_each_check_can_fail(shares, name):
    (found,) = verdicts(shares)[0]
    assert found.startswith(name)


def test_what_skips_broken_images_is_compared_on_those_that_it_does_not_choose():
    """Where an attack had only failures of another to attack, it looks strong even if it is as strong as that."""
    report, probes = report_of({SQUARE: 0.2})
    (check,) = [one for one in run_checks(report, probes) if SQUARE in one["detail"]]
    assert "of 100 images" in check["detail"]
    taken = [
        {**record, "skipped": True, "broken_by": HEADLINE}
        if record["cell"] == SQUARE and record["row"] > 50
        else record
        for record in report.records
    ]
    chosen = replace(report, records=taken)
    assert chosen.num_taken_over(SQUARE) == 49
    (check,) = [one for one in run_checks(chosen, probes) if SQUARE in one["detail"]]
    assert f"of {report.settings['strength']['num_check_images']} images" in check["detail"]
    with pytest.raises(ValueError, match="no attack configuration is called 'other'"):
        report.num_taken_over("other")


def test_the_unbounded_attack_alone_proves_nothing():
    bad, checks = verdicts({"EOT-PGD, eps 32 (check)": 0.1, "EOT-PGD, unbounded": 0.0})
    assert not bad
    (check,) = [check for check in checks if check["name"] == FALLS]
    assert check["passed"] is None
    assert check["detail"].startswith(
        "only without bound, where any image may be replaced: EOT-PGD, eps 32 (check): 10"
    )


def test_an_eps_at_which_nothing_falls_is_flagged():
    """As where 0.031 was passed for 8."""
    # No attack of a smaller eps leaves less.
    all_right = dict.fromkeys(GOOD, 0.9) | {"EOT-PGD, eps 32 (check)": 0.0, "EOT-PGD, unbounded": 0.0}
    all_right |= {"EOT-PGD, sigma off, large eps": 0.0}
    bad, checks = verdicts(all_right)
    assert bad == {"attacks at the main eps take something"}
    assert checks[0]["detail"] == (
        "Linf eps 8/255 takes 0.0 of 90.0 % of 100 images: eps is too small to tell anything, or the attacks do not"
        " work"
    )
    # Three of a hundred may be chance, and nothing of six too.
    assert verdicts(all_right | {HEADLINE: 0.87})[1][0]["passed"] is None
    assert verdicts(all_right, num=6)[1][0]["passed"] is None
    assert verdicts({})[1][0]["passed"] is True


def test_many_checks_do_not_fail_by_chance():
    """In 11 comparisons one of them is significant at 99 % by chance in one evaluation of ten."""
    _, checks = verdicts({})
    (detail,) = [check["detail"] for check in checks if "FGSM" in check["detail"]]
    assert "99.85 % interval" in detail
    # A difference of 8 of 100 images would be significant at 99 %, had it been the only one.
    assert not verdicts({FGSM: 0.32})[0]
    assert paired_difference(*(np.arange(100)[:, None] < num for num in (40, 32)), confidence=0.99).low > 0


def test_kinder_noise_is_not_taken_for_a_weak_attack():
    assert not verdicts({"EOT-PGD, noise known": 0.45, "clean, noise known": 1.0})[0]


def test_the_undefended_classifier_has_to_fall():
    assert not verdicts({}, off=0.5)[0], "it falls at the large eps: it resists by itself"
    assert verdicts({"EOT-PGD, sigma off, large eps": 0.5}, off=0.5)[0] == {
        "with the defense off, accuracy falls to about 0"
    }


def test_gradients_and_losses_are_judged():
    wrong = {"has_gradient": True, "norm": 2.0, "differences": [1.0, -2.0]}
    assert verdicts({}, probes=[*PROBES[:8], wrong, wrong])[0] == {
        "gradients agree with finite differences, at fixed noise"
    }
    zero = {"has_gradient": True, "norm": 0.0, "differences": []}
    assert "gradients are there and not zero" in verdicts({}, probes=[*PROBES[:8], zero, zero])[0]
    assert verdicts({}, losses=(1.0, 0.9))[0] == {"the attack raises the loss"}


def results(checks):
    return {check["name"]: check["passed"] for check in checks}


def test_an_untrained_model_passes_no_check_of_accuracies():
    """Half of two classes are right, and attacks take them all."""
    chance = {"clean": 0.5, "uniform noise": 0.5, "clean, noise known": 0.5}
    bad, checks = verdicts({**dict.fromkeys(GOOD, 0.0), **chance})
    assert not bad
    passed = {check["name"] for check in checks if check["passed"]}
    assert passed == {
        "gradients are there and not zero",
        "gradients agree with finite differences, at fixed noise",
        "the attack raises the loss",
    }
    assert "the clean accuracy cannot be told from chance (50 %): " in " ".join(one["detail"] for one in checks)


def test_checks_that_could_not_fail_are_not_judged():
    """On eight images an attack that does nothing at all cannot be told from one that leaves six."""
    _, checks = verdicts({HEADLINE: 0.75, FGSM: 0.75, SQUARE: 0.8, "EOT-PGD, noise known": 0.75}, num=8)
    found = results(checks)
    assert found["iterative attacks beat single steps and noise"] is None
    assert found["white-box attacks beat transfer and query attacks"] is None
    assert found["an attacker who knows the noise does no worse"] is None
    (detail,) = [one["detail"] for one in checks if "Square" in one["detail"]]
    assert detail.startswith("had EOT-PGD done nothing, this would not have failed either: EOT-PGD leaves")
    # An unbounded attack has everything to take.
    assert found["accuracy falls to about 0 at a large eps"] is True
    assert "iterative attacks beat single steps and noise" in verdicts({HEADLINE: 1.0, FGSM: 0.0}, num=16)[0]


def test_few_images_are_too_few_for_checks_of_single_images():
    found = results(verdicts({}, probes=PROBES[:6])[1])
    assert found["gradients are there and not zero"] is None
    assert found["gradients agree with finite differences, at fixed noise"] is None
    assert results(verdicts({}, probes=PROBES[:7])[1])["gradients are there and not zero"] is True
    zero = {"has_gradient": True, "norm": 0.0, "differences": []}
    assert "gradients are there and not zero" in verdicts({}, probes=[zero])[0]
    assert results(verdicts({}, num=6)[1])["the attack raises the loss"] is None


def test_attacks_on_a_model_that_is_never_right_have_nothing_to_take():
    _, checks = verdicts(dict.fromkeys(GOOD, 0.0))
    assert checks[0]["name"] == "attacks at the main eps take something"
    assert checks[0]["passed"] is None
