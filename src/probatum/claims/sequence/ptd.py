"""Claims of PTD: uniformly near HiPPO, and deaf to a sinusoid where S4D resonates."""

from probatum.evidence import Run, claim, exact, ratio

SIZES = (0.05, 0.1, 0.2)


@claim("ptd", "transfer", version=1, says="perturb-then-diagonalise stays uniformly near HiPPO's transfer function, S4D does not",
       source="Thms. 2 and 3, Fig. 2", reported="S4D's transfer function does not converge uniformly; the perturbed one is within O(eps)",
       budgets={"quick": 5, "full": 10},
       holds_if=[*(exact(f"deviation, n = {n}", f"rank one {size}", at_most=size / 2 / (1 - size), within=1e-6)
                   for n in (64, 256) for size in SIZES),
                 *(exact(f"deviation, n = {n}", "S4D", at_least=100) for n in (64, 256))])  # fmt: skip
def transfer(run: Run, seed: int) -> None:
    """Largest |G / G_HiPPO - 1| over 2,001 frequencies and all eigenfrequencies of A_N, where S4D's spikes are, for n = 64 and 256 and a C
    drawn by the seed. G_HiPPO by substitution in its triangular matrix. Beside rank-one PTD of three sizes (bound (a / 2) / (1 - a)):
    the paper's gradient descent (n = 64), and random perturbations of relative size .01, whose largest real part is recorded: unstable ones
    are no systems at all. No training: the claim is about where training starts."""
    import torch

    from probatum.sequence import approx_diagonalize, legs, structured_eigenvalues
    from probatum.sequence import transfer as response

    for n in run.progress((64,) if run.smoke else (64, 256), label="n"):
        spikes = structured_eigenvalues("legs", n)[0].imag
        top = 3 * float(spikes.max())
        grid = torch.cat([spikes, -spikes, torch.linspace(-top, top, 101 if run.smoke else 2001, dtype=torch.float64)])
        c = torch.randn(n, dtype=torch.float64, generator=run.generator(f"c{n}")).to(torch.complex128)
        a, b = (x.to(torch.complex128) for x in legs(n))
        want = torch.cat([
            torch.linalg.solve_triangular(
                1j * part.to(torch.complex128)[:, None, None] * torch.eye(n, dtype=torch.complex128) - a,
                b[None, :, None].expand(len(part), -1, -1), upper=False,
            )[..., 0] @ c
            for part in grid.split(200)
        ])  # fmt: skip
        systems = {f"rank one {size}": approx_diagonalize(n, size=size) for size in SIZES}
        systems["S4D"] = approx_diagonalize(n, method="normal")
        if n == 64 and not run.smoke:
            systems["gradient descent"] = approx_diagonalize(n, method="gradient", steps=200, generator=run.generator("descent"))
        for name, made in systems.items():
            found = response(made.eigenvalues, made.b, c @ made.vectors, grid)
            run.record(name, {f"deviation, n = {n}": float((found / want - 1).abs().max())})
            run.record(name, {f"condition, n = {n}": made.condition, f"size, n = {n}": made.size})
        noise = approx_diagonalize(n, method="random", size=0.01, generator=run.generator(f"random{n}"))
        run.record("random .01", {f"largest real part, n = {n}": float(noise.eigenvalues.real.max())})


@transfer.figures
def responses(run: Run) -> None:
    import torch

    from probatum.sequence import approx_diagonalize, legs, structured_eigenvalues
    from probatum.sequence import transfer as response

    n = 64
    spikes = structured_eigenvalues("legs", n)[0].imag
    grid = torch.sort(torch.cat([spikes, torch.linspace(0.1, 300, 3000, dtype=torch.float64)]))[0]
    c = torch.randn(n, dtype=torch.float64, generator=run.generator("c64")).to(torch.complex128)
    a, b = legs(n)
    want = response(a, b, c, grid)
    with run.figure("responses", "|G / G_HiPPO - 1| by frequency, n = 64: S4D is off at every eigenfrequency", size=(7, 3.6)) as figure:
        axes = figure.subplots()
        for name, made in {"S4D": approx_diagonalize(n, method="normal"), "rank one .1": approx_diagonalize(n, size=0.1)}.items():
            found = response(made.eigenvalues, made.b, c @ made.vectors, grid)
            axes.plot(grid, (found / want - 1).abs(), label=name, linewidth=0.8)
        axes.set(yscale="log", xlabel="angular frequency")
        axes.legend()


@claim("ptd", "noise", version=1, says="a sinusoid at one of S4D's spikes breaks its memory and leaves PTD's as it is",
       source="Sec. 5.2, Fig. 4", reported="sCIFAR with 10 % sinusoidal noise at a spike: S4D collapses, S4-PTD keeps its accuracy",
       budgets={"quick": 5, "full": 10},
       holds_if=[ratio("error at a spike", "S4D", "S4D between spikes", kind="paired", at_least=5, on="over draws of the input"),
                 ratio("error at a spike", "rank one .1", "rank one .1 between spikes", kind="paired", at_most=1.5,
                       on="over draws of the input")])  # fmt: skip
def noise(run: Run, seed: int) -> None:
    """The frozen-state readout of s4d:memory (N = 64, step 1/400, 6,000 steps): fitted on clean input, then read with a sinusoid of a tenth
    of the input's deviation added, at the eigenfrequency of A_N nearest 200 (a spike of S4D) and half-way to the next one. The added
    squared error (with the sinusoid less without) is what is compared. The paper trains both nets on pixels, which needs a GPU; this tests the
    mechanism without training."""
    import numpy as np
    import torch

    from probatum.claims.sequence.memory import STEP, Readout, band_limited, states
    from probatum.sequence import approx_diagonalize, conjugate_half, structured_eigenvalues

    length = 1500 if run.smoke else 6000
    train, test = band_limited(run.rng, length), band_limited(run.rng, length)
    spikes = torch.sort(structured_eigenvalues("legs", 64)[0].imag)[0]
    at = int((spikes - 200).abs().argmin())
    places = {"": float(spikes[at]), " between spikes": float((spikes[at] + spikes[at + 1]) / 2)}
    phase = run.rng.uniform(0, 2 * np.pi)
    systems = {
        "S4D": conjugate_half(approx_diagonalize(64, method="normal")),
        "rank one .1": conjugate_half(approx_diagonalize(64, size=0.1)),
    }
    for name, (values, b) in run.progress(systems.items(), total=2):
        readout = Readout(states(values, b, train), train)
        clean = readout.error(states(values, b, test), test).mean()
        for place, frequency in places.items():
            tone = 0.1 * np.sqrt(2) * np.sin(frequency * STEP * np.arange(length) + phase)
            found = readout.error(states(values, b, test + tone), test).mean()
            run.record(name + place, {"error at a spike": float(found - clean), "nmse with the tone": float(found), "nmse": float(clean)})
