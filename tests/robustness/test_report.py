# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from fake_reports import attack, hand_made, simulated

import transformers_nim
from transformers_nim.robustness import RobustnessReport, compare, render, verdict, wilson_interval
from transformers_nim.robustness.protocol import AttackConfiguration
from transformers_nim.robustness.tables import describe


SIGMAS = (None, 0.0, 25.0, 50.0, 75.0)


def plain(text):
    return " ".join(text.split())


def clean(sigmas=(50.0,), num_images=100):
    return AttackConfiguration("clean", "clean", "none", 0.0, num_images, 50.0, tuple(sigmas))


def trade_off(rates, num_images=100):
    """A report whose clean and robust accuracies in percent are given for each sigma."""

    def predictions(place):
        return {
            sigma: [[int(index >= rate[place])] * (11 if sigma else 1) for index in range(num_images)]
            for sigma, rate in rates.items()
        }

    sigmas = tuple(rates)
    return hand_made(
        [0] * num_images,
        [(clean(sigmas), predictions(0)), (attack("EOT-PGD", sigmas=sigmas), predictions(1))],
        sigma=sigmas[-1],
    )


def test_figures_by_hand():
    """Three images of class 1, 11 draws."""
    right = [1] * 11
    attacked = [
        [1] * 10 + [0],  # the eleventh draw is not among the ten tries
        [1] * 5 + [0] * 5 + [2],  # five votes each: a tie
        [0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3],  # four votes, the most
    ]
    report = hand_made([1, 1, 1], [(clean(), {50.0: [right, right, [0] * 11]}), (attack("EOT-PGD"), {50.0: attacked})])
    row = report.row("EOT-PGD", 50.0)
    assert row.accuracy.mean == pytest.approx((10 + 5 + 4) / 33)
    assert row.worst_of_10.mean == pytest.approx(1 / 3)
    assert (row.worst_of_10.low, row.worst_of_10.high) == pytest.approx(wilson_interval(1 / 3, 3))
    assert row.majority_of_11.mean == pytest.approx(2 / 3)
    assert (row.clean.mean, row.clean_worst_of_10.mean) == pytest.approx((2 / 3, 2 / 3))
    assert row.clean_majority_of_11.mean == pytest.approx(2 / 3)
    assert (row.num_images, row.num_draws, row.seconds) == (3, 11, 1.5)
    np.testing.assert_array_equal(report.correct("EOT-PGD", 50.0), np.array(attacked) == 1)
    assert len(report.rows) == 2


def test_clean_twins_are_of_the_same_images():
    predictions = [[0] * 11, [0] * 11, [1] * 11, [1] * 11]
    check = attack("few", "check", num_images=2)
    report = hand_made([0] * 4, [(clean(), {50.0: predictions}), (check, {50.0: [[1] * 11] * 2})])
    row = report.row("few", 50.0)
    assert row.clean.mean == row.clean_worst_of_10.mean == row.clean_majority_of_11.mean == 1
    assert report.row("clean", 50.0).accuracy.mean == 0.5


def test_one_answer_has_no_worst():
    report = hand_made([0, 0], [(clean((None,)), {None: [[0], [1]]})], sigma=None)
    row = report.row("clean", None)
    assert row.accuracy.mean == row.worst_of_10.mean == row.majority_of_11.mean == 0.5


def attacks_with_scores(*attacks, num_images=2):
    clean_images = (clean(), {50.0: [[0] * 11] * num_images})
    return hand_made([0] * num_images, [clean_images, *((one, {50.0: entries}) for one, entries in attacks)])


def test_strongest_is_chosen_by_scores_and_not_by_predictions():
    weak_looking = [([1] * 11, [0.2, 0.9]), ([0] * 11, [0.5, 0.1])]
    strong_looking = [([0] * 11, [0.4, -0.9]), ([1] * 11, [0.5, 0.3])]
    report = attacks_with_scores((attack("EOT-PGD"), weak_looking), (attack("b", "adaptive"), strong_looking))
    strongest = report.strongest(50.0)
    # The second image: equally many wrong, so the margin decides.
    assert strongest.chosen == ("b", "b")
    assert strongest.row.accuracy.mean == 0.5
    np.testing.assert_array_equal(strongest.correct, [[True] * 11, [False] * 11])


