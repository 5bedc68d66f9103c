"""The generated Triton text: its structure everywhere, its result where Triton (interpreted) or a GPU is present."""

import ast
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from probatum import ProbatumError
from probatum.algebra import Cascade

SIZES = {"E": 16, "F": 32, "M0": 16}
CHECK = """
import importlib.util, sys, torch
import torch.nn.functional as F
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1]); kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
device = sys.argv[2]
g = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(s, generator=g).to(device) for s in ((2, 3, 40, 16), (2, 3, 48, 16), (2, 3, 48, 32)))
assert torch.allclose(kernels.launch_plain(Q=q, K=k, V=v), F.scaled_dot_product_attention(q, k, v), atol=2e-3 if device == "cuda" else 1e-5)
q = torch.randn(2, 3, 48, 16, generator=g).to(device)
want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
assert torch.allclose(kernels.launch_causal(Q=q, K=k, V=v), want, atol=2e-3 if device == "cuda" else 1e-5)
x, t = torch.randn(37, 64, generator=g).to(device), torch.randint(0, 64, (37,), generator=g).to(device)
assert torch.allclose(kernels.launch_loss(X=x, T=t), F.cross_entropy(x, t, reduction="none"), atol=1e-4)
"""


def kernels() -> str:
    attention = Cascade.named("attention-1pass")
    causal = attention.where("BQK", "m1*M0+m0 <= p")
    texts = [
        attention.triton(SIZES, block=16, name="plain"), causal.triton(SIZES, block=16, name="causal"),
        Cascade.named("cross-entropy-1pass").triton({"C0": 16}, block=16, name="loss"),
    ]  # fmt: skip
    return "\n\n".join(texts)


def test_structure_of_the_text():
    text = Cascade.named("attention-1pass").triton(SIZES, block=64)
    tree = ast.parse(text)
    kernel, launcher = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    assert (kernel.name, launcher.name) == ("cascade_kernel", "launch_cascade_kernel")
    (loop,) = (node for node in ast.walk(kernel) if isinstance(node, ast.For))

    def calls(node, name):
        return [c for c in ast.walk(node) if isinstance(c, ast.Call) and ast.unparse(c.func) == f"tl.{name}"]

    assert len(calls(kernel, "dot")) == len(calls(loop, "dot")) == 2
    assert len(calls(kernel, "store")) == 1 and not calls(loop, "store")  # one pass: outputs are written once, after the loop
    assert len(calls(loop, "load")) == 2 and len(calls(kernel, "load")) == 3  # K and V a step, Q once
    carried = {ast.unparse(node.targets[0]) for node in loop.body[-3:] if isinstance(node, ast.Assign)}
    assert carried == {"RM", "RD", "RNV"}


def test_a_mask_is_in_the_text():
    text = Cascade.named("attention-1pass").where("BQK", "m1*M0+m0 <= p").triton(SIZES, block=16)
    assert text.count("tl.where") >= 3 and "<= p" in text


@pytest.mark.parametrize(
    ("name", "extents", "options", "message"),
    [
        ("attention-3pass", SIZES, {}, "needs a cascade of one pass"),
        ("attention-1pass", {"E": 16, "M0": 16}, {}, "extents must give F"),
        ("attention-1pass", {**SIZES, "E": 24}, {}, r"extents\['E'\] must be a power of two"),
        ("attention-1pass", SIZES, {"block": 24}, "block must be a power of two"),
        ("attention-1pass", SIZES, {"name": "a kernel"}, "name must be an identifier"),
    ],
)
def test_bad_input(name, extents, options, message):
    with pytest.raises(ProbatumError, match=message):
        Cascade.named(name).triton(extents, **options)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernels_equal_torch(tmp_path):
    (tmp_path / "kernels.py").write_text(kernels())
    gpu = torch.cuda.is_available()
    environment = dict(os.environ) if gpu else {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK, str(tmp_path / "kernels.py"), "cuda" if gpu else "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
