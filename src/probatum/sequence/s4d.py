"""S4D: diagonal state-space models and the initialisations that matter (Gu et al. 2022, arXiv 2206.11893).

The state matrix of S4 made diagonal: the convolution kernel is one Vandermonde product. What counts is where the eigenvalues start:
three structured diagonals (LegS, Lin, Inv) remember as HiPPO does, random or real ones do not. For long sequences of samples (sound,
sensors, pixels read as a sequence), trained as a convolution and run as a recurrence. Not for token recall over a vocabulary.

>>> layer = S4D(8, state=16, init="legs", generator=torch.Generator().manual_seed(0)).eval()
>>> u = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1))
>>> y, _ = layer(u)                                             # all at once
>>> head, state = layer(u[:, :25], layer.initial_state(2))      # or in parts, with the state carried over
>>> last, state = layer.step(u[:, 25], state)                   # or one step at a time
>>> torch.allclose(head, y[:, :25], atol=1e-4), torch.allclose(last, y[:, 25], atol=1e-4)
(True, True)
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.sequence.hippo import legs, legs_basis, normal_eigenvalues, normal_part, structured_eigenvalues
from probatum.sequence.ssm import DiagonalSSM, discretise, fft_convolution, param_groups, vandermonde

__all__ = [
    "S4D", "DiagonalSSM", "SSMBlock", "SequenceModel", "discretise", "fft_convolution", "legs", "legs_basis", "normal_eigenvalues",
    "normal_part", "param_groups", "structured_eigenvalues", "vandermonde",
]  # fmt: skip

Init = Literal["legs", "lin", "inv", "quad", "real", "rand"]


class S4D(DiagonalSSM):
    """The S4D layer: `DiagonalSSM` with one of the paper's initialisations (Sec. 4).

    Args:
        channels: H.
        state: N, the size of the real state, even; N/2 complex numbers are kept.
        init: "legs", "lin", "inv", "quad" (structured), "real", "rand" (for comparison).
        n_ssm: sets of (A, B) shared over the channels, a divisor of H; None is one a channel.
        half_b: for "legs", B / 2 as the theory has it (the reference drops the half).
        options: of `DiagonalSSM` (dt_min, dt_max, disc, real_transform, bidirectional, bandlimit, ssm_lr, generator).
    """

    def __init__(
        self, channels: int, state: int = 64, *, init: Init = "legs", n_ssm: int | None = None, half_b: bool = False, **options: Any
    ) -> None:
        sets = channels if n_ssm is None else n_ssm
        if sets < 1 or channels % sets:
            raise ProbatumError(f"n_ssm must divide the {channels} channels, got {sets}")
        values, b = structured_eigenvalues(init, state, options.get("generator"))
        if half_b:
            b = b / 2
        super().__init__(channels, values.expand(sets, -1).clone(), b.expand(sets, -1).clone(), **options)


class SSMBlock(nn.Module):
    """Layer, GELU, dropout tied over time, H -> 2 H and a gate, residual, norm (Sec. 5; post-norm by default).

    Args:
        layer: any module u (B, L, H) -> (y, state) with `channels`, as `S4D`.
        dropout: share of channels dropped, the same for all times of an item.
        prenorm: norm before the layer.
        norm: "layer" or "batch".
    """

    def __init__(self, layer: DiagonalSSM, *, dropout: float = 0.0, prenorm: bool = False, norm: str = "layer") -> None:
        super().__init__()
        if norm not in ("layer", "batch"):
            raise ProbatumError(f"norm must be layer or batch, got {norm!r}")
        if not 0 <= dropout < 1:
            raise ProbatumError(f"dropout must be from 0 to below 1, got {dropout!r}")
        width = layer.channels
        self.layer, self.prenorm = layer, prenorm
        self.dropout = nn.Dropout1d(dropout)
        self.output = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)

    def forward(self, u: Tensor, state: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor | None]:
        """(B, L, H) -> (B, L, H) and the layer's state."""
        y, state = self.layer(self._normed(u) if self.prenorm else u, state, **options)
        y = self.dropout(nn.functional.gelu(y).transpose(1, 2)).transpose(1, 2)
        y = nn.functional.glu(self.output(y), -1) + u
        return (y if self.prenorm else self._normed(y)), state

    def step(self, u: Tensor, state: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        """One step (B, H); in evaluation mode it equals `forward`."""
        y, state = self.layer.step(self._normed(u[:, None])[:, 0] if self.prenorm else u, state, **options)
        y = nn.functional.glu(self.output(self.dropout(nn.functional.gelu(y)[..., None])[..., 0]), -1) + u
        return (y if self.prenorm else self._normed(y[:, None])[:, 0]), state

    def _normed(self, u: Tensor) -> Tensor:
        return self.norm(u.transpose(1, 2)).transpose(1, 2) if isinstance(self.norm, nn.BatchNorm1d) else self.norm(u)


class SequenceModel(nn.Module):
    """Encoder, blocks, decoder: a classifier (mean over time) or a sequence-to-sequence model.

    Args:
        inputs, outputs: channels in and classes (or channels) out.
        blocks: the `SSMBlock`s, all of one width.
        pool: True averages over the valid times and gives (B, outputs); False keeps (B, L, outputs).

    >>> model = SequenceModel(3, 10, [SSMBlock(S4D(128, 64, init="legs")) for _ in range(4)])
    >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
    234250
    """

    def __init__(self, inputs: int, outputs: int, blocks: list[SSMBlock], *, pool: bool = True) -> None:
        super().__init__()
        if not blocks or len({block.layer.channels for block in blocks}) != 1:
            raise ProbatumError(f"blocks must be one or more of one width, got {[block.layer.channels for block in blocks]}")
        width = blocks[0].layer.channels
        self.encoder, self.decoder = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(blocks)
        self.pool = pool

    def forward(self, u: Tensor, *, lengths: Tensor | None = None, rate: float = 1.0) -> Tensor:
        """u (B, L, inputs) -> (B, outputs), or (B, L, outputs) without pooling."""
        x = self.encoder(u)
        for block in self.blocks:
            x, _ = block(x, lengths=lengths, rate=rate)
        if self.pool:
            if lengths is None:
                x = x.mean(1)
            else:
                valid = (torch.arange(u.shape[1], device=u.device)[None] < lengths.to(u.device)[:, None]).to(x.dtype)
                x = (x * valid[..., None]).sum(1) / lengths.to(x)[:, None]
        return self.decoder(x)

    def step(self, u: Tensor, states: list[Tensor] | None = None, *, rate: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """One step of a model without pooling: (B, inputs) -> (B, outputs) and the states of all blocks."""
        if self.pool:
            raise ProbatumError("a pooled model has an output for the whole sequence only: pool=False for steps")
        x, after = self.encoder(u), []
        before: list[Tensor | None] = list(states) if states else [None] * len(self.blocks)
        for block, state in zip(self.blocks, before, strict=True):
            x, state = block.step(x, state, rate=rate)  # type: ignore[operator]
            after.append(state)
        return self.decoder(x), after
