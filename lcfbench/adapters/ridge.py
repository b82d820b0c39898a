"""Linear maps fitted from a stream: Gram and cross products are summed, no token is kept.

>>> scale = Scale.of([x for x, _ in batches[:8]])
>>> ridge = Ridge(inputs=512, outputs=384)
>>> for x, y in batches: ridge.add(scale(x), y)
>>> fit = ridge.solve()
>>> held = Held(outputs=384)
>>> for x, y in held_out: held.add(fit(scale(x)), y)
>>> held.r2()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcfbench.errors import UserError

CLAMP = 8.0  # standard deviations: a few channels of a few tokens are hundreds away and would rule the fit
PENALTY = (
    1e-2  # times the number of tokens: inputs have variance about 1, so it weighs the same at any number
)
AT_ONCE = 1024  # outputs solved together


@dataclass(frozen=True)
class Scale:
    """Standardises inputs per channel and clamps them. mean, std: (p,)."""

    mean: Tensor
    std: Tensor
    clamp: float = CLAMP

    @classmethod
    def of(cls, batches: Iterable[Tensor], clamp: float = CLAMP) -> Scale:
        """Measures batches (T, p), streamed. A channel that never changes gets std 1."""
        n, shift = 0, None
        total = squares = torch.zeros(())
        for batch in batches:
            x = batch.double()
            shift = x.mean(0) if shift is None else shift  # sums about it: large means cost no digits
            n, x = n + len(x), x - shift
            total, squares = x.sum(0) + total, x.square().sum(0) + squares
        assert shift is not None and n, "a scale needs tokens"
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        return cls((mean + shift).float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float(), clamp)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, p) in fp32."""
        return ((x.float() - self.mean) / self.std).clamp(-self.clamp, self.clamp)


@dataclass(frozen=True)
class LinearMap:
    """y ≈ x·weight + bias. weight: (p, q); bias: (q,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Ridge:
    """Sums from which a ridge regression is solved; `add` takes standardised inputs (`Scale`).

    Memory: inputs² fp64 + inputs·outputs fp32, for any number of tokens. One object serves all
    outputs of the same inputs.
    """

    def __init__(self, inputs: int, outputs: int, device: Any = None) -> None:
        self.tokens = 0
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.cross = torch.zeros(inputs, outputs, device=device)
        self.x_sum = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.y_sum = torch.zeros(outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (T, inputs), y (T, outputs)."""
        x, y = x.float(), y.float()
        self.tokens += len(x)
        self.gram += (x.T @ x).double()
        self.cross += x.T @ y
        self.x_sum += x.sum(0, dtype=torch.float64)
        self.y_sum += y.sum(0, dtype=torch.float64)

    def mean(self) -> Tensor:
        """Returns the outputs' mean (outputs,): the map that reads nothing."""
        return (self.y_sum / max(self.tokens, 1)).float()

    def moment(self, penalty: float = PENALTY) -> Tensor:
        """Returns the inputs' covariance in fp64, with the penalty on its diagonal."""
        mean = self.x_sum / self.tokens
        out = self.gram / self.tokens - torch.outer(mean, mean)
        out.diagonal().add_(penalty)
        return out

    def solve(self, penalty: float = PENALTY) -> LinearMap:
        """Returns the map that minimises Σ‖y − xW − b‖² + penalty·tokens·‖W‖².

        A penalty of 0 needs more tokens than inputs and no two equal inputs. Raises UserError where
        there is no solution.
        """
        assert self.tokens, "nothing to fit"
        n = self.tokens
        x_mean, y_mean = self.x_sum / n, self.y_sum / n
        try:
            factor = torch.linalg.cholesky(n * self.moment(penalty))
        except torch.linalg.LinAlgError as error:
            raise UserError(
                f"the fit on {n:,} tokens of {len(x_mean):,} inputs has no solution.",
                "Give more tokens, or a larger penalty.",
            ) from error
        weight = torch.empty_like(self.cross)
        for part in torch.arange(len(y_mean), device=weight.device).split(
            AT_ONCE
        ):  # in fp64, a few at a time
            cross = self.cross[:, part].double() - n * torch.outer(x_mean, y_mean[part])
            weight[:, part] = torch.cholesky_solve(cross, factor).float()
        return LinearMap(weight, (y_mean - x_mean @ weight.double()).float())


class Held:
    """Sums over held-out outputs: squared errors, and squares about the mean, one per channel."""

    def __init__(self, outputs: int, device: Any = None) -> None:
        self.tokens = 0
        self.shift: Tensor | None = None
        self.error, self.total, self.squares = torch.zeros(3, outputs, dtype=torch.float64, device=device)

    def add(self, mapped: Tensor, y: Tensor) -> None:
        """mapped and y: (T, outputs)."""
        y = y.float()
        self.shift = y.mean(0) if self.shift is None else self.shift
        self.tokens += len(y)
        self.error += (y - mapped).square().sum(0, dtype=torch.float64)
        self.total += (y - self.shift).sum(0, dtype=torch.float64)
        self.squares += (y - self.shift).square().sum(0, dtype=torch.float64)

    def r2(self, groups: int = 1) -> Tensor:
        """Returns the explained variance (groups,), for equal groups of neighbouring channels.

        1 is exact, 0 no better than the held-out mean, below 0 worse.
        """
        variance = (self.squares - self.total.square() / max(self.tokens, 1)).clamp(min=0)
        error, variance = (x.view(groups, -1).sum(1) for x in (self.error, variance))
        constant = 1.0 - (error > 0).double()
        return torch.where(variance > 0, 1 - error / variance.clamp(min=1e-30), constant).float()
