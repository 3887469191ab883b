"""Which prompts an archive stores, and how many tokens of their continuations: those that no rounding can change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.data.text.windows import read_text
from archiver.errors import DataError
from archiver.tasks.workload import MAX_EXAMPLES
from handlers.inputs.text import TextInput

if TYPE_CHECKING:
    import torch

PROMPT_TOKENS = 16
EXAMPLE_TOKENS = 16
_MORE_PROMPTS = 4  # looked at for each that is stored


def prompts_of(text: str, wanted: int | Path) -> list[TextInput]:
    """The lines of the recipe's own file of texts; else beginnings of lines of the validation text, in its order.

    Args:
        text: for validation. wanted: the recipe's `serve.examples`.
    """
    if isinstance(wanted, Path):
        return [TextInput(line.strip()) for line in read_text(wanted).splitlines() if line.strip()]
    lines = [line.strip() for line in text.splitlines()]
    beginnings = [" ".join(line.split()[:PROMPT_TOKENS]) for line in lines]
    return [TextInput(beginning) for beginning in dict.fromkeys(beginnings) if len(beginning.split()) > 3] or [
        TextInput(text.strip()[:100])
    ]


def choose_prompts(
    handler: Any, model: torch.nn.Module, prompts: list[TextInput], wanted: int | Path
) -> tuple[list[TextInput], int]:
    """Choose the prompts to store: those whose continuation is decided longest.

    Args:
        handler: the text-generation handler, opened on the staged archive.
        model: transformers' …ForCausalLM, as the stages left it.
        prompts: to choose from. wanted: how many, or the recipe's own file of texts, of which all are stored, at most 64.
    Returns: (the prompts, how many tokens of continuation). The number, from 1 to 16, is the same for all: as many tokens
        as are decided beyond the tolerance in each of them.
    Raises: DataError when not one token is decided.
    """
    count = wanted if isinstance(wanted, int) else MAX_EXAMPLES
    looked_at = prompts[: count if isinstance(wanted, Path) else count * _MORE_PROMPTS]
    room = handler.serving["max_length"]
    found: list[tuple[int, int]] = []
    for place, prompt in enumerate(looked_at):
        ids = handler.input.encoder.encode([prompt], truncate=False)[0].ids
        tokens = decided(handler, model, ids) if 0 < len(ids) < room else 0
        if tokens:
            found.append((tokens, place))
        if sum(tokens == EXAMPLE_TOKENS for tokens, _ in found) == count:
            break  # no later one is decided longer
    if not found:
        raise DataError(
            f"no text can be stored as an example: each of {len(looked_at)} has more than serve.max_length {room} tokens, "
            "or several next tokens that are equally likely; name a file of other texts in serve.examples"
        )
    best = sorted(sorted(found, key=lambda item: -item[0])[:count], key=lambda item: item[1])
    return [looked_at[place] for _, place in best], min(tokens for tokens, _ in best)


def decided(handler: Any, model: torch.nn.Module, ids: list[int], adapter: int = 0) -> int:
    """How many tokens behind the prompt `ids` no allowed difference of logits can turn into others.

    A token counts when it is the likeliest by so much that two runs, each off by the tolerance, agree on it, and the
    runtime that will serve wrote it too.

    Args:
        adapter: the number of the adapter that the model computes with.
    """
    most = min(EXAMPLE_TOKENS, int(handler.serving["max_length"]) - len(ids))
    ends = handler.serving["end_ids"]
    served = handler.continuation(ids, most, adapter)
    count = 0
    for token, margin in likeliest_behind(model, ids, served):
        if margin <= 2 * handler.serving["tolerance"]:
            break
        if token in ends:
            # Behind the end nothing is said, however many tokens are asked for.
            return most if len(served) == count else count
        if count >= len(served) or served[count] != token:
            break
        count += 1
        if count == most:
            return most
    return count


def likeliest_behind(model: torch.nn.Module, ids: list[int], written: list[int]) -> list[tuple[int, float]]:
    """The likeliest token behind a prompt and behind each of the tokens written after it, all in one pass.

    Args:
        model: transformers' …ForCausalLM.
        ids: the prompt. written: the tokens behind it.
    Returns: (token, margin) at len(written) + 1 places; margin: by how much the token's logit exceeds the second best, as a
        share of the largest |logit| there.
    """
    import torch

    device = next(model.parameters()).device
    places = torch.tensor([[*ids, *written]], device=device)
    with torch.inference_mode():
        logits = model(input_ids=places, use_cache=False, logits_to_keep=len(written) + 1).logits[0].float()
    if not bool(torch.isfinite(logits).all()):
        raise ArithmeticError("the model's logits are not finite")
    best = logits.topk(min(2, logits.shape[-1]), dim=-1)
    margins = (best.values[:, 0] - best.values[:, -1]) / logits.abs().amax(dim=-1).clamp(min=1e-12)
    return list(zip(best.indices[:, 0].tolist(), margins.tolist(), strict=True))
