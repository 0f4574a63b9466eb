# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The report of an evaluation under attack: its measurements with their tables and pictures."""

import base64
import importlib.util
import tempfile
from pathlib import Path

from jinja2 import Environment

from .measurements import Measurements
from .plots import plot_eps_curve, plot_examples, plot_tradeoff
from .tables import attack_table, render
from .verdict import verdict


_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<p><b>{{ verdict }}</b></p>
<table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% for picture in pictures %}
<img alt="{{ picture.name }}" style="max-width: 100%" src="data:image/png;base64,{{ picture.content }}">
{% endfor %}
<details><summary>All figures, and how they were measured</summary><pre>{{ text }}</pre></details>
"""
)


class RobustnessReport(Measurements):
    """An evaluation under attack: `print` shows its verdict and tables, a notebook its pictures as well.

    See [`Measurements`] for its fields and figures.
    """

    def __str__(self) -> str:
        return render(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {verdict(self)}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows. Without matplotlib there are no pictures."""
        pictures = []
        if importlib.util.find_spec("matplotlib") is not None:
            with tempfile.TemporaryDirectory() as folder:
                for path in self.plot(folder):
                    pictures.append({"name": path.stem, "content": base64.b64encode(path.read_bytes()).decode()})
        columns, rows, _ = attack_table(self)
        return _PAGE.render(verdict=verdict(self), columns=columns, rows=rows, pictures=pictures, text=render(self))

    def plot(self, folder: str | Path) -> list[Path]:
        """Write the pictures of the report as PNG files. This needs matplotlib.

        Args:
            folder: Where to; it is made if it is not there.

        Returns:
            The files that were written: `tradeoff.png` and `eps_curve.png` if attacks were measured at the main eps,
            `examples.png` if there are `samples`.
        """
        folder = Path(folder)
        written = []
        if self.has_attacks:
            written.append(plot_tradeoff(self, folder / "tradeoff.png"))
            written.append(plot_eps_curve(self, folder / "eps_curve.png"))
        if self.samples:
            written.append(plot_examples(self, folder / "examples.png"))
        return written
