"""Architectures without a family: the Transformers class, with its attention on Quire's pages and its linears packed.

So they get continuous batching, paging and the prefix cache too. What a class can't do is found before its weights are
read (``fallback_probe``); code from a model's repository is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from quire.model.decoder import Step, kv_windows
from quire.model.fallback_class import unsupported
from quire.model.fallback_config import class_config
from quire.model.fallback_probe import IMPLEMENTATION, AttentionCall, probe
from quire.model.inventory import WeightSizes
from quire.model.pages import new_pages
from quire.model.spec import DecoderSpec, LayerSpec, MlpSpec, NormSpec
from quire.ops.backend import AttentionStep, Ops, Pages
from quire.ops.layouts import Dense, Layout
from quire.quant.formats.detect import load_method
from quire.quant.formats.storage import check_type
from quire.quant.reader import LoadReader, Reader
from quire.weights.checkpoint import Checkpoint
from quire.weights.errors import FROM_ONE, CheckpointError, misshapen


class FallbackLoader:
    """Loads a Hugging Face directory of an architecture without a family. Its init raises ``CheckpointError``."""

    def __init__(self, checkpoint: Checkpoint, ops: Ops, quantization: str | None = None) -> None:
        self._path = checkpoint.path
        self._ops = ops
        self._method = None if quantization is None else load_method(quantization)
        chosen = class_config(checkpoint)
        self._architecture, self._config, self._renamed = chosen.architecture, chosen.config, chosen.renamed
        for name in checkpoint.names():  # raises for files that are damaged, or pickled
            if name.endswith(".weight"):
                check_type(name, checkpoint.info(name).type)
        self._calls, empty = probe(self._config, self._architecture)
        _check_shapes(checkpoint, empty)
        self._nbytes = _nbytes(empty, self._method, ops.dtype.itemsize)
        self._widest = max(m.weight.numel() for m in _linears(empty).values()) if self._method else 0
        self.spec = _spec(self._config, self._architecture, self._calls)

    def check(self) -> WeightSizes:
        return WeightSizes(self._nbytes, self._widest)

    def decoder(self, threads: int, max_positions: int) -> FallbackDecoder:
        from transformers import AutoModelForCausalLM

        loader: Any = AutoModelForCausalLM
        model, report = loader.from_pretrained(
            self._path,
            config=self._config,
            key_mapping=self._renamed,
            dtype="auto" if self._ops.device.type == "cpu" else self._ops.dtype,
            attn_implementation=IMPLEMENTATION,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"The checkpoint lacks the tensor {missing[0]}; fetch it again.")
        if mismatched := sorted(report["mismatched_keys"]):
            name, actual, wanted = mismatched[0]
            raise misshapen(name, tuple(actual), tuple(wanted))
        modules = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        if odd := sorted(key for key in report["unexpected_keys"] if key.rpartition(".")[0] in modules):
            raise CheckpointError(
                f"The checkpoint has the tensor {odd[0]}, which its class has no use for; {FROM_ONE}."
            )
        _pack_linears(model, self._method, self._ops)
        # On a GPU the rest is loaded in its type; a conversion here would take tables that are float32 along.
        model = model.float() if self._ops.device.type == "cpu" else model.to(self._ops.device)
        decoder = FallbackDecoder(self.spec, model.eval(), self._calls, self._ops, self._nbytes)
        try:
            _check_independence(decoder, self._ops, self._architecture)
        except CheckpointError:
            raise
        except Exception as error:  # a class that wants of its parts what ours don't have
            raise CheckpointError(unsupported(self._architecture, "its parts cannot be replaced")) from error
        return decoder


def _check_shapes(checkpoint: Checkpoint, empty: Any) -> None:
    """Of tensors that the class names as the checkpoint does; those of more dimensions may be turned on loading."""
    names = checkpoint.names()
    for name, parameter in empty.named_parameters():
        if name in names and parameter.dim() <= 2:
            actual, wanted = checkpoint.info(name).shape, tuple(parameter.shape)
            if actual != wanted:
                raise misshapen(name, actual, wanted)


class FallbackDecoder:
    """A ``Model`` by a Transformers class."""

    def __init__(self, spec: DecoderSpec, model: Any, calls: Sequence[AttentionCall], ops: Ops, nbytes: int) -> None:
        self.spec = spec
        self.nbytes = nbytes
        windows = kv_windows(spec)
        self._attention = [_PagedAttention(call, windows.index(call.spec.window), ops) for call in calls]
        for call, attention in zip(calls, self._attention, strict=True):
            model.get_submodule(call.module).quire = attention
        # The model without its body turns given hidden states into logits, with whatever scale or cap it has.
        prefix = model.base_model_prefix
        self._body = getattr(model, prefix)
        setattr(model, prefix, _GivenStates())
        self._head = model

    def forward(self, step: Step, pages: Sequence[Pages]) -> torch.Tensor:
        """As ``Decoder.forward``."""
        for attention, own in zip(self._attention, pages, strict=True):
            attention.pages, attention.step = own, step.attention[attention.group]
        positions = step.attention[0].positions.long()[None]
        states = self._body(input_ids=step.token_ids[None], position_ids=positions, use_cache=False)[0]
        hidden = torch.as_tensor(states)[0]
        return hidden if step.wanted is None else hidden[step.wanted]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 ``[R, vocab]`` for rows ``[R, hidden]`` of ``forward``."""
        logits: torch.Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits.float()


