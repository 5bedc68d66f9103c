"""Conditions: the verdict table, the forms against arithmetic on the same numbers, scopes, pitfalls and bad input."""

import json
import math

import numpy as np
import pytest
import scipy.stats as st

from probatum.errors import ProbatumError
from probatum.evidence import judges
from probatum.evidence.conditions import (
    Outcome,
    above,
    any_of,
    as_good,
    below,
    equal,
    exact,
    faster,
    product,
    proportion,
    ratio,
    share_of_gain,
    slope,
    worst_of,
)
from probatum.evidence.measurements import Measurement, Table

RNG = np.random.default_rng(40)
A, B, Z = RNG.normal(0.9, 0.02, 5), RNG.normal(0.7, 0.03, 5), RNG.normal(0.5, 0.02, 5)


def table(metric="score", of=None, **arms):
    """A row a seed and arm; arrays (S,) are values, (S, k) samples of kind `of`."""
    rows = []
    for name, values in arms.items():
        for seed, value in enumerate(np.asarray(values, float)):
            samples = tuple(value.tolist()) if value.ndim else None
            rows.append(
                Measurement(name, metric, seed, float(np.mean(value)), samples=samples, of=of if samples else None)
            )
    return Table(rows)


def judge(condition, data, level=0.025):
    (found,) = condition.judge(data, level)
    return found


def bounds(d, level=0.025):
    found = st.ttest_1samp(d, 0).confidence_interval(1 - 2 * level)
    return found.low, found.high


# The verdict table.


@pytest.mark.parametrize(
    "shift, up, down",
    [(0.1, "holds", "fails"), (-0.1, "fails", "holds"), (0.0, "inconclusive", "inconclusive")],
)
def test_verdicts_in_both_directions(shift, up, down):
    noise = np.array([-0.01, 0.0, 0.01])
    data = table(a=1 + shift + noise, b=np.ones(3))
    assert judge(above("score", "a", "b", kind="paired"), data).verdict == up
    assert judge(below("score", "a", "b", kind="paired"), data).verdict == down


def test_touching_the_bound_is_inconclusive():
    low, high = bounds(A)
    edge = judges.paired(A)
    assert (edge.low, edge.high) == pytest.approx((low, high))
    data = table(a=A)
    for number in (edge.low, edge.high):
        assert judge(above("score", "a", number, kind="paired"), data).verdict == "inconclusive"
        assert judge(below("score", "a", number, kind="paired"), data).verdict == "inconclusive"
    assert judge(above("score", "a", np.nextafter(edge.low, -1).item(), kind="paired"), data).verdict == "holds"
    assert judge(below("score", "a", np.nextafter(edge.low, -1).item(), kind="paired"), data).verdict == "fails"
    assert judge(above("score", "a", np.nextafter(edge.high, 2).item(), kind="paired"), data).verdict == "fails"


def test_worst_of():
    assert worst_of(["holds", "holds"]) == "holds"
    assert worst_of(["holds", "inconclusive"]) == "inconclusive"
    assert worst_of(["inconclusive", "fails", "holds"]) == "fails"
    assert worst_of(["fails", "error", "holds"]) == "error"
    for bad in ([], ["ran"]):
        with pytest.raises(ProbatumError, match="verdicts"):
            worst_of(bad)


# Forms of theta.


def test_margin_and_number():
    data = table(a=A, b=B)
    low, high = bounds(A - B)
    found = judge(above("score", "a", "b", kind="paired", margin=0.1), data)
    assert (found.value, found.bound, found.interval) == (
        pytest.approx((A - B).mean()),
        0.1,
        pytest.approx((low, high)),
    )
    assert judge(below("score", "b", "a", kind="paired", margin=0.1), data).bound == -0.1
    against = judge(above("score", "a", 0.6, kind="paired", margin=0.1), data)
    assert (against.value, against.bound, against.interval) == (
        pytest.approx(A.mean()),
        pytest.approx(0.7),
        pytest.approx(bounds(A)),
    )
    assert against.p == pytest.approx(st.ttest_1samp(A, 0.7).pvalue)


