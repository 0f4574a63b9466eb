# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""What the pictures show, read from the figures before they are saved."""

import importlib.util
from dataclasses import replace
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


def with_samples(*samples, classes=None, **changes):
    return replace(simulated(**changes), samples=list(samples), classes=classes)


def test_examples(tmp_path, figures):
    report = with_samples(sample(row=7), sample(label=1), classes=["tench, Tinca tinca", "a" * 30])
    plot_examples(report, tmp_path / "plot.png")
    axes = figures[0].axes
    assert figures[0].get_suptitle() == "sigma 50; EOT-PGD at Linf 8/255"
    assert len(axes) == 10
    long = f"{'a' * 14}…"
    titles = [one.get_title() for one in axes]
    noise = ["difference x 10", "attacked, with noise", "the same, denoised"]
    assert titles[:5] == ["clean: tench,\nright", f"attacked: {long},\nwrong (is tench)", *noise]
    assert titles[5:] == [f"clean: tench,\nwrong (is {long})", f"attacked: {long},\nright", *noise]
    assert [axes[index].get_ylabel() for index in (0, 5)] == ["row 7", ""]
    # Wrong predictions are red: the first is wrong under attack, the second only without.
    assert [axes[index].title.get_color() for index in (0, 1, 5, 6)] == ["black", "C3", "C3", "black"]
    np.testing.assert_allclose(axes[2].images[0].get_array(), 0.9)
    figures[0].canvas.draw()
    for line in (axes[:5], axes[5:]):
        boxes = [one.title.get_window_extent() for one in line]
        assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def test_examples_of_one_channel_without_defense(tmp_path, figures):
    plot_examples(with_samples(sample(1, defended=False), sigma=None, sigmas=()), tmp_path / "plot.png")
    axes = figures[0].axes
    assert [one.get_title() for one in axes] == ["clean: 0,\nright", "attacked: 1,\nwrong (is 0)", "difference x 10"]
    assert axes[0].images[0].get_array().shape == (4, 4)
    assert axes[0].images[0].get_clim() == (0, 1)
    assert figures[0].get_suptitle() == "no defense; EOT-PGD at Linf 8/255"
    with pytest.raises(ValueError, match="at least one sample"):
        plot_examples(simulated(), tmp_path / "plot.png")


def test_a_report_names_the_pictures_that_it_wrote(tmp_path):
    names = ["tradeoff.png", "eps_curve.png"]
    assert [path.name for path in simulated().plot(tmp_path / "a")] == names
    assert [path.name for path in with_samples(sample()).plot(tmp_path / "b")] == [*names, "examples.png"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted([*names, "examples.png"])
    unattacked = simulated()
    unattacked = replace(unattacked, cells=unattacked.cells[:1])
    assert unattacked.plot(tmp_path / "c") == []
    assert not (tmp_path / "c").exists()


def test_a_notebook_shows_verdict_table_and_pictures(monkeypatch):
    report = with_samples(sample(), model="<b>me</b>")
    page = report._repr_html_()
    assert page.count("data:image/png;base64,") == 3
    assert f"<b>{report.__repr__().removeprefix('<RobustnessReport: ').removesuffix('>')}</b>" in page
    assert f"<td>{report.row('FGSM', 50.0).accuracy}</td>" in page
    assert "&lt;b&gt;me&lt;/b&gt;" in page
    assert "<b>me" not in page
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert "<img" not in report._repr_html_()
