# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What the pictures show, read from the figures before they are saved."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from fake_reports import simulated

from transformers_nim.robustness import plot_eps_curve, plot_examples, plot_tradeoff, plots


matplotlib.use("Agg")


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved."""
    kept = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (kept.append(figure), save(figure, path))[1])
    return kept


def test_tradeoff(tmp_path, figures):
    report = simulated()
    assert plot_tradeoff(report, tmp_path / "new" / "plot.png").stat().st_size > 1000
    axes = figures[0].axes[0]
    line = axes.lines[0]
    points = report.trade_off()
    np.testing.assert_allclose(line.get_xdata(), [100 * point.clean.mean for point in points])
    np.testing.assert_allclose(line.get_ydata(), [100 * point.robust.mean for point in points])
    assert [note.get_text() for note in axes.texts] == ["off", "sigma 0", "sigma 25", "sigma 50", "sigma 75"]
    assert "Linf 8/255" in axes.get_ylabel()
    boxes = [note.get_window_extent() for note in axes.texts]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    knee = report.knee()
    marked = [text.get_text() for legend in [axes.get_legend()] if legend for text in legend.get_texts()]
    assert marked == ([f"knee: sigma {knee.sigma:g}"] if knee else [])


def test_eps_curve(tmp_path, figures):
    report = simulated()
    plot_eps_curve(report, tmp_path / "plot.png")
    whole, few = figures[0].axes[0].lines
    assert list(whole.get_xdata()) == [0, 2, 4, 8]
    means = [report.row(name, 50.0).accuracy.mean for name in ("clean", "EOT-PGD, eps 2", "EOT-PGD, eps 4", "EOT-PGD")]
    np.testing.assert_allclose(whole.get_ydata(), 100 * np.array(means))
    assert list(few.get_xdata()) == [8, 32]
    assert few.get_label() == "sigma 50, 16 images only"
    # The full grid has a line for each sigma.
    plot_eps_curve(simulated("full"), tmp_path / "plot.png")
    names = [line.get_label() for line in figures[1].axes[0].lines if "only" not in line.get_label()]
    assert names == ["off", "sigma 0", "sigma 25", "sigma 50", "sigma 75"]


def test_without_defense_and_with_one_eps(tmp_path, figures):
    report = simulated(sigma=None, sigmas=(), eps_grid=())
    plot_tradeoff(report, tmp_path / "a.png")
    plot_eps_curve(report, tmp_path / "b.png")
    assert [note.get_text() for note in figures[0].axes[0].texts] == ["no defense"]
    assert list(figures[1].axes[0].lines[0].get_xdata()) == [0, 8]


def sample(channels=3, defended=True, **changes):
    clean = np.full((4, 4, channels), 0.5)
    base = {
        "clean": clean,
        "adversarial": clean + 0.04,
        "noisy": clean if defended else None,
        "denoised": clean if defended else None,
        "label": 0,
        "clean_prediction": 0,
        "adversarial_prediction": 1,
    }
    return base | changes


def test_examples(tmp_path, figures):
    plot_examples([sample(row=7), sample(label=1)], tmp_path / "plot.png", ["tench, Tinca tinca", "a" * 30])
    axes = figures[0].axes
    assert len(axes) == 10
    titles = [one.get_title() for one in axes[:5]]
    assert titles == ["clean", "adversarial", "difference x 10", "with noise", "denoised"]
    assert axes[0].get_xlabel() == "true: tench\npredicted: tench"
    assert axes[0].get_ylabel() == "row 7"
    assert axes[5].get_ylabel() == ""
    assert axes[1].get_xlabel() == f"predicted: {'a' * 14}…"
    # Wrong predictions are red: the first is wrong under attack, the second only without.
    assert [axes[index].xaxis.label.get_color() for index in (0, 1, 5, 6)] == ["black", "C3", "C3", "black"]
    np.testing.assert_allclose(axes[2].images[0].get_array(), 0.9)
    figures[0].canvas.draw()
    for line in (axes[:5], axes[5:]):
        boxes = [one.xaxis.label.get_window_extent() for one in line if one.get_xlabel()]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_examples_of_one_channel_without_defense(tmp_path, figures):
    plot_examples([sample(1, defended=False)], tmp_path / "plot.png")
    axes = figures[0].axes
    assert [one.get_title() for one in axes] == ["clean", "adversarial", "difference x 10"]
    assert axes[0].images[0].get_array().shape == (4, 4)
    assert axes[0].images[0].get_clim() == (0, 1)
    assert axes[1].get_xlabel() == "predicted: 1"
    with pytest.raises(ValueError, match="at least one sample"):
        plot_examples([], tmp_path / "plot.png")