def test_strongest_leaves_out_what_is_no_attack_of_its_kind():
    plain, strong = [([0] * 11, [0.1, 0.0])] * 2, [([1] * 11, [1.0, 1.0])] * 2
    report = attacks_with_scores(
        (attack("EOT-PGD"), plain),
        (attack("check", "check"), strong),
        (attack("cross-check", "cross-check"), strong),
        (attack("known", fixed_noise=True), strong),
        (attack("larger", "grid", eps=16.0), strong),
        (attack("fewer", num_images=1), strong),
    )
    strongest = report.strongest(50.0)
    assert strongest.candidates == ("EOT-PGD",)
    assert strongest.row.accuracy.mean == 1
    assert report.strongest(50.0, eps=16.0).candidates == ("larger",)
    with pytest.raises(ValueError, match=r"sigma 50 and eps 3; there are the sigmas .*50.* the eps \[8.0, 16.0\]"):
        report.strongest(50.0, eps=3.0)


@pytest.mark.parametrize("seed", range(3))
def test_strongest_scores_at_least_as_high_as_every_attack(seed):
    report = simulated(seed=seed)
    for sigma in report.sigmas:
        strongest = report.strongest(sigma)
        chosen = np.array([report.scores(name, sigma)[index] for index, name in enumerate(strongest.chosen)])
        for name in strongest.candidates:
            assert (chosen[:, 0] >= report.scores(name, sigma)[:, 0]).all()


def test_an_attack_that_leaves_less_than_the_strongest_is_named():
    """By few draws the second attack looks better on the first image, and on fresh ones it is not."""
    lucky = [([0] * 11, [0.5, 0.0]), ([0] * 11, [0.1, 0.0])]
    steady = [([1] * 11, [0.4, 0.0]), ([0] * 11, [0.2, 0.0])]
    report = attacks_with_scores((attack("EOT-PGD"), steady), (attack("b", "adaptive"), lucky))
    assert report.strongest(50.0).row.accuracy.mean == 1
    text = " ".join(render(report).split())
    assert "EOT-PGD alone leaves less (50.0 %), as a choice by few noise draws is not always right" in text
    report = attacks_with_scores((attack("EOT-PGD"), steady), (attack("b", "adaptive"), steady))
    assert "alone leaves less" not in render(report)


def test_luck_of_many_equal_attacks_is_not_counted():
    """Ten equally weak attacks: the strongest by the counted draws would look far stronger than any."""
    rng = np.random.default_rng(0)

    def coins():
        return [((rng.random(11) < 0.5).astype(int).tolist(), [rng.random(), 0.0]) for _ in range(100)]

    attacks = [(clean(), {50.0: [[0] * 11] * 100}), *((attack(f"a{index}"), {50.0: coins()}) for index in range(10))]
    report = hand_made([0] * 100, attacks)
    best = np.mean([min(report.correct(f"a{one}", 50.0)[index].mean() for one in range(10)) for index in range(100)])
    assert best < 0.3
    assert report.strongest(50.0).row.accuracy.mean == pytest.approx(0.5, abs=0.05)