@pytest.mark.parametrize("higher", [True, False])
def test_as_good(higher):
    sign = 1 if higher else -1
    noise = np.array([0.01, -0.01, 0.0, 0.005, -0.005])
    condition = as_good("score", "a", "b", kind="paired", within=0.05, higher_is_better=higher)
    assert judge(condition, table(a=A + noise, b=A)).verdict == "holds"
    assert judge(condition, table(a=A + noise + sign * 1, b=A)).verdict == "holds"
    assert judge(condition, table(a=A + noise - sign * 0.2, b=A)).verdict == "fails"
    assert judge(condition, table(a=A + noise - sign * 0.05, b=A)).verdict == "inconclusive"
    assert condition.text.startswith(f"score: a at most 0.05 {'below' if higher else 'above'} b")


def test_ratio_is_the_contrast_shown_as_the_ratio_of_means():
    found = judge(ratio("score", "b", "a", kind="paired", at_most=0.9), table(a=A, b=B))
    low, high = bounds(B - 0.9 * A)
    assert found.value == pytest.approx(B.mean() / A.mean())
    assert found.interval == pytest.approx((0.9 + low / A.mean(), 0.9 + high / A.mean()))
    assert found.verdict == "holds" and found.bound == 0.9
    assert judge(ratio("score", "b", "a", kind="paired", at_least=0.9), table(a=A, b=B)).verdict == "fails"


def test_share_of_gain():
    data = table(a=B, b=A, z=Z)
    gain, share = share_of_gain("score", "a", "b", over="z", kind="paired", at_least=0.2).judge(data)
    assert (gain.verdict, gain.value) == ("holds", pytest.approx((A - Z).mean()))
    contrast = B - 0.2 * A - 0.8 * Z
    assert share.value == pytest.approx((B - Z).mean() / (A - Z).mean())
    assert share.p == pytest.approx(st.ttest_1samp(contrast, 0).pvalue)
    assert share.verdict == "holds" and bounds(contrast)[0] > 0
    whole = share_of_gain("score", "a", "b", over="z", kind="paired", at_least=1).judge(data)[1]
    assert (whole.verdict, whole.value) == ("fails", pytest.approx(share.value))


def test_no_gain_nothing_to_share():
    for full in (Z - 0.2, Z + 0.1 * np.array([1, -1, 0.5, -0.5, 0.1])):
        gain, share = share_of_gain("score", "a", "b", over="z", kind="paired", at_least=0.8).judge(
            table(a=A, b=full, z=Z)
        )
        assert gain.verdict == share.verdict == "inconclusive"
        assert "nothing to share" in share.advice and "nothing to share" in gain.advice


def test_product_form():
    rng = np.random.default_rng(41)
    seconds = {"a": rng.uniform(1, 1.1, 5), "b": rng.uniform(2, 2.1, 5)}
    data = table(a=B, b=A)
    for row in table("seconds", **seconds):
        data.add(row)
    found = judge(product("score", "a", "b", per="seconds"), data)
    d = B * seconds["b"] - A * seconds["a"]
    assert found.p == pytest.approx(st.ttest_1samp(d, 0).pvalue)
    assert found.value == pytest.approx((B * seconds["b"]).mean() / (A * seconds["a"]).mean())
    assert found.verdict == "holds"


def test_each_baseline_holds_at_the_level_and_fails_at_its_kth():
    condition = above("score", "a", ["b", "z", "y"], kind="paired")
    outcomes = condition.judge(table(a=A, b=B, z=Z, y=Z[::-1]))
    assert len(outcomes) == 3 and {o.verdict for o in outcomes} == {"holds"}
    assert outcomes[0].interval == pytest.approx((bounds(A - B)[0], bounds(A - B, 0.025 / 3)[1]))
    # below b at 2.5 % but not at 2.5 / 3 %: not yet a failure
    d = np.array([-1.0, -0.3, -0.6, -0.2, -0.3])
    assert bounds(d)[1] < 0 < bounds(d, 0.025 / 3)[1]
    data = table(a=d, b=np.zeros(5), z=d - 1 - 0.1 * A, y=d - 2 - 0.1 * B)
    assert [o.verdict for o in condition.judge(data)] == ["inconclusive", "holds", "holds"]
    assert judge(above("score", "a", ["b"], kind="paired"), data).verdict == "fails"


