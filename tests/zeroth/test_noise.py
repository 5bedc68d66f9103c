"""z is a pure function of its address."""

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth.noise import BLOCK, Noise, _hash, _hash_words, _signs, mix

SIZES = (3, 17, BLOCK, BLOCK + 5, 33 * BLOCK + 100)
KINDS = ("gaussian", "rademacher")


def collect(noise, tensors, ids, step=4, query=1):
    got = [torch.empty_like(t) for t in tensors]
    starts = [t.storage_offset() for t in tensors]

    def apply(i, part, z):
        at = part.storage_offset() - starts[i]
        got[i].view(-1)[at : at + part.numel()] = z

    noise.walk(tensors, ids, step, query, apply)
    return got


def test_a_gaussian_block_is_normal_of_a_fresh_generator_with_the_blocks_seed():
    noise = Noise(11)
    seed = mix(noise.key(4, 1, 2) ^ 3) & 0xFFFFFFFF
    want = torch.empty(BLOCK).normal_(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(noise.block(4, 1, 2, 3, BLOCK), want)
    assert torch.equal(
        noise.block(4, 1, 2, 3, 37), torch.empty(48).normal_(generator=torch.Generator().manual_seed(seed))[:37]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_threads_order_and_one_tensor_at_a_time_give_the_same_bits(kind):
    tensors = [torch.empty(n) for n in SIZES]
    want = collect(Noise(11, kind, threads=1), tensors, range(5))
    assert all(map(torch.equal, want, collect(Noise(11, kind, threads=2), tensors, range(5))))
    assert all(map(torch.equal, want[::-1], collect(Noise(11, kind, threads=2), tensors[::-1], range(4, -1, -1))))
    for i, tensor in enumerate(tensors):
        assert torch.equal(collect(Noise(11, kind, threads=1), [tensor], [i])[0], want[i])
    blocks = [Noise(11, kind).block(4, 1, 3, b, n) for b, n in ((1, 5), (0, BLOCK))]  # reversed
    assert torch.equal(torch.cat(blocks[::-1]), want[3])


@pytest.mark.parametrize("kind", KINDS)
def test_filling_memory_gives_the_same_bits_as_walking(kind):
    want = collect(Noise(11, kind), [torch.empty(BLOCK + 32)], [2])[0]
    buffer = torch.empty(BLOCK + 32)
    parts = [(part, 2, k) for k, part in enumerate(buffer.split(BLOCK))]
    Noise(11, kind).fill(parts, 4, 1)
    assert torch.equal(buffer, want)
    many = torch.empty(9 * BLOCK)
    Noise(11, kind, threads=2).fill([(part, 5, k) for k, part in enumerate(many.split(BLOCK))], 4, 1)
    assert torch.equal(many, collect(Noise(11, kind), [many], [5])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_address_matters_and_seeds_beyond_32_bits_do(kind):
    one = torch.Generator().manual_seed(5)
    assert torch.equal(
        torch.randn(4, generator=one), torch.randn(4, generator=torch.Generator().manual_seed(5 + 2**32))
    )  # torch's trap
    addresses = [
        (5, 0, 0, 0),
        (5 + 2**32, 0, 0, 0),
        (5, 1, 0, 0),
        (5, 0, 1, 0),
        (5, 0, 0, 1),
        (5, 2**33, 0, 0),
        (0, 5, 0, 0),
    ]
    found = [Noise(seed, kind).values(step, query, tensor, 64) for seed, step, query, tensor in addresses]
    assert len({tuple(z.tolist()) for z in found}) == len(addresses)


def test_global_generators_are_not_touched():
    torch.manual_seed(3)
    np_state, state = np.random.get_state()[1].copy(), torch.get_rng_state()
    Noise(1).values(0, 0, 0, 100), Noise(1, "rademacher").values(0, 0, 0, 100)
    assert torch.equal(state, torch.get_rng_state()) and (np_state == np.random.get_state()[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_moments_and_independence_of_neighbouring_addresses(kind):
    n = 200_000
    z, other = Noise(2, kind).values(0, 0, 0, n), Noise(2, kind).values(1, 0, 0, n)
    error = n**-0.5
    assert (
        abs(z.mean()) < 4 * error and abs((z * other).mean()) < 4 * error and abs((z[1:] * z[:-1]).mean()) < 4 * error
    )
    assert abs((z**2).mean() - 1) < 4 * error * 2**0.5
    assert abs((z**4).mean() - (3 if kind == "gaussian" else 1)) < 4 * error * 96**0.5
    lags = torch.stack([(z[k:] * z[:-k]).mean() for k in (2, 8, 31, 32, 64, 512)])
    assert lags.abs().max() < 4.5 * error


def test_signs_by_table_equal_signs_by_shifting_on_any_device():
    words, key = 100, 0xFEDCBA9876543210
    fast = _hash_words(np.arange(words, dtype=np.uint32), key)
    slow = _hash(torch.arange(words), key)
    assert fast.tolist() == slow.tolist()
    z = Noise(9, "rademacher").values(0, 0, 7, 32 * words)
    assert torch.equal(z, _signs(_hash(torch.arange(words), Noise(9, "rademacher").key(0, 0, 7))))
    assert set(z.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_their_number_alone(kind):
    noise = Noise(3, kind)
    whole = noise.rows(1, 0, 4, torch.arange(9), 21)
    assert whole.shape == (9, 21)
    assert torch.equal(noise.rows(1, 0, 4, torch.tensor([7, 2]), 21), whole[[7, 2]])
    assert len({tuple(row.tolist()) for row in whole}) == 9


def test_scaled_signs_are_the_scale_times_the_signs():
    noise, tensor = Noise(4, "rademacher"), torch.zeros(BLOCK + 3)
    noise.walk([tensor], [0], 0, 0, lambda i, part, z: part.add_(z), [0.3])
    assert torch.equal(tensor, noise.values(0, 0, 0, BLOCK + 3) * 0.3)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1"])
def test_bad_seeds(seed):
    with pytest.raises(ProbatumError, match="seed must be an integer from 0"):
        Noise(seed)


def test_unknown_kind():
    with pytest.raises(ProbatumError, match="noise must be one of gaussian, rademacher, got 'sphere'"):
        Noise(1, "sphere")