def test_sigmas_are_compared_under_the_same_attacks():
    """The main sigma meets an attack of its own, without which it is the better one."""
    sigmas, right, wrong = (25.0, 50.0), ([0] * 11, [0.0, 0.0]), ([1] * 11, [1.0, 0.0])
    everywhere = {25.0: [wrong] * 5 + [right] * 5, 50.0: [wrong] * 4 + [right] * 6}
    attacks = [
        (clean(sigmas), {sigma: [[0] * 11] * 10 for sigma in sigmas}),
        (attack("EOT-PGD", sigmas=sigmas), everywhere),
        (attack("EOT-PGD, sigma 25", "grid", sigmas=sigmas, attack_sigma=25.0), everywhere),
        (attack("APGD", sigmas=sigmas, attack="eot_apgd_ce"), {sigma: [wrong] * 10 for sigma in sigmas}),
        (attack("vote", "adaptive", attack="vote"), {50.0: [wrong] * 10}),
    ]
    report = hand_made([0] * 10, [(replace(one, options={}), found) for one, found in attacks], sigmas=list(sigmas))
    assert report.strongest(50.0).row.accuracy.mean == 0
    assert report.strongest(50.0, comparable=True).candidates == ("EOT-PGD", "EOT-PGD, sigma 25")
    assert [point.robust.mean for point in report.trade_off()] == [0.5, 0.6]
    assert report.recommend_sigma().sigma == 50.0


def test_recommended_sigma():
    report = trade_off({None: (98, 10), 0.0: (97, 30), 25.0: (94, 47), 50.0: (86, 52), 75.0: (70, 52)})
    choice = report.recommend_sigma(0.9)
    assert (choice.sigma, choice.clean.mean, choice.robust.mean) == (25.0, 0.94, 0.47)
    # 17 of 100 images between it and sigma 0.
    assert choice.indistinguishable == ()
    # Equal robust accuracies: the clean one decides. 5 images more than sigma 25: 0.05 +- 0.043.
    free = report.recommend_sigma()
    assert (free.sigma, free.indistinguishable) == (50.0, (75.0,))
    assert trade_off({25.0: (80, 50), 50.0: (90, 50)}).recommend_sigma().sigma == 50.0
    assert report.recommend_sigma(0.98).sigma is None
    with pytest.raises(ValueError, match=r"at least 0.99: the highest is 0.98, of sigma off"):
        report.recommend_sigma(0.99)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 90"):
        report.recommend_sigma(90)


def test_knee():
    """Heights above the line from (98, 10) to (70, 53): 0.43, 0.72 and 0.55."""
    rates = {None: (98, 10), 0.0: (97, 30), 25.0: (94, 47), 50.0: (86, 52), 75.0: (70, 53)}
    assert trade_off(rates).knee().sigma == 25.0
    # Beaten in both: not on the front, however high.
    assert trade_off({None: (98, 10), 0.0: (96, 9), 25.0: (95, 50), 75.0: (70, 53)}).knee().sigma == 25.0
    assert trade_off({None: (98, 10), 25.0: (97, 9), 50.0: (70, 53)}).knee() is None
    # Bent inward: every point is below the line.
    assert trade_off({None: (90, 10), 25.0: (60, 15), 50.0: (50, 50)}).knee() is None


def test_unfinished_and_contradictory_reports():
    data = hand_made([0, 1], [(clean(), {50.0: [[0] * 11] * 2}), (attack("a"), {50.0: [[0] * 11] * 2})]).to_dict()

    def changed(**fields):
        return RobustnessReport.from_dict({**json.loads(json.dumps(data)), **fields})

    with pytest.raises(ValueError, match=r"not finished: 'a' has no record of row 11 \(1 of its 2 images"):
        changed(records=data["records"][:-1])
    with pytest.raises(ValueError, match="two records of row 10"):
        changed(records=data["records"] + data["records"][:1])
    with pytest.raises(ValueError, match="two attack configurations are called 'a'"):
        changed(cells=data["cells"] + data["cells"][1:])
    with pytest.raises(ValueError, match="needs the attack configuration 'clean'"):
        changed(cells=data["cells"][1:])
    with pytest.raises(ValueError, match="at least one image"):
        changed(images=[])
    with pytest.raises(ValueError, match=r"missing: \['norm'\]"):
        changed(settings={name: value for name, value in data["settings"].items() if name != "norm"})
    with pytest.raises(ValueError, match=r"unknown: \['recrods'\], missing: \[\]"):
        changed(recrods=[])
    with pytest.raises(ValueError, match=r"main sigma 25.0 was not measured"):
        changed(settings={**data["settings"], "sigma": 25.0})
    records = json.loads(json.dumps(data["records"]))
    records[2]["distance"] = 8.1 / 255
    with pytest.raises(ValueError, match=r"moved row 10 by 0.0317647, further than its eps of 8/255"):
        changed(records=records)
    for number in (0, 2, 10):
        records = json.loads(json.dumps(data["records"]))
        for record in records:
            record["predictions"]["50"] = [0] * number
        with pytest.raises(ValueError, match=rf"at least 11; got \[{number}\]"):
            changed(records=records)
    report = changed()
    with pytest.raises(ValueError, match=r"no attack configuration is called 'b'; there are \['clean', 'a'\]"):
        report.correct("b", 50.0)
    with pytest.raises(ValueError, match=r"measured with sigma \['50'\], not off"):
        report.row("a", None)


