"""Routing against Transformers' own routers, grouped products against one float64 product a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from quire.ops.backend import Ops, Routes
from quire.ops.layouts import Dense, Layout
from quire.ops.shapes import Routing
from tests.ops.test_linear import grouped, matrix

TOKENS, EXPERTS, HIDDEN = 37, 24, 32


def choices(routes: Routes) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights ``[T, k]``, a token's experts in rising order."""
    rows, places = routes.rows.long(), routes.places.long()
    tokens = torch.arange(len(places))[:, None].expand_as(places)
    assert torch.equal(rows[places], tokens), "a token's places are its rows"
    assert torch.equal(places.flatten().sort().values, torch.arange(len(rows))), "each row has one place"
    experts = torch.bucketize(places, routes.offsets.long(), right=True) - 1
    for begin, end in zip(routes.offsets.tolist(), routes.offsets[1:].tolist(), strict=False):
        assert rows[begin:end].diff().gt(0).all(), "an expert's rows are in the order of the tokens"
    order = experts.argsort(dim=1)
    return experts.gather(1, order), routes.weights.gather(1, order)


def check(
    ops: Ops, logits: torch.Tensor, routing: Routing, wanted: tuple[torch.Tensor, torch.Tensor], **kw: Any
) -> None:
    experts, weights = choices(ops.route(logits, routing, **kw))
    order = wanted[0].argsort(dim=1)
    assert torch.equal(experts, wanted[0].gather(1, order))
    torch.testing.assert_close(weights, wanted[1].gather(1, order), rtol=1e-5, atol=1e-7)


def routed(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Logits of a Transformers router, then its experts and weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        logits, weights, experts = module(x)
    return logits, (experts, weights)


def test_softmax_renormalised_is_mixtral_and_gpt_oss(ops: Ops) -> None:
    torch.manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN)
    sizes = {"hidden_size": HIDDEN, "num_local_experts": EXPERTS, "num_experts_per_tok": 3}
    for router in (
        mixtral.MixtralTopKRouter(mixtral.MixtralConfig(**sizes)),
        gpt_oss.GptOssTopKRouter(gpt_oss.GptOssConfig(**sizes)),
    ):
        logits, wanted = routed(router, x)
        check(ops, logits, Routing(3, renormalize=True), wanted)


@pytest.mark.parametrize("renormalize", [False, True])
def test_sigmoid_with_groups_and_bias_is_deepseek_v3(ops: Ops, renormalize: bool) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": HIDDEN,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 5,
        "n_group": 6,
        "topk_group": 3,
    }
    config = v3.DeepseekV3Config(**sizes, norm_topk_prob=renormalize, routed_scaling_factor=2.5)
    router = v3.DeepseekV3TopkRouter(config)
    router.e_score_correction_bias.normal_()
    routing = Routing(5, "sigmoid", renormalize, 2.5, groups=6, top_groups=3, group_score=2)
    logits, wanted = routed(router, torch.randn(TOKENS, HIDDEN))
    check(ops, logits, routing, wanted, bias=router.e_score_correction_bias)


def test_softmax_with_groups_is_deepseek_v2(ops: Ops) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": HIDDEN,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
    }
    config = v2.DeepseekV2Config(**sizes, topk_method="group_limited_greedy", routed_scaling_factor=16.0)
    routing = Routing(4, scale=16.0, groups=4, top_groups=2)
    logits, wanted = routed(v2.DeepseekV2TopkRouter(config), torch.randn(TOKENS, HIDDEN))
    check(ops, logits, routing, wanted)


def test_sparsemixer_is_phimoe(ops: Ops) -> None:
    torch.manual_seed(0)
    for spread in (0.05, 1.0):
        logits = torch.randn(200, EXPERTS) * spread + 1
        weights, experts = sparsemixer(logits, jitter_eps=0.1, training=False)
        check(ops, logits, Routing(2, "sparsemixer", jitter=0.1), (experts, weights))


def test_equal_scores_and_all_experts(ops: Ops) -> None:
    experts, weights = choices(ops.route(torch.zeros(5, 7), Routing(3)))
    assert experts.tolist() == [[0, 1, 2]] * 5
    torch.testing.assert_close(weights, torch.full((5, 3), 1 / 7))
    assert choices(ops.route(torch.randn(5, 7), Routing(7)))[0].tolist() == [list(range(7))] * 5


