"""C2MAB-T held to enumeration, inversion, brute force and its own limits."""

import itertools
import pickle
import warnings

import networkx
import numpy as np
import pytest

from probatum import ProbatumError
from probatum.bandits.c2mab_t import (
    C2UCBT,
    C3UCB,
    CUCB,
    VAC2UCB,
    CascadeTS,
    Conjunctive,
    Coverage,
    Disjunctive,
    Environment,
    Full,
    GreedySpread,
    IndependentCascade,
    Log,
    Matroid,
    MaxCover,
    Policy,
    Ridge,
    ShortestPath,
    TopK,
    compiled_cascade,
    epsilon_greedy,
    linear_contexts,
    ones,
    play,
    radius_c2ucbt,
    radius_vac2ucb,
    replay,
    simulate,
    ucb,
    variance_bound,
)  # fmt: skip
from probatum.bandits.oracles import reachability


def outcomes_and_weights(mu):
    """All 2^m outcomes and their probabilities."""
    for bits in itertools.product([0.0, 1.0], repeat=len(mu)):
        yield np.array(bits), float(np.prod(np.where(np.array(bits) > 0, mu, 1 - mu)))


GRAPH = np.array([[0, 1], [0, 2], [1, 3], [2, 3], [3, 4], [1, 4]])
TRIGGERS = {
    "disjunctive": (Disjunctive(), [3, 0, 4, 1]),
    "conjunctive": (Conjunctive(), [2, 5, 0]),
    "full": (Full(), [1, 4]),
    "coverage": (Coverage(np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 2]])), [0, 2]),
    "cascade": (IndependentCascade(GRAPH, 5), [0]),
}


@pytest.mark.parametrize("name", TRIGGERS)
def test_rewards_and_triggering_probabilities_by_enumeration(name):
    trigger, arms = TRIGGERS[name]
    mu = np.random.default_rng(3).uniform(0.1, 0.9, 6)
    reward, probability = 0.0, np.zeros(6)
    for outcomes, weight in outcomes_and_weights(mu):
        reward += weight * trigger.earned(arms, outcomes)
        probability[trigger.observed(arms, outcomes)] += weight
    assert trigger.reward(arms, mu) == pytest.approx(reward, abs=1e-12)
    np.testing.assert_allclose(trigger.probability(arms, mu), probability, atol=1e-12)


