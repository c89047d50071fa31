"""Both asynchronous clients against the fake model: streams, aborts, crashes, stalls, shutdown, hostile messages."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_runner
import msgspec
import pytest
from fake_runner import KILLS
from harness import FULL, alone, config, request

from quire.engine.client import Health
from quire.engine.errors import EngineDead, QueueFull
from quire.engine.inline import ThreadEngine
from quire.engine.messages import EngineRequest
from quire.engine.process import ProcessEngine
from quire.engine.supervisor import RestartPolicy, Restarts
from quire.params import ParameterError

Engine = ProcessEngine | ThreadEngine


@pytest.fixture(autouse=True)
def child_finds_fake_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paths = [
        str(Path(fake_runner.__file__).parent),
        str(Path(__file__).parents[2] / "src"),
        os.environ.get("PYTHONPATH", ""),
    ]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def make(kind: str, model: str = "fake", policy: RestartPolicy | None = None, **options: Any) -> Engine:
    settings = config(model=model, **options)
    if kind == "thread":
        return ThreadEngine(settings, build=fake_runner.build)
    return ProcessEngine(settings, runner="fake_runner:build", policy=policy)


@pytest.fixture(params=["process", "thread"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = make(request.param, "fake:step=0.005", max_num_seqs=4, max_num_queued_reqs=3)
    await engine.start()
    yield engine
    await engine.shutdown()


async def read(engine: Engine, message: EngineRequest) -> tuple[list[int], str | None, str | None]:
    tokens: list[int] = []
    async for delta in engine.generate(message):
        tokens += delta.token_ids
        last = delta
    return tokens, last.finish_reason, last.error


async def until(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


def long(name: str, first: int, tokens: int = 100, **params: Any) -> EngineRequest:
    return request(name, [first, 2, 3], max_tokens=tokens, ignore_eos=True, **params)


def tokens_of(message: EngineRequest) -> list[int]:
    return alone(message, FULL, 512)[0]


# Both clients


async def test_streams_give_what_each_request_gives_alone(engine: Engine) -> None:
    messages = [request(str(i), [i + 1] * (i + 1), max_tokens=10 + i, temperature=1.0, seed=i) for i in range(6)]
    results = await asyncio.gather(*(read(engine, m) for m in messages))
    for message, (tokens, reason, _) in zip(messages, results, strict=True):
        assert (tokens, reason) == alone(message, FULL, 512)
    await until(lambda: engine.stats.generation_tokens == sum(len(r[0]) for r in results))
    assert (engine.health.outstanding, engine.health.ready) == (0, True)


async def test_start_reports_phases_and_facts() -> None:
    for kind in ("process", "thread"):
        engine = make(kind, "fake:pages=100,context=300")
        phases: list[str] = []
        ready = await engine.start(phases.append)
        assert (phases, ready.max_model_len, ready.num_pages, ready.page_size) == (["load"], 300, 100, 4)
        assert engine.limits.max_model_len == 300
        await engine.shutdown()


@pytest.mark.parametrize("how", ["close", "cancel", "drop", "never read", "abort"])
async def test_leaving_a_stream_frees_its_slot(engine: Engine, how: str) -> None:
    stream = engine.generate(long("a", 1, 400))
    if how != "never read":
        await anext(stream)
    if how == "close":
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    elif how == "cancel":

        async def wait() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait((task,))
    elif how == "abort":
        await engine.abort(["a", "unknown"])
        assert [d.finish_reason async for d in stream][-1] == "abort"
    else:
        del stream
    await until(lambda: engine.health.outstanding == 0)
    await until(lambda: engine.stats.finished.get("abort") == 1 and engine.stats.running == 0)
    assert engine.stats.free_pages == engine.stats.total_pages
    assert engine.stats.generation_tokens < 400


async def test_queue_full_is_known_at_once(engine: Engine) -> None:
    streams = [engine.generate(long(str(i), i + 1, 200)) for i in range(7)]
    begin = time.monotonic()
    with pytest.raises(QueueFull) as full:
        engine.generate(long("8", 8))
    assert full.value.retry_after >= 1
    assert time.monotonic() - begin < 0.05
    streams.pop().close()
    engine.generate(long("9", 9)).close()
    assert [s._flight.over for s in streams] == [False] * 6


async def test_bad_requests_are_refused_at_once(engine: Engine) -> None:
    for message in (request("a", []), request("a", [10**6]), request("a", [1] * 600), request("a", [1], logprobs=99)):
        with pytest.raises(ParameterError):
            engine.generate(message)
    kept = engine.generate(long("b", 1))
    with pytest.raises(ParameterError):
        engine.generate(long("b", 1))
    assert [t async for d in kept for t in d.token_ids] == tokens_of(long("b", 1))


async def test_shutdown_ends_streams() -> None:
    for kind in ("process", "thread"):
        engine = make(kind, "fake:step=0.01")
        await engine.start()
        stream = engine.generate(long("a", 1, 400))
        await anext(stream)
        await engine.shutdown()
        assert [d.finish_reason async for d in stream][-1] == "abort"
        with pytest.raises(EngineDead):
            engine.generate(long("b", 1))
        assert not engine.health.ready
        await engine.shutdown()


async def test_an_engine_that_cannot_start_says_why() -> None:
    for kind in ("process", "thread"):
        engine = make(kind, "fake:broken=1")
        with pytest.raises(EngineDead, match=r"^The model file is broken: use another one.$"):
            await engine.start()
        assert engine.health.dead


async def test_cached_tokens_are_reported_and_reset(engine: Engine) -> None:
    for expected, reset in ((0, False), (8, True), (0, False)):
        deltas = [d async for d in engine.generate(request("a", range(1, 11), max_tokens=2, ignore_eos=True))]
        assert deltas[0].num_cached_tokens == deltas[-1].num_cached_tokens == expected
        if reset:
            await engine.reset_prefix_cache()


# The process


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


async def test_streams_go_on_after_kill_9() -> None:
    engine = make("process", "fake:step=0.01")
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    messages = [long(str(i), i + 1, temperature=i % 2, seed=i) for i in range(12)]
    tasks = [asyncio.create_task(read(engine, m)) for m in messages]
    pid = engine.pid
    await until(lambda: engine.stats.generation_tokens > 100)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not engine.health.started, 2)
    assert engine.health.reason == "The engine is restarting."
    late = asyncio.create_task(read(engine, long("late", 30)))
    for message, task in zip(messages, tasks, strict=True):
        assert await task == (tokens_of(message), "length", None)
    assert (await late)[0] == tokens_of(long("late", 30))
    assert (engine.health.restarts, engine.health.ready) == (1, True)
    assert engine.pid != pid
    await until(lambda: engine.stats.finished == {"length": 13} and engine.stats.running == 0)
    assert 1200 < engine.stats.generation_tokens <= 1300
    await engine.shutdown()


async def test_without_restarts_requests_in_flight_fail_within_two_seconds() -> None:
    engine = make("process", "fake:step=0.01", RestartPolicy(tries=0))
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    tasks = [asyncio.create_task(read(engine, long(str(i), i + 1, 400))) for i in range(3)]
    await asyncio.sleep(0.1)
    os.kill(engine.pid or 0, signal.SIGKILL)
    async with asyncio.timeout(2):
        results = await asyncio.gather(*tasks)
    assert {(reason, bool(error)) for _, reason, error in results} == {("error", True)}
    with pytest.raises(EngineDead):
        engine.generate(long("b", 1))
    await engine.shutdown()


async def test_a_request_that_kills_engines_is_found_and_its_neighbours_go_on() -> None:
    engine = make("process", "fake:step=0.01")
    await engine.start()
    good = [long(str(i), i + 1, 150) for i in range(4)]
    tasks = [asyncio.create_task(read(engine, m)) for m in good[:2]]
    await until(lambda: engine.stats.generation_tokens > 10)
    tasks += [asyncio.create_task(read(engine, good[2]))]
    bad = asyncio.create_task(read(engine, request("bad", [KILLS, 1])))
    tasks += [asyncio.create_task(read(engine, good[3]))]
    assert (await bad)[1:] == ("error", "The engine failed on this request.")
    for message, task in zip(good, tasks, strict=True):
        assert await task == (tokens_of(message), "length", None)
    assert engine.health.restarts == 2
    await engine.shutdown()


async def test_a_stalled_engine_is_replaced_and_its_stacks_are_dumped(capfd: pytest.CaptureFixture[str]) -> None:
    engine = make("process", "fake:step=0.01", RestartPolicy(stall_s=0.5))
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    task = asyncio.create_task(read(engine, long("a", 1, 200)))
    await until(lambda: engine.stats.generation_tokens > 10)
    pid = engine.pid or 0
    os.kill(pid, signal.SIGSTOP)
    assert await task == (tokens_of(long("a", 1, 200)), "length", None)
    assert not alive(pid)
    assert engine.health.restarts == 1
    await engine.shutdown()

    engine = make("process", "fake:step=3", RestartPolicy(stall_s=0.5, tries=0))
    await engine.start()
    capfd.readouterr()
    assert (await read(engine, long("a", 1)))[1] == "error"
    assert "fake_runner.py" in capfd.readouterr().err
    await engine.shutdown()


def test_health_tells_a_stall_from_saturation() -> None:
    base = Health(started=True, outstanding=5000, idle_s=1.9, restarts=0, dead=None)
    assert base.ready
    assert base.reason is None
    stalled = msgspec.structs.replace(base, idle_s=9.0)
    assert not stalled.ready
    assert "9 s" in (stalled.reason or "")
    assert msgspec.structs.replace(base, idle_s=9.0, outstanding=0).ready


async def test_progress_is_seen_during_a_long_prompt() -> None:
    engine = make("process", "fake:token=0.01,context=400", max_num_batched_tokens=16)
    await engine.start()
    idle: list[float] = []
    task = asyncio.create_task(read(engine, request("a", [1] * 200, max_tokens=1)))
    while not task.done():
        idle.append(engine.health.idle_s)
        await asyncio.sleep(0.05)
    assert max(idle) < 1.5
    await engine.shutdown()


async def test_shutdown_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    engine = make("process")
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    pid = engine.pid or 0
    assert alive(pid)
    assert list(tmp_path.iterdir()) == []
    await engine.shutdown()
    assert not alive(pid)
    assert list(tmp_path.iterdir()) == []


async def test_sockets_are_private_while_they_exist(tmp_path: Path) -> None:
    engine = make("process")
    start = asyncio.create_task(engine.start())
    await until(lambda: list(tmp_path.iterdir()))
    (directory,) = tmp_path.iterdir()
    assert directory.stat().st_mode & 0o777 == 0o700
    await start
    await engine.shutdown()


async def test_an_idle_engine_sleeps() -> None:
    engine = make("process")
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    await read(engine, long("a", 1, 5))
    await asyncio.sleep(0.3)

    def ticks() -> int:
        fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    await asyncio.sleep(1.0)
    assert ticks() - before <= 1
    await engine.shutdown()


async def test_the_engine_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from quire.config.engine import EngineConfig\n"
        "from quire.engine.process import ProcessEngine\n"
        "async def main():\n"
        "    engine = ProcessEngine(EngineConfig(model='fake'), runner='fake_runner:build')\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    await until(lambda: not alive(pid), 2)
    assert list(tmp_path.iterdir()) == []


async def test_hostile_messages_do_not_end_the_engine() -> None:
    engine = make("process", "fake:step=0.01")
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    pid = engine.pid
    good = asyncio.create_task(read(engine, long("good", 1)))
    await asyncio.sleep(0.05)
    link = engine._supervisor._link
    whole = msgspec.to_builtins(long("bad", 2))
    frames = [b"", b"\xc1", b"\x00" * 1000, b"\x91" * 100_000, b"{}", msgspec.msgpack.encode({"type": "add"})]
    for field, value in [
        ("prompt_token_ids", "text"),
        ("prompt_token_ids", [2**70 // 2**10]),
        ("prompt_token_ids", [-5]),
        ("prompt_token_ids", []),
        ("params", {"temperature": -1}),
        ("params", {"temperature": float("nan")}),
        ("params", {"stop_token_ids": [10**6]}),
        ("seed", "x"),
        ("eos_token_ids", None),
    ]:
        frames.append(msgspec.msgpack.encode({**whole, field: value}))
    frames.append(msgspec.msgpack.encode({**whole, "request_id": "good"}))
    for frame in frames:
        link._to_engine.send(frame)
    assert await good == (tokens_of(long("good", 1)), "length", None)
    assert await read(engine, long("after", 3)) == (tokens_of(long("after", 3)), "length", None)
    assert (engine.pid, engine.health.restarts) == (pid, 0)
    await engine.shutdown()


async def test_a_request_the_engine_cannot_read_gets_an_answer() -> None:
    engine = make("process")
    assert isinstance(engine, ProcessEngine)
    await engine.start()
    message = long("c", 1)
    message.params.temperature = -7.0  # past the front's validator
    tokens, reason, error = await read(engine, message)
    assert (tokens, reason, error) == ([], "error", "The engine could not read the request.")
    await engine.shutdown()


def test_restarts_back_off_and_end() -> None:
    now = [0.0]
    restarts = Restarts(RestartPolicy(tries=3, window_s=100), lambda: now[0])
    assert [restarts.next_delay() for _ in range(4)] == [0.0, 1.0, 2.0, None]
    now[0] = 101
    assert restarts.next_delay() == 0.0
