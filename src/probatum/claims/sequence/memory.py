"""The memory test that s4d and ptd share: how well a linear readout of a frozen state tells the past of its input."""

from typing import Any

STEP = 1 / 400
DELAYS = tuple(range(40, 401, 40))


def band_limited(rng: Any, length: int, cutoff: float = 0.02) -> Any:
    """Gaussian noise (length,) below `cutoff` cycles a step, of unit variance."""
    import numpy as np

    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[np.fft.rfftfreq(length) > cutoff] = 0
    noise = np.fft.irfft(spectrum, n=length)
    return noise / noise.std()


def states(eigenvalues: Any, b: Any, u: Any) -> Any:
    """States (T, 2 n), real and imaginary parts, of one diagonal system (n of each pair) driven by u (T,), by zero-order hold at STEP."""
    import torch

    from probatum.sequence.ssm import DiagonalSSM

    layer = DiagonalSSM(1, eigenvalues, b, dt_min=STEP, dt_max=STEP, real_transform="none").double()
    with torch.no_grad():
        layer.a_real.copy_(eigenvalues.real[None])
        layer.a_imag.copy_(eigenvalues.imag[None])
        layer.b.copy_(torch.view_as_real(b.to(torch.complex128))[None])
        _, found = layer.scan(torch.as_tensor(u, dtype=torch.float64)[None, :, None])
    return torch.view_as_real(found[0, :, 0]).flatten(1).numpy()


class Readout:
    """Ridge regression of u(t - delay) on the state, for all delays at once."""

    def __init__(self, features: Any, u: Any, ridge: float = 1e-6) -> None:
        import numpy as np

        self.start = max(DELAYS)
        self.scale = features[self.start :].std(0) + 1e-300
        x = features[self.start :] / self.scale
        gram = x.T @ x + ridge * len(x) * np.eye(x.shape[1])
        self.weights = np.linalg.solve(gram, x.T @ self.targets(u))

    def targets(self, u: Any) -> Any:
        import numpy as np

        return np.stack([u[self.start - delay : len(u) - delay] for delay in DELAYS], 1)

    def error(self, features: Any, u: Any) -> Any:
        """Normalised mean squared error at each delay."""
        left = features[self.start :] / self.scale @ self.weights - self.targets(u)
        return (left**2).mean(0) / self.targets(u).var(0)
