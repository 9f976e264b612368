"""Loss curve of a training run, ``loss.csv`` and ``training.json`` to ``loss.png``."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"prose": "#0072B2", "python": "#D55E00", "c": "#009E73", "markup": "#CC79A7"}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    with (folder / "loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bounds = json.loads((folder / "training.json").read_text())["unigram_own_kind"]
    tokens = [float(row["tokens"]) / 1e6 for row in rows]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for kind, colour in COLOURS.items():
        axes.plot(
            tokens, [float(row[f"heldout_{kind}"]) for row in rows], color=colour, label=f"{kind}, held out"
        )
        axes.axhline(bounds[kind], color=colour, linestyle=":", linewidth=1)
    axes.plot(
        tokens, [float(row["train"]) for row in rows], color="0.4", linewidth=1, label="training, all kinds"
    )
    axes.set(xlabel="tokens trained on (millions)", ylabel="loss (nat per token)", ylim=(0, None))
    axes.set_title(
        "Held-out loss falls well below the unigram level (dotted, per kind)", loc="left", fontsize=11
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "loss.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