def test_round_trip(tmp_path):
    report = simulated()
    path = report.save(tmp_path / "new")
    assert path == tmp_path / "new" / "results.json"
    for place in (path, path.parent):
        again = RobustnessReport.load(place)
        assert again == report
        assert again.to_dict() == report.to_dict()
        assert render(again) == render(report)
    assert [one.name for one in path.parent.iterdir()] == ["results.json"]
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"results.json is not a report of robustness: it holds a list"):
        RobustnessReport.load(path)
    assert transformers_nim.RobustnessReport is RobustnessReport


def test_images_hash():
    report = trade_off({50.0: (2, 1)}, num_images=2)
    text = '[[10, "hash0"], [11, "hash1"]]'
    assert report.images_hash == hashlib.sha256(text.encode()).hexdigest()[:16]
    images = [{**image, "row": image["row"] - 10} for image in report.images]
    records = [{**record, "row": record["row"] - 10} for record in report.records]
    assert replace(report, images=images, records=records).images_hash != report.images_hash


def test_eps_curve():
    report = simulated(eps_grid=(16.0, 2.0))
    assert [row.eps for row in report.eps_curve(50.0)] == [2.0, 8.0, 16.0, 32.0]
    assert [row.num_images for row in report.eps_curve(50.0)] == [40, 40, 40, 16]
    assert {row.configuration for row in report.eps_curve(25.0)} == {"EOT-PGD, sigma 25"}
    assert all(row.attack_sigma == row.defense_sigma for row in report.eps_curve(25.0))


def test_table_of_a_defended_model():
    report = simulated()
    text = render(report)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    row = report.row("EOT-PGD", 50.0)
    for figure in (row.accuracy, row.worst_of_10, row.majority_of_11, row.clean):
        assert f"{100 * figure.mean:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]" in lines["EOT-PGD"]
    assert "EOT-PGD, noise known *" in lines
    assert "EOT-PGD, few steps **" in lines
    number = len(report.strongest(50.0).candidates)
    attacks = text[text.index("### Attacks") : text.index("### Sigma of")]
    names = [line.split("|")[1].strip() for line in attacks.splitlines() if line.startswith("|")]
    assert names[2:4] == [f"strongest of {number} on each image", "clean"]
    assert names[-3:] == ["clean, noise known *", "EOT-PGD, noise known *", "EOT-PGD, few steps **"]
    single = [report.row(name, 50.0).accuracy.mean for name in names[4:-3]]
    assert single == sorted(single)
    matrix = [f"{100 * report.row('EOT-PGD, sigma 25', sigma).accuracy.mean:.1f}" for sigma in SIGMAS]
    assert [part.strip() for part in lines["EOT-PGD, made for sigma 25"].split("|")[2:-1]] == matrix
    assert "(of 16)" in lines["32"]
    for result in ("| PASS ", "| FAIL ", "| n.a. "):
        assert result in text
    assert "- transfer attacks: no other model was named" in text
    assert "- Square: 400 queries instead of 1,600" in text
    assert "- No recommendation: sanity checks failed" in text
    text = plain(render(replace(report, checks=[])))
    assert "- Recommended (clean accuracy at most 5 points below the best): sigma 0" in text
    assert "No recommendation: no sigma has a clean accuracy of at least 0.99" in plain(
        render(trade_off({25.0: (90, 10), 50.0: (80, 20)}), 0.99)
    )


