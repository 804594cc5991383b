"""Do small steps move the weights? AdamW at lr 1e-5 on weights of scale 0.02, kept in different number formats, side by side.

    python -m benchmarks.bf16_updates [--steps 600]

A layer of 512 and one of 256 units with their biases, weights and biases drawn at scale 0.02, learn another such net from
noisy minibatches; one more vector has weights of 1, as norms do. `length` is the distance from the first weights to the last,
`along` the part of it in the direction of the float32 run's, and `apart` the distance between the last weights of both, each divided by
the distance that the float32 run covers. A mode is offered by `student.precision` if length and along are within 5% of 1.

bitsandbytes is required by FirstSight; torchao and torch-optimi are compared if they are installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn

from phase2_student.training.kahan import KahanAdamW8bit

INPUTS, INNER, BATCH, LR = 256, 512, 32, 1e-5
OFFERED = {"float32 AdamW", "Kahan's remainder, 8-bit AdamW"}


@dataclass(frozen=True)
class Mode:
    """A type of weights, an optimiser, and its bytes per weight with weight and bfloat16 or float32 gradient."""

    name: str
    dtype: torch.dtype
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    bytes: float


class StochasticAdamW8bit(KahanAdamW8bit):
    """bitsandbytes' 8-bit AdamW with stochastic rounding instead of a remainder."""

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Tensor, gindex: int, pindex: int) -> None:
        """Step one weight in float32, then round it up or down at random."""
        super().update_step(group, p, gindex, pindex)
        exact = p.float().add_(self.state[p]["remainder"])
        noise = torch.randint(0, 2**16, exact.shape, dtype=torch.int32)
        p.copy_(exact.view(torch.int32).add_(noise).bitwise_and_(-(2**16)).view(torch.float32))
        self.state[p]["remainder"].zero_()


def modes() -> list[Mode]:
    """The modes to compare; the first is the reference."""
    import bitsandbytes

    bf16, fp32 = torch.bfloat16, torch.float32
    options: dict[str, Any] = {"lr": LR, "weight_decay": 0.01}
    found = [
        Mode("float32 AdamW", fp32, lambda p: torch.optim.AdamW(p, **options), 16),
        Mode("float32, 8-bit AdamW of bitsandbytes", fp32, lambda p: bitsandbytes.optim.AdamW8bit(p, **options), 10),
        Mode("Kahan's remainder, 8-bit AdamW", bf16, lambda p: KahanAdamW8bit(p, **options), 8),
        Mode("stochastic rounding, 8-bit AdamW of bitsandbytes", bf16, lambda p: StochasticAdamW8bit(p, **options), 6),
        Mode(
            "plain bfloat16, 8-bit AdamW of bitsandbytes", bf16, lambda p: bitsandbytes.optim.AdamW8bit(p, **options), 6
        ),
        Mode("plain bfloat16 AdamW", bf16, lambda p: torch.optim.AdamW(p, **options), 8),
    ]
    if importlib.util.find_spec("optimi"):
        from optimi import AdamW

        kahan = {**options, "betas": (0.9, 0.999), "eps": 1e-8}
        found.append(Mode("Kahan, AdamW of torch-optimi", bf16, lambda p: AdamW(p, **kahan), 10))
    if importlib.util.find_spec("torchao"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from torchao.optim import AdamW8bit

        class Eager(AdamW8bit):  # type: ignore[misc]
            """Runs without compilation, which would compile one kernel per shape."""

            def step(self, closure: Any = None) -> Any:
                with torch.compiler.set_stance("force_eager"):
                    return super().step(closure)

        found.append(
            Mode(
                "stochastic rounding, 8-bit AdamW of torchao",
                bf16,
                lambda p: Eager(p, **options, bf16_stochastic_round=True),
                6,
            )
        )
    return found


class Net(nn.Module):
    """Two layers and a vector of scales near 1."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(INPUTS, INNER), nn.Linear(INNER, INPUTS)
        self.scale = nn.Parameter(torch.ones(INPUTS))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_((1.0 if name == "scale" else 0.0) + noise)
            self.to(torch.bfloat16).to(torch.float32)  # every mode begins with the same numbers

    def forward(self, x: Tensor) -> Tensor:
        """Computed in the type of x, whatever the weights are kept in."""
        hidden = nn.functional.gelu(nn.functional.linear(x, self.first.weight.to(x.dtype), self.first.bias.to(x.dtype)))
        out = nn.functional.linear(hidden, self.second.weight.to(x.dtype), self.second.bias.to(x.dtype))
        return out * self.scale.to(x.dtype)


def train(mode: Mode, steps: int, noise: float, accumulation: int) -> tuple[dict[str, Tensor], float]:
    """The displacement of every parameter over a run, and the seconds of the run."""
    torch.manual_seed(0)
    net, goal = Net(0).to(mode.dtype), Net(1)
    begin = {name: p.detach().float().clone() for name, p in net.named_parameters()}
    optimizer = mode.optimizer(list(net.parameters()))
    generator = torch.Generator().manual_seed(2)
    started = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulation):
            x = torch.randn(BATCH // accumulation, INPUTS, generator=generator)
            y = goal(x).detach() + noise * torch.randn(x.shape, generator=generator)
            loss = nn.functional.mse_loss(net(x.bfloat16()).float(), y)
            (loss / accumulation).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.perf_counter() - started
    ways = {}
    for name, parameter in net.named_parameters():
        state = optimizer.state[parameter]
        rest = state.get("remainder", state.get("kahan_comp", 0.0))  # torch-optimi's name for it
        ways[name] = parameter.detach().float() + rest - begin[name]
    return ways, seconds


def joined(ways: dict[str, Tensor], part: str) -> Tensor:
    """The displacements of a group of parameters as one vector."""
    groups = {"matrices": ("weight",), "biases": ("bias",), "scales near 1": ("scale",)}
    return torch.cat([way.flatten() for name, way in ways.items() if name.endswith(groups[part])])


@click.command()
@click.option("--steps", default=600)
@click.option("--threads", default=2)
def main(steps: int, threads: int) -> None:
    """Print one Markdown table per noise and number of micro-batches."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} steps")
    for noise, accumulation in ((0.0, 1), (0.3, 1), (0.3, 8)):
        print(f"\nNoise {noise:g}, {accumulation} micro-batch{'es' if accumulation > 1 else ''} per step\n")
        print("| weights and optimiser | bytes | matrices moved | length | along | apart | biases: length | along "
              "| scales: length | along | ms per step | |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        reference: dict[str, Tensor] | None = None
        for mode in modes():
            ways, seconds = train(mode, steps, noise, accumulation)
            reference = reference or ways
            cells, fits = [], True
            for part in ("matrices", "biases", "scales near 1"):
                way, goal = joined(ways, part), joined(reference, part)
                length, along = float(way.norm() / goal.norm()), float(way @ goal / goal.norm() ** 2)
                fits = fits and abs(length - 1) <= 0.05 and abs(along - 1) <= 0.05
                if part == "matrices":
                    cells += [f"{float((way != 0).float().mean()):.1%}"]
                cells += [f"{length:.3f}", f"{along:.3f}"]
                if part == "matrices":
                    cells += [f"{float((way - goal).norm() / goal.norm()):.3f}"]
            verdict = ("offered" if mode.name in OFFERED else "fits") if fits else "does not fit"
            row = [mode.name, f"{mode.bytes:g}", *cells, f"{1000 * seconds / steps:.1f}", verdict]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
