"""Corrections tabulated over the load, once for each shape: a look-up where the sum would be too slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.forms.base import Machine
from moesim.kernels.forms.correction import Correction, coordinates
from moesim.kernels.forms.families import Form
from moesim.kernels.histogram import TILE_ROWS

STEPS = {1: 64, 2: 48, 3: 16}
"""Cells along each column of the load, by how many columns there are; what the table leaves of the sum
between its nodes is below 0.5 % (a test says so)."""

Columns = Mapping[str, Any]
Shape = tuple[float, ...]


@dataclass(frozen=True)
class CorrectionTable:
    """Factors of one kernel's correction, linear between nodes in the logarithm of each load column.

    Outside the loads seen the factor is that of the nearest load seen. The nodes of an expert block have
    their rows spread evenly. Where shapes vary within a call, the sum itself is used.

    Attributes
    ----------
    correction : Correction
    form : Form
    dtype : str
    machine : Machine
    parameters, choice
        Of the form.
    usual : mapping
        ``{column: value}`` of columns that make no shape, where they do not vary.
    """

    correction: Correction
    form: Form
    dtype: str
    machine: Machine
    parameters: Any
    choice: Any
    usual: Mapping[str, float]
    _tables: dict[Shape, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def factor(self, columns: Columns) -> Any:
        """What the form's time is multiplied with; columns broadcast."""
        shape = {name: columns[name] for name in self.form.shape_columns}
        if any(np.size(value) > 1 for value in shape.values()):
            return np.exp(self.log({n: np.asarray(c, dtype=np.float64) for n, c in columns.items()}))
        key = tuple(float(np.asarray(value).flat[0]) for value in shape.values())
        table = self._tables.get(key)
        if table is None:
            own = dict(zip(self.form.shape_columns, key, strict=True))
            table = self._tables[key] = self._tabulated({**self.usual, **own})
        return self._between(table, columns)

    def log(self, columns: Columns) -> Any:
        """ln(corrected / form) by the sum."""
        work = self.form.work(columns, self.dtype)
        parts = self.form.seconds(work, self.machine, self.parameters, self.choice)
        return self.correction.log(coordinates(columns, parts))

    @cached_property
    def _loads(self) -> list[str]:
        """Columns of the load that varied when the correction was fitted."""
        return [name for name in self.form.load_columns if name in self.correction.ranges]

    def _tabulated(self, fixed: Mapping[str, float]) -> NDArray[np.float32]:
        """Factors at the nodes, ``(nodes,) * number of load columns``."""
        steps = STEPS[len(self._loads)]
        spans = (np.geomspace(*self.correction.ranges[name], steps + 1) for name in self._loads)
        nodes = dict(zip(self._loads, np.meshgrid(*spans, indexing="ij"), strict=True))
        columns = {name: np.asarray(value) for name, value in {**fixed, **nodes}.items()}
        if "touched" in self.form.load_columns:
            columns |= _even(columns)
        return np.asarray(np.exp(self.log(columns)), dtype=np.float32)

    def _between(self, table: NDArray[np.float32], columns: Columns) -> Any:
        """Linear between the nodes around each load."""
        steps = STEPS[len(self._loads)]
        flat, stride = table.ravel(), table.size
        first: Any = np.float32(0)
        corners, parts = [0], []
        for name in self._loads:
            least, most = self.correction.ranges[name]
            place = np.array(columns[name], dtype=np.float32, ndmin=1)
            np.clip(place, np.float32(least), np.float32(most), out=place)
            place *= np.float32(1 / least)
            np.log(place, out=place)
            place *= np.float32(steps / np.log(most / least))
            cell = np.floor(place)
            np.minimum(cell, np.float32(steps - 1), out=cell)
            place -= cell
            parts.append(place)
            stride //= steps + 1
            first = first + cell * np.float32(stride)  # whole numbers far below the 2^24 that a float32 holds
            corners += [corner + stride for corner in corners]
        cells = first.astype(np.intp)
        values = [flat[corner:].take(cells) for corner in corners]
        for part in reversed(parts):
            half = len(values) // 2
            values = [a + part * (b - a) for a, b in zip(values[:half], values[half:], strict=True)]
        is_scalar = all(np.ndim(columns[name]) == 0 for name in self._loads)
        return values[0][0] if is_scalar else values[0]


def _even(columns: Columns) -> dict[str, Any]:
    """Columns of an expert block whose touched experts have equal shares of the rows."""
    rows, touched = np.maximum(columns["rows"], columns["touched"]), columns["touched"]
    tiles = {f"padded_{tile}": touched * np.ceil(rows / touched / tile) * tile for tile in TILE_ROWS}
    return {"rows": rows, "all_rows": rows, "tokens": rows / columns["top_k"], **tiles}
