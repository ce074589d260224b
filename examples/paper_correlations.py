"""Which marker predicts the accuracy of a network on new classes? The figures of the paper, computed again.

For 224 CIFAR-10 networks of five architectures: Pearson's r between each marker, measured on known classes, and the
accuracy of a linear probe on new classes. The geometry of the class manifolds predicts it, test accuracy hardly does.

    python examples/paper_correlations.py        # prints the table, writes the plot
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).parent.parent / "tests/data/paper_fig3_runs.csv"
TARGET = "acc_lp_ood"

# The name in geomonitor, and the column of the paper's table: markers on held-out images of the known classes.
COLUMNS = {
    "dimension": "dimension_id",
    "utility": "utility_id",
    "radius": "radius_id",
    "capacity": "capacity_id",
    "center_alignment": "center_alignment_id",
    "axis_alignment": "axis_alignment_id",
    "center_axis_alignment": "center_axis_alignment_id",
    "participation_ratio": "participation_ratio_id",
    "numerical_rank": "numerical_rank_id",
    "nc1": "nc1_id",
    "active_fraction": "sparsity_id",
    "mean_covariance": "mean_covariance_id",
    "feature_distance": "mean_distance_id",
    "within_class_distance": "mean_distance_avg_id",
    "angle": "mean_angle_id",
    "auroc": "auroc",
    "entropy": "entropy",
    "accuracy": "acc_test",
}


def load_runs(path: Path = DATA) -> pd.DataFrame:
    """One row a network, without the one that collapsed onto a single direction."""
    runs = pd.read_csv(path)
    return runs[runs["participation_ratio_id"] > 1.01]


def correlations(runs: pd.DataFrame) -> pd.DataFrame:
    """Pearson's r of each marker with the accuracy on new classes: markers x architectures."""
    return pd.DataFrame(
        {
            architecture: {name: np.corrcoef(group[column], group[TARGET])[0, 1] for name, column in COLUMNS.items()}
            for architecture, group in runs.groupby("arch_name")
        }
    )


def plot(runs: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """Dimension and test accuracy against the accuracy on new classes, and the table as a map of colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=[1, 1, 1.25])
    panels = {"dimension_id": "effective dimension (log scale)", "acc_test": "test accuracy, %"}
    for axis, (column, title) in zip(axes, panels.items(), strict=False):
        for architecture, group in runs.groupby("arch_name"):
            r = np.corrcoef(group[column], group[TARGET])[0, 1]
            axis.scatter(group[column], group[TARGET], s=14, alpha=0.75, label=f"{architecture}  r = {r:.2f}")
        axis.set(xlabel=title, ylabel="linear probe on new classes, %")
        axis.legend(frameon=False, fontsize=8, loc="lower right" if column == "dimension_id" else "lower left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_xscale("log")
    axes[0].set_xticks([1, 2, 3, 4, 5], labels="12345")
    axes[0].minorticks_off()
    ordered = table.loc[table.mean(axis=1).sort_values(ascending=False).index]
    axes[2].imshow(ordered, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes[2].set_xticks(range(ordered.shape[1]), ordered.columns, rotation=20, ha="right", fontsize=8)
    axes[2].set_yticks(range(len(ordered)), ordered.index, fontsize=8)
    for (row, column), r in np.ndenumerate(ordered.to_numpy()):
        axes[2].text(column, row, f"{r:.2f}", ha="center", va="center", fontsize=7, color="w" if abs(r) > 0.6 else "k")
    axes[2].set_title("Pearson's r with the accuracy on new classes", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/paper_correlations.png"), help="the plot")
    options = parser.parse_args()
    runs = load_runs()
    table = correlations(runs)
    table["mean"] = table.mean(axis=1)
    print(f"Pearson's r with the linear-probe accuracy on new classes, {len(runs)} networks:\n")
    print(table.sort_values("mean", ascending=False).round(2).to_string())
    plot(runs, table.drop(columns="mean"), options.output)
    print(f"\nPlot: {options.output}")


if __name__ == "__main__":
    main()