def test_the_table_says_which_images_an_attack_left_out():
    report = simulated()
    assert "N of M images" not in render(report)
    taken = [
        {**record, "skipped": True, "broken_by": "EOT-PGD"}
        if record["cell"] in ("vote", "EOT-PGD, sigma 25") and record["row"] < 30
        else record
        for record in report.records
    ]
    text = plain(render(replace(report, records=taken)))
    number = len(report.images)
    assert f"| vote | {number - 10} of {number} |" in text
    assert f"| low frequency | {number} |" in text
    assert "the others had been broken by an earlier attack, and count as it left them" in text
    assert "An image that an earlier attack had broken at every sigma counts as it left it." in text


def test_table_of_a_model_without_defense():
    text = render(simulated(sigma=None, sigmas=(), eps_grid=()))
    assert "no defense" in text
    for absent in ("### Sigma of", "### Choice", "\\* "):
        assert absent not in text.replace("\\*\\* ", "")


def test_what_compares_with_robustbench():
    note = " ".join(render(simulated()).split())
    assert "RobustBench takes no models with random answers, so these figures have no counterpart there" in note
    quick = " ".join(render(simulated(sigma=None, sigmas=(), eps_grid=())).split())
    assert "Nothing above compares with RobustBench: it ranks" in quick
    assert "it ranks by AutoAttack (--suite full), of which APGD-T is a part." in quick
    own = {"sigma": None, "sigmas": ()}
    records = [(clean((None,)), {None: [[0]]}), *(
        (attack(name, sigmas=(None,), attack_sigma=None), {None: [[1]]}) for name in ("APGD-T", "AutoAttack")
    )]  # fmt: skip
    full = " ".join(render(hand_made([0], records, **own)).split())
    assert "The row AutoAttack may be compared with the figures of RobustBench" in full
    assert "Nothing above compares" not in full
    assert "strongest of 2 on each image" in full
    # Reports from before there were these attacks are read as they are.
    older = " ".join(render(hand_made([0], [records[0]], **own)).split())
    assert "RobustBench" not in older


def test_protocol_says_how():
    report = simulated()
    attacks = ("Linf, eps 8/255", "20 steps", "8 noise draws per gradient", "1 restart per loss")
    draws = ("sigma 50", "classified 11 times, each with fresh noise", "1 for one prediction, 11 for the majority")
    for part in (*attacks, *draws, report.images_hash, "seed 0", "float32"):
        assert part in " ".join(describe(report))
    undefended = " ".join(describe(simulated(sigma=None, sigmas=())))
    assert "The model has no defense. Equal images get equal answers" in undefended
    assert "draws per gradient" not in undefended
    off = " ".join(describe(simulated(sigma=None, sigmas=(50.0,))))
    assert "Defense: off" in off


def test_the_vote_as_the_defense_is_told_and_older_reports_have_single_draws():
    report = simulated()
    assert (report.settings["num_samples"], report.settings["vote"]) == (1, "mean")
    assert "vote" not in " ".join(describe(report))
    text = " ".join(describe(simulated(num_samples=16, vote="mean")))
    for part in (
        "Each prediction at a sigma above 0 combines 16 noise draws: the mean of their probabilities.",
        "classified 11 times of 16 noise draws each",
        "Forward passes: 16 for one prediction, 176 for the majority of 11, up to 160 for 10 tries.",
        "20 steps, 1 vote of 16 noise draws per gradient",
        "Square asks for 200 votes of 16 noise draws",
    ):
        assert part in text
    text = " ".join(describe(simulated(num_samples=4, vote="majority")))
    assert "4 noise draws: the class that most of them choose" in text
    assert "2 votes of 4 noise draws per gradient" in text
    other = compare(report, simulated(num_samples=16, vote="mean"))
    (line,) = [line for line in other.splitlines() if "num_samples" in line]
    assert [part.strip() for part in line.split("|")[1:-1]] == ["num_samples", "1", "16"]


