"""An encoder-decoder on torch, in the parts that are run apart: what is read once, and one step of what is written.

The same two parts are exported and served by torch itself, so that every runtime means the same by «the model». Attention
masks are made here, as numbers to add: transformers takes them as they are, in any of its families.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch

Tensor = torch.Tensor


class Seq2Seq(torch.nn.Module):
    """Logits [rows, length, vocabulary] behind each of a given text's tokens: for training and calibration.

    Args:
        model: transformers' …ForConditionalGeneration. source: the encoder's main input.
        heads: (layer, head) pairs whose cross-attention serving tells.
    """

    def __init__(self, model: torch.nn.Module, source: str = "input_ids", heads: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.masked = source == "input_ids"
        mask = ("attention_mask",) if self.masked else ()
        self.inputs = (source, *mask, "decoder_input_ids", "decoder_attention_mask")
        self.heads = [list(pair) for pair in heads]
        self.settings = {"source": source, "heads": self.heads}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        **features: Tensor,
    ) -> Tensor:
        """Places that decoder_attention_mask leaves out get logits of 0: they are the same in every model."""
        given = features if input_ids is None else {"input_ids": input_ids}
        if attention_mask is not None:
            given = given | {"attention_mask": attention_mask}
        logits: Tensor = self.model(**given, decoder_input_ids=decoder_input_ids, use_cache=False).logits
        return logits if decoder_attention_mask is None else logits * decoder_attention_mask.unsqueeze(-1)


class Reader(torch.nn.Module):
    """A source to the keys and values that the decoder's cross-attention reads, layer by layer.

    forward: the source [rows, …] (and its attention_mask [rows, length], 1 = real) → key, value, key, value …, each
    [rows, heads, length, width]. The decoder's own computation has no part in them, and no exporter keeps it.
    """

    def __init__(self, model: torch.nn.Module, source: str = "input_ids") -> None:
        super().__init__()
        self.model = model
        self._source = source

    def forward(self, source: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        from transformers.modeling_outputs import BaseModelOutput

        model: Any = self.model
        mask = None if attention_mask is None else _to_add(attention_mask)
        given = {self._source: source} | ({} if mask is None else {"attention_mask": mask})
        hidden = model.get_encoder()(**given).last_hidden_state
        cache = _cache()
        first = torch.zeros((source.shape[0], 1), dtype=torch.int64, device=source.device)
        model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=first,
            decoder_attention_mask=_causal(1, 0, hidden),
            past_key_values=cache,
            use_cache=True,
        )
        return tuple(_flat(cache.cross_attention_cache))


class Writer(torch.nn.Module):
    """One step of the decoder: the tokens that are new, and what came before as keys and values.

    forward: ids [rows, new], then (where sources have padding) attention_mask [rows, length], the Reader's keys and values,
    and those of the steps before, each [rows, heads, places, width] → logits [rows, new, vocabulary], the keys and values
    with the new places; and, where `heads` names (layer, head) pairs, their cross-attention [rows, pairs, new, length].
    """

    def __init__(self, model: torch.nn.Module, masked: bool, heads: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.model = model
        self._masked = masked
        self._heads = [(int(layer), int(head)) for layer, head in heads]

    def forward(self, input_ids: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        from transformers.modeling_outputs import BaseModelOutput

        mask = _to_add(states[0]) if self._masked else None
        states = states[1:] if self._masked else states
        half = len(states) // 2
        read, written = states[:half], states[half:]
        cache = _cache(written, read)
        new, before = input_ids.shape[1], written[0].shape[2]
        seen: dict[int, Tensor] = {}
        with _watched(self.model, {layer for layer, _ in self._heads}, seen):
            model: Any = self.model
            # The decoder takes a source's length from it, and nothing else: its keys and values are there already.
            hidden: Any = read[0].transpose(1, 2).flatten(2)
            logits: Tensor = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
                attention_mask=mask,
                decoder_input_ids=input_ids,
                decoder_attention_mask=_causal(new, before, read[0]),
                past_key_values=cache,
                use_cache=True,
            ).logits
        more = [torch.stack([seen[layer][:, head] for layer, head in self._heads], 1)] if self._heads else []
        return (logits, *_flat(cache.self_attention_cache), *more)


def with_eager_cross_attention(model: torch.nn.Module, layers: Sequence[int]) -> None:
    """Let these decoder layers tell their cross-attention: fused attention keeps it to itself.

    Args:
        model: is changed in place.
    """
    for layer in set(layers):
        attention = _cross_attention(model, layer)
        attention.config = copy.deepcopy(attention.config)
        attention.config._attn_implementation = "eager"


def _cross_attention(model: Any, layer: int) -> Any:
    return model.get_decoder().layers[layer].encoder_attn


class _watched:
    """Inside, the attention [rows, heads, new, length] of some layers' cross-attention is put into `seen`."""

    def __init__(self, model: torch.nn.Module, layers: set[int], seen: dict[int, Tensor]) -> None:
        self._hooks = [
            _cross_attention(model, layer).register_forward_hook(
                lambda module, given, output, layer=layer: seen.__setitem__(layer, output[1])
            )
            for layer in sorted(layers)
        ]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _to_add(mask: Tensor) -> Tensor:
    """[rows, length] of 1 and 0 → [rows, 1, 1, length] of 0 and the least float32."""
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def _causal(new: Any, before: Any, like: Tensor) -> Tensor:
    """[1, 1, new, before + new]: what each new place sees."""
    places = torch.arange(before + new, device=like.device)
    hidden = places[None, :] > (torch.arange(new, device=like.device) + before)[:, None]
    added: Tensor = hidden.float() * torch.finfo(torch.float32).min
    return added[None, None]


def _cache(written: Sequence[Tensor] = (), read: Sequence[Tensor] = ()) -> Any:
    """Transformers' cache with these keys and values in it; what is put in first is kept as it is."""
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        """Without the empty first part that a DynamicLayer begins with: exporters cannot join that to anything."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if self.is_initialized:
                key_states = torch.cat([self.keys, key_states], dim=-2)  # type: ignore[list-item]  # they are there
                value_states = torch.cat([self.values, value_states], dim=-2)  # type: ignore[list-item]
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states

    kind: Any = Layer
    parts = []
    for states in (written, read):
        part = DynamicCache()
        part.layer_class_to_replicate = kind
        for key, value in zip(states[::2], states[1::2], strict=True):
            layer: Any = kind()
            layer.keys, layer.values, layer.is_initialized = key, value, True
            layer.dtype, layer.device = key.dtype, key.device
            part.layers.append(layer)
        parts.append(part)
    cache = EncoderDecoderCache(*parts)
    cache.is_updated = dict.fromkeys(range(len(parts[1].layers)), True)
    return cache if read else _unread(cache)


def _unread(cache: Any) -> Any:
    """Nothing is read yet: each layer makes its keys and values."""

    class Never(dict[int, bool]):
        def get(self, key: int, default: Any = None) -> Any:
            return super().get(key, False)

    cache.is_updated = Never()
    return cache


def _flat(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield layer.keys
        yield layer.values