def test_any_of_is_bonferroni():
    rng = np.random.default_rng(42)
    d = np.array([1.0, 0.3, 0.6, 0.2, 0.3])
    assert bounds(d)[0] > 0 > bounds(d, 0.0125)[0]
    noise = rng.normal(size=5)
    one, other = above("score", "a", "b", kind="paired"), above("score", "z", "b", kind="paired")
    assert judge(any_of([one, other]), table(a=d, b=np.zeros(5), z=noise)).verdict == "inconclusive"
    strong = judge(any_of([other, one]), table(a=d + 1, b=np.zeros(5), z=noise))
    assert strong.verdict == "holds"
    assert strong.p == pytest.approx(2 * st.ttest_1samp(d + 1, 0).pvalue)
    assert strong.text.startswith("at least one of: score: z above b")
    # Both must fail, each at the plain level.
    assert judge(any_of([one, other]), table(a=-d, b=np.zeros(5), z=-d - 1)).verdict == "fails"
    assert judge(any_of([one, other]), table(a=-d, b=np.zeros(5), z=noise)).verdict == "inconclusive"


# Kinds.


def test_unpaired_takes_arms_of_their_own_seeds():
    rows = [Measurement("a", "score", s, float(v)) for s, v in enumerate(A)]
    rows += [Measurement("b", "score", 100 + s, float(v)) for s, v in enumerate(B[:4])]
    found = judge(above("score", "a", "b", kind="unpaired"), Table(rows))
    interval = st.ttest_ind(A, B[:4], equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.n == 4


def test_items_uses_the_zero_one_term_for_zero_one_scores_only():
    rng = np.random.default_rng(43)
    a, b = (rng.random((3, 120)) < 0.8).astype(float), (rng.random((3, 120)) < 0.6).astype(float)
    found = judge(above("score", "a", "b", kind="items"), table(of="item", a=a, b=b))
    expected = judges.items(a - b, binary=True)
    assert found.interval == (expected.low, expected.high)
    assert {"vI", "vS", "vE", "df"} <= set(found.details)
    psnr = judge(above("score", "a", "b", kind="items"), table(of="item", a=30 + a, b=30 + b))
    plain = judges.items(a - b)
    assert psnr.interval == pytest.approx((plain.low, plain.high))
    scaled = judge(ratio("score", "b", "a", kind="items", at_most=0.9), table(of="item", a=a, b=b))
    contrast = judges.items(b - 0.9 * a)
    assert scaled.interval == pytest.approx([0.9 + x / a.mean() for x in (contrast.low, contrast.high)])


def test_items_against_a_number_and_with_a_deterministic_arm():
    rng = np.random.default_rng(44)
    a = (rng.random((3, 120)) < 0.9).astype(float)
    probe = np.tile((rng.random(120) < 0.5).astype(float), (3, 1))
    assert judge(above("score", "a", 0.5, kind="items"), table(of="item", a=a)).verdict == "holds"
    assert judge(above("score", "a", "probe", kind="items"), table(of="item", a=a, probe=probe)).verdict == "holds"


def test_groups_are_averaged_first():
    rng = np.random.default_rng(45)
    a, b = rng.normal(1, 1, (3, 24)), rng.normal(0, 1, (3, 24))
    expected = judges.items((a - b).reshape(3, 6, 4).mean(2))
    for groups in (4, tuple(np.repeat(list("fedcba"), 4).tolist())):
        found = judge(above("score", "a", "b", kind="items", groups=groups), table(of="item", a=a, b=b))
        assert found.interval == pytest.approx((expected.low, expected.high))
        assert "on groups of items like these" in found.text
    for groups, match in [(5, "do not cover"), (("x",) * 23, "label each")]:
        with pytest.raises(ProbatumError, match=match):
            above("score", "a", "b", kind="items", groups=groups).judge(table(of="item", a=a, b=b))


def test_one_model():
    rng = np.random.default_rng(46)
    a, b = rng.normal(1, 1, (1, 30)), rng.normal(0, 1, (1, 30))
    condition = above("score", "a", "b", kind="items", scope="this model")
    found = judge(condition, table(of="item", a=a, b=b))
    assert found.interval == pytest.approx(bounds((a - b)[0]))
    assert found.text == "score: a above b, for this model" and condition.minimum["seeds"] == 1
    with pytest.raises(ProbatumError, match="at least 3 seeds, got 1"):
        above("score", "a", "b", kind="items").judge(table(of="item", a=a, b=b))


def test_set_statistics_are_judged_on_pseudo_values():
    rng = np.random.default_rng(47)
    accuracy = rng.normal(size=(3, 80))
    a, b = accuracy + rng.normal(size=(3, 80)), accuracy + 3 * rng.normal(size=(3, 80))
    data = table(of="item", a=a, b=b)
    for row in table("accuracy", of="item", trained=accuracy):
        data.add(row)
    condition = above("score", "a", "b", kind="items", statistic="kendall", truth="accuracy")
    found = judge(condition, data)
    taus = [[st.kendalltau(x, y).statistic for x, y in zip(arm, accuracy, strict=True)] for arm in (a, b)]
    assert found.value == pytest.approx(np.mean(taus[0]) - np.mean(taus[1]))
    assert condition.minimum == {"seeds": 3, "items": 60}
    by_function = above(
        "score", "a", "b", kind="items", statistic=lambda x, y: st.kendalltau(x, y).statistic, truth="accuracy"
    )
    assert judge(by_function, data).interval == pytest.approx(found.interval)
    with pytest.raises(ProbatumError, match="truth 'acc' must be recorded"):
        above("score", "a", "b", kind="items", statistic="kendall", truth="acc").judge(data)


def test_statistics_of_zero_one_scores_do_without_the_term():
    rng = np.random.default_rng(48)
    truth = np.tile((rng.random(70) < 0.5).astype(float), (3, 1))
    a, b = np.abs(truth - (rng.random((3, 70)) < 0.1)), np.abs(truth - (rng.random((3, 70)) < 0.3))
    data = table(of="item", a=a, b=b)
    for row in table("label", of="item", a=truth, b=truth):
        data.add(row)
    found = judge(above("score", "a", "b", kind="items", statistic="f1", truth="label"), data)
    values = [[judges.pseudo_values("f1", x, y) for x, y in zip(arm, truth, strict=True)] for arm in (a, b)]
    expected = judges.items(np.array(values[0]) - np.array(values[1]))
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_timing():
    rng = np.random.default_rng(49)
    a, b = rng.uniform(1, 1.05, (5, 9)), rng.uniform(2, 2.1, (5, 9))
    data = table("seconds", of="pair", a=a, b=b)
    found = judge(faster("a", "b", by=1.5), data)
    expected = judges.timing(list(b), list(a))
    assert (found.value, found.interval) == (
        pytest.approx(expected.value),
        pytest.approx((expected.low, expected.high)),
    )
    assert (
        found.verdict == "holds"
        and "in a fresh process of this machine" in found.text
        and len(found.details["y_p"]) == 5
    )
    assert judge(ratio("seconds", "a", "b", kind="timing", at_most=0.75), data).verdict == "holds"
    assert judge(faster("a", "b", by=2.5), data).verdict == "fails"
    uneven = table("seconds", of="pair", a=a, b=b * np.array([1, 1, 1.6, 1, 1])[:, None])
    assert "depends on the process: ratios 1.9" in judge(faster("a", "b", by=1.5), uneven).text.replace("2.0", "1.9")


def test_one_launch_is_inconclusive_and_two_are_an_error():
    a, b = np.full((2, 9), 1.0), np.full((2, 9), 9.0)
    found = judge(faster("a", "b", by=1.5), table("seconds", of="pair", a=a[:1], b=b[:1]))
    assert (found.verdict, found.value, found.interval) == ("inconclusive", pytest.approx(9), None)
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ProbatumError, match="at least 3 seeds, got 2"):
        faster("a", "b", by=1.5).judge(table("seconds", of="pair", a=a, b=b))
    with pytest.raises(ProbatumError, match="at least 9 pairs, got 8"):
        faster("a", "b", by=1.5).judge(table("seconds", of="pair", a=a[:1, :8], b=b[:1, :8]))


