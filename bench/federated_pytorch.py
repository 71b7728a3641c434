"""The networks of examples/federated.c in PyTorch: accuracy and time per round beside ours.

    python3 bench/federated_pytorch.py DIR          DIR: of Fashion-MNIST, sh data/fashion.sh

AdamW on 11 x 64 images a round, 500 rounds along a cosine, five seeds, test accuracy after the last one. Ours are 11 clients
whose gradients are averaged; PyTorch takes the 704 images at once. A round's time is the median of five differences between a
long and a short run, on all cores; the peak is that of `./bench/bench FMA`, measured in between. Writes
docs/results/federated_pytorch.csv.  MIT licence.
"""
import glob
import math
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

ROUNDS, BATCH, HELD, RATE, SEEDS = 500, 11 * 64, 5000, 1e-3, range(1, 6)


def idx(name):
    data = np.fromfile(glob.glob(f"{sys.argv[1]}/*{name}-ubyte")[0], np.uint8)
    return data[4 + 4 * data[3]:]


class Affine(nn.Module):
    """Batch norm's scale and shift alone: its statistics stay at 0 and 1"""

    def __init__(self, channels, dimensions):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, *[1] * dimensions))
        self.shift = nn.Parameter(torch.zeros(channels, *[1] * dimensions))

    def forward(self, x):
        return x * self.scale + self.shift


def network(model):
    def dense(width, out):
        return [nn.Linear(width, out), Affine(out, 0), nn.ReLU()]

    if model == "mlp":
        return nn.Sequential(nn.Flatten(), *dense(784, 128), *dense(128, 128), nn.Linear(128, 10))
    return nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), Affine(8, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), Affine(16, 2),
                         nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *dense(400, 120), nn.Linear(120, 10))


def flops(model):
    """Of the products of one image: forward, and twice as many backward but for the first layer's input"""
    layers = {"mlp": [784 * 128, 128 * 128, 1280], "cnn2": [784 * 25 * 8, 100 * 200 * 16, 400 * 120, 1200]}[model]
    return 6 * sum(layers) - 2 * layers[0]


def pytorch(model, seed, rounds):
    """Test accuracy in percent, and the seconds of the training alone"""
    torch.manual_seed(seed)
    net = network(model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0)
    mine, start = torch.randperm(len(train))[HELD:], time.perf_counter()
    for r in range(rounds):
        at = r % (len(mine) // BATCH) * BATCH
        if at == 0:
            mine = mine[torch.randperm(len(mine))]
        some = mine[at:at + BATCH]
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * r / rounds))
        loss = nn.functional.cross_entropy(net(train[some]), train_labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = torch.cat([net(x).argmax(1) for x in test.split(1000)]) == test_labels
    return 100 * right.float().mean().item(), seconds


def ours(model, seed, rounds):
    command = ["examples/federated", "--data", sys.argv[1], "--quiet", "--test", "--model", model, "--method", "adamw", "--lr", str(RATE),
               "--aux-lr", str(RATE), "--micro", "1", "--seed", str(seed), "--rounds", str(rounds), "--eval-every", str(rounds)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(words[words.index("last") + 1]), float(words[words.index("seconds") + 1])


def images(name):
    return torch.from_numpy(idx(name).reshape(-1, 1, 28, 28)).float() / 127.5 - 1


train, test = images("train-images-idx3"), images("t10k-images-idx3")
train_labels, test_labels = (torch.from_numpy(idx(f"{part}-labels-idx1")).long() for part in ("train", "t10k"))
torch.set_num_threads(os.cpu_count())
lines = ["model,program,accuracy,deviation,ms_per_round,percent_of_peak"]
for model in "cnn2", "mlp":
    for name, run in ("examples/federated", ours), (f"PyTorch {torch.__version__}", pytorch):
        accuracy = [run(model, seed, ROUNDS)[0] for seed in SEEDS]
        bench = subprocess.run(["./bench/bench", "FMA"], check=True, capture_output=True, text=True).stdout
        peak = max(float(x) for line in bench.split("\n") if "FMA fp32" in line for x in line.split("|")[4:8:3] if x.strip())
        seconds = statistics.median((run(model, 1, 120)[1] - run(model, 1, 20)[1]) / 100 for _ in range(5))
        percent = 100 * flops(model) * BATCH / seconds / (peak * 1e9)
        lines.append(f"{model},{name},{statistics.mean(accuracy):.2f},{statistics.stdev(accuracy):.2f},{1000 * seconds:.1f},{percent:.0f}")
        print(lines[-1])
with open("docs/results/federated_pytorch.csv", "w") as table:
    print("\n".join(lines), file=table)
