"""SASRec: a causal transformer over the items of a history, whose last place says which item comes next.

A family of our own, built as transformers builds its families, so that loading, cutting, factorizing and exporting treat it
as any other. `families.register` makes it known to transformers.

Source: Kang & McAuley 2018, Self-attentive sequential recommendation, arXiv:1808.09781. Norms stand before attention and
feed-forward block, not behind them, and the position is counted from the history's beginning.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Tensor = torch.Tensor


class SasRecConfig(PretrainedConfig):
    """Sizes of the model.

    Args:
        num_items: rows of the item table. hidden_size: width of an item's vector.
        num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        max_position_embeddings: items of the longest history; of a longer one the last are looked at.
        dropout: share of the items' vectors and of each block's outputs that is dropped in training.
        initializer_range: standard deviation of fresh weights.
    """

    model_type = "sasrec"

    def __init__(
        self,
        num_items: int = 1,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 256,
        max_position_embeddings: int = 64,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        **more: Any,
    ) -> None:
        self.num_items = num_items
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.initializer_range = initializer_range
        more.setdefault("tie_word_embeddings", True)
        super().__init__(**more)
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divided by num_attention_heads {num_attention_heads}")


class SasRecAttention(torch.nn.Module):
    """Each place attends to itself and to those before it.

    attention_mask [rows, 1, length, length] float is added to the products: 0, or a large negative number.
    """

    is_causal = True

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = torch.nn.Linear(width, width)
        self.k_proj = torch.nn.Linear(width, width)
        self.v_proj = torch.nn.Linear(width, width)
        self.o_proj = torch.nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        rows, length, _ = hidden_states.shape
        query, key, value = (
            part(hidden_states).view(rows, length, -1, self.head_dim).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = (query @ key.transpose(2, 3)) * self.scaling + attention_mask
        mixed = functional.softmax(weights, dim=-1) @ value
        found: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(rows, length, -1))
        return found


class SasRecFeedForward(torch.nn.Module):
    """Two linear layers with a ReLU between them, at each place by itself."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = torch.nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = self.down_proj(functional.relu(self.up_proj(hidden_states)))
        return found


class SasRecLayer(torch.nn.Module):
    """Attention and feed-forward block, each added to what it was given."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.attention_norm = torch.nn.LayerNorm(config.hidden_size)
        self.attention = SasRecAttention(config)
        self.feed_forward_norm = torch.nn.LayerNorm(config.hidden_size)
        self.feed_forward = SasRecFeedForward(config)
        self.dropout = torch.nn.Dropout(config.dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        mixed = self.attention(self.attention_norm(hidden_states), attention_mask)
        hidden_states = hidden_states + self.dropout(mixed)
        found: Tensor = hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))
        return found


class SasRecPreTrainedModel(PreTrainedModel):
    """What both classes share."""

    config_class = SasRecConfig
    base_model_prefix = "model"
    main_input_name = "item_ids"

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)


class SasRecModel(SasRecPreTrainedModel):
    """item_ids, attention_mask (1 = real) [rows, length] int64 → last_hidden_state [rows, length, hidden]."""

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        self.item_embeddings = torch.nn.Embedding(config.num_items, config.hidden_size)
        self.position_embeddings = torch.nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = torch.nn.ModuleList(SasRecLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = torch.nn.LayerNorm(config.hidden_size)
        self.dropout = torch.nn.Dropout(config.dropout)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.item_embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.item_embeddings = value  # type: ignore[assignment]

    def forward(self, item_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        places = torch.arange(item_ids.shape[1], device=item_ids.device)
        # sqrt(width), as SASRec does: an item's vector is scored by its product, and must not drown in its position's.
        hidden = self.item_embeddings(item_ids) * self.config.hidden_size**0.5 + self.position_embeddings(places)
        hidden = self.dropout(hidden)
        seen = (places[None, :] <= places[:, None])[None] & attention_mask[:, None, :].bool()
        allowed = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, -1e9)[:, None]
        for layer in self.layers:
            hidden = layer(hidden, allowed)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class SasRecForNextItem(SasRecPreTrainedModel):
    """The same with a score for each item: the product of the vector at a place and the item's own vector.

    The head's weight is the table of items.
    """

    _tied_weights_keys = {"head.weight": "model.item_embeddings.weight"}

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        self.model = SasRecModel(config)
        self.head = torch.nn.Linear(config.hidden_size, config.num_items, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> torch.nn.Module:
        table: torch.nn.Module = self.model.item_embeddings
        return table

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.model.item_embeddings = value

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.head = value  # type: ignore[assignment]

    def forward(self, item_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        hidden = self.model(item_ids, attention_mask).last_hidden_state
        found: Tensor = self.head(hidden)
        return found
