# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import time
from dataclasses import replace

import pytest
import torch
from attacks.toys import Linear, Noisy

from transformers_nim.robustness import time_budget
from transformers_nim.robustness.protocol import BUDGETS, ModelFacts, Suite
from transformers_nim.robustness.time_budget import Pace, TooLittleTimeError, fit, fit_suite, seconds_per_pass


QUICK = BUDGETS["quick"]
SUITE = Suite("quick", QUICK, ModelFacts(50.0, [None, 25.0]), eps=8, eps_grid=[4.0])
PACE = Pace(search=0.01, judge=0.01)


def minutes_for(budget, seconds=0.01):
    configurations = replace(SUITE, budget=budget).configurations()
    return seconds * sum(one.num_images * one.total_cost(budget) for one in configurations) / 60


def test_what_fits_is_not_cut():
    assert fit(SUITE, PACE, 1, 1.2 * minutes_for(QUICK)) == (QUICK, [])


def test_a_faster_search_leaves_time_for_more_images():
    minutes = 0.6 * minutes_for(QUICK)
    same, faster = (fit(SUITE, pace, 1, minutes)[0].num_images for pace in (PACE, Pace(search=0.005, judge=0.01)))
    assert 1.5 * same < faster < 2 * same or faster == QUICK.num_images
    # What is judged, and what searches at sigma off, takes its time as before.
    for one in replace(SUITE, budget=replace(QUICK, num_images=1)).configurations():
        assert sum(one.costs(QUICK, 4)) == one.total_cost(QUICK, 4)
    half = Pace(search=0.005, judge=0.01).seconds(SUITE, QUICK, 1)
    assert 0.5 * PACE.seconds(SUITE, QUICK, 1) < half < 0.6 * PACE.seconds(SUITE, QUICK, 1)


def test_images_go_first():
    chosen, cut = fit(SUITE, PACE, 1, 0.6 * minutes_for(QUICK))
    assert 16 < chosen.num_images < 64
    assert (chosen.steps, chosen.num_draws) == (20, 8)
    assert cut == [f"{chosen.num_images} images instead of 64, to fit into {0.6 * minutes_for(QUICK):g} minutes"]


def test_votes_cost_their_draws():
    votes = replace(SUITE, num_samples=16)
    minutes = 1.2 * minutes_for(QUICK)
    chosen, cut = fit(votes, PACE, 1, minutes)
    assert chosen.num_images < 64
    assert cut
    made = replace(votes, budget=chosen).configurations()
    needed = 0.01 * sum(one.num_images * one.total_cost(chosen, 16) for one in made) / 60
    assert 0.8 * minutes < needed <= 0.9 * minutes


def test_as_much_as_fits_is_used():
    minutes = 0.6 * minutes_for(QUICK)
    chosen, _ = fit(SUITE, PACE, 1, minutes)
    assert 0.85 * minutes < minutes_for(chosen) <= 0.9 * minutes


def test_then_draws_and_steps():
    chosen, cut = fit(SUITE, PACE, 1, 0.1 * minutes_for(QUICK))
    assert minutes_for(chosen) <= 0.09 * minutes_for(QUICK)
    assert chosen.num_images >= 16
    assert (chosen.num_draws, chosen.num_queries) == (4, 400)
    assert any(sentence.startswith("4 noise draws per gradient instead of 8") for sentence in cut)
    # What decides how finished images are judged is not touched.
    assert chosen.num_evaluations == QUICK.num_evaluations


def test_two_processes_do_twice_as_much():
    minutes = 0.5 * minutes_for(QUICK)
    one, two = (fit(SUITE, PACE, processes, minutes)[0].num_images for processes in (1, 2))
    assert two == pytest.approx(2 * one, abs=4)


