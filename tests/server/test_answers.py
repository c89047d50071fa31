"""Shapes and contents of completions and chat answers, over an engine without a model."""

from __future__ import annotations

from typing import Any

import pytest
from front_fakes import FakeEngine
from front_harness import LiveFront, events, http, live, post

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def front() -> Any:
    with live() as front:
        yield front


def completion(front: LiveFront, **body: Any) -> Any:
    response = post(front.url, "/v1/completions", {"prompt": "hi", **body})
    assert response.status_code == 200, response.text
    return events(response) if body.get("stream") else response.json()


def chat(front: LiveFront, **body: Any) -> Any:
    response = post(front.url, "/v1/chat/completions", {**CHAT, **body})
    assert response.status_code == 200, response.text
    return events(response) if body.get("stream") else response.json()


def test_whole_completion(front: LiveFront) -> None:
    body = completion(front, max_tokens=5)
    choice = body["choices"][0]
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "fake"
    assert len(choice.pop("text")) == 5
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    details = body["usage"].pop("prompt_tokens_details")
    assert details == {"cached_tokens": 0}
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}
    assert set(body["metrics"]) >= {"queue_time_ms", "prefill_time_ms", "time_to_first_token_ms", "generation_time_ms"}


def test_completions_default_to_16_tokens_and_chat_to_the_rest_of_the_context(front: LiveFront) -> None:
    assert completion(front)["usage"]["completion_tokens"] == 16
    usage = chat(front)["usage"]
    assert usage["total_tokens"] == 512


def test_stream_is_the_whole_answer_in_pieces(front: LiveFront) -> None:
    whole = completion(front, max_tokens=9, temperature=0)
    chunks = completion(front, max_tokens=9, stream=True, temperature=0)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert len({c["id"] for c in chunks}) == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 8 + ["length"]
    assert "metrics" in chunks[-1]


def test_chat_stream_opens_with_the_role_and_can_end_with_usage(front: LiveFront) -> None:
    chunks = chat(front, max_tokens=3, stream=True, stream_options={"include_usage": True})
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(c["object"] == "chat.completion.chunk" for c in chunks)
    *content, last = chunks[1:]
    assert all(set(c["choices"][0]["delta"]) == {"content"} and "usage" not in c for c in content)
    assert content[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert "metrics" in last


def test_continuous_usage(front: LiveFront) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = completion(front, max_tokens=3, stream=True, stream_options=options)
    assert [c["usage"]["completion_tokens"] for c in chunks] == [1, 2, 3, 3]


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(front: LiveFront) -> None:
    body = completion(front, prompt=["a", "b"], n=2, temperature=1, seed=5, max_tokens=4)
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert len({c["text"] for c in body["choices"]}) == 4
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] == 16
    alone = completion(front, prompt="a", temperature=1, seed=5, max_tokens=4)
    assert alone["choices"][0]["text"] == body["choices"][0]["text"]
    chunks = completion(front, prompt=["a", "b"], n=2, temperature=1, seed=5, max_tokens=4, stream=True)
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == [c["text"] for c in body["choices"]]


def test_unseeded_requests_differ(front: LiveFront) -> None:
    assert len({completion(front)["choices"][0]["text"] for _ in range(4)}) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs(front: LiveFront, stream: bool) -> None:
    body = completion(front, echo=True, logprobs=2, max_tokens=3, stream=stream, temperature=0)
    chunks = body if stream else [body]
    text = "".join(c["choices"][0]["text"] for c in chunks)
    parts = [c["choices"][0]["logprobs"] for c in chunks]
    joined: dict[str, list[Any]] = {key: [v for p in parts for v in p[key]] for key in parts[0]}
    assert text.startswith("hi")
    assert len(text) == 5
    assert joined["tokens"] == ["<special>", *text]
    assert joined["text_offset"] == [0, 0, 1, 2, 3, 4]
    assert joined["token_logprobs"] == [None, *[-0.5] * 5]
    assert joined["top_logprobs"][0] is None
    assert all(0 < len(t) <= 3 for t in joined["top_logprobs"][1:])


