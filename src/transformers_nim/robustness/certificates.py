# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Certified accuracy over a data set: computed from records of single images, as a table, as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.extras import require
from ..utils.statistics import certified_accuracy
from ..utils.text_table import percent, render_table
from .plots import save_figure


def certified_curves(
    records: Sequence[Mapping[str, Any]], sigmas: Sequence[float], radii: Sequence[float] | np.ndarray
) -> list[dict[str, Any]]:
    """Return certified accuracy at the given radii, for each sigma.

    Args:
        records: Per image and sigma its `row`, `sigma`, certified `label`, `radius`, `true_label`, `num_draws` and
            `seconds`; or `undecodable`, and it is left out.
        sigmas: Sigmas in units of 0..255 pixels.
        radii: L2 norms of pixels in [0, 1].

    Raises:
        ValueError: No image could be decoded.
    """
    curves = []
    for sigma in sigmas:
        own = [record for record in records if record["sigma"] == sigma and not record.get("undecodable")]
        if not own:
            raise ValueError("none of the images can be decoded: is this the column of images?")
        labels, certified, true = (np.array([one[name] for one in own]) for name in ("label", "radius", "true_label"))
        means = {f"mean_{name}": float(np.mean([record[name] for record in own])) for name in ("num_draws", "seconds")}
        curves.append(
            {"sigma": sigma, "sigma_01": sigma / 255, **certified_accuracy(labels, certified, true, radii), **means}
        )
    return curves


def certificate_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of certified accuracies: a line per radius, a column per sigma.

    Args:
        curves: From [`certified_curves`].
    """
    columns = ["certified accuracy in %", *(f"sigma {curve['sigma']:g} ({curve['sigma_01']:.3g})" for curve in curves)]
    names = ("certified_accuracy", "certified_accuracy_low", "certified_accuracy_high")
    rows = []
    for index, radius in enumerate(curves[0]["radii"]):
        rows.append([f"radius {radius:g}", *(percent(*(curve[name][index] for name in names)) for curve in curves)])
        # Further out there is nothing either.
        if all(curve["certified_accuracy"][index] == 0 for curve in curves):
            break
    rows.append(["abstains, in %", *(percent(curve["abstained"]) for curve in curves)])
    rows.append(["average certified radius", *(f"{curve['average_certified_radius']:.3f}" for curve in curves)])
    rows.append(["noise draws per image", *(f"{curve['mean_num_draws']:,.0f}" for curve in curves)])
    return render_table(columns, rows)


def describe_certificates(settings: Mapping[str, Any], num_images: int) -> str:
    """Return sentences that say how certificates were made.

    Args:
        settings: Those of the run: `dataset`, `split`, `every_k`, `n0`, `n`, `alpha`, `sequential`, `seed` and so on.
        num_images: Images that were certified.
    """
    draws = f"n0 = {settings['n0']}, n = {settings['n']:,}, alpha = {settings['alpha']:g}"
    if settings["sequential"]:
        target = settings["target_radius"]
        content = f", content with radius {target:g}" if target is not None else ""
        draws += f", sequential (alpha spending), radius tolerance {settings['radius_tolerance']:g}{content}"
    every = f", one of every {settings['every_k']}" if settings["every_k"] > 1 else ""
    return (
        f"Certified accuracy on {num_images} images of {settings['dataset']} ({settings['split']}{every}) with 95 %"
        f" intervals over images (Wilson). Randomized smoothing, L2 norm of pixels in [0, 1]: {draws},"
        " Clopper-Pearson; noise of scale sigma in units of 0..255 pixels (in brackets: of pixels in [0, 1]), seed"
        f" {settings['seed']}, {settings['dtype']}. The guarantee is that of the vote under noise."
    )


def plot_certificates(
    records: Sequence[Mapping[str, Any]], sigmas: Sequence[float], title: str, path: str | Path
) -> Path:
    """Plot certified accuracy over the radius, a curve with its 95 % band per sigma.

    Args:
        records: See [`certified_curves`].
        sigmas: Sigmas in units of 0..255 pixels.
        title: Title of the plot.
        path: Where the PNG file goes.

    Returns:
        The path.
    """
    figure, axes = require("matplotlib.pyplot").subplots(figsize=(7, 4.5), layout="constrained")
    largest = max((record["radius"] for record in records if not record.get("undecodable")), default=0) or 0.1
    radii = np.linspace(0, 1.03 * largest, 400)
    for curve in certified_curves(records, sigmas, radii):
        mean = 100 * np.array(curve["certified_accuracy"])
        (line,) = axes.plot(
            radii, mean, label=f"sigma {curve['sigma']:g} ({curve['sigma_01']:.3g} for pixels in [0, 1])"
        )
        band = [100 * np.array(curve[f"certified_accuracy_{end}"]) for end in ("low", "high")]
        # Not beyond the last radius: it is mostly the one that the number of draws allows.
        axes.fill_between(radii, *band, where=mean > 0, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(
        xlabel="radius: L2 norm of the perturbation, pixels in [0, 1]",
        ylabel="certified accuracy in %",
        title=title,
        xlim=(0, radii[-1]),
        ylim=(0, 102),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, path)
