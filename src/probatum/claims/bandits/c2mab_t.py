"""Claims of C2MAB-T: variance weighting at one untuned setting, the price of a longer list, influence on real graphs."""

from probatum.evidence import Run, below, claim, ratio, slope

ENVIRONMENTS = {
    "disjunctive [0, .3]": ("disjunctive", 0.0, 0.3),
    "disjunctive [0, .05]": ("disjunctive", 0.0, 0.05),
    "conjunctive [.7, 1]": ("conjunctive", 0.7, 1.0),
    "conjunctive [.9, 1]": ("conjunctive", 0.9, 1.0),
    "conjunctive [.97, 1]": ("conjunctive", 0.97, 1.0),
}
ALPHAS = (0.1, 0.25, 0.5, 1.0, 2.0)
OURS, PLAIN = "VAC2-UCB", "C2-UCB-T"
ON = "in environments drawn like these"


def rounds_of(run: Run, low: float, high: float, rounds: int, m: int = 60, d: int = 10):  # type: ignore[no-untyped-def]
    """theta, contexts (T, m, d) on the simplex (sixth powers, so that means differ), uniforms (T, m): the same for every policy."""
    theta = run.rng.uniform(low, high, d)
    contexts = run.rng.random((rounds, m, d)) ** 6
    return theta, contexts / contexts.sum(-1, keepdims=True), run.rng.random((rounds, m))


@claim("c2mab_t", "regret", version=1, says="without tuning, weighting by variance loses less in every cascade",
       source="Thms. 1 and 2, Sec. 5", reported="regret O~(d sqrt(T)) for VAC2-UCB against O~(d sqrt(K T)) for C2-UCB-T",
       budgets={"quick": 10, "full": 20}, first_seed=10,
       holds_if=[*(below(f"regret, {name}", OURS, PLAIN, kind="paired", on=ON) for name in ENVIRONMENTS),
                 ratio("regret, disjunctive [0, .05]", OURS, PLAIN, kind="paired", at_most=0.5, on=ON),
                 ratio("regret, conjunctive [.97, 1]", OURS, PLAIN, kind="paired", at_most=0.5, on=ON)])  # fmt: skip
