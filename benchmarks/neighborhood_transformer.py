"""The neighborhood networks against a plain implementation of the same arithmetic.

    python benchmarks/neighborhood_transformer.py

The plain one projects the features of every neighbor of every cell, pads a batch of cells as they come to its largest
neighborhood, computes all rows of the last block, and adds positions to keys and values as whole tensors. Ours
projects each cell of a batch once, predicts cells place by place, trains on batches of small blocks of neighbors, and
computes what is read. Both have the same weights; that they give the same labels is checked. Cells are simulated, 50 to
a neighborhood, with 1,280 random features, as many as EfficientNet-lite0 has.

Ours and the plain one take turns in one process; medians over the runs. The ratio is that of cells a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nichekd as nk
from nichekd.models import NeighborhoodConfig, NeighborhoodIndex, NeighborhoodPooling
from nichekd.models._distillation import distillation_loss
from nichekd.models._neighborhood_transformer import neighborhood_network
from nichekd.tl._batches import spatial_batches
from nichekd.tl._prediction import predict_logits

N_FEATURES, K, BATCH = 1280, 10, 256
RESULTS = Path(__file__).parent / "results"


class Ours(nn.Module):
    """Backbone and head."""

    def __init__(self, preset) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = neighborhood_network(NeighborhoodConfig.preset(preset, N_FEATURES))
        self.head = nn.Linear(self.backbone.config.d_model, K)

    def forward(self, batch) -> Tensor:
        return self.head(self.backbone(batch))


class Plain(nn.Module):
    """The same weights, read the long way."""

    def __init__(self, ours: Ours) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, features: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        net = self.ours.backbone
        compute = self.pooling if isinstance(net, NeighborhoodPooling) else self.transformer
        return self.ours.head(compute(net, features, offset, mask))

    @staticmethod
    def transformer(net, features: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        x = net.project(features) + net.project_offset(net.encode_offset(offset))  # (B, L, d)
        x = torch.cat([net.cls.expand(len(x), 1, -1), x], dim=1)
        mask = F.pad(mask, (1, 0), value=True)[:, None, None, :]
        for block in net.blocks:
            x = block(x, x, mask)
        return net.norm(x)[:, 0]

    @staticmethod
    def pooling(net, features: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        cells = net.project(features)  # (B, L, d)
        cells = cells + net.cell_mlp(cells)
        normed, position = net.norm_cell(cells), net.encode_offset(offset)
        key, value = net.key_value(normed).chunk(2, -1)
        key = key + position @ net.offset_key.flatten(0, 1).T
        value = value + position @ net.offset_value.flatten(0, 1).T

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (net.n_heads, -1)).transpose(1, 2)

        query = heads(net.query(normed[:, :1]))
        pooled = F.scaled_dot_product_attention(query, heads(key), heads(value), attn_mask=mask[:, None, None, :])
        x = cells[:, 0] + net.out(pooled.transpose(1, 2).flatten(-2)[:, 0])
        for block in net.blocks:
            x = x + block(x)
        return net.norm(x)


def plain_batch(index: NeighborhoodIndex, features: np.ndarray, cells: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Features of every neighbor, (B, L, F), offsets and mask."""
    token, mask = index.tokens(cells)
    offset = ((index.xy[token] - index.xy[cells][:, None]) / index.radius).astype(np.float32)
    return torch.from_numpy(features[token]), torch.from_numpy(offset), torch.from_numpy(mask)


def simulated(n_cells: int) -> tuple[NeighborhoodIndex, np.ndarray]:
    adata = nk.datasets.simulate(n_cells, image=False)["table"]
    nk.pp.neighborhoods(adata)
    index = NeighborhoodIndex.from_graph(
        adata.obsp["spatial_connectivities"], adata.obsm["spatial"], adata.uns["nichekd"]["radius"]
    )
    return index, np.random.default_rng(0).normal(size=(n_cells, N_FEATURES)).astype(np.float32)


