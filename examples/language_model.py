"""A small language model in plain torch, and the geometry of its layers while it trains.

A causal transformer learns to predict the characters of the standard library's documentation strings. Two monitors
measure label-free geometry of held-out text in every block: one on the last token, one on the mean of the tokens. One
forward pass of each serves all blocks.

    python examples/language_model.py
    python examples/language_model.py --short     # 20 steps
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import geomonitor as gm

BLOCKS, WIDTH, HEADS, CONTEXT, BATCH, SEQUENCES = 4, 64, 4, 64, 32, 200
MARKERS = ("mean_cosine", "centred_mean_cosine", "top_channel_share", "rankme", "intrinsic_dimension")
POOLS = ("last", "mean")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


def text_of_the_standard_library(characters: int) -> str:
    """Documentation strings of modules, classes and functions; read from source, nothing is imported."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_bytes()))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [text for node in nodes if isinstance(node, documented) and (text := ast.get_docstring(node))]
        if sum(map(len, found)) > characters:
            break
    return "\n\n".join(found)[:characters]


def encoded(text: str) -> Tensor:
    """One id for each character; others than printable ASCII are left out."""
    return torch.tensor([CHARACTERS.index(character) for character in text if character in CHARACTERS])


class Block(nn.Module):
    """Causal attention and a feed-forward part, each added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class SmallGPT(nn.Module):
    """Characters to logits of the next character."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    return functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def run(steps: int, every: int, characters: int) -> tuple[dict[str, gm.History], float]:
    """Train once; a history for each pooling, and the held-out loss at the end."""
    torch.manual_seed(0)
    ids = encoded(text_of_the_standard_library(characters))
    split = int(0.9 * len(ids))
    held_out = ids[split:].unfold(0, CONTEXT + 1, CONTEXT + 1)
    probe = gm.ProbeSet.from_unlabelled(TensorDataset(held_out[:, :-1].contiguous()), samples=SEQUENCES)
    layers = {f"block {n}": f"blocks.{n}" for n in range(BLOCKS)}
    runs = {
        pool: gm.MonitoredRun(
            gm.GeometryMonitor(probe, layers=layers, markers=MARKERS, pool=pool, panel=None), name=pool,
            every_n_steps=every,
        )
        for pool in POOLS
    }  # fmt: skip
    model = SmallGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for monitored in runs.values():
        monitored.start(model)
        monitored.measure(model, step=0, epoch=0)
    for step in range(1, steps + 1):
        starts = torch.randint(0, split - CONTEXT - 1, (BATCH, 1))
        loss = loss_of(model, ids[starts + torch.arange(CONTEXT + 1)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for monitored in runs.values():
            if monitored.due_after_batch(step):
                monitored.measure(model, step=step, epoch=0)
    with torch.no_grad():
        held_out_loss = float(loss_of(model.eval(), held_out[:SEQUENCES]))
    return {pool: monitored.monitor.history for pool, monitored in runs.items()}, held_out_loss


def print_table(histories: dict[str, gm.History]) -> None:
    """The last measurement by layer."""
    print(f"{'token':8s}{'layer':10s}" + "".join(f"{name:>21s}" for name in MARKERS))
    for pool, history in histories.items():
        for layer in (f"block {n}" for n in range(BLOCKS)):
            values = [history.series(layer, name).values[-1] for name in MARKERS]
            print(f"{pool:8s}{layer:10s}" + "".join(f"{value:21.3f}" for value in values))


def plot(histories: dict[str, gm.History], path: Path) -> Path:
    """Markers over steps, one curve for each block: last token above, mean of the tokens below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("mean_cosine", "top_channel_share", "rankme", "intrinsic_dimension")
    figure, axes = plt.subplots(2, len(shown), figsize=(12, 5.5), layout="constrained", sharex=True)
    for row, (pool, history) in zip(axes, histories.items(), strict=True):
        for axis, name in zip(row, shown, strict=True):
            for n in range(BLOCKS):
                series = history.series(f"block {n}", name)
                color = plt.get_cmap("viridis")(n / BLOCKS)
                axis.plot(series.steps, series.values, color=color, label=f"block {n}")
            axis.set_title(
                f"{name.replace('_', ' ')}, {'last token' if pool == 'last' else 'mean of tokens'}", fontsize=10
            )
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(frameon=False)
    figure.suptitle("A small GPT on documentation strings: geometry of held-out text by block")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> dict[str, gm.History]:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="20 steps")
    parser.add_argument("--output", type=Path, default=Path("runs/language_model"), help="folder of the picture")
    options = parser.parse_args(arguments)
    histories, loss = run(20, 10, 200_000) if options.short else run(600, 50, 1_000_000)
    print_table(histories)
    print(f"Held-out loss: {loss:.2f} nats a character (uniform: {torch.tensor(len(CHARACTERS)).log():.2f})")
    print(f"Curves: {plot(histories, options.output / 'language_model.png')}")
    return histories


if __name__ == "__main__":
    main()
