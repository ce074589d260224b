"""Fibers of the network of examples/mnist_collapse.py, before and after, healthy and collapsed: docs/fibers.md.

python benchmarks/fibers.py --seeds 0 1 2 --prior prior.pt --output benchmarks/fibers.json

With ``--prior`` a file that does not exist the prior is trained first and saved there.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from fibers_mnist import places_of, prior_images, probe_images, train  # noqa: E402
from mnist_collapse import DigitNet, load_data  # noqa: E402

from geomonitor.explain import FlowPrior, compare_fibers, layer_features, sample_fibers, train_prior  # noqa: E402
from geomonitor.explain.comparison import Comparison, features_of  # noqa: E402
from geomonitor.explain.fiber_markers import nearest, pair_distances, pair_scale  # noqa: E402
from geomonitor.explain.prior_training import SmallUNet, small_prior  # noqa: E402

PER_CLASS, MEMBERS = 4, 5
"""24 representatives, 120 members of fibers at each strength."""
LOSS = 0.002
"""At which the specification compares, beside the loss that ``compare_fibers`` chooses."""


def prior_of(path: Path, data: Any) -> tuple[FlowPrior, float]:
    """The prior in a file, and the seconds that its training took if it was trained now."""
    started = time.process_time()
    if not path.exists():
        torch.save(train_prior(prior_images(data)).network.state_dict(), path)
    network = SmallUNet(1, 32)
    network.load_state_dict(torch.load(path, weights_only=True))
    return small_prior(network.eval(), (1, 14, 14), low=0.0, high=1.0), time.process_time() - started


def study(  # noqa: PLR0917
    seed: int, prior: FlowPrior, data: Any, images: Tensor, labels: Tensor, pictures: Path | None
) -> Any:
    """All numbers of one seed."""
    places = places_of(labels, PER_CLASS)
    faulty, healthy = train(data, seed, faulty=True), train(data, seed, faulty=False)
    model = DigitNet(faulty=False)
    row: dict[str, Any] = {"accuracy": {"collapsed": faulty.accuracy, "healthy": healthy.accuracy}}
    with layer_features(model, weights=faulty.before) as before:
        row["baselines"] = baselines(before, prior, images, labels, places)
        for name, run in {"collapsed": faulty, "healthy": healthy}.items():
            with layer_features(model, weights=run.end) as after:
                found = compare_fibers(before, after, prior, images, places, per_input=MEMBERS)
            row[name] = numbers(found)
            print(seed, name, found.sentence, flush=True)
            if name == "collapsed" and pictures is not None:
                from geomonitor.plots.fibers import plot_fibers

                plot_fibers(found).savefig(pictures / f"fibers_seed{seed}.png", dpi=110)
    return row


def baselines(before: Any, prior: FlowPrior, images: Tensor, labels: Tensor, places: Tensor) -> dict[str, Any]:
    """Real images, the prior alone, and both variants of guidance on the network before the fault."""
    points = features_of(before, images)
    scale = pair_scale(points)
    real = torch.cdist(points[places].double(), points.double()).square() / scale
    same = (labels[places][:, None] == labels[None, :]) & (torch.arange(len(labels)) != places[:, None])
    own = nearest(points[places], points, excluded=places).squared_distance / scale
    found: dict[str, Any] = {
        "random": real.mean().item(), "same class": real[same].median().item(), "nearest real": own.median().item(),
    }  # fmt: skip
    variants: dict[str, dict[str, Any]] = {
        "prior alone": {"strength": 0.0},
        **{f"gradient {g:g}": {"strength": g, "optimiser": "gradient"} for g in (0.1, 0.3, 1.0)},
        "adam 10": {"strength": 10.0, "optimiser": "adam"},
        "normalised 10": {"strength": 10.0},
        "normalised 10, per step": {"strength": 10.0, "target": "per_step"},
    }
    for name, settings in variants.items():
        started, processor = time.perf_counter(), time.process_time()
        fibers = sample_fibers(before, prior, images[places], ids=places, per_input=2, scale=scale, **settings)
        found[name] = {
            "loss": fibers.relative_loss.median().item(),
            "below the nearest real": (fibers.relative_loss < own[:, None]).double().mean().item(),
            "diversity": pair_distances(fibers.samples).mean().item(),
            "seconds": time.perf_counter() - started,
            "processor seconds": time.process_time() - processor,
        }
        print(name, found[name], flush=True)
    return found


def numbers(found: Comparison) -> dict[str, Any]:
    """What is kept of a comparison."""
    from geomonitor.explain.fiber_markers import Ladder, diversity_at, diversity_change

    ladders = [Ladder.of(side.fibers) for side in (found.before, found.after)]
    kept: dict[str, Any] = {"loss": found.loss, "note": found.note, "sentence": found.sentence}
    kept["markers"] = {name: [e.value, e.standard_error] for name, e in found.markers.items()}
    kept[f"at {LOSS}"] = {
        "before": diversity_at(found.before.fibers, LOSS)[:2], "after": diversity_at(found.after.fibers, LOSS)[:2],
        "change": diversity_change(*ladders, LOSS)[:2],
    }  # fmt: skip
    for name, side in {"before": found.before, "after": found.after}.items():
        kept[name] = {
            "nearest real": side.neighbour_losses.median().item(),
            "strengths": [fibers.strength for fibers in side.fibers],
            "losses": [fibers.relative_loss.nanmedian().item() for fibers in side.fibers],
            "below the nearest real": [
                (fibers.relative_loss < side.neighbour_losses[:, None]).double().mean().item() for fibers in side.fibers
            ],
            "diversities": [pair_distances(fibers.samples).nanmean().item() for fibers in side.fibers],
            "not finite": [int(fibers.relative_loss.isnan().sum()) for fibers in side.fibers],
        }
    return kept


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prior", type=Path, default=Path("fibers_prior.pt"))
    parser.add_argument("--output", type=Path, default=Path("fibers.json"), help="seeds that are in it are kept")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = load_data()
    images, labels = probe_images(data)
    prior, _ = prior_of(options.prior, data)
    for seed in options.seeds:
        started = time.process_time()
        row = study(seed, prior, data, images, labels, options.pictures)
        row["processor seconds"] = time.process_time() - started
        rows = json.loads(options.output.read_text()) if options.output.exists() else {}
        rows[str(seed)] = row
        options.output.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
