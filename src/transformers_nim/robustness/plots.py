# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Plot the results of an evaluation under attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.extras import require
from ..utils.statistics import Accuracy
from ..utils.text_table import sigma_label
from .measurements import Measurements
from .protocol import CLEAN, HEADLINE
from .verdict import column_label, predictor_name


_DPI = 120
# What a picture of examples shows of a sample, and what it is called.
_COLUMNS = {
    "clean": "clean",
    "adversarial": "attacked",
    "difference": "difference",
    "noisy": "attacked, with noise",
    "denoised": "the same, denoised",
}


def plot_tradeoff(report: Measurements, path: str | Path) -> Path:
    """Plot robust against clean accuracy, one point per sigma of the defense.

    Robust accuracy is that under the strongest of the attacks that were made for every sigma alike, at the main eps;
    see [`Measurements.strongest`]. Bars are 95 % intervals.

    Args:
        report: The evaluation.
        path: Where the PNG file goes.

    Returns:
        The path.
    """
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    points = report.trade_off()
    clean, robust = ([100 * getattr(point, name).mean for point in points] for name in ("clean", "robust"))
    bars = [_bars([getattr(point, name) for point in points]) for name in ("clean", "robust")]
    axes.plot(clean, robust, "-", color="gray", linewidth=1)
    colors = [f"C{index % 10}" for index in range(len(points))]
    for index, color in enumerate(colors):
        lengths = [side[:, index : index + 1] for side in bars]
        axes.errorbar(
            clean[index], robust[index], lengths[1], lengths[0],
            fmt="o", color=color, markersize=6, elinewidth=1, ecolor=(color, 0.4), capsize=2,
        )  # fmt: skip
    knee = report.knee()
    if knee:
        axes.plot(
            100 * knee.clean.mean, 100 * knee.robust.mean, "o", color="black", markersize=12, markerfacecolor="none",
            markeredgewidth=1.5, label=f"knee: {sigma_label(knee.sigma)}",
        )  # fmt: skip
        axes.legend(loc="best")
    names = [column_label(report, point.sigma) for point in points]
    axes.set(
        xlabel="clean accuracy in %",
        ylabel=f"accuracy in % under the strongest attack, {_radius(report)}",
        title=_title(report),
    )
    axes.grid(alpha=0.3)
    axes.set(xlim=(-2, 102), ylim=(-2, 102))
    _label_points(figure, axes, list(zip(clean, robust)), names, colors)
    return save_figure(figure, path)


def plot_eps_curve(report: Measurements, path: str | Path) -> Path:
    """Plot accuracy under the headline attack over eps, from the clean images at 0.

    There is one line per sigma for which several eps were measured, each attacked with its own sigma. Bands are 95 %
    intervals; a dotted end is the large eps of the sanity checks, on fewer images.

    Args:
        report: The evaluation.
        path: Where the PNG file goes.

    Returns:
        The path.
    """
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    main = report.settings["sigma"]
    for sigma in report.sigmas:
        clean, attacked = report.row(CLEAN, sigma), report.eps_curve(sigma)
        if not attacked or (len(attacked) == 1 and sigma != main):
            continue
        curve = [clean, *(row for row in attacked if row.num_images == clean.num_images)]
        (line,) = axes.plot(
            [row.eps for row in curve],
            [100 * row.accuracy.mean for row in curve],
            "o-",
            markersize=4,
            label=column_label(report, sigma),
        )
        rest = [row for row in attacked if row not in curve]
        for part, opacity in ((curve, 0.12), ([curve[-1], *rest], 0.06)):
            ends = [[100 * getattr(row.accuracy, end) for row in part] for end in ("low", "high")]
            axes.fill_between([row.eps for row in part], *ends, color=line.get_color(), alpha=opacity, linewidth=0)
        if rest:
            axes.plot(
                [row.eps for row in (curve[-1], *rest)],
                [100 * row.accuracy.mean for row in (curve[-1], *rest)],
                "o:",
                color=line.get_color(),
                markersize=4,
                markerfacecolor="white",
                # The first is a point of the curve.
                markevery=slice(1, None),
                label=f"{column_label(report, sigma)}, {rest[0].num_images} images only",
            )
    axes.set(
        xlabel=f"eps in units of 1/255 ({report.settings['norm']}, pixels in [0, 1])",
        ylabel="accuracy in %",
        title=_title(report),
        ylim=(-2, 102),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, path)