def test_echo_without_generation(front: LiveFront) -> None:
    body = completion(front, echo=True, logprobs=0, max_tokens=0)
    choice = body["choices"][0]
    assert choice["text"] == "hi"
    assert choice["logprobs"]["tokens"] == ["<special>", "h", "i"]
    assert body["usage"]["completion_tokens"] == 0


def test_chat_logprobs(front: LiveFront) -> None:
    choice = chat(front, logprobs=True, top_logprobs=2, max_tokens=2)["choices"][0]
    first = choice["logprobs"]["content"][0]
    assert first["token"] == choice["message"]["content"][0]
    assert first["bytes"] == [ord(first["token"])]
    assert len(first["top_logprobs"]) == 2
    named = chat(front, logprobs=True, max_tokens=1, return_tokens_as_token_ids=True)
    assert named["choices"][0]["logprobs"]["content"][0]["token"].startswith("token_id:")


def test_token_ids_in_and_out(front: LiveFront) -> None:
    body = completion(front, prompt=[104, 105], max_tokens=4, return_token_ids=True)
    choice = body["choices"][0]
    assert choice["prompt_token_ids"] == [104, 105]
    assert bytes(choice["token_ids"]).decode() == choice["text"]
    stream = completion(front, prompt=[[104], [105]], max_tokens=2, return_token_ids=True, stream=True)
    assert sorted(c["choices"][0]["prompt_token_ids"] for c in stream if "prompt_token_ids" in c["choices"][0]) == [
        [104],
        [105],
    ]
    assert chat(front, max_tokens=1, return_token_ids=True)["prompt_token_ids"] == list(b"<user>hi<assistant>")
    assert chat(front, max_tokens=1, return_prompt_text=True)["prompt_text"] == "<user>hi<assistant>"


def test_prompt_logprobs(front: LiveFront) -> None:
    first, second, _ = completion(front, prompt_logprobs=1, max_tokens=1)["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second["104"] == {"logprob": -0.5, "rank": 1, "decoded_token": "h"}
    assert len(chat(front, prompt_logprobs=0, max_tokens=1)["prompt_logprobs"]) == len("<user>hi<assistant>")


def test_stop_string_ends_the_answer_and_the_engine_s_work() -> None:
    engine = FakeEngine(delay=0.002)
    with live(engine) as front:
        whole = completion(front, max_tokens=40, temperature=0)["choices"][0]["text"]
        stop = whole[7:9]
        cut = completion(front, max_tokens=40, temperature=0, stop=stop)["choices"][0]
        assert cut["text"] == whole[: whole.index(stop)]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
        keep: Any = {"stop": [stop], "include_stop_str_in_output": True, "stream": True}
        kept = completion(front, max_tokens=40, temperature=0, **keep)
        assert "".join(c["choices"][0]["text"] for c in kept) == whole[: whole.index(stop) + 2]
        assert len(engine.aborted) == 2
        assert not engine.running


def test_stream_interval_gathers_tokens(front: LiveFront) -> None:
    chunks = completion(front, max_tokens=10, stream=True, stream_interval=4, temperature=0)
    assert [len(c["choices"][0]["text"]) for c in chunks] == [1, 4, 4, 1]
    whole = completion(front, max_tokens=10, temperature=0)
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]


