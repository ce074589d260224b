"""All layers of a transformer at once: ``OMP_NUM_THREADS=1 python -m benchmarks.layers``.

Twelve blocks of a small causal transformer are measured in one forward pass. Whatever is not the geometry itself, that
is, the pass, the hooks, the pooling and what a monitor keeps of it, takes at most 1.3 times as long as for one block.
The geometry of a block is timed alone, on features that are stored. Processor time, medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm

BLOCKS, WIDTH, LENGTH, CLASSES, PER_CLASS, REPEATS = 12, 192, 64, 10, 20, 5
AT_MOST = 1.3
KINDS = {"labels, default markers": ("default", "mean"), "no labels, markers of language models": ("lm", "last")}


class Transformer(nn.Module):
    """Causal blocks over embedded tokens; the last token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, batch_first=True, norm_first=True) for _ in range(BLOCKS)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x, mask = self.embed(tokens), nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x[:, -1])


def median(function: Callable[[], object]) -> float:
    """Processor seconds, after a first call."""
    function()
    taken = []
    for _ in range(REPEATS):
        start = process_time()
        function()
        taken.append(process_time() - start)
    return statistics.median(taken)


def probe_set(inputs: Tensor, labels: Tensor, kind: str) -> gm.ProbeSet:
    if kind == "lm":
        return gm.ProbeSet.from_unlabelled(TensorDataset(inputs), samples=len(labels))
    return gm.ProbeSet.from_dataset(TensorDataset(inputs, labels), per_class=PER_CLASS)


@torch.no_grad()
def outputs_of(model: Transformer, tokens: Tensor) -> list[Tensor]:
    """What each block gives, ``(B, L, N)``."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, x: found.append(x)) for block in model.blocks]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.arange(CLASSES * PER_CLASS) % CLASSES
    tokens = torch.randint(100, (len(labels), LENGTH)) + 90 * labels[:, None]
    model = Transformer().eval()
    outputs = outputs_of(model, tokens)
    good = True
    print("| | one block | twelve blocks | geometry of one | of twelve | the rest, ratio | at most |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for title, (kind, pool) in KINDS.items():
        probe = probe_set(tokens, labels, kind)

        def measured(blocks: list[int], *, probe: gm.ProbeSet = probe, kind: str = kind, pool: str = pool) -> float:
            layers = {f"block {block}": f"blocks.{block}" for block in blocks}
            monitor = gm.GeometryMonitor(probe, layers=layers, markers=kind, pool=pool, panel=None, on_error="raise")
            return median(lambda: monitor.measure(model, step=0))

        def geometry(block: int, *, probe: gm.ProbeSet = probe, kind: str = kind, pool: str = pool) -> float:
            monitor = gm.GeometryMonitor(
                probe_set(outputs[block], labels, kind),
                layers=":output",
                markers=kind,
                pool=pool,
                panel=None,
                on_error="raise",
            )
            return median(lambda: monitor.measure(nn.Identity(), step=0))

        one, all_of_them = measured([BLOCKS - 1]), measured(list(range(BLOCKS)))
        alone = [geometry(block) for block in range(BLOCKS)]
        ratio = (all_of_them - sum(alone)) / (one - alone[-1])
        good &= ratio <= AT_MOST
        print(
            f"| {title} | {one:.2f} s | {all_of_them:.2f} s | {alone[-1]:.2f} s | {sum(alone):.2f} s | {ratio:.2f} "
            f"| {AT_MOST} |"
        )
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