def test_proportion():
    passed = np.ones((1, 72))
    found = judge(proportion("ok", "a", at_least=0.95), table("ok", of="trial", a=passed))
    assert (found.verdict, found.n, found.interval[0]) == ("holds", 72, pytest.approx(0.95006, abs=5e-6))
    assert "over 72 independent trials" in found.text
    assert (
        judge(proportion("ok", "a", at_least=0.95), table("ok", of="trial", a=passed[:, :71])).verdict == "inconclusive"
    )
    assert judge(proportion("ok", "a", at_most=0.5), table("ok", a=np.ones(20))).verdict == "fails"
    with pytest.raises(ProbatumError, match="at least 20 trials, got 19"):
        proportion("ok", "a", at_least=0.5).judge(table("ok", a=np.ones(19)))
    with pytest.raises(ProbatumError, match=r"0 or 1, got 0.5"):
        proportion("ok", "a", at_least=0.5).judge(table("ok", a=np.full(30, 0.5)))


def test_distance_wants_the_groups_and_takes_the_bias_away():
    rng = np.random.default_rng(50)
    rows, fdj = [], {"a": [], "b": []}
    for seed in range(3):
        for name, value in (("a", 1.0), ("b", 1.5)):
            without = value + rng.normal(0, 0.01, 10)
            fdj[name].append(10 * value - 9 * without.mean())
            rows.append(Measurement(name, "fd", seed, value, samples=tuple(without.tolist())))
    found = judge(below("fd", "a", "b", kind="distance"), Table(rows))
    assert found.interval == pytest.approx(bounds(np.subtract(fdj["a"], fdj["b"])))
    assert found.text == "fd: a below b, against this reference set"
    with pytest.raises(ProbatumError, match="distances without each group"):
        below("fd", "a", "b", kind="distance").judge(table("fd", a=A, b=B))


