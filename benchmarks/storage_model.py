"""Soft targets of a small trained language model, as material for the storage benchmark.

    python -m benchmarks.storage_model --out build/storage_targets.npz

Trains a byte-pair tokenizer of 32,768 words and a small transformer on the Python sources that the machine has, then
saves top-64 targets of held-out positions. An undertrained model always proposes the same words and makes ids look
cheap, so the entropy of the ids is printed; quote it with every size.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

VOCABULARY = 32_768
TOP_K = 64
TEMPERATURES = (1.0, 1.5, 2.0, 4.0)
CONTEXT = 128
WIDTH = 256
NEGATIVES = 4096


def sources(limit: int) -> Iterator[str]:
    """Python files of the standard library and of the installed packages, in sorted order, `limit` bytes in all."""
    paths = sysconfig.get_paths()
    files = sorted({*Path(paths["stdlib"]).rglob("*.py"), *Path(paths["purelib"]).rglob("*.py")})
    generator = np.random.default_rng(0)
    generator.shuffle(files)
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if 500 < len(text) < 200_000:
            yield text
            limit -= len(text)
        if limit < 0:
            return


class Block(nn.Module):
    """Pre-norm causal attention and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.join = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, _ = hidden.shape
        query, key, value = self.mix(self.first(hidden)).view(rows, length, 3, 8, WIDTH // 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.join(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        result: Tensor = hidden + self.feed(self.second(hidden))
        return result


class Model(nn.Module):
    """A causal transformer with tied embeddings."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.blocks = nn.Sequential(*[Block() for _ in range(layers)])
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.words.weight, std=WIDTH**-0.5)
        nn.init.normal_(self.places.weight, std=WIDTH**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """[rows, length] -> [rows, length, WIDTH]."""
        hidden: Tensor = self.norm(self.blocks(self.words(ids) + self.places.weight[: ids.shape[1]]))
        return hidden


def train(model: Model, ids: Tensor, seconds: float) -> None:
    """Sampled softmax (shared negatives, log-frequency correction) for most of the time, the full one at the end."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.bincount(ids, minlength=VOCABULARY).float() + 1
    log_frequency = (frequency / frequency.sum()).log()
    proposal = frequency**0.75
    proposal /= proposal.sum()
    with torch.no_grad():
        model.bias.copy_(log_frequency)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    start, step, shown = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 - done * 0.97)
        begin = torch.randint(len(ids) - CONTEXT - 1, (16,), generator=generator)
        window = torch.stack([ids[at : at + CONTEXT + 1] for at in begin.tolist()])
        hidden, target = model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()
        if done < 0.85:
            drawn = torch.multinomial(proposal, NEGATIVES, generator=generator)
            correction = (proposal[drawn] * NEGATIVES).log()
            logits = hidden @ model.words.weight[drawn].T + model.bias[drawn] - correction
            own = (hidden * model.words.weight[target]).sum(1) + model.bias[target]
            logits = logits.masked_fill(drawn == target[:, None], -1e9)
            loss = (torch.logsumexp(torch.cat([own[:, None], logits], 1), 1) - own).mean()
        else:
            loss = nn.functional.cross_entropy(hidden @ model.words.weight.T + model.bias, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"{done:5.0%} step {step} loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def targets(model: Model, ids: Tensor, positions: int) -> tuple[dict[str, NDArray[np.generic]], float]:
    """Top-64 targets of consecutive held-out windows in the layout of storage, and the mean loss in nats."""
    parts: dict[str, list[NDArray[np.generic]]] = {}
    losses = []
    for begin in range(0, positions, CONTEXT):
        window = ids[begin : begin + CONTEXT + 1]
        logits = model(window[None, :-1])[0] @ model.words.weight.T + model.bias
        values = logits.double().log_softmax(-1)
        target = window[1:]
        top = values.topk(TOP_K).indices
        missing = ~(top == target[:, None]).any(1)
        top[missing, -1] = target[missing]
        stored = values.gather(1, top)
        order = stored.argsort(dim=1, descending=True, stable=True)
        top, stored = top.gather(1, order), stored.gather(1, order)
        rest = values.scatter(1, top, -math.inf)
        tail = torch.stack([(rest / temperature).logsumexp(1) for temperature in TEMPERATURES], 1)
        own = values.gather(1, target[:, None])[:, 0]
        losses.append(-own.mean().item())
        for name, tensor, dtype in (
            ("ids", top, np.uint32),
            ("logprobs", stored, np.float32),
            ("tail", tail, np.float32),
            ("target_ids", target, np.uint32),
            ("target_logprobs", own, np.float32),
        ):
            parts.setdefault(name, []).append(tensor.numpy().astype(dtype))
    return {name: np.concatenate(arrays)[:positions] for name, arrays in parts.items()}, float(np.mean(losses))


def main() -> None:
    """Train the model, predict, and save the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text-mb", type=float, default=40)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--positions", type=int, default=65_536)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts = list(sources(int(options.text_mb * 1e6)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    streams = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    held_out, kept = streams[: len(streams) // 20], streams[len(streams) // 20 :]
    training, test = (torch.tensor([word for ids in part for word in ids]) for part in (kept, held_out))
    print(f"{len(training):,} training and {len(test):,} held-out tokens, vocabulary {tokenizer.get_vocab_size():,}")
    model = Model()
    train(model, training, options.minutes * 60)
    arrays, loss = targets(model.eval(), test, min(options.positions, len(test) - 1))
    counts = np.bincount(arrays["ids"].ravel().astype(np.int64))
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum() * TOP_K / 8
    print(f"held-out loss {loss:.3f} nats/token; order-0 entropy of the top-{TOP_K} ids {entropy:.1f} bytes/position")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.out, loss=np.array(loss), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