def test_truncation(front: LiveFront) -> None:
    body = completion(front, prompt="abcdef", truncate_prompt_tokens=2, max_tokens=1, return_token_ids=True)
    assert body["choices"][0]["prompt_token_ids"] == list(b"ef")
    body = completion(front, prompt="abc", truncate_prompt_tokens=2, truncation_side="right", max_tokens=1,
                      add_special_tokens=False, return_token_ids=True)  # fmt: skip
    assert body["choices"][0]["prompt_token_ids"] == list(b"ab")
    assert completion(front, prompt="x" * 2000, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 511


def test_chat_echo_and_continuation(front: LiveFront) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure:"}]
    body = chat(front, messages=messages, echo=True, continue_final_message=True, max_tokens=2)
    assert body["choices"][0]["message"]["content"].startswith("Sure:")


def test_content_parts_are_joined(front: LiveFront) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = chat(front, messages=[{"role": "developer", "content": parts}], max_tokens=1, return_prompt_text=True)
    assert body["prompt_text"] == "<system>a\nb<assistant>"


def test_request_id_comes_from_header_or_field(front: LiveFront) -> None:
    response = post(front.url, "/v1/completions", {"prompt": "x"}, headers={"X-Request-Id": "mine"})
    assert response.json()["id"] == "cmpl-mine"
    assert response.headers["x-request-id"] == "cmpl-mine"
    assert completion(front, request_id="other")["id"] == "cmpl-other"


def test_integral_floats_are_integers_and_nulls_are_defaults(front: LiveFront) -> None:
    nulls = dict.fromkeys(["n", "temperature", "top_p", "seed", "stop", "logit_bias", "stream", "logprobs", "echo"])
    assert completion(front, max_tokens=3.0, **nulls)["usage"]["completion_tokens"] == 3


def test_harmless_fields_are_accepted_without_a_word(front: LiveFront) -> None:
    harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "tools": None,
                "response_format": {"type": "text"}, "tool_choice": "none", "parallel_tool_calls": True,
                "best_of": 1,
                "suffix": None}  # fmt: skip
    response = post(front.url, "/v1/completions", {"prompt": "x", **harmless})
    assert response.status_code == 200
    assert "x-quire-warning" not in response.headers


def test_unknown_fields_are_named_with_the_nearest(front: LiveFront) -> None:
    response = post(front.url, "/v1/completions", {"prompt": "x", "max_token": 3, "a b\n": 1})
    assert response.status_code == 200
    warning = "ignored unknown fields: max_token (nearest: max_tokens), of that name"
    assert response.headers["x-quire-warning"] == warning
    with live(strict=True) as strict:
        refused = post(strict.url, "/v1/completions", {"prompt": "x", "max_token": 3})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "max_token"
        assert "max_tokens" in refused.json()["error"]["message"]


def test_tokenize_and_detokenize(front: LiveFront) -> None:
    body = post(front.url, "/tokenize", {"prompt": "hé", "return_token_strs": True}).json()
    assert body == {"count": 4, "max_model_len": 512, "tokens": [256, 104, 195, 169],
                    "token_strs": ["<special>", "h", "\ufffd", "\ufffd"]}  # fmt: skip
    assert post(front.url, "/tokenize", {"messages": CHAT["messages"]}).json()["count"] == len("<user>hi<assistant>")
    assert post(front.url, "/detokenize", {"tokens": [104, 195, 169]}).json() == {"prompt": "hé"}


def test_models(front: LiveFront) -> None:
    listed = http.get(front.url + "/v1/models").json()
    assert [m["id"] for m in listed["data"]] == ["fake"]
    one = http.get(front.url + "/v1/models/fake").json()
    assert one == listed["data"][0]
    assert one["max_model_len"] == 512
    assert http.get(front.url + "/v1/models/x/y").status_code == 404


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/v1/models/fake"])
def test_head_is_get_without_a_body(front: LiveFront, path: str) -> None:
    whole, head = http.get(front.url + path), http.head(front.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.get("content-type") == whole.headers.get("content-type")
    assert http.head(front.url + "/v1/completions").status_code == 405


def test_an_assistant_may_have_said_nothing(front: LiveFront) -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}, {"role": "user", "content": "y"}]
    assert post(front.url, "/v1/chat/completions", {"messages": said, "max_tokens": 1}).status_code == 200


@pytest.mark.filterwarnings("error")
def test_root_path_may_be_there_or_not() -> None:
    with live(root_path="/llm", api_key=("k",)) as front:
        for prefix in ("", "/llm"):
            key = {"Authorization": "Bearer k"}
            assert http.get(f"{front.url}{prefix}/v1/models", headers=key).json()["data"][0]["id"] == "fake"
            assert http.get(f"{front.url}{prefix}/v1/models").status_code == 401
            assert http.get(f"{front.url}{prefix}/health").status_code == 200
        assert http.get(f"{front.url}/llm/llm/v1/models", headers=key).status_code == 404