def sizes(slopes, noise, at=(1, 2, 4, 8, 16)):
    rng = np.random.default_rng(51)
    rows = []
    for name, values in slopes.items():
        for seed, value in enumerate(values):
            y = 3 + value * np.log(at) + noise * rng.normal(size=len(at))
            rows.append(Measurement(name, "loss", seed, float(y[-1]), samples=tuple(y.tolist()), of="size", at=at))
    return Table(rows)


def test_slope():
    data = sizes({"a": [-0.5, -0.52, -0.48], "b": [-0.3, -0.31, -0.3]}, 0.001)
    fits = {n: [np.polyfit(np.log(r.at), r.samples, 1)[0] for r in data.of(n, "loss").values()] for n in "ab"}
    found = judge(slope("loss", "a", at_most=-0.2), data)
    assert (found.verdict, found.interval) == ("holds", pytest.approx(bounds(fits["a"])))
    difference = judge(slope("loss", "a", baseline="b", at_most=0.0), data)
    assert difference.interval == pytest.approx(bounds(np.subtract(fits["a"], fits["b"])))
    alone = judge(slope("loss", "a", at_most=-0.2, scope="these models"), data.first([0]))
    row = data.of("a", "loss")[0]
    fit = st.linregress(np.log(row.at), row.samples)
    assert alone.interval == pytest.approx([fit.slope + sign * st.t.ppf(0.975, 3) * fit.stderr for sign in (-1, 1)])
    with pytest.raises(ProbatumError, match="at least 4 sizes, got 3"):
        slope("loss", "a", at_most=0).judge(sizes({"a": [1, 2, 3]}, 0.1, at=(1, 2, 3)))


def test_exact():
    counts = table("count", a=[5, 5, 5], b=[5, 5, 6], c=[0, 0, 0])
    assert judge(exact("count", "a", equals=5), counts).verdict == "holds"
    found = judge(exact("count", "b", equals=5), counts)
    assert (found.verdict, found.value, found.bound, found.interval) == ("fails", 6, 5, None)
    assert judge(exact("count", "b", equals=5, within=1), counts).verdict == "holds"
    assert judge(exact("count", "b", at_most=6), counts).verdict == "holds"
    assert judge(exact("count", "b", at_least=6), counts).verdict == "fails"
    assert judge(exact("count", "c", equals=0), counts).text == "count: c is 0, in each of these 3 runs"
    assert judge(equal("count", "a", "b"), counts).verdict == "fails"
    assert judge(equal("count", "a", "b", within=1), counts).verdict == "holds"
    assert judge(above("count", "b", "c", kind="exact", margin=5), counts).verdict == "fails"  # 5 is not more than 5
    assert judge(ratio("count", "b", "a", kind="exact", at_most=1.2), counts).verdict == "holds"