def plot_examples(report: Measurements, path: str | Path) -> Path:
    """Show clean, adversarial, noisy and denoised images beside each other, one image per row.

    Above each picture that was classified stands what it was taken for, in red if that is wrong.

    Args:
        report: The evaluation. Its `samples` have per image the arrays `clean`, `adversarial`, `noisy` and `denoised`
            of shape `(height, width, channels)` in [0, 1], the last two `None` for models without a defense; `label`,
            `clean_prediction` and `adversarial_prediction`; and, if known, the `row` in the data set. Names of classes
            are those of the report, otherwise their numbers.
        path: Where the PNG file goes.

    Returns:
        The path.

    Raises:
        ValueError: There are no samples.
    """
    samples = report.samples
    if not samples:
        raise ValueError("a picture of examples needs at least one sample, got none")
    plt = require("matplotlib.pyplot")
    shown = [name for name in _COLUMNS if name == "difference" or any(sample[name] is not None for sample in samples)]
    factor = _magnification(samples)
    size = (2.1 * len(shown), 2.5 * len(samples) + 0.6)
    figure, grid = plt.subplots(len(samples), len(shown), figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(f"{predictor_name(report)}; {HEADLINE} at {_radius(report)}", fontsize=11)
    for sample, line in zip(samples, grid):
        if sample.get("row") is not None:
            line[0].set_ylabel(f"row {sample['row']}", fontsize=9)
        for name, axes in zip(shown, line):
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set_visible(False)
            title, color = _caption(sample, name, report.classes)
            axes.set_title(f"{title} x {factor:g}" if name == "difference" else title, fontsize=8, color=color)
            image = sample.get(name)
            if name == "difference":
                # Grey is no change.
                image = 0.5 + factor * (np.asarray(sample["adversarial"]) - np.asarray(sample["clean"]))
            if image is not None:
                _show(axes, np.clip(np.asarray(image, dtype=float), 0, 1))
    return save_figure(figure, path)


def _show(axes: Any, image: np.ndarray) -> None:
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(image, interpolation="nearest")


def _magnification(samples: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest round factor by which every difference can be magnified around grey."""
    largest = max(np.abs(np.asarray(sample["adversarial"]) - np.asarray(sample["clean"])).max() for sample in samples)
    fits = [factor for factor in (1, 2, 5, 10, 20, 50) if factor * largest <= 0.5]
    return max(fits, default=1)


def _caption(sample: Mapping[str, Any], name: str, classes: Sequence[str] | None) -> tuple[str, str]:
    """Return text and color above one picture: what it is, and what it was taken for."""
    title = _COLUMNS[name]
    if f"{name}_prediction" not in sample:
        return title, "black"
    predicted, label = sample[f"{name}_prediction"], sample["label"]
    if predicted == label:
        return f"{title}: {_class_name(label, classes)},\nright", "black"
    return f"{title}: {_class_name(predicted, classes)},\nwrong (is {_class_name(label, classes)})", "C3"


def _class_name(index: int, classes: Sequence[str] | None) -> str:
    name = str(index) if classes is None else str(classes[index]).split(",")[0]
    return name if len(name) <= 15 else f"{name[:14].rstrip()}…"


def _label_points(
    figure: Any, axes: Any, points: list[tuple[float, float]], names: list[str], colors: list[str]
) -> None:
    """Write each name near its point, nearer than to any other, and on no other name or point.

    Sigmas of equal effect lie on each other: without such a place the nearest one is taken.
    """
    # The layout moves the axes when it is first drawn.
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    taken: list[Any] = []
    marks = axes.transData.transform(points)
    places = [(x * reach, y * reach) for reach in (7, 14, 22, 32) for x in (1, -1) for y in (1, -1)]
    for index, (point, name) in enumerate(zip(points, names)):
        for place, (x, y) in enumerate([*places, places[0]]):
            note = axes.annotate(
                name, point, (x, y), textcoords="offset points", fontsize=9, zorder=5, color=colors[index],
                ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            )  # fmt: skip
            box = note.get_window_extent(renderer)
            gaps = [_gap(box, *mark) for mark in marks]
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and gaps[index] == min(gaps) > 0 and not any(box.overlaps(other) for other in taken):
                break
            if place < len(places):
                note.remove()
        taken.append(box)


def _gap(box: Any, x: float, y: float) -> float:
    """Return the distance of a point from a box."""
    return float(np.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)))


def _bars(accuracies: Sequence[Accuracy]) -> np.ndarray:
    """Return lengths of error bars in percent, shape `(2, points)`."""
    low = [100 * (one.mean - one.low) for one in accuracies]
    high = [100 * (one.high - one.mean) for one in accuracies]
    return np.array([low, high])


def _radius(report: Measurements) -> str:
    return f"{report.settings['norm']} {report.settings['eps']:g}/255"


def _title(report: Measurements) -> str:
    settings = report.settings
    number = len(report.correct(CLEAN, settings["sigma"]))
    model = Path(str(settings["model"])).name
    return f"{model}: {number} images of {Path(str(settings['dataset'])).name} ({settings['split']})"


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure of matplotlib and close it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    require("matplotlib.pyplot").close(figure)
    return path
