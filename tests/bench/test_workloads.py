"""The workloads are those on which engines have been compared before: same ids, same lengths."""

from __future__ import annotations

import hashlib
import json

import pytest

from quire.bench.workloads import WORKLOADS, make_workload, random_workload, requests_of
from quire.config.bench import WORKLOAD_NAMES, WorkloadConfig

# Of the JSON of (prompt ids, max_tokens) pairs; the first five from the file of definitions shared by all engines.
CHECKSUMS = {
    "nano": "d72f19b572464c05",
    "sharegpt": "8efe7cec9a8de9ed",
    "prefill": "f189e7b64efd15a7",
    "decode1": "07bf0511555cbe33",
    "prefix": "2db66a7dc9b992cb",
    "w1": "7c953844c32547c4",
    "w2": "07bf0511555cbe33",
    "w3": "546648e06ced5e0c",
    "w4": "5c6d76366963d605",
}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_draws_do_not_change(name: str) -> None:
    pairs = [(r.prompt_token_ids, r.max_tokens) for r in make_workload(name)]
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16] == CHECKSUMS[name]


def test_names_of_option_and_table_agree() -> None:
    assert set(WORKLOAD_NAMES) == set(WORKLOADS) | {"random"}
    assert set(CHECKSUMS) == set(WORKLOADS)


def test_nano_totals_are_the_published_ones() -> None:
    requests = make_workload("nano")
    assert sum(len(r.prompt_token_ids) for r in requests) == 142_827
    assert sum(r.max_tokens for r in requests) == 133_966


def test_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    prompts = [r.prompt_token_ids for r in make_workload("w4")]
    assert len({tuple(p[:512]) for p in prompts}) == 1
    assert len({tuple(p[512:]) for p in prompts}) == 32
    assert {len(p) for p in prompts} == {528}


def test_other_seeds_give_other_prompts() -> None:
    assert make_workload("w1", 0) != make_workload("w1", 1)


def test_requests_of_options() -> None:
    assert requests_of(WorkloadConfig(workload="w1", num_prompts=3)) == make_workload("w1")[:3]
    drawn = requests_of(WorkloadConfig(workload="random", num_prompts=2, input_len=5, output_len=7, workload_seed=4))
    assert drawn == random_workload(2, 5, 7, seed=4)
    assert [(len(r.prompt_token_ids), r.max_tokens) for r in drawn] == [(5, 7), (5, 7)]