def test_equal_compares_the_parts():
    data = table(of="item", a=[[1, 2, 3.0]], b=[[3, 2, 1.0]])
    assert judge(equal("score", "a", "b"), data).verdict == "fails"
    assert judge(equal("score", "a", "b", within=2), data).verdict == "holds"
    with pytest.raises(ProbatumError, match="same samples"):
        equal("score", "a", "b").judge(table(of="item", a=[[1, 2]], b=[[1, 2, 3]]))


# Texts, advice, JSON.


def test_texts_state_their_scope():
    assert above("psnr", "a", "b", kind="paired").text == "psnr: a above b, on these test items"
    assert (
        above("psnr", "a", "b", kind="items", margin=0.1).text
        == "psnr: a above b by more than 0.1, on items like these"
    )
    shipped = above("psnr", "a", "b", kind="paired", scope="for the shipped weights", on="on these 12 photos")
    assert shipped.text == "psnr: a above b, on these 12 photos, for the shipped weights"
    data = table(of="item", a=A[:, None] + np.arange(4), b=B[:, None] + np.arange(4))
    assert judge(above("score", "a", "b", kind="paired"), data).text == "score: a above b, on these 4 items"
    assert above("score", "a", ["b", "c"], kind="paired").text.count(";") == 1


def test_advice_says_how_many_seeds():
    sd = (A - B).std(ddof=1)
    number = float((A - B).mean() - 0.9 * sd)  # .9 sd: undecided at 5 seeds, decided at about 8
    found = judge(above("score", "a", "b", kind="paired", margin=number), table(a=A, b=B))
    assert found.verdict == "inconclusive" and found.advice.endswith(": about 8 seeds")
    assert st.t.ppf(0.975, 7) / 8**0.5 <= 0.9 < st.t.ppf(0.975, 6) / 7**0.5
    near = judge(above("score", "a", "b", kind="paired", margin=float((A - B).mean() - 0.2 * sd)), table(a=A, b=B))
    assert near.advice.endswith("not with seeds")
    assert "half-width" in near.advice and "bound" in near.advice


def test_advice_of_items():
    rng = np.random.default_rng(52)
    item = rng.normal(size=(1, 20))
    a = 0.2 + item + 0.01 * rng.normal(size=(3, 20))
    found = judge(above("score", "a", "b", kind="items"), table(of="item", a=a, b=np.zeros((3, 20))))
    assert found.advice.endswith("more items, not seeds")
    noisy = np.array([[0.1], [0.5], [0.9]]) + 0.05 * rng.normal(size=(3, 20))
    found = judge(above("score", "a", "b", kind="items"), table(of="item", a=noisy, b=np.zeros((3, 20))))
    assert found.advice.split(": ")[1].startswith("about ")


def test_advice_of_trials():
    found = judge(proportion("ok", "a", at_least=0.9), table("ok", of="trial", a=np.ones((1, 20))))
    n = int(found.advice.split("about ")[1].split()[0])
    assert 36 <= n <= 38  # 36 of 36 is the first to lie above .9


def test_json_is_plain():
    found = judge(above("score", "a", "b", kind="paired"), table(a=A, b=B)).to_json()
    back = json.loads(json.dumps(found, allow_nan=False))
    assert {"text", "value", "bound", "interval", "verdict", "p", "n", "half_width", "sd"} <= set(back)
    assert back["interval"] == list(found["interval"])
    odd = Outcome(
        "t", "exact", math.nan, 0.0, "fails", details={"x": np.float64(2), "y": np.arange(2), "z": np.bool_(True)}
    )
    plain = json.loads(json.dumps(odd.to_json(), allow_nan=False))
    assert plain["value"] is None and plain["details"] == {"x": 2.0, "y": [0, 1], "z": True}


def test_swapped_arms_mirror():
    one = judge(above("score", "a", "b", kind="paired"), table(a=A, b=B))
    other = judge(above("score", "b", "a", kind="paired"), table(a=A, b=B))
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert (one.verdict, other.verdict, one.p) == ("holds", "fails", pytest.approx(other.p))