def test_too_little_time_says_what_fits():
    least = replace(QUICK, num_images=16, num_draws=4, steps=10, num_queries=200)
    minutes = 0.8 * minutes_for(least)
    with pytest.raises(TooLittleTimeError, match="16 images with 10 steps and 4 noise draws per gradient") as caught:
        fit(SUITE, PACE, 1, minutes)
    error = caught.value
    # From so many minutes on it fits, and not from fewer than are needed.
    assert minutes_for(least) < error.minutes < 2 * minutes_for(least)
    assert fit(SUITE, PACE, 1, error.minutes)[0].num_images >= 16
    # With fewer eps and sigmas there is time for more images than with all.
    assert error.smaller.keys() == {"sigmas", "eps_grid", "num_images", "num_queries", "num_draws", "steps"}
    number = error.smaller["num_images"]
    assert (error.smaller["sigmas"], error.smaller["eps_grid"]) == ([], [])
    assert 0.8 * 0.8 * 16 - 1 < number <= 16
    budget = replace(QUICK, **{name: value for name, value in error.smaller.items() if isinstance(value, int)})
    fewer = replace(SUITE, model=replace(SUITE.model, sigmas=[None]), eps_grid=[], budget=budget)
    assert fit(fewer, PACE, 1, minutes) == (budget, [])
    queries = budget.num_queries
    options = f"--sigmas --eps_grid --max_eval_samples {number} --num_draws 4 --steps 10 --num_queries {queries}"
    beginning, _, rest = error.as_options().partition("In the time there is, without --budget_minutes, you can run: ")
    assert beginning.endswith(f" Pass --budget_minutes {error.minutes}, which leaves a margin. ")
    assert sorted(rest.split()) == sorted(options.split())
    assert f"without budget_minutes, you can run: sigmas=[], eps_grid=[], num_images={number}, budget={{" in str(error)


def test_grids_go_before_anything_is_refused():
    least = replace(QUICK, num_images=16, num_draws=4, steps=10, num_queries=200)
    whole = minutes_for(least) / 0.9
    suite, cut = fit_suite(SUITE, PACE, 1, 1.05 * whole)
    assert (suite.eps_grid, suite.model.sigmas) == ([4.0], [None, 25.0])
    assert not any("only" in sentence or "further" in sentence for sentence in cut)
    suite, cut = fit_suite(SUITE, PACE, 1, 0.95 * whole)
    assert (suite.eps_grid, suite.model.sigmas) == ((), [None, 25.0])
    assert suite.budget.num_images >= 16
    assert cut[0].startswith("no further eps instead of 4, to fit into ")
    suite, cut = fit_suite(SUITE, PACE, 1, 0.85 * whole)
    assert (suite.eps_grid, suite.model.sigmas) == ((), (None,))
    assert suite.budget.num_images >= 16
    assert cut[1].startswith("the defense off as the only further sigma instead of off, 25, to fit into ")
    with pytest.raises(TooLittleTimeError) as with_grids:
        fit(SUITE, PACE, 1, 0.1 * whole)
    with pytest.raises(TooLittleTimeError) as caught:
        fit_suite(SUITE, PACE, 1, 0.1 * whole)
    error = caught.value
    assert error.minutes < with_grids.value.minutes
    assert error.smaller == with_grids.value.smaller
    assert fit_suite(SUITE, PACE, 1, error.minutes)[0].budget.num_images >= 16


def test_no_time_at_all_has_no_budget_that_fits():
    with pytest.raises(TooLittleTimeError, match=r"leaves a margin\.$") as caught:
        fit(SUITE, PACE, 1, 0.001)
    assert caught.value.smaller == {}
    with pytest.raises(ValueError, match="must be positive, got 0"):
        fit(SUITE, PACE, 1, 0)


def test_a_full_suite_may_become_a_quick_one():
    full = replace(SUITE, name="full", budget=BUDGETS["full"])
    with pytest.raises(TooLittleTimeError) as caught:
        fit(full, PACE, 1, 5)
    assert caught.value.smaller["suite"] == "quick"


def test_a_slow_model_is_timed_on_one_image(monkeypatch):
    linear, sizes = Linear(classes=3), []

    def classifier(pixels):
        sizes.append(len(pixels))
        return linear(pixels)

    for seconds, expected in ((9.0, [1, 1, 8, 8, 8, 8]), (0.0, [1, 1, 1])):
        monkeypatch.setattr(time_budget, "_SLOW", seconds)
        sizes.clear()
        seconds_per_pass(lambda *_: Noisy(classifier, 0.1), torch.rand(3, 4, 4), 25.0, num_draws=1, rows_per_pass=8)
        assert sizes == expected


def test_seconds_per_pass_is_the_time_of_a_row():
    linear = Linear(classes=3)

    class Slow:
        """Takes two milliseconds for each noisy image, on the way forward alone."""

        def __call__(self, pixels):
            time.sleep(0.002 * len(pixels))
            return linear(pixels)

    seconds = seconds_per_pass(lambda *_: Noisy(Slow(), 0.1), torch.rand(3, 4, 4), 25.0, num_draws=4, rows_per_pass=8)
    # A pass with a gradient counts as two.
    assert 0.001 <= seconds < 0.003
    state = torch.random.get_rng_state()
    seconds_per_pass(lambda *_: linear, torch.rand(3, 4, 4, generator=torch.Generator()), None, 1, 8)
    assert torch.equal(state, torch.random.get_rng_state())