def test_a_broken_token_stays_alone(ops: Ops) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, EXPERTS)
    clean = choices(ops.route(logits, Routing(4)))
    logits[4] = float("nan")
    experts, weights = choices(ops.route(logits, Routing(4)))
    assert weights[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(experts[others], clean[0][others])
    torch.testing.assert_close(weights[others], clean[1][others])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int4", "mixed"])
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_grouped_linear(ops: Ops, kind: str, tokens: int) -> None:
    torch.manual_seed(tokens)
    n, k, experts, top_k = 36, 64, 6, 2

    def layout(e: int) -> Layout:
        if kind == "int4" or (kind == "mixed" and e % 2):
            return grouped(n, k, 4, 32, True, torch.float16)
        return Dense(torch.randn(n, k).to(torch.bfloat16 if kind == "bfloat16" else torch.float32))

    layouts = [layout(e) for e in range(experts)]
    stack = ops.pack_stack(iter(layouts))
    routes = ops.route(torch.randn(tokens, experts), Routing(top_k))
    x, bias = torch.randn(tokens, k), torch.randn(experts, n)
    rows = routes.rows.long()
    owner = torch.bucketize(torch.arange(len(rows)), routes.offsets.long(), right=True) - 1
    matrices = torch.stack([matrix(w) for w in layouts])  # type: ignore[arg-type]
    want = torch.einsum("rnk,rk->rn", matrices[owner], x[rows].double())
    got = ops.grouped_linear(x, stack, routes.offsets, rows=routes.rows)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    got = ops.grouped_linear(x[rows], stack, routes.offsets, bias)
    torch.testing.assert_close(got.double(), want + bias[owner], rtol=1e-5, atol=1e-4)
    weighed = want * routes.weights.flatten()[routes.places.flatten().argsort().long()][:, None]
    summed = torch.zeros(tokens, n, dtype=torch.float64).index_add_(0, rows, weighed)
    torch.testing.assert_close(ops.combine(want.float(), routes).double(), summed, rtol=1e-5, atol=1e-5)
    shared, gate = torch.randn(tokens, n), torch.randn(tokens, 1)
    got = ops.combine(want.float(), routes, shared)
    torch.testing.assert_close(got.double(), summed + shared, rtol=1e-5, atol=1e-5)
    got = ops.combine(want.float(), routes, shared, gate)
    torch.testing.assert_close(got.double(), summed + shared * gate.double().sigmoid(), rtol=1e-5, atol=1e-5)


def test_swiglu_of_gpt_oss(ops: Ops) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 2 * 36) * 6
    experts = gpt_oss.GptOssExperts(gpt_oss.GptOssConfig(num_local_experts=1, intermediate_size=36, hidden_size=8))
    interleaved = torch.stack(x.chunk(2, dim=1), dim=2).flatten(1)
    torch.testing.assert_close(ops.gate_up_act(x, "swiglu_oss"), experts._apply_gate(interleaved), rtol=1e-5, atol=1e-5)


def test_bad_indices_are_refused(cpu_ops: Ops) -> None:
    stack = cpu_ops.pack_stack([Dense(torch.zeros(16, 8)), Dense(torch.zeros(16, 8))])
    x = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="offsets"):
        cpu_ops.grouped_linear(x, stack, torch.tensor([0, 2, 9], dtype=torch.int32))
    with pytest.raises(ValueError, match="row is outside"):
        cpu_ops.grouped_linear(
            x, stack, torch.tensor([0, 1, 2], dtype=torch.int32), rows=torch.tensor([0, 4], dtype=torch.int32)
        )
    with pytest.raises(ValueError, match="does not fit"):
        cpu_ops.grouped_linear(torch.zeros(4, 16), stack, torch.tensor([0, 2, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match="one shape"):
        cpu_ops.pack_stack([Dense(torch.zeros(16, 8)), Dense(torch.zeros(8, 8))])
    with pytest.raises(ValueError, match="must choose"):
        cpu_ops.route(torch.zeros(1, 4), Routing(5))