# Pitfalls.


def test_a_seed_that_is_not_used_is_an_error():
    same = np.full(5, 0.8)
    with pytest.raises(ProbatumError, match="'b', which trains, is identical over all seeds"):
        above("score", "a", "b", kind="paired", trained=("a", "b")).judge(table(a=A, b=same))
    assert judge(above("score", "a", "b", kind="paired", trained="a"), table(a=A, b=same)).kind == "paired"
    with pytest.raises(ProbatumError, match="'a' and 'b' is identical over all seeds"):
        above("score", "a", "b", kind="paired").judge(table(a=same + 0.1, b=same))
    with pytest.raises(ProbatumError, match="identical"):
        above("score", "a", "b", kind="items").judge(table(of="item", a=np.ones((3, 6)), b=np.zeros((3, 6))))


def test_paired_is_never_narrower_than_the_resolution():
    a, b = np.array([0.99, 0.98, 0.985]), np.array([0.985, 0.975, 0.98])  # 200 items: one answer more each time
    found = judge(above("score", "a", "b", kind="paired"), table(a=a, b=b))
    assert found.half_width == pytest.approx(0.005) and found.verdict == "inconclusive"
    assert judge(above("score", "a", "b", kind="paired", resolution=0.02), table(a=a, b=b)).half_width == 0.02
    right = np.ones((3, 4))
    right[[0, 1, 2], [0, 1, 2]] = 0
    wrong = np.zeros((3, 4))
    wrong[0, 0] = wrong[1, 0] = wrong[2, 3] = 1
    counted = judge(above("score", "a", "b", kind="paired"), table(of="item", a=right, b=wrong))
    assert counted.half_width == 0.25


def test_not_finite_is_scored_or_an_error():
    broken = A.copy()
    broken[2] = math.nan
    with pytest.raises(ProbatumError, match="score of 'a' is not finite at seed 2: declare worst="):
        above("score", "a", "b", kind="paired").judge(table(a=broken, b=B))
    found = judge(above("score", "a", "b", kind="paired", worst=0.0), table(a=broken, b=B))
    broken[2] = 0.0
    assert found.value == pytest.approx((broken - B).mean())
    cells = np.random.default_rng(53).normal(size=(3, 6))
    cells[1, 4] = math.inf
    with pytest.raises(ProbatumError, match="seed 1, item 4"):
        above("score", "a", 0, kind="items").judge(table(of="item", a=cells))
    scored = judge(above("score", "a", 0, kind="items", worst=-1.0), table(of="item", a=cells))
    cells[1, 4] = -1
    assert scored.value == pytest.approx(cells.mean())


def test_a_missing_row_is_scored_or_an_error():
    rows = [r for r in table(a=A, b=B) if not (r.system == "a" and r.seed == 3)]
    with pytest.raises(ProbatumError, match="score of 'a' has no row for seed 3"):
        above("score", "a", "b", kind="paired").judge(Table(rows))
    found = judge(above("score", "a", "b", kind="paired", worst=0.0), Table(rows))
    assert found.value == pytest.approx(np.where(np.arange(5) == 3, 0, A).mean() - B.mean())
    items = [
        r
        for r in table(of="item", a=A[:, None] + np.arange(6), b=B[:, None] * np.ones(6))
        if (r.system, r.seed) != ("a", 3)
    ]
    assert judge(above("score", "a", "b", kind="items", worst=0.0), Table(items)).n == 5


# Bad input.


def test_duplicate_seeds_are_refused():
    data = table(a=A)
    with pytest.raises(ProbatumError, match="twice for seed 1"):
        data.add(Measurement("a", "score", 1, 0.5))


ITEMS = table(of="item", a=RNG.normal(size=(3, 6)), b=RNG.normal(size=(3, 6)))
RIGHT = table(of="item", a=np.eye(3, 99), b=np.ones((3, 99)))
RAGGED = Table(
    [Measurement("a", "score", s, 0, samples=(1.0, 2.0 * s) + (3.0,) * (4 + s), of="item") for s in range(3)]
)


