"""Seconds of a training step of the same GPT in PyTorch: the median of STEPS, forward, backward, AdamW.

    python3 bench/pytorch.py LAYERS HEADS WIDTH CONTEXT BATCH VOCABULARY fp32|bf16 THREADS STEPS

Eager, as nanoGPT runs on a CPU, with PyTorch's own attention and fused AdamW where it has them. bf16 is autocast.
Called by bench/bench.  MIT licence.
"""
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "test"))
import torch

import gpt

layers, heads, width, context, batch, vocabulary = map(int, sys.argv[1:7])
bf16, threads, steps = sys.argv[7] == "bf16", int(sys.argv[8]), int(sys.argv[9])
torch.set_num_threads(threads)
torch.manual_seed(1)
model = gpt.GPT(layers, heads, width, context, vocabulary)
try:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
except (RuntimeError, TypeError):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
tokens = torch.randint(vocabulary, (batch, context + 1))
times = []
for _ in range(steps + 2):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.append(time.perf_counter() - start)
times = sorted(times[2:])
print(torch.__version__, times[len(times) // 2])