def test_the_precision_of_the_search_is_told_and_older_reports_have_float32():
    report = simulated()
    assert report.settings["attack_precision"] == "fp32"
    assert "autocast" not in " ".join(describe(report))
    half = simulated(attack_precision="bf16")
    assert "search in bf16 (autocast); what they find is judged in float32." in " ".join(describe(half))
    assert RobustnessReport.from_dict(half.to_dict()) == half
    (line,) = [line for line in compare(report, half).splitlines() if "attack_precision" in line]
    assert [part.strip() for part in line.split("|")[1:-1]] == ["attack_precision", "fp32", "bf16"]


def test_the_matrix_says_how_far_its_intervals_reach():
    report = simulated()
    rows = [report.strongest(sigma, comparable=True).row.accuracy for sigma in report.sigmas]
    ends = [abs(end - one.mean) for one in rows for end in (one.low, one.high)]
    text = " ".join(render(report).split())
    assert f"reach at most {100 * max(ends):.1f} points" in text
    tries = [report.strongest(sigma, comparable=True).row.worst_of_10.mean for sigma in report.sigmas]
    assert "the same, worst of 10 | " + " | ".join(f"{100 * one:.1f}" for one in tries) in text


def test_a_sigma_without_rivals_is_not_said_to_beat_them():
    report = trade_off({None: (98, 10), 0.0: (97, 30), 25.0: (94, 47), 50.0: (86, 52), 75.0: (70, 52)})
    assert "It is told apart from every other allowed sigma." in plain(render(report, 0.9))
    assert "No other sigma is allowed." in plain(render(report, 0.98))


def test_no_sigma_is_recommended_that_cannot_be_told_from_off():
    """3 of 100 images more than off: the interval includes 0."""
    report = trade_off({None: (98, 10), 25.0: (97, 13), 50.0: (60, 40)})
    choice = report.recommend_sigma(0.9)
    assert (choice.sigma, choice.indistinguishable) == (25.0, (None,))
    assert choice.against_off.mean == pytest.approx(0.03)
    assert choice.against_off.includes_zero
    text = plain(render(report))
    assert "No recommendation (clean accuracy at most 5 points below the best): the best is sigma 25" in text
    assert f"which cannot be told from off (difference {choice.against_off})" in text
    free = report.recommend_sigma()
    assert (free.sigma, free.against_off.mean) == (50.0, pytest.approx(0.3))
    assert "Recommended (clean accuracy of at least 10 %): sigma 50" in plain(render(report, 0.1))
    # Off itself, and reports without it.
    assert trade_off({None: (98, 50), 25.0: (97, 13)}).recommend_sigma().against_off is None
    assert trade_off({0.0: (98, 50), 25.0: (97, 13)}).recommend_sigma().against_off is None


def test_a_report_is_printed_and_kept_where_it_is_told(tmp_path):
    report = simulated()
    assert str(report) == render(report)
    assert repr(report) == f"<RobustnessReport: {verdict(report)}>"
    report.samples = [{"clean": np.zeros((2, 2, 3))}]
    path = report.save(tmp_path / "kept" / "mine.json")
    assert path == tmp_path / "kept" / "mine.json"
    again = RobustnessReport.load(path)
    assert again == report
    assert again.samples == []
    assert "samples" not in report.to_dict()


