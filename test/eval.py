"""Validation loss of a checkpoint, computed by PyTorch.

    python3 test/eval.py OUT/last TEXT [NEW.safetensors]

Reads OUT/last/model.safetensors and the file TEXT, and evaluates the last 10 % of the text in
consecutive windows, the partial last one included, so that each of the n - 1 predictions counts
once. Prints `val_loss X.XXXXXX`, in nats per character. NEW receives the model as PyTorch holds it,
for --init.  MIT licence.
"""
import os
import sys

import torch
from torch.nn import functional as F

import gpt


def build(arrays, meta):
    wte, wpe = arrays["transformer.wte.weight"], arrays["transformer.wpe.weight"]
    arrays.setdefault("lm_head.weight", wte)  # tied to the embedding
    layers = len({name.split(".")[2] for name in arrays if name.startswith("transformer.h.")})
    model = gpt.GPT(layers, int(meta["heads"]), wte.shape[1], wpe.shape[0], wte.shape[0],
                    "transformer.ln_f.bias" in arrays)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return model.eval(), wpe.shape[0], wte.shape[0]


def read_tokens(path, vocab):
    """Characters in sorted order are the vocabulary; a character is a byte, or else UTF-8."""
    for encoding in "latin-1", "utf-8":
        with open(path, encoding=encoding, newline="") as file:
            text = file.read()
        characters = sorted(set(text))
        if len(characters) == vocab:
            number = {character: i for i, character in enumerate(characters)}
            return torch.tensor([number[character] for character in text])
    sys.exit(f"eval.py: {path} has {len(characters)} characters, the model knows {vocab}")


@torch.no_grad()
def validate(model, tokens, context, batch=64):
    x, y = tokens[:-1], tokens[1:]
    total, whole = 0.0, len(x) // context * context
    pieces = list(zip(x[:whole].view(-1, context).split(batch),
                      y[:whole].view(-1, context).split(batch)))
    if whole < len(x):
        pieces.append((x[None, whole:], y[None, whole:]))
    for inputs, targets in pieces:
        logits, _ = model(inputs)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        total += losses.double().sum().item()
    return total / len(x)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: eval.py OUT/last TEXT [NEW.safetensors]")
    model, context, vocab = build(*gpt.load(os.path.join(sys.argv[1], "model.safetensors")))
    tokens = read_tokens(sys.argv[2], vocab)
    if len(sys.argv) == 4:
        gpt.save(sys.argv[3], {name: x.numpy() for name, x in model.state_dict().items()}, {})
    print(f"val_loss {validate(model, tokens[int(0.9 * len(tokens)):], context):.6f}")


if __name__ == "__main__":
    main()
