"""The trainer: Muon for the matrices, AdamW for the rest, warm-up and linear decay over a budget of time or tokens."""

import csv
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.model import Model, Shape

_WORTH_COMPILING = 1_000_000
"""Tokens from which on a faster step makes up for the half minute that compiling takes."""


@dataclass(frozen=True)
class Plan:
    """How to train. The rate falls to nothing as `minutes` or `tokens`, whichever is used up first, run out."""

    minutes: float = 170.0
    tokens: int = 86_000_000
    batch_tokens: int = 4096
    warmup_tokens: int = 250_000
    rate: float = 1.0
    """Of the rates below: less for a model that begins with trained weights."""
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    decay: float = 0.05
    checkpoint_minutes: float = 3.0


class Trainer:
    """A model with its optimizers and its progress; everything that a checkpoint holds."""

    def __init__(self, shape: Shape, plan: Plan, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.plan, self.folder = plan, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Model(shape).to(self.device)
        if plan.tokens >= _WORTH_COMPILING and shutil.which("c++"):
            self.model.compile_parts()
        self.optimizers = _optimizers(self.model, plan)
        self.step = self.tokens = 0
        self.seconds = 0.0

    @property
    def done(self) -> float:
        """The share of the budget that is used, 0 to 1."""
        return min(1.0, max(self.tokens / self.plan.tokens, self.seconds / (60 * self.plan.minutes)))

    @property
    def rate(self) -> float:
        """The factor on the learning rates."""
        return self.plan.rate * min(1.0, self.tokens / self.plan.warmup_tokens) * (1 - self.done) + 1e-3

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train until the budget is used; print a line, log and save now and then."""
        saved = self.seconds
        started = time.monotonic() - self.seconds
        losses: list[float] = []
        for ids, learn in batches:
            self.seconds = time.monotonic() - started
            losses.append(self._learn(ids.to(self.device), learn.to(self.device)))
            if self.step % 40 == 0:
                self._report(sum(losses) / len(losses))
                losses.clear()
            if self.done >= 1 or self.seconds - saved > 60 * self.plan.checkpoint_minutes:
                saved = self.seconds
                self.save()
            if self.done >= 1:
                return

    def _learn(self, ids: Tensor, learn: Tensor) -> float:
        """One step on ids (batch, length); gives the loss."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * self.rate
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.model.loss(ids, learn)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += ids.numel()
        return loss.item()

    def _report(self, loss: float) -> None:
        minutes, speed = round(self.seconds / 60, 2), round(self.tokens / self.seconds)
        row = {"step": self.step, "tokens": self.tokens, "minutes": minutes, "loss": round(loss, 4)}
        print(f"{self.done:6.1%}", *(f"{key} {value}" for key, value in row.items()), f"tokens/s {speed}", flush=True)
        path = self.folder / "loss.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state: dict[str, Any] = {name: getattr(self, name) for name in ("step", "tokens", "seconds")}
        state |= {"shape": asdict(self.model.shape), "plan": asdict(self.plan), "model": self.model.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        fresh = self.folder / "checkpoint.new"
        torch.save(state, fresh)
        fresh.replace(self.folder / "checkpoint.pt")

    def begin_with(self, weights: Path) -> None:
        """Take a trained model's weights (safetensors) in place of random ones; everything else begins anew."""
        self.model.load_state_dict(load_file(weights))

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def _optimizers(model: Model, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "embed_tokens" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=plan.decay, nesterov=True),
        torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def load_model(checkpoint: Path) -> Model:
    """The model of a checkpoint, on the CPU, ready to be exported."""
    state = torch.load(checkpoint, map_location="cpu")
    model = Model(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    return model.eval()
