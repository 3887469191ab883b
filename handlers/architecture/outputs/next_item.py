"""A model of item histories with its scores as one torch module: what is trained, exported and served."""

import torch

from handlers.architecture.outputs.families import register

Tensor = torch.Tensor


class NextItem(torch.nn.Module):
    """item_ids, attention_mask (1 = real) [rows, length] int64 → scores [rows, items] float32 of what comes next.

    With `candidates`, as training gives them, the scores of those items alone at every place: [rows, length, candidates].
    Padding stands behind a row's items and has no part in its answer.

    Args:
        model: as `handlers.architecture.outputs.sasrec.SasRecForNextItem`: a base model and a `head` without bias.
    """

    inputs = ("item_ids", "attention_mask", "candidates")
    register = staticmethod(register)

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.settings: dict[str, object] = {}

    def forward(self, item_ids: Tensor, attention_mask: Tensor, candidates: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.model.base_model(item_ids, attention_mask).last_hidden_state  # type: ignore[operator]
        if candidates is None:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask * places).argmax(dim=1)
            scores: Tensor = self.model.head(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])  # type: ignore[operator]
            return scores
        if len(candidates) == self.model.config.num_items:  # type: ignore[union-attr]
            every: Tensor = self.model.head(hidden)  # type: ignore[operator]
            return every
        rows: Tensor = self.model.get_input_embeddings()(candidates)  # type: ignore[operator]
        return hidden @ rows.T
