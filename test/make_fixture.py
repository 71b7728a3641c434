"""Writes fixture.safetensors beside itself: PyTorch's numbers for two tiny models and optimizers.

    python3 make_fixture.py

Everything is computed in float64 from inputs that are exact in float32, and stored as float32
(losses as float64, to 12 decimals), so that the file comes out the same again. No dimension equals
another one that it could be mistaken for.  MIT licence.
"""
import os

import numpy as np
import torch
import torch.nn.functional as F

import gpt

MODELS = {
    "a": dict(layers=2, heads=3, width=24, context=10, vocab=17, bias=False),
    "b": dict(layers=1, heads=2, width=16, context=7, vocab=11, bias=True),
}
BATCH = {"a": 2, "b": 3}
SHAPES = [(24, 16), (16, 24), (20, 20)]
JORDAN = (3.4445, -4.7750, 2.0315)


def normal(*shape):
    """float64 numbers that float32 holds exactly"""
    return torch.randn(*shape, dtype=torch.float64).float().double()


def f32(tensor):
    return tensor.detach().float().numpy()


def model_numbers(prefix, config, batch):
    model = gpt.GPT(**config).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_gain = ".ln_" in name and name.endswith("weight")
            p.copy_(((1 + 0.1 * normal(*p.shape)) if is_gain else 0.2 * normal(*p.shape)).float())
    inputs = torch.randint(config["vocab"], (batch, config["context"]))
    targets = torch.randint(config["vocab"], (batch, config["context"]))
    if prefix == "b":
        targets[0, 2] = targets[1, -1] = targets[2, 0] = targets[2, 3] = -1
    logits, loss = model(inputs, targets)
    loss.backward()
    out = {"inputs": inputs.numpy().astype(np.int32), "targets": targets.numpy().astype(np.int32),
           "logits": f32(logits), "loss": np.float64(round(loss.item(), 12))}
    for name, p in model.named_parameters():
        out[name] = f32(p)
        out["grad." + name] = f32(p.grad)
    return {f"{prefix}.{name}": array for name, array in out.items()}


def cnn2_numbers(images=5, width=2, shape=(3, 18, 20), classes=7):
    """examples/federated.c's cnn2: layer k has k.weight (out, fan_in), k.bias, k.scale and k.shift"""
    sizes = [(width, shape[0] * 25), (2 * width, width * 25), (120, 2 * width * 2 * 3), (classes, 120)]
    parameters = {}
    for k, (out, fan_in) in enumerate(sizes):
        parameters[f"{k}.weight"] = normal(out, fan_in) / fan_in**0.5
        parameters[f"{k}.bias"] = normal(out)
        if k < 3:
            parameters |= {f"{k}.scale": 1 + 0.2 * normal(out), f"{k}.shift": 0.2 * normal(out)}
    p = {name: torch.nn.Parameter(value.float().double()) for name, value in parameters.items()}
    inputs, labels = normal(images, *shape), torch.randint(classes, (images,))
    x = inputs
    for k in range(3):
        weight = p[f"{k}.weight"]
        if k < 2:
            x = F.conv2d(x, weight.view(len(weight), -1, 5, 5), p[f"{k}.bias"], padding=2 if k == 0 else 0)
            x = F.relu(x * p[f"{k}.scale"][:, None, None] + p[f"{k}.shift"][:, None, None])
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(F.linear(x.flatten(1), weight, p["2.bias"]) * p["2.scale"] + p["2.shift"])
    loss = F.cross_entropy(F.linear(x, p["3.weight"], p["3.bias"]), labels, reduction="sum")
    loss.backward()
    out = {"inputs": f32(inputs), "labels": labels.numpy().astype(np.int32), "loss": np.float64(round(loss.item(), 12))}
    for name, value in p.items():
        out |= {name: f32(value), "grad." + name: f32(value.grad)}
    return {f"cnn2.{name}": array for name, array in out.items()}


def newton_schulz(g, steps, coefficients):
    """Muon's quintic iteration: Jordan et al. 2024."""
    a, b, c = coefficients
    x = g.mT if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if g.shape[0] > g.shape[1] else x


def polar_numbers():
    out = {}
    for i, shape in enumerate(SHAPES):
        g = normal(*shape)
        u, _, v = torch.linalg.svd(g, full_matrices=False)
        out[f"polar.{i}.in"] = f32(g)
        out[f"polar.{i}.out"] = f32(u @ v)
        out[f"ns_jordan.{i}.out"] = f32(newton_schulz(g, 5, JORDAN))
    return out


def adamw_numbers(n=40, steps=5):
    p, g = torch.nn.Parameter(normal(n)), normal(steps, n)
    out = {"adamw.p0": f32(p), "adamw.g": f32(g)}
    optimizer = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    after = []
    for step in range(steps):
        p.grad = g[step].clone()
        optimizer.step()
        after.append(p.detach().clone())
    out["adamw.p"] = f32(torch.stack(after))
    return out


def main():
    torch.manual_seed(20)
    torch.set_num_threads(1)
    arrays, meta = {}, {}
    for prefix, config in MODELS.items():
        arrays |= model_numbers(prefix, config, BATCH[prefix])
        meta |= {f"{prefix}.{key}": str(int(value)) for key, value in config.items()}
        meta[f"{prefix}.batch"] = str(BATCH[prefix])
    arrays |= polar_numbers() | adamw_numbers() | cnn2_numbers()
    # eight-byte numbers first, so that every tensor is aligned
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixture.safetensors")
    gpt.save(path, arrays, meta)
    print(f"{path}: {len(arrays)} tensors, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