def regret(run: Run, seed: int) -> None:
    """Five linear cascades (m = 60 arms, d = 10, lists of 6, 6,000 rounds), both algorithms at the one untuned setting gamma = 1,
    alpha = 1, on the same contexts and outcomes; theta, contexts and outcomes are new in each seed. Small or large means have little
    variance, which is where weighting should pay. Baselines: C2-UCB-T, C3-UCB's position discount, counts without contexts, random
    lists (the last three over 600 rounds, scaled to regret a round). Beside it, without a condition: both at their best radius of five,
    which tells whether the gain is in the optimum or in not having to tune."""
    from probatum.bandits import compiled_cascade

    rounds = 400 if run.smoke else 6000
    for name, (kind, low, high) in run.progress(list(ENVIRONMENTS.items()), label="cascades"):
        theta, contexts, draws = rounds_of(run, low, high, rounds)
        for system, weighted in ((PLAIN, False), (OURS, True)):
            runs = [compiled_cascade(contexts, theta, draws, k=6, kind=kind, alpha=alpha, weighted=weighted)[0] for alpha in ALPHAS]
            by_alpha = [float(found.sum()) for found in runs]
            curve, at = runs[ALPHAS.index(1.0)].cumsum(), range(rounds // 40, rounds + 1, rounds // 40)
            run.record(system, {f"cumulative regret, {name}": [float(curve[i - 1]) for i in at]}, of="size", at=at)
            run.record(system, {f"regret, {name}": by_alpha[ALPHAS.index(1.0)]})
            run.record(system, {f"regret by radius, {name}": by_alpha}, of="size", at=ALPHAS)
            run.record(system, {f"regret at the best radius, {name}": min(by_alpha)})
        for system, value in others(run, kind, theta, 60 if run.smoke else 600).items():
            run.record(system, {f"regret a round, {name}": value})


def others(run: Run, kind: str, theta, rounds: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Regret a round of the other baselines, and of ours over as many rounds."""
    from probatum import bandits

    trigger = bandits.Disjunctive() if kind == "disjunctive" else bandits.Conjunctive()
    place = bandits.Environment(theta, bandits.linear_contexts(60, len(theta)), trigger, bandits.TopK(6))
    policies = {
        OURS: bandits.VAC2UCB(10, bandits.TopK(6)),
        PLAIN: bandits.C2UCBT(10, bandits.TopK(6)),
        "C3-UCB, discount .9": bandits.C3UCB(10, bandits.TopK(6)),
        "CUCB, no contexts": bandits.CUCB(60, bandits.TopK(6), seed=run.seed),
        "random lists": bandits.Policy(
            bandits.Ridge(10), bandits.epsilon_greedy(1.0), bandits.ones, bandits.TopK(6), seed=run.seed
        ),
    }
    return {name: float(bandits.simulate(policy, place, rounds, run.seed)[0].mean()) for name, policy in policies.items()}


@regret.figures
def radii(run: Run) -> None:
    import numpy as np

    caption = "cumulative regret by the radius alpha: flat where nothing needs tuning (mean and range of seeds)"
    with run.figure("radii", caption, size=(11, 3)) as figure:
        for axes, name in zip(figure.subplots(1, len(ENVIRONMENTS)), ENVIRONMENTS, strict=True):
            for system, colour in ((PLAIN, "#8a8a8a"), (OURS, "#0b6e4f")):
                rows = np.array([row.samples for row in run.table.of(system, f"regret by radius, {name}").values()])
                axes.plot(ALPHAS, rows.mean(0), "o-", color=colour, label=system, markersize=3)
                axes.fill_between(ALPHAS, rows.min(0), rows.max(0), color=colour, alpha=0.15)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("alpha")
        figure.axes[0].set_ylabel("regret after 6,000 rounds")
        figure.axes[0].legend(fontsize=7)


@regret.figures
def curves(run: Run) -> None:
    import numpy as np
    from scipy.stats import t

    caption = "cumulative regret at the untuned setting (mean of seeds, 95 % interval of the mean)"
    with run.figure("curves", caption, size=(11, 3)) as figure:
        for axes, name in zip(figure.subplots(1, len(ENVIRONMENTS)), ENVIRONMENTS, strict=True):
            for system, colour in ((PLAIN, "#8a8a8a"), (OURS, "#0b6e4f")):
                found = list(run.table.of(system, f"cumulative regret, {name}").values())
                rows = np.array([row.samples for row in found])
                half = t.ppf(0.975, max(1, len(rows) - 1)) * rows.std(0, ddof=min(1, len(rows) - 1)) / len(rows) ** 0.5
                axes.plot(found[0].at, rows.mean(0), color=colour, label=system)  # type: ignore[arg-type]
                axes.fill_between(found[0].at, rows.mean(0) - half, rows.mean(0) + half, color=colour, alpha=0.2)  # type: ignore[arg-type]
            axes.set_ylim(bottom=0)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("round")
        figure.axes[0].set_ylabel("cumulative regret")
        figure.axes[0].legend(fontsize=7)


SIZES = (2, 4, 8, 16)


@claim("c2mab_t", "list_length", version=1, says="the regret of variance weighting grows less with the length of the list",
       source="Thms. 1 and 2", reported="the factor sqrt(K) of C2-UCB-T is absent from VAC2-UCB's bound",
       budgets={"quick": 10, "full": 20}, holds_if=[slope("log regret", OURS, baseline=PLAIN, at_most=0.0)])  # fmt: skip
def list_length(run: Run, seed: int) -> None:
    """Conjunctive cascades with theta in [.9, 1] (m = 60, d = 10, 3,000 rounds) and lists of 2, 4, 8 and 16 at gamma = 1, alpha = 1; the
    slope of log regret on log K for each seed. Four sizes over a factor of eight: sqrt(K) would be a slope of .5."""
    import math

    from probatum.bandits import compiled_cascade

    theta, contexts, draws = rounds_of(run, 0.9, 1.0, 300 if run.smoke else 3000)
    for system, weighted in ((PLAIN, False), (OURS, True)):
        totals = [
            compiled_cascade(contexts, theta, draws, k=k, kind="conjunctive", weighted=weighted)[0].sum() for k in run.progress(SIZES)
        ]
        run.record(system, {"log regret": [math.log(total) for total in totals]}, of="size", at=SIZES)


@list_length.figures
def lengths(run: Run) -> None:
    import numpy as np

    with run.figure("lengths", "regret by the length of the list, a line a seed") as figure:
        axes = figure.subplots()
        for system, colour in ((PLAIN, "#8a8a8a"), (OURS, "#0b6e4f")):
            for i, row in enumerate(run.table.of(system, "log regret").values()):
                axes.plot(SIZES, np.exp(row.samples or ()), color=colour, alpha=0.6, label=None if i else system)
        axes.set(xscale="log", yscale="log", xlabel="K", ylabel="regret after 3,000 rounds", xticks=SIZES, xticklabels=SIZES)
        axes.legend()


GRAPHS = ("karate club", "les miserables")


@claim("c2mab_t", "influence", version=1, says="on real graphs, variance weighting spreads influence at less regret",
       source="Sec. 4, application to influence maximisation", reported="regret O~(d sqrt(T)) with the TPVM smoothness of spread",
       budgets={"quick": 5, "full": 10},
       holds_if=[*(below(f"regret, {name}", OURS, PLAIN, kind="paired", on=ON) for name in GRAPHS),
                 *(below(f"regret, {name}", OURS, "CUCB, no contexts", kind="paired", on=ON) for name in GRAPHS)])  # fmt: skip
def influence(run: Run, seed: int) -> None:
    """Independent cascades on Zachary's karate club (34 people) and Les Miserables (77), both real graphs that networkx ships, each
    friendship two directed edges with fixed contexts (d = 5) whose means are linear: 3 seeds by the greedy oracle over 60 live-edge graphs,
    200 rounds, gamma = 1, alpha = .5. Regret is against the same oracle with the true means. Baselines: C2-UCB-T, and CUCB, which with
    fixed contexts is a fair rival without them. Edge probabilities near .05 to .2, where spread is neither trivial nor total."""
    import networkx
    import numpy as np

    from probatum import bandits

    graphs = {"karate club": networkx.karate_club_graph(), "les miserables": networkx.les_miserables_graph()}
    for name in run.progress(GRAPHS):
        graph = networkx.convert_node_labels_to_integers(graphs[name])
        pairs = np.array(graph.edges)
        edges = np.concatenate([pairs, pairs[:, ::-1]])
        trigger = bandits.IndependentCascade(edges, graph.number_of_nodes(), samples=60, seed=seed)
        oracle = bandits.GreedySpread(trigger, 3, alpha=1.0)
        contexts = run.rng.random((len(edges), 5)) ** 3
        contexts /= contexts.sum(1, keepdims=True)
        theta = run.rng.uniform(0.02, 0.3, 5)
        place = bandits.Environment(theta, lambda rng, x=contexts: x, trigger, oracle)
        policies = {
            OURS: bandits.VAC2UCB(5, oracle, alpha=0.5),
            PLAIN: bandits.C2UCBT(5, oracle, alpha=0.5),
            "CUCB, no contexts": bandits.CUCB(len(edges), oracle, seed=seed),
        }
        for system, policy in policies.items():
            found = bandits.simulate(policy, place, 3 if run.smoke else 200, seed)[0]
            run.record(system, {f"regret, {name}": float(found.sum())})
            if seed == influence.first_seed:
                run.record(system, {f"cumulative regret, {name}": found.cumsum().tolist()}, of="size", at=range(1, len(found) + 1))


@influence.figures
def spreads(run: Run) -> None:
    with run.figure("spread", "cumulative regret of the first seed, in active people", size=(8, 3.4)) as figure:
        for axes, name in zip(figure.subplots(1, 2), GRAPHS, strict=True):
            for system in run.table.systems:
                for row in run.table.of(system, f"cumulative regret, {name}").values():
                    axes.plot(row.at, row.samples, label=system)
            axes.set(title=name, xlabel="round")
        figure.axes[0].legend(fontsize=7)