class _PagedAttention:
    """The attention of one layer, as Transformers calls it."""

    step: AttentionStep
    pages: Pages

    def __init__(self, call: AttentionCall, group: int, ops: Ops) -> None:
        self.group = group
        self._spec = call.spec
        self._value_dim = call.value_dim
        self._ops = ops

    def __call__(self, query: Any, key: Any, value: Any, mask: Any, s_aux: Any = None, **_: Any) -> torch.Tensor:
        """Heads ``[1, H, T, D]`` -> ``[1, T, H, value_dim]``."""
        a = self._spec
        shape = (a.heads, a.kv_heads, a.head_dim)
        qkv = torch.cat([F.pad(x[0], (0, a.head_dim - x.shape[3])) for x in (query, key, value)])
        qkv = qkv.transpose(0, 1).flatten(1).to(self._ops.dtype)
        q = self._ops.qk_norm_rope_store(qkv, *shape, None, None, 0.0, None, False, self.pages, self.step)
        y = self._ops.attention(q, self.pages, self.step, *shape, a.scale, a.window, a.softcap, sinks=s_aux)
        return y.view(1, -1, a.heads, a.head_dim)[..., : self._value_dim]


class _PackedLinear(nn.Module):
    """``nn.Linear`` by Quire's kernels."""

    def __init__(self, linear: nn.Linear, layout: Layout, ops: Ops) -> None:
        super().__init__()
        self._weight = ops.pack(layout)
        self._bias = None if linear.bias is None else linear.bias.detach().to(ops.device, ops.dtype)
        self._ops = ops

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._ops.linear(x.flatten(0, -2).to(self._ops.dtype), self._weight, self._bias)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