def test_the_verdict_comes_first():
    report = replace(simulated(), checks=[])
    strongest, known = report.strongest(50.0), report.row("EOT-PGD, noise known", 50.0)
    row = strongest.row

    def whole(share):
        return f"{100 * share:.0f}"

    assert plain(str(report)).startswith(
        f"sigma 50: {whole(row.clean.mean)} % clean, {whole(row.accuracy.mean)} % [{whole(row.accuracy.low)},"
        f" {whole(row.accuracy.high)}] under the strongest of {len(strongest.candidates)} attacks at Linf 8/255,"
        f" {whole(row.worst_of_10.mean)} % if it may try ten times, {whole(known.accuracy.mean)} % if it knows the"
        " noise; 40 images: enough to see a collapse, too few to rank the sigmas. outputs/quickstart on 40 images"
    )
    assert verdict(replace(report, settings=report.settings | {"num_samples": 16})).startswith(
        "sigma 50, vote of 16: "
    )


def test_the_verdict_without_random_answers():
    one = (clean((None,)), {None: [[0], [1]] * 20})
    assert verdict(hand_made([0, 1] * 20, [one], sigma=None)) == "no defense: 100 % clean on 40 images; not attacked"
    attacks = [one, (attack("AutoAttack", sigmas=(None,), attack_sigma=None), {None: [[1], [1]] * 20})]
    text = verdict(hand_made([0, 1] * 20, attacks, sigma=None))
    assert text.startswith(
        "no defense: 100 % clean, 50 % [35, 65] under the attack AutoAttack at Linf 8/255, 50 % under"
    )
    assert "ten times" not in text
    assert text.endswith("too few to tell apart models closer than about 21 points")


def test_a_failed_check_leaves_an_upper_limit():
    text = verdict(simulated())
    assert "NOT RELIABLE under attack: 1 of 2 sanity checks failed (monotone)" in text
    assert text.endswith("are no more than an upper limit")
    assert "if it may try" not in text


def test_no_robustness_of_a_model_at_chance():
    """It calls every image 0, which is right for most of them."""
    labels = [0] * 30 + [1] * 10
    attacks = [(clean(), {50.0: [[0] * 11] * 40}), (attack("EOT-PGD"), {50.0: [[0] * 11] * 40})]
    report = hand_made(labels, attacks)
    assert report.chance(50.0) == 0.75
    assert not report.is_above_chance(50.0)
    told = "75 % clean, which cannot be told from chance (75 %) on 40 images (99 % interval 5"
    assert told in verdict(report)
    assert verdict(report).endswith("nothing can be said of its robustness")
    right = hand_made(labels, [(clean(), {50.0: [[label] * 11 for label in labels]})])
    assert right.chance(50.0) == 0.75**2 + 0.25**2
    assert right.is_above_chance(50.0)


def test_few_images_do_not_even_show_a_collapse():
    right, wrong = [[index] for index in range(6)], [[0]] * 6
    attacks = [
        (clean((None,)), {None: right}),
        (attack("EOT-PGD", sigmas=(None,), attack_sigma=None), {None: wrong}),
    ]
    assert verdict(hand_made(list(range(6)), attacks, sigma=None)).endswith("6 images: too few to see even a collapse")


def test_a_model_with_noise_of_its_own_is_not_said_to_answer_equal_images_equally():
    predictions = [[index] * 11 for index in range(10)]
    attacks = [
        (clean((None,)), {None: predictions}),
        (attack("EOT-PGD", sigmas=(None,), attack_sigma=None), {None: [[0] * 11] * 10}),
    ]
    report = hand_made(list(range(10)), attacks, sigma=None, sigmas=[None], own_noise="seeded")
    assert verdict(report).startswith("its own noise: 100 % clean, 10 % [")
    assert "if it may try ten times" in verdict(report)
    text = plain(render(report))
    assert "The model draws noise of its own. - Every finished image is classified 11 times" in text
    assert "8 noise draws per gradient" in text
    assert "RobustBench takes no models with random answers" in text
