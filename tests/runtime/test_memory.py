"""The memory plan: what it promises fits, and what can't fit is refused with the numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from quire.config.engine import EngineConfig
from quire.model.families import llama, qwen3_next
from quire.model.spec import AttentionSpec
from quire.ops.triton.pages import new_pages
from quire.runtime.devices import DeviceFacts
from quire.runtime.memory import MIB, MemoryTooSmall, pages_for, plan_memory

CONFIG = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SPEC = llama.spec(CONFIG)
WINDOWED = llama.spec({**CONFIG, "sliding_window": 1024})
GIB = 1024 * MIB
HOST = DeviceFacts(
    "cpu",
    memory=16 * GIB,
    process=330 * MIB,
    auto_kv=384 * MIB,
    dtype=torch.float32,
    default_page_size=16,
    default_slots=64,
    default_step_tokens=1024,
    latent_once=False,
)


def test_bytes_of_pages_are_keys_and_values_of_all_layers() -> None:
    plan = plan_memory(SPEC, EngineConfig(max_model_len=4096, memory="2GiB"), 100 * MIB, HOST, 4)
    assert plan.kv == plan.groups[0].num_pages * 16 * 30 * 2 * 3 * 64 * 4
    assert dict(plan.rows())["sum"] <= 2 * GIB


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_bytes_of_pages_are_those_of_a_gpu(dtype: torch.dtype) -> None:
    attention = SPEC.layers[0].attention
    assert isinstance(attention, AttentionSpec)
    pages = new_pages(3, 16, attention.kv_heads, attention.head_dim, dtype, torch.device("cpu"))
    scales = pages.k_scale.nbytes + pages.v_scale.nbytes if pages.fp8 else 0
    assert pages.k.nbytes + pages.v.nbytes + scales == 3 * attention.page_bytes(16, dtype.itemsize)


def test_context_shrinks_to_what_memory_holds() -> None:
    plan = plan_memory(SPEC, EngineConfig(memory="600MiB"), 100 * MIB, HOST, 4)
    assert 1000 < plan.max_model_len < 8192
    assert plan.groups[0].num_pages * 16 >= plan.max_model_len
    assert dict(plan.rows())["sum"] <= 600 * MIB


def test_what_a_long_request_alone_needs_is_spare() -> None:
    plan = plan_memory(SPEC, EngineConfig(max_model_len=8192), 0, replace(HOST, auto_kv=256 * MIB), 4)
    (group,) = plan.groups
    assert (group.num_pages, plan.kv) == (512, 512 * 720 * 1024)
    assert 256 * MIB <= (group.num_pages - group.spare) * 720 * 1024 < 257 * MIB
    assert plan_memory(SPEC, EngineConfig(memory="2GiB"), 0, HOST, 4).groups[0].spare == 0


def test_a_window_needs_fewer_pages() -> None:
    assert pages_for(8192, 16, None, 512) == 512
    assert pages_for(8192, 16, 1024, 512) == 97
    assert pages_for(100, 16, 1024, 512) == 7
    full = plan_memory(SPEC, EngineConfig(), 0, HOST, 4)
    windowed = plan_memory(WINDOWED, EngineConfig(), 0, HOST, 4)
    assert windowed.concurrency > 2 * full.concurrency


def test_pages_of_states_are_long_and_few() -> None:
    hybrid = qwen3_next.spec(
        CONFIG | {
            "model_type": "qwen3_5_text", "linear_num_key_heads": 4, "linear_num_value_heads": 8,
            "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
        }
    )  # fmt: skip
    plan = plan_memory(hybrid, EngineConfig(memory="4GiB", max_num_seqs=4), 100 * MIB, HOST, 4)
    full, states = plan.groups
    assert (plan.page_size, full.window, states.window) == (256, None, 2)
    assert full.num_pages >= 8192 // 256
    state, channels = 8 * 64 * 64, (2 * 4 + 8) * 64
    layer = 2 * (4 * (state + 3 * channels) + 8)
    attention = 2 * 3 * 64 * 256 * 4
    assert plan.kv == full.num_pages * 7 * attention + states.num_pages * 23 * layer
    assert dict(plan.rows())["sum"] <= 4 * GIB


GPU = replace(HOST, kind="cuda", memory=80 * GIB, auto_kv=None, dtype=torch.bfloat16, default_slots=1024)


def test_a_gpu_has_room_for_the_widest_product_expanded() -> None:
    """Once for steps that are launched, once for those that are captured; the CPU's kernels expand nothing."""
    widest = 2 * 14336 * 4096
    plain, narrow = (plan_memory(SPEC, EngineConfig(), 100 * MIB, GPU, 2, n) for n in (0, widest))
    assert narrow.workspace - plain.workspace == 2 * 2 * widest
    tight = EngineConfig(memory="2GiB")
    assert dict(plan_memory(SPEC, tight, 100 * MIB, replace(GPU, default_slots=64), 2, widest).rows())["sum"] <= 2 * GIB
    assert plan_memory(SPEC, EngineConfig(), 0, HOST, 4, widest) == plan_memory(SPEC, EngineConfig(), 0, HOST, 4)


def test_one_request_of_full_length_always_fits() -> None:
    plan = plan_memory(SPEC, EngineConfig(), 100 * MIB, HOST, 4)
    assert plan.max_model_len == 8192
    assert plan.concurrency >= 1


@pytest.mark.parametrize("memory", ["300MiB", "450MiB"])
def test_too_little_memory_is_refused_with_numbers(memory: str) -> None:
    config = EngineConfig(memory=memory, max_model_len=8192)
    with pytest.raises(MemoryTooSmall, match=r"100 MiB for weights.*raise --memory") as caught:
        plan_memory(SPEC, config, 100 * MIB, HOST, 4)
    *needs, given = (int(n) for n in re.findall(r"(\d+) MiB", str(caught.value)))
    assert sum(needs) > given


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(MemoryTooSmall, match=r"8192 positions"):
        plan_memory(SPEC, EngineConfig(max_model_len=9000), 0, HOST, 4)


def test_groups_share_the_memory_that_is_left() -> None:
    mixed = replace(SPEC, layers=SPEC.layers[:5] + WINDOWED.layers[5:])
    plan = plan_memory(mixed, EngineConfig(memory="2GiB", max_num_seqs=8), 0, HOST, 4)
    full, window = plan.groups
    assert window.num_pages == 8 * pages_for(8192, 16, 1024, 1024)
    assert full.num_pages > 512
    assert dict(plan.rows())["sum"] <= 2 * GIB
    tight = plan_memory(mixed, EngineConfig(memory="700MiB"), 0, HOST, 4)
    assert tight.groups[0].num_pages - 512 == tight.groups[1].num_pages - pages_for(8192, 16, 1024, 1024)
