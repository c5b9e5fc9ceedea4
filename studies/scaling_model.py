"""An analytic model of what a step's reductions cost from 8 to 1024 GPUs. Nothing here is a measurement.

    python studies/scaling_model.py                          # the tables
    python studies/scaling_model.py --plot figure.png        # matplotlib is needed for this alone
    python studies/scaling_model.py --bucket-mb 200 --nics 8 4 1 --passes 1 8

This project has not run on a GPU. The model adds up latencies, bytes over NVLink, bytes over network cards (NICs) and
passes over memory, with constants that are public figures for H100 nodes or estimates that are called so (`Constants`).

Compared per bucket and per step:

    plain       DDP's all-reduce, by the fastest of `Network.ALL_REDUCES`
    exact       all-to-all, partial Gramian, all-gather of partial Gramians, solve, combination, all-gather of shards
    sketch      sketch, all-reduce of the sketches, solve, scaling, all-reduce of the bucket. With lag 1 the weights
                are those of the step before: all-reduces of the sketches and solves come after the step's last bucket,
                and their latency is taken to be over before the next step's first bucket is ready
    all_gather  every rank gets every gradient

and, for steps of one pass and of several, the layouts of objectives of scaling/layouts.py. Their path on the device is
being written: what is counted for them is a plan.

Assumptions: a bucket's stages and the buckets follow each other, on one stream; within a collective NVLink and NICs
work at the same time and the slower one counts; every collective reaches the bandwidth of large messages once its
latency is over; the ranks of a node are neighbours.

Left out: any other overlap with the backward pass, congestion and oversubscription of the fabric, stragglers, SHARP in
network switches, NCCL's use of SMs beside kernels, DDP's copies into buckets and its first small bucket, the first
step.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scaling.choices import choice_rows
from scaling.constants import TREE_SHARES, Constants
from scaling.figure import plot
from scaling.layout_tables import print_layout_tables
from scaling.layouts import Layouts, layout_row
from scaling.public_figures import public_rows
from scaling.reductions import Reductions
from scaling.setup import Setup
from scaling.tables import print_bandwidths, print_ways

DEFAULT_GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
DEFAULT_NICS = (8, 4, 1)
DEFAULT_PASSES = (1, 4)


def model_rows(base: Setup, gpus: Iterable[int], nics: Iterable[int]) -> list[dict[str, Any]]:
    """One row for every number of NICs and GPUs: steps of all ways, and the all-reduce that plain takes."""
    rows = []
    for nic in nics:
        for world in gpus:
            setup = replace(base, gpus=world, nics_per_node=nic)
            reductions = Reductions(setup)
            steps = reductions.steps()
            plain = steps["plain"].total_us
            rows.append(
                {
                    "gpus": world,
                    "nics_per_node": nic,
                    "plain_algorithm": reductions.network.all_reduce(setup.bucket_bytes)[0],
                    "sketch_algorithm": reductions.network.all_reduce(setup.sketch_bytes)[0],
                    "ways": {
                        name: {
                            **asdict(cost),
                            "ms": cost.total_us / 1e3,
                            "ratio": cost.total_us / plain,
                            "hbm_passes": cost.hbm_bytes / setup.gradient_bytes,
                        }
                        for name, cost in steps.items()
                    },
                }
            )
    return rows


def layout_rows(
    base: Setup, gpus: Iterable[int], nics: Iterable[int], passes: Iterable[int], summed: bool = False
) -> list[dict[str, Any]]:
    """One row for every number of passes, NICs and GPUs: steps in all layouts of objectives."""
    machines = [replace(base, gpus=world, nics_per_node=nic) for nic in nics for world in gpus]
    return [layout_row(Layouts(machine, count, summed)) for count in passes for machine in machines]


def main(arguments: list[str] | None = None) -> None:
    """Prints the tables; writes JSON and a figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=list(DEFAULT_GPUS))
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--nics", type=int, nargs="+", default=list(DEFAULT_NICS), help="NICs a node (default 8 4 1)")
    parser.add_argument(
        "--passes", type=int, nargs="+", default=list(DEFAULT_PASSES), help="backward passes of a step (default 1 4)"
    )
    parser.add_argument("--objectives", type=int, default=8, help="K (default 8)")
    parser.add_argument("--gradient-gb", type=float, default=2.0, help="10^9 bytes of gradients (default 2)")
    parser.add_argument("--bucket-mb", type=float, default=25.0, help="2^20 bytes of a bucket, as for DDP (default 25)")
    parser.add_argument("--dtype-bytes", type=int, default=2, help="of a gradient (default 2)")
    parser.add_argument("--sketch-columns", type=int, default=16384)
    parser.add_argument("--json", type=Path, help="write figures and constants to this file")
    parser.add_argument("--plot", type=Path, help="draw the first and the last number of NICs into this PNG")
    options = parser.parse_args(arguments)

    try:
        base = Setup(
            gpus=options.gpus[0],
            gpus_per_node=options.gpus_per_node,
            nics_per_node=options.nics[0],
            objectives=options.objectives,
            gradient_bytes=options.gradient_gb * 1e9,
            bucket_bytes=options.bucket_mb * 2**20,
            dtype_bytes=options.dtype_bytes,
            sketch_columns=options.sketch_columns,
        )
        rows = model_rows(base, options.gpus, options.nics)
        layouts = layout_rows(base, options.gpus, options.nics, options.passes)
    except ValueError as error:
        parser.error(str(error))
    both_nics = (options.nics[0], options.nics[-1])
    choices = choice_rows(base, options.gpus, both_nics)
    print_ways(base, rows)
    print_layout_tables(base, layouts, layout_rows(base, options.gpus, options.nics[:1], (1,), summed=True), choices)
    print_bandwidths()
    if options.json:
        document = {
            "what": "studies/scaling_model.py: a model, not a measurement; nothing of this project has run on a GPU",
            "setup": {name: value for name, value in asdict(base).items() if name not in ("gpus", "nics_per_node")},
            "constants": asdict(Constants()),
            "tree_shares": TREE_SHARES,
            "public_figures": public_rows(),
            "rows": rows,
            "layouts": layouts,
            "choices": choices,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        plot(rows, layouts, both_nics, base, options.plot)


if __name__ == "__main__":
    main()
