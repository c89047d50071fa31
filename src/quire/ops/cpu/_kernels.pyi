"""The compiled kernels (``csrc/module.cpp``): addresses and sizes in, nothing checked but indices."""

def instruction_sets() -> tuple[str, ...]: ...
def engine(threads: int, instruction_set: int, /) -> object: ...
def engine_name(engine: object, /) -> str: ...
def record(engine: object, /) -> object: ...
def stop(engine: object, /) -> None: ...
def replay(engine: object, program: object, /) -> None: ...
def weight(
    address: int,
    n: int,
    k: int,
    code: int,
    group: int,
    type: int,
    second: int,
    zero_type: int,
    super: int,
    zero: float,
    table: int,
    order: int,
    rounding: int,
    scale: float,
    rounding_zero: float,
    rounding_group: int,
    symmetric: int,
    /,
) -> object: ...
def weight_bytes(weight: object, /) -> int: ...
def pack(
    engine: object, weight: object, elements: int, scale: int, second: int, super_scale: int, super_second: int, /
) -> None: ...
def linear(engine: object, x: int, rows: int, weight: object, bias: int, out: int, stride: int, /) -> None: ...
def embed(engine: object, weight: object, ids: int, count: int, multiplier: float, out: int, /) -> None: ...
def rms_norm(
    engine: object, x: int, weight: int, eps: float, residual: int, rows: int, width: int, out: int, /
) -> None: ...
def gate_up_act(engine: object, x: int, rows: int, width: int, activation: int, out: int, /) -> None: ...
def layer_norm(
    engine: object, x: int, weight: int, bias: int, eps: float, residual: int, rows: int, width: int, out: int, /
) -> None: ...
def norm_columns(
    engine: object,
    x: int,
    rows: int,
    stride: int,
    parts: int,
    width: int,
    weight: int,
    bias: int,
    eps: float,
    centered: int,
    /,
) -> None: ...
def add_rows(
    engine: object, x: int, table: int, table_rows: int, index: int, rows: int, width: int, out: int, /
) -> None: ...
def activate(engine: object, x: int, rows: int, width: int, activation: int, out: int, /) -> None: ...
def softcap(engine: object, x: int, count: int, cap: float, /) -> None: ...
def pages(k: int, v: int, type: int, pages: int, kv_heads: int, head_dim: int, page_size: int, /) -> object: ...
def step(
    tokens: int,
    sequences: int,
    positions: int,
    slots: int,
    query_start: int,
    context_len: int,
    block_table: int,
    stride: int,
    width: int,
    /,
) -> object: ...
def store(
    engine: object,
    pages: object,
    step: object,
    qkv: int,
    heads: int,
    q_norm: int,
    k_norm: int,
    eps: float,
    cos_sin: int,
    cos_sin_rows: int,
    rotary_dim: int,
    interleaved: int,
    /,
) -> None: ...
def attention(
    engine: object,
    pages: object,
    step: object,
    q: int,
    q_stride: int,
    out: int,
    heads: int,
    scale: float,
    window: int,
    softcap: float,
    sinks: int,
    slopes: int,
    /,
) -> None: ...
def stack(weights: tuple[object, ...], /) -> object: ...
def route(
    engine: object,
    logits: int,
    tokens: int,
    experts: int,
    bias: int,
    top_k: int,
    scoring: int,
    renormalize: int,
    scale: float,
    groups: int,
    top_groups: int,
    group_score: int,
    jitter: float,
    rows: int,
    offsets: int,
    places: int,
    weights: int,
    /,
) -> None: ...
def grouped_linear(
    engine: object,
    x: int,
    tokens: int,
    rows: int,
    row_count: int,
    stack: object,
    offsets: int,
    bias: int,
    out: int,
    /,
) -> None: ...
def combine(
    engine: object,
    y: int,
    row_count: int,
    width: int,
    places: int,
    weights: int,
    tokens: int,
    top_k: int,
    shared: int,
    shared_gate: int,
    out: int,
    /,
) -> None: ...
def sample(
    engine: object,
    logits: int,
    rows: int,
    vocab: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    seed: int,
    position: int,
    out: int,
    /,
) -> None: ...
