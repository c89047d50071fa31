"""The Python API on SmolLM2: kinds of prompts, order, errors, the asynchronous engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quire import LLM, AsyncLLM, ParameterError, SamplingParams
from quire.config.options import ConfigError
from quire.weights.errors import CheckpointError

GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(str(smollm2_path), max_model_len=512)


def test_texts_ids_and_dicts_are_the_same_prompt(llm: LLM) -> None:
    text = "The capital of France is"
    tokenizer = llm.get_tokenizer()
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    prompts = [text, ids, {"prompt": text}, {"prompt_token_ids": ids}]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert {o.outputs[0].text for o in outputs} == {outputs[0].outputs[0].text}
    assert "Paris" in outputs[0].outputs[0].text
    assert [o.prompt_token_ids for o in outputs] == [ids] * 4
    assert outputs[0].prompt == text
    assert outputs[1].prompt is None
    single = llm.generate(ids, GREEDY, use_tqdm=False)
    assert len(single) == 1
    assert single[0].outputs[0].token_ids == outputs[0].outputs[0].token_ids


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    lengths = [9, 1, 5, 3]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    outputs = llm.generate(["a", "b", "c", "d"], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
    assert all(o.finished and o.outputs[0].finish_reason == "length" for o in outputs)
    assert [o.prompt for o in outputs] == ["a", "b", "c", "d"]


def test_n_completions_of_a_seeded_prompt(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=5, max_tokens=12)
    first, again = (llm.generate("Once upon a time", params, use_tqdm=False)[0] for _ in range(2))
    assert [c.text for c in first.outputs] == [c.text for c in again.outputs]
    assert len({c.text for c in first.outputs}) > 1
    one = SamplingParams(temperature=1.0, seed=5, max_tokens=12)
    assert llm.generate("Once upon a time", one, use_tqdm=False)[0].outputs[0].text == first.outputs[0].text


def test_stop_string_ends_the_request_and_frees_its_pages(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=64, stop=["e"])
    output = llm.generate("Once upon a time", params, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "stop"
    assert output.stop_reason == "e"
    assert "e" not in output.text
    stats = llm._engine.stats()
    assert stats.running == 0
    assert stats.free_pages == stats.total_pages


def test_stop_token_and_min_tokens(llm: LLM) -> None:
    free = llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)[0].outputs[0]
    token = free.token_ids[3]
    stopped = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[token])
    output = llm.generate("Once upon a time", stopped, use_tqdm=False)[0].outputs[0]
    assert output.stop_reason == token
    assert output.token_ids == free.token_ids[: free.token_ids.index(token) + 1]
    longer = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[token], min_tokens=8)
    assert len(llm.generate("Once upon a time", longer, use_tqdm=False)[0].outputs[0].token_ids) >= 8


def test_a_bad_prompt_stops_nothing(llm: LLM) -> None:
    with pytest.raises(ParameterError, match="512"):
        llm.generate([[5] * 600], GREEDY, use_tqdm=False)
    with pytest.raises(ParameterError, match="token ids"):
        llm.generate([[49152]], GREEDY, use_tqdm=False)
    with pytest.raises(ParameterError, match="max_tokens"):
        llm.generate("Hello", SamplingParams(max_tokens=10_000), use_tqdm=False)
    with pytest.raises(ValueError, match="2 prompts"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(ParameterError, match="sampling_params must be SamplingParams, not dict"):
        llm.generate(["a"], [{"max_tokens": 3}], use_tqdm=False)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 prompts need 1 priorities, not 2"):
        llm.generate("a", GREEDY, use_tqdm=False, priority=[1, 2])
    for nothing in (None, 5, b"abc", [None], [b"abc"]):
        with pytest.raises(ParameterError, match="prompt must be a text, a list of token ids, or a dict"):
            llm.generate(nothing, GREEDY, use_tqdm=False)  # type: ignore[arg-type]
    assert llm.generate("The capital of France is", GREEDY, use_tqdm=False)[0].finished
    assert len(llm.generate((text for text in ("a", "b")), GREEDY, use_tqdm=False)) == 2  # type: ignore[arg-type]


def test_chat(llm: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    one = llm.chat(question, SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)
    two = llm.chat([question, question], SamplingParams(temperature=0, max_tokens=30), use_tqdm=False)
    assert "Tokyo" in one[0].outputs[0].text
    assert [o.outputs[0].text for o in two] == [one[0].outputs[0].text] * 2


def test_chat_with_a_template_of_its_own(llm: LLM) -> None:
    template = "{{ tools[0].function.name }}: {{ messages[0].content }}{% if add_generation_prompt %} So{% endif %}"
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    question = [{"role": "user", "content": "Is it raining?"}]
    output = llm.chat(question, GREEDY, use_tqdm=False, chat_template=template, tools=tools)[0]
    assert output.prompt == "weather: Is it raining? So"
    with pytest.raises(CheckpointError, match="no valid Jinja"):
        llm.chat(question, GREEDY, use_tqdm=False, chat_template="{% if %}")


def test_without_a_tokenizer(smollm2_path: Path) -> None:
    llm = LLM(
        str(smollm2_path), skip_tokenizer_init=True, max_model_len=64, dtype="float32", gpu_memory_utilization=0.9
    )
    output = llm.generate([[504, 3575, 282, 4649, 314]], GREEDY, use_tqdm=False)[0].outputs[0]
    assert output.text == ""
    assert len(output.token_ids) == 8
    with pytest.raises(ParameterError, match="token ids"):
        llm.generate("text", GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_modle_len": 5}, "max_model_len"),
        ({"tensor_parallel_size": 2}, "tensor.parallel.size"),
        ({"trust_remote_code": True}, "trust.remote.code"),
    ],
)
def test_unknown_options_name_the_nearest(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM("nowhere", **options)


async def _async_session(path: Path) -> None:
    async with AsyncLLM(str(path), max_model_len=256) as llm:

        async def tokens(prompt: str, params: SamplingParams) -> list[int]:
            last: list[int] = []
            async for output in llm.generate(prompt, params):
                assert len(output.outputs[0].token_ids) > len(last)
                last = list(output.outputs[0].token_ids)
            return last

        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        together = await asyncio.gather(*(tokens(p, params) for p in ("One", "Two", "Three")))
        assert together == [await tokens(p, params) for p in ("One", "Two", "Three")]
        stream = llm.generate("Count", SamplingParams(max_tokens=200, ignore_eos=True))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert len(await tokens("One", params)) == 12
        two = SamplingParams(n=2, max_tokens=200, ignore_eos=True)
        async for output in llm.generate("Count", two, "mine"):
            assert output.request_id == "mine"
            if not output.finished and any(len(c.token_ids) == 3 for c in output.outputs):
                with pytest.raises(ParameterError, match="running"):
                    await anext(llm.generate("Count", two, "mine"))
                await llm.abort("mine")
        assert [c.finish_reason for c in output.outputs] == ["abort", "abort"]
        await llm.abort("mine")
        assert llm._engine.health.outstanding == 0
        with pytest.raises(ParameterError):
            await tokens("Hello", SamplingParams(max_tokens=10_000))


def test_async_engine(smollm2_path: Path) -> None:
    asyncio.run(_async_session(smollm2_path))