@pytest.mark.parametrize(
    "condition, data, match",
    [
        (above("score", "a", "b", kind="paired"), table(a=A[:2], b=B[:2]), "at least 3 seeds, got 2"),
        (above("score", "a", "b", kind="unpaired"), table(a=A, b=B[:2]), "at least 3 seeds, got 2 \\('b'\\)"),
        (above("score", "a", "b", kind="items"), RIGHT, "at least 100 items 0/1, got 99"),
        (
            above("score", "a", "b", kind="items"),
            table(of="item", a=np.eye(3, 4) * 2, b=np.ones((3, 4))),
            "at least 5 items, got 4",
        ),
        (above("score", "a", 0, kind="items", statistic=np.mean), ITEMS, "at least 60 items, got 6"),
        (
            above("score", "a", "b", kind="items"),
            table(a=A, b=B),
            "seed 0: kind 'items' needs samples of 'item', got none",
        ),
        (above("score", "a", 0, kind="items"), RAGGED, "'a', seed 1: 7 items where others have 6"),
        (above("score", "c", "b", kind="paired"), table(a=A, b=B), "'score' of 'c' was never recorded"),
        (above("scor", "a", "b", kind="paired"), table(a=A, b=B), "did you mean score"),
        (ratio("score", "a", "b", kind="paired", at_most=2), table(a=A, b=-B), "positive quantities"),
        (product("score", "a", "b", per="t"), table(a=A, b=B), "'t' of 'a' was never recorded"),
    ],
)
def test_bad_tables(condition, data, match):
    with pytest.raises(ProbatumError, match=match):
        condition.judge(data)


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: above("m", "a", "b", kind="pairs"), "kind must be one of"),
        (lambda: above("m", "a", "b", kind="paired", margin=-0.1), "margin must be 0 or more"),
        (lambda: above("m", "a", "b", kind="paired", margin=np.float64(0.1)), "margin must be a plain finite number"),
        (lambda: above("m", "a", "b", kind="paired", margin=lambda t: 1), "margin must be a plain finite number"),
        (lambda: above("m", "a", "a", kind="paired"), "different systems"),
        (lambda: above("m", "a", [], kind="paired"), "baseline"),
        (lambda: above("m", "a", math.nan, kind="paired"), "baseline"),
        (lambda: above("m", "a", "b", kind="timing"), "faster"),
        (lambda: as_good("m", "a", "b", kind="timing", within=0.1), "faster"),
        (lambda: above("m", "a", "b", kind="proportion"), "own constructor"),
        (lambda: above("m", "a", "b", kind="slope"), "own constructor"),
        (lambda: above("m", "a", "b", kind="paired", groups=4), "groups needs kind='items'"),
        (lambda: above("m", "a", "b", kind="items", statistic="tau", truth="t"), "statistic must be one of"),
        (lambda: above("m", "a", "b", kind="items", statistic="auc"), "truth"),
        (lambda: above("m", "a", "b", kind="paired", resolution=-1), "resolution"),
        (lambda: above("m", "a", "b", kind="paired", worst=math.inf), "worst"),
        (lambda: as_good("m", "a", "b", kind="paired", within=0), "within must be above 0"),
        (lambda: ratio("m", "a", "b", kind="paired", at_most=0), "above 0"),
        (lambda: ratio("m", "a", "b", kind="paired"), "one of at_most and at_least"),
        (lambda: faster("a", "b", by=-1), "by must be above 0"),
        (lambda: share_of_gain("m", "a", "b", over="z", kind="paired", at_least=0), "at_least must be above 0"),
        (lambda: share_of_gain("m", "a", "b", over="b", kind="paired", at_least=0.5), "different systems"),
        (lambda: product("m", "a", "b", per="s", kind="items"), "kind 'paired'"),
        (lambda: exact("m", "a"), "one of equals"),
        (lambda: exact("m", "a", equals=1, at_most=2), "one of equals"),
        (lambda: proportion("m", "a", at_least=1.0), "between 0 and 1"),
        (lambda: slope("m", "a", at_most=1, at_least=0), "one of at_most and at_least"),
        (lambda: any_of([exact("m", "a", equals=1)]), "2 or more"),
        (lambda: above("m", "a", "b", kind="paired").judge(table(a=A), 0.05), "level must be one declared"),
    ],
)
def test_bad_declarations(build, match):
    with pytest.raises(ProbatumError, match=match):
        build()