def where(ours: Ours) -> torch.device:
    """The device that the network is on."""
    return next(ours.parameters()).device


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def prediction(ours: Ours, index, features, cells) -> dict:
    """Cells a second: ours over the whole tissue, the plain one over ``cells``, of which it takes as long for each."""
    plain, device = Plain(ours), where(ours)
    start = clock(device)
    logits = predict_logits(ours, index, features, device=device)
    middle = clock(device)
    with torch.inference_mode():
        parts = np.array_split(cells, -(-len(cells) // BATCH))
        batches = (plain_batch(index, features, part) for part in parts)
        expected = torch.cat([plain(*(x.to(device) for x in batch)).cpu() for batch in batches]).numpy()
    end = clock(device)
    return {
        "ours": len(logits) / (middle - start),
        "plain": len(cells) / (end - middle),
        "same_labels": bool((logits[cells].argmax(1) == expected.argmax(1)).all()),
        "largest_difference": float(np.abs(logits[cells] - expected).max()),
    }


def training(ours: Ours, index, features, n_steps: int) -> dict:
    """Cells a second of ``n_steps`` gradient steps of both, batches drawn as each draws them."""
    rng, device = np.random.default_rng(0), where(ours)
    target = torch.randn(BATCH * 2, K, device=device)
    plain = Plain(ours)
    shuffled = rng.permutation(len(index.xy))
    drawn = {
        "ours": list(spatial_batches(index.xy, np.arange(len(index.xy)), BATCH, rng))[:n_steps],
        "plain": [shuffled[i * BATCH : (i + 1) * BATCH] for i in range(n_steps)],
    }
    forward = {
        "ours": lambda cells: ours(index.batch(cells, features).to(device)),
        "plain": lambda cells: plain(*(x.to(device) for x in plain_batch(index, features, cells))),
    }
    speed = {}
    for method, batches in drawn.items():
        optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-6)
        start = clock(device)
        for cells in batches:
            loss = distillation_loss(forward[method](cells), target[: len(cells)], 1.0)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        speed[method] = sum(map(len, batches)) / (clock(device) - start)
    return speed


def compare(preset: str, arguments: argparse.Namespace) -> dict:
    index, features = simulated(arguments.cells)
    ours = Ours(preset).to(arguments.device)
    cells = np.random.default_rng(1).permutation(arguments.cells)[: arguments.predict]
    prediction(ours, index, features, cells[:BATCH])  # first touches of memory and threads
    row: dict = {"preset": preset, "mean_tokens": float(index.sizes.mean()), "runs": []}
    for _ in range(arguments.runs):
        run = {
            "predict": prediction(ours, index, features, cells),
            "train": training(ours, index, features, arguments.steps),
        }
        row["runs"].append(run)
        print(preset, run, flush=True)
    for stage in ("predict", "train"):
        for method in ("ours", "plain"):
            row[f"{stage}_{method}"] = median(run[stage][method] for run in row["runs"])
        row[f"{stage}_ratio"] = median(run[stage]["ours"] / run[stage]["plain"] for run in row["runs"])
    row["same_labels"] = all(run["predict"]["same_labels"] for run in row["runs"])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=6000, help="cells of the tissue")
    parser.add_argument("--predict", type=int, default=2048, help="cells that the plain one predicts")
    parser.add_argument("--steps", type=int, default=6, help="gradient steps a run")
    parser.add_argument("--runs", type=int, default=3, help="the median is reported")
    parser.add_argument("--presets", nargs="+", default=["small", "pooling"])
    parser.add_argument("--device", default="cpu", help='e.g. "cuda"')
    parser.add_argument("--out", type=Path, default=RESULTS / "neighborhood_transformer.json")
    arguments = parser.parse_args()
    nk.settings.progress = False
    rows = [compare(preset, arguments) for preset in arguments.presets]
    result = {
        "command": f"python benchmarks/neighborhood_transformer.py --cells {arguments.cells} --predict "
        f"{arguments.predict} --steps {arguments.steps} --runs {arguments.runs}",
        "device": arguments.device,
        "n_features": N_FEATURES,
        "batch": BATCH,
        "n_cpus": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("nichekd", "torch", "numpy")},
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| preset  | predict, cells/s: plain | ours |  ratio | train, cells/s: plain | ours |  ratio | same labels |")
    print("|---------|------------------------:|-----:|-------:|----------------------:|-----:|-------:|:-----------:|")
    for r in rows:
        print(
            f"| {r['preset']:7} | {r['predict_plain']:23.0f} | {r['predict_ours']:4.0f} | {r['predict_ratio']:5.1f}× "
            f"| {r['train_plain']:21.0f} | {r['train_ours']:4.0f} | {r['train_ratio']:5.1f}× "
            f"| {'yes' if r['same_labels'] else 'NO':^11} |"
        )


if __name__ == "__main__":
    main()
