"""GPT-2 as nanoGPT writes it, and safetensors files by hand: the oracle of the C code.

Shapes: B sequences, T positions, C channels, V tokens. Only torch, numpy and the standard library.
MIT licence.
"""
import json
import math
import struct

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64,
          "U8": np.uint8, "U32": np.uint32, "U64": np.uint64}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def load(path):
    """(name -> array, metadata) of a safetensors file."""
    with open(path, "rb") as file:
        raw = file.read()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    meta = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, meta


def save(path, arrays, meta):
    """Writes arrays in their order; equal arguments give equal bytes."""
    header, offset = {"__metadata__": meta}, 0
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())


class LayerNorm(nn.Module):
    """torch's LayerNorm with an optional bias."""

    def __init__(self, C, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.bias = nn.Parameter(torch.zeros(C)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, heads, C, bias):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(C, 3 * C, bias)
        self.c_proj = nn.Linear(C, C, bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, self.heads, C // self.heads).transpose(1, 2)
                   for y in self.c_attn(x).split(C, 2))          # B, heads, T, C / heads
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # before PyTorch 2
            scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)
            later = torch.ones(T, T, dtype=torch.bool).triu(1)
            y = scores.masked_fill(later, -math.inf).softmax(3) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C, bias):
        super().__init__()
        self.c_fc = nn.Linear(C, 4 * C, bias)
        self.c_proj = nn.Linear(4 * C, C, bias)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, heads, C, bias):
        super().__init__()
        self.ln_1 = LayerNorm(C, bias)
        self.attn = Attention(heads, C, bias)
        self.ln_2 = LayerNorm(C, bias)
        self.mlp = MLP(C, bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, layers, heads, width, context, vocab, bias=False):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab, width),
            "wpe": nn.Embedding(context, width),
            "h": nn.ModuleList(Block(heads, width, bias) for _ in range(layers)),
            "ln_f": LayerNorm(width, bias),
        })
        self.lm_head = nn.Linear(width, vocab, False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, inputs, targets=None):
        """(B,T) tokens -> logits (B,T,V) and the mean loss over the targets that are not -1."""
        x = self.transformer.wte(inputs) + self.transformer.wpe.weight[:inputs.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