class _GivenStates(nn.Module):
    """In the body's place: its output is what it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **others: Any) -> _Output:
        return _Output(inputs_embeds)


class _Output:
    """A body's output that has nothing but hidden states."""

    def __init__(self, states: torch.Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class _Modules:
    """A ``Reader`` of a model's linear layers."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def nbytes(self, module: str, outputs: int, inputs: int, stack: int = 1) -> int:
        nbytes: int = self._model.get_submodule(module).weight.nbytes
        return nbytes

    def read(self, module: str, outputs: int, inputs: int, stack: int = 1) -> Layout:
        return Dense(self._model.get_submodule(module).weight.detach())

    def made(self, module: str, weight: torch.Tensor) -> Layout:
        return Dense(weight)


def _reader(model: Any, method: str | None) -> Reader:
    """Quantises at load, by ``method``, all but the head."""
    plain, head = _Modules(model), model.get_output_embeddings()
    keep = [name for name, module in model.named_modules() if module is head]
    return plain if method is None else LoadReader(plain, method, keep, torch.device("cpu"))


def _linears(model: Any) -> dict[str, nn.Linear]:
    """By name. No subclasses, whose forward may do more."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def _nbytes(model: Any, method: str | None, item_bytes: int) -> int:
    """Of the weights once loaded: what is not packed is in the type of activations, of ``item_bytes``."""
    linears, reader = _linears(model), _reader(model, method)
    packed = sum(reader.nbytes(name, x.out_features, x.in_features) for name, x in linears.items())
    others: Iterable[nn.Module] = (module for name, module in model.named_modules() if name not in linears)
    return packed + sum(item_bytes * p.numel() for module in others for p in module.parameters(recurse=False))


def _pack_linears(model: Any, method: str | None, ops: Ops) -> None:
    reader = _reader(model, method)
    for name, linear in _linears(model).items():
        layout = reader.read(name, linear.out_features, linear.in_features)
        model.set_submodule(name, _PackedLinear(linear, layout, ops))


def _spec(config: Any, architecture: str, calls: Sequence[AttentionCall]) -> DecoderSpec:
    text = config.get_text_config()
    norm = NormSpec()  # the model's own; nothing outside asks
    widths = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    mlp = MlpSpec(max(widths) if isinstance(widths, list) else int(widths), "silu")
    eos = text.eos_token_id
    return DecoderSpec(
        family=f"transformers:{architecture}",
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_position=text.max_position_embeddings,
        layers=tuple(LayerSpec(call.spec, mlp, norm) for call in calls),
        final_norm=norm,
        tied_head=False,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _check_independence(decoder: FallbackDecoder, ops: Ops, architecture: str) -> None:
    """Raises where a sequence beside another, or in two pieces, gives other states than alone and at once."""
    page, sizes = 16, (9, 5)
    pages = [new_pages(a, ops, 2, page, ops.dtype) for a in (layer.attention for layer in decoder.spec.layers)]
    ids = torch.arange(sum(sizes), device=ops.device) % decoder.spec.vocab_size
    tolerance = 1e-3 if ops.dtype is torch.float32 else 5e-2

    def run(parts: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """``parts``: (sequence, from, to)."""
        positions = torch.cat([torch.arange(begin, end) for _, begin, end in parts])
        slots = torch.cat([torch.arange(begin, end) + s * page for s, begin, end in parts])
        start = torch.tensor([0, *(end - begin for _, begin, end in parts)]).cumsum(0)
        attention = AttentionStep(
            positions.int().to(ops.device),
            slots.to(ops.device),
            start.int().to(ops.device),
            torch.tensor([end for *_, end in parts], dtype=torch.int32, device=ops.device),
            torch.tensor([[s] for s, *_ in parts], dtype=torch.int32, device=ops.device),
            page,
            max(end - begin for _, begin, end in parts),
        )
        tokens = torch.cat([ids[s * sizes[0] :][begin:end] for s, begin, end in parts])
        return decoder.forward(Step(tokens, [attention] * len(kv_windows(decoder.spec))), pages)

    with torch.inference_mode():
        alone = torch.cat([run([(0, 0, sizes[0])]), run([(1, 0, sizes[1])])])
        beside = run([(0, 0, sizes[0]), (1, 0, sizes[1])])
        pieces = torch.cat([run([(0, 0, 4)]), run([(0, 4, sizes[0])])])
        decoder.logits(alone)
    scale = alone.abs().max()
    for other, wanted in ((beside, alone), (pieces, alone[: sizes[0]])):
        if (other - wanted).abs().max() > tolerance * scale:
            raise CheckpointError(unsupported(architecture, "its tokens act on each other outside of attention"))