@pytest.mark.parametrize("trigger", [Disjunctive(), Conjunctive()])
def test_triggering_probability_modulated_smoothness_with_b1(trigger):
    """|r(S; mu') - r(S; mu)| <= sum p_i |mu_i - mu'_i| (the condition that removes 1 / p_min), for any list and means."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        k = rng.integers(1, 7)
        mu, other = rng.random(9), rng.random(9)
        arms = rng.permutation(9)[:k]
        gap = abs(trigger.reward(arms, mu) - trigger.reward(arms, other))
        assert gap <= trigger.probability(arms, mu) @ abs(mu - other) + 1e-12


def test_ridge_inverse_equals_the_inverse_after_ten_thousand_updates():
    rng = np.random.default_rng(1)
    ridge, gram = Ridge(7, 0.5), 0.5 * np.eye(7)
    b = np.zeros(7)
    for _ in range(10_000):
        x, y, w = rng.normal(size=7) / 4, rng.random(), rng.uniform(0.5, 50)
        ridge.update(x, [y], w)
        gram += w * np.outer(x, x)
        b += w * y * x
    np.testing.assert_allclose(ridge.inverse @ gram, np.eye(7), atol=1e-8)
    np.testing.assert_allclose(ridge.theta, np.linalg.solve(gram, b), atol=1e-8)
    x = rng.normal(size=(3, 7))
    np.testing.assert_allclose(ridge.width(x), [np.sqrt(v @ np.linalg.inv(gram) @ v) for v in x], rtol=1e-8)


def test_a_round_at_once_equals_rank_one_updates_in_any_order():
    rng = np.random.default_rng(2)
    x, y, w = rng.normal(size=(5, 9)), rng.random(5), rng.uniform(1, 9, 5)
    whole, single, halves = Ridge(9), Ridge(9), (Ridge(9), Ridge(9))
    whole.update(x, y, w)
    for i in (3, 0, 4, 1, 2):
        single.update(x[i], y[i : i + 1], w[i])
    halves[0].update(x[:2], y[:2], w[:2])
    halves[1].update(x[2:], y[2:], w[2:])
    halves[0].merge(halves[1])
    np.testing.assert_allclose(single.inverse, whole.inverse, atol=1e-10)
    np.testing.assert_allclose(halves[0].inverse, whole.inverse, atol=1e-10)
    np.testing.assert_allclose(halves[0].theta, single.theta, atol=1e-10)


def test_one_hot_contexts_give_weighted_ridge_means():
    ridge = Ridge(3, gamma=2.0)
    ridge.update(np.eye(3)[[0, 0, 1]], [1.0, 0.0, 1.0], [3.0, 5.0, 7.0])
    np.testing.assert_allclose(ridge.theta, [3 / (2 + 8), 7 / (2 + 7), 0])


def environment(kind=Disjunctive, k=3, m=11, d=4, low=0.05, high=0.5, seed=0):
    theta = np.random.default_rng(seed).uniform(low, high, d)
    return Environment(theta, linear_contexts(m, d), kind(), TopK(k))


def test_variance_weights_of_one_are_c2ucbt_bit_for_bit():
    place = environment()
    flat = Policy(Ridge(4), ucb(1.0), lambda ridge, x, place: np.ones(len(x)), TopK(3))
    first, second = simulate(C2UCBT(4, TopK(3)), place, 200, 5), simulate(flat, place, 200, 5)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_without_position_discount_c3ucb_is_c2ucbt():
    place = environment(Conjunctive, low=0.6, high=1.0)
    ours = simulate(C2UCBT(4, TopK(3)), place, 200, 5)[0]
    assert np.array_equal(ours, simulate(C3UCB(4, TopK(3), discount=1.0), place, 200, 5)[0])
    assert not np.array_equal(ours, simulate(C3UCB(4, TopK(3), discount=0.8), place, 200, 5)[0])


@pytest.mark.parametrize("kind", [Disjunctive, Conjunctive])
def test_the_clairvoyant_has_no_regret_and_nobody_a_negative_one(kind):
    place = environment(kind)
    found = play(
        {
            "clairvoyant": lambda seed: Policy(Ridge(4), lambda ridge, x, t, rng: x @ place.theta, ones, TopK(3)),
            "ours": lambda seed: VAC2UCB(4, TopK(3)),
            "thompson": lambda seed: CascadeTS(4, TopK(3), seed=seed),
            "greedy": lambda seed: Policy(Ridge(4), epsilon_greedy(0.2), ones, TopK(3), seed=seed),
            "counts": lambda seed: CUCB(11, TopK(3), seed=seed),
        },
        place, rounds=150, seeds=[0, 1],
    )  # fmt: skip
    assert found["clairvoyant"].total.max() < 1e-12
    assert all(regret.rounds.min() >= -1e-12 for regret in found.values())
    mean, error = found["ours"].curve
    assert mean.shape == error.shape == (150,) and (np.diff(mean) >= -1e-12).all()
    assert found["ours"].total.mean() < found["counts"].total.mean()


@pytest.mark.parametrize("kind", ["disjunctive", "conjunctive"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_compiled_loop_is_the_policy(kind, weighted):
    """The same rounds: equal choices, so equal regret and feedback."""
    m, d, k, rounds = 11, 4, 3, 300
    trigger = {"disjunctive": Disjunctive(), "conjunctive": Conjunctive()}[kind]
    theta = np.random.default_rng(7).uniform(0.1, 0.9, d)
    rng = np.random.default_rng(9)
    x, draws = [], []
    draw = linear_contexts(m, d)
    for _ in range(rounds):
        x.append(draw(rng))
        draws.append(rng.random(m))
    policy = VAC2UCB(d, TopK(k)) if weighted else C2UCBT(d, TopK(k))
    slow = simulate(policy, Environment(theta, draw, trigger, TopK(k)), rounds, 9)
    fast = compiled_cascade(np.stack(x), theta, np.stack(draws), k=k, kind=kind, weighted=weighted)
    np.testing.assert_allclose(fast[0], slow[0], atol=1e-12)
    assert np.array_equal(fast[1], slow[1])


def test_expected_observations_are_the_sum_of_probabilities():
    mu, arms, trigger = np.array([0.2, 0.5, 0.7, 0.1]), [1, 3, 0], Disjunctive()
    rng = np.random.default_rng(0)
    seen = [len(trigger.observed(arms, rng.random(4) < mu)) for _ in range(20_000)]
    assert abs(np.mean(seen) - trigger.probability(arms, mu).sum()) < 4 * np.std(seen) / np.sqrt(len(seen))


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0.1, 0.3, 0.21), (0.6, 0.9, 0.24), (0.2, 0.8, 0.25), (-1, 2, 0.25), (0.9, 3, 0.09), (-2, 0.0, 0)],
)
def test_the_variance_bound_is_the_maximum_over_the_interval(low, high, want):
    assert variance_bound(low, high) == pytest.approx(want)
    grid = np.linspace(max(low, 0), min(high, 1), 10_001)
    assert variance_bound(low, high) == pytest.approx((grid * (1 - grid)).max(), abs=1e-7)


def test_greedy_spread_is_near_the_best_on_small_graphs():
    rng = np.random.default_rng(4)
    for _ in range(5):
        edges = np.array([(u, v) for u in range(6) for v in range(6) if u != v])
        edges = edges[rng.permutation(len(edges))[:12]]
        trigger = IndependentCascade(edges, 6)
        mu = rng.uniform(0.1, 0.7, len(edges))
        ours = trigger.reward(GreedySpread(trigger, 2)(mu, mu), mu)
        best = max(trigger.reward(pair, mu) for pair in itertools.combinations(range(6), 2))
        assert (1 - 1 / np.e) * best <= ours <= best + 1e-12


def test_sampled_spread_is_within_three_standard_errors_of_the_exact():
    edges = np.array([(0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (4, 0), (2, 4)])
    mu = np.linspace(0.1, 0.8, 7)
    exact = IndependentCascade(edges, 5)
    live, weight = exact.worlds(mu)
    sizes = exact.reached([1], live).sum(1)
    draws = np.random.default_rng(0).random((4000, 7)) < mu
    sampled = exact.reached([1], draws).sum(1)
    assert abs(sampled.mean() - weight @ sizes) < 3 * sampled.std() / np.sqrt(4000)
    reach = reachability(live, edges, 5)
    assert np.array_equal(reach[:, 1], exact.reached([1], live))


def test_shortest_path_is_the_most_reliable_route_and_matroid_the_best_base():
    edges = np.array([[0, 1], [1, 3], [0, 2], [2, 3], [0, 3]])
    scores = np.array([0.9, 0.9, 0.5, 1.0, 0.8])
    assert ShortestPath(edges, 0, 3)(scores, scores).tolist() == [0, 1]  # .81 against .5 and .8
    graph = networkx.Graph([(0, 1), (1, 2), (2, 0), (2, 3)])
    weights, links = np.array([0.9, 0.8, 0.7, 0.1]), list(graph.edges)
    forest = Matroid(lambda arms: networkx.is_forest(networkx.Graph([links[a] for a in arms])))
    want = {tuple(sorted(e[:2])) for e in networkx.maximum_spanning_edges(_weighted(links, weights), data=False)}
    assert {tuple(sorted(links[a])) for a in forest(weights, weights)} == want


def _weighted(links, weights):
    graph = networkx.Graph()
    for (u, v), w in zip(links, weights, strict=True):
        graph.add_edge(u, v, weight=w)
    return graph


def test_max_cover_reaches_its_guarantee():
    rng = np.random.default_rng(6)
    edges = np.array([(u, v) for u in range(5) for v in range(7)])
    trigger = Coverage(edges)
    for _ in range(5):
        mu = rng.random(35) * rng.integers(0, 2, 35)
        ours = trigger.reward(MaxCover(trigger, 2)(mu, mu), mu)
        best = max(trigger.reward(pair, mu) for pair in itertools.combinations(range(5), 2))
        assert ours >= (1 - 1 / np.e) * best - 1e-12


def test_ties_of_clipped_scores_are_broken_by_the_unclipped():
    assert TopK(2)(np.ones(4), np.array([1.1, 3.0, 2.0, 1.5])).tolist() == [1, 2]


def test_a_reloaded_policy_makes_the_same_choices():
    place = environment()
    rounds = list(place.rounds(60, 1))
    policy, other = CascadeTS(4, TopK(3), seed=3), CascadeTS(4, TopK(3), seed=99)

    def go(policy, part):
        shown = []
        for x, _, outcomes in part:
            arms = policy.choose(x)
            seen = place.trigger.observed(arms, outcomes)
            policy.update(x, arms, observed=seen, outcomes=outcomes[seen])
            shown.append(arms.tolist())
        return shown

    go(policy, rounds[:30])
    other.load_state_dict(pickle.loads(pickle.dumps(policy.state_dict())))
    assert go(policy, rounds[30:]) == go(other, rounds[30:])


def test_replay_of_a_uniform_log_recovers_the_reward_of_a_fixed_policy():
    rng = np.random.default_rng(8)
    contexts = np.eye(5)
    means = np.array([0.1, 0.3, 0.8, 0.2, 0.5])
    chosen = rng.integers(0, 5, 20_000)
    log = Log(contexts, chosen, (rng.random(20_000) < means[chosen]).astype(float))
    fixed = Policy(Ridge(5), lambda ridge, x, t, rng: x @ np.array([0, 0, 1.0, 0, 0]), ones, TopK(1))
    estimate = replay(fixed, log)
    assert abs(estimate.value - 0.8) < 4 * estimate.error and 3700 < estimate.matched < 4300
    learnt = replay(C2UCBT(5, TopK(1), alpha=0.3), log)
    assert learnt.value > 0.65
    skew = np.array([0.4, 0.15, 0.15, 0.15, 0.15])
    chosen = rng.choice(5, 20_000, p=skew)
    log = Log(contexts, chosen, (rng.random(20_000) < means[chosen]).astype(float), skew[chosen])
    assert abs(replay(fixed, log).value - 0.8) < 0.05


def test_theory_radii_are_wide():
    assert radius_c2ucbt(10, 6, 6000) == pytest.approx(np.sqrt(10 * np.log(1 + 3600) + 2 * np.log(6000)) + 1)
    assert radius_vac2ucb(10, 6, 6000) > 100


def test_late_updates_in_another_order_end_in_the_same_statistics():
    place = environment()
    rounds = list(place.rounds(20, 2))
    ends = []
    for order in (range(20), reversed(range(20))):
        policy = C2UCBT(4, TopK(3))
        for t in order:
            x, _, outcomes = rounds[t]
            policy.update(x, [0, 1, 2], observed=[0, 1], outcomes=outcomes[:2])
        ends.append(policy.ridge.theta)
    np.testing.assert_allclose(*ends, atol=1e-10)


X = np.full((4, 3), 0.2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: C2UCBT(0, TopK(1)), "d must be 1"),
        (lambda: C2UCBT(3, TopK(1), gamma=0), "gamma must be positive"),
        (lambda: ucb(-1), "alpha must be 0 or more"),
        (lambda: TopK(0), "k must be 1"),
        (lambda: C2UCBT(3, TopK(5)).choose(X), "k is 5, but there are 4 base arms"),
        (lambda: C2UCBT(4, TopK(1)).choose(X), r"contexts must be \(m, 4\)"),
        (lambda: C2UCBT(3, TopK(1)).choose(X * np.nan), "not finite"),
        (lambda: C2UCBT(3, lambda s, t: [1, 1]).choose(X), "an arm twice"),
        (lambda: C2UCBT(3, lambda s, t: [7]).choose(X), "allowed are numbers from 0 to 3"),
        (lambda: C2UCBT(3, TopK(2)).update(X, [0, 1], observed=[0], outcomes=[1.5]), r"outcomes must be in \[0, 1\], got 1.5"),
        (lambda: C2UCBT(3, TopK(2)).update(X, [0, 1], observed=[2], outcomes=[1]), "must have been shown"),
        (lambda: C2UCBT(3, TopK(2)).update(X, [0, 1], observed=[0, 1], outcomes=[1]), "one for each of the 2 observed"),
        (lambda: IndependentCascade(np.empty((0, 2)), 3), "non-empty"),
        (lambda: IndependentCascade([[0, 5]], 3), "there are 3 nodes"),
        (lambda: GreedySpread(IndependentCascade([[0, 1]], 2), 3), "k must be 1 to the 2 nodes"),
        (lambda: ShortestPath([[0, 1]], 1, 0)(np.ones(1), np.ones(1)), "no path from source 1 to target 0"),
        (lambda: Log(np.eye(3), np.array([3]), np.array([1.0])), "from 0 to 2"),
        (lambda: Log(np.eye(3), np.array([1]), np.array([2.0])), r"rewards of a log must be in \[0, 1\]"),
        (lambda: replay(C2UCBT(3, TopK(2)), Log(np.eye(3), np.array([1]), np.array([1.0]))), "one arm a round"),
        (lambda: Ridge(3).merge(Ridge(3, 2.0)), "equal d and gamma"),
        (lambda: list(Environment(np.ones(3) * 9, lambda r: X, Full(), TopK(1)).rounds(1, 0)), "means must be probabilities"),
        (lambda: compiled_cascade(X[None], np.ones(3), X[None, :, 0], k=9, kind="disjunctive", weighted=False), "k must be 1 to the 4"),
        (lambda: compiled_cascade(X[None], np.ones(3), X[None, :, 0], k=1, kind="cascade", weighted=False), "kind must be"),
        (lambda: play({}, environment(), 0, [1]), "rounds must be 1"),
        (lambda: CUCB(3, TopK(1)).choose(X), "of the 3 base arms, got 4"),
    ],
)  # fmt: skip
def test_bad_input(call, text):
    with pytest.raises(ProbatumError, match=text):
        call()


def test_contexts_outside_the_unit_ball_are_scaled_with_a_warning():
    policy = C2UCBT(3, TopK(2))
    with pytest.warns(UserWarning, match="unit ball"):
        policy.choose(X * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.choose(X)
