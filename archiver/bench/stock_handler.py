"""The plain handler that `bench --against stock` compares with: what TorchServe's Hugging Face example does.

transformers' model in fp32, one forward pass over TorchServe's batch padded to its longest member, either by the model's
own logits or, where transformers has a pipeline for the task, by that. It travels alone in its archive, so it imports
nothing of this project; and it has one class, because TorchServe takes the only one for the handler.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import torch
import transformers

Request = tuple[Any, dict[str, Any]]  # (its one input, its parameters)


class StockHandler:
    """Answers as transformers does.

    `handler` in model-config.yaml: {task, auto_class, max_length}: the task's name, transformers' class that loads the
    model for it, and how many tokens a text may have.
    """

    def initialize(self, context: Any) -> None:
        folder = context.system_properties["model_dir"]
        options = context.model_yaml_config["handler"]
        self.task: str = options["task"]
        self.max_length: int = options["max_length"]
        if self.task in BY_LOGITS:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            kind: Any = getattr(transformers, options["auto_class"])
            self.model = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            return
        make: Any = transformers.pipeline
        self.pipeline = make(self.task, model=folder, dtype=torch.float32, device="cpu")
        if self.pipeline.tokenizer is not None:
            self.pipeline.tokenizer.model_max_length = self.max_length

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        requests = [_read(item.get("data") or item.get("body")) for item in data]
        with torch.no_grad():
            return [json.dumps(answer, default=float) for answer in BY_LOGITS.get(self.task, _pipeline)(self, requests)]

    def encoded(self, texts: list[str], pairs: list[str] | None = None, **options: Any) -> Any:
        """Texts, or pairs, as one batch padded to its longest."""
        given = {"truncation": True, **options}
        return self.tokenizer(texts, pairs, padding=True, max_length=self.max_length, return_tensors="pt", **given)


def _read(body: Any) -> Request:
    """JSON {"inputs": …, "parameters": …}, plain text, or the bytes of a recording or an image."""
    if isinstance(body, (bytes, bytearray)):
        try:
            body = body.decode("utf-8")
        except UnicodeDecodeError:
            return bytes(body), {}
    if isinstance(body, str) and body.startswith("{"):
        body = json.loads(body)
    return (body["inputs"], body.get("parameters") or {}) if isinstance(body, dict) else (body, {})


def _text_classification(handler: StockHandler, requests: list[Request]) -> list[Any]:
    """The best label of each text or pair, with its probability."""
    texts = [given["text"] if isinstance(given, dict) else given for given, _ in requests]
    pairs = [given.get("text_pair") or "" if isinstance(given, dict) else "" for given, _ in requests]
    logits = handler.model(**handler.encoded(texts, pairs if any(pairs) else None)).logits
    config = handler.model.config
    several = config.problem_type == "multi_label_classification" or logits.shape[1] == 1
    best = (logits.sigmoid() if several else logits.softmax(dim=-1)).max(dim=-1)
    return [
        [{"label": config.id2label[index], "score": score}]
        for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _vectors(handler: StockHandler, texts: list[str]) -> torch.Tensor:
    """[texts, width]: the mean over the real tokens, of length 1."""
    batch = handler.encoded(texts)
    hidden = handler.model(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)


def _feature_extraction(handler: StockHandler, requests: list[Request]) -> list[Any]:
    return list(_vectors(handler, [text for text, _ in requests]).tolist())


def _sentence_similarity(handler: StockHandler, requests: list[Request]) -> list[Any]:
    """The cosine of the source sentence and each other."""
    sizes = [1 + len(given["sentences"]) for given, _ in requests]
    vectors = _vectors(
        handler, [text for given, _ in requests for text in (given["source_sentence"], *given["sentences"])]
    )
    return [(part[1:] @ part[0]).tolist() for part in vectors.split(sizes)]


def _text_ranking(handler: StockHandler, requests: list[Request]) -> list[Any]:
    """The texts' places by falling score."""
    pairs = [(given["query"], text) for given, _ in requests for text in given["texts"]]
    logits = handler.model(**handler.encoded([query for query, _ in pairs], [text for _, text in pairs])).logits
    scores = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=-1)[:, -1]
    answers = []
    for part in scores.split([len(given["texts"]) for given, _ in requests]):
        order = part.argsort(descending=True, stable=True).tolist()
        answers.append([{"index": index, "score": float(part[index])} for index in order])
    return answers


def _question_answering(handler: StockHandler, requests: list[Request]) -> list[Any]:
    """The likeliest span of at most 15 tokens over windows that overlap by half, as transformers 4's pipeline had it."""
    batch = handler.encoded(
        [given["question"] for given, _ in requests],
        [given["context"] for given, _ in requests],
        truncation="only_second",
        stride=min(128, handler.max_length // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners, offsets = batch.pop("overflow_to_sample_mapping").tolist(), batch.pop("offset_mapping").tolist()
    found = handler.model(**batch)
    best: list[dict[str, Any]] = [{"score": -1.0} for _ in requests]
    for row, owner in enumerate(owners):
        inside = torch.tensor([part == 1 for part in batch.sequence_ids(row)])
        start, end = (
            logits[row].masked_fill(~inside, -torch.inf).softmax(dim=-1)
            for logits in (found.start_logits, found.end_logits)
        )
        scores = (start[:, None] * end[None]).triu().tril(14)
        score = float(scores.max())
        if score > best[owner]["score"]:
            first, last = divmod(int(scores.argmax()), len(end))
            begin, stop = offsets[row][first][0], offsets[row][last][1]
            answer = requests[owner][0]["context"][begin:stop]
            best[owner] = {"score": score, "start": begin, "end": stop, "answer": answer}
    return list(best)


def _pipeline(handler: StockHandler, requests: list[Request]) -> list[Any]:
    """What transformers' pipeline answers, all together where all set the same parameters."""
    given = [_media(handler.pipeline, value) for value, _ in requests]
    parameters = requests[0][1]
    if all(other == parameters for _, other in requests):
        return list(handler.pipeline(given, batch_size=len(given), **parameters))
    return [handler.pipeline(value, **own) for value, (_, own) in zip(given, requests, strict=True)]


def _media(pipeline: Any, value: Any) -> Any:
    """A recording or an image, from its bytes or base64; any other input as it is."""
    if pipeline.image_processor is None and pipeline.feature_extractor is None:
        return value
    body = value if isinstance(value, bytes) else base64.b64decode(value)
    if pipeline.image_processor is not None:
        from PIL import Image

        return Image.open(io.BytesIO(body)).convert("RGB")
    import soundfile
    import soxr

    samples, rate = soundfile.read(io.BytesIO(body), dtype="float32", always_2d=True)
    wanted = pipeline.feature_extractor.sampling_rate
    return {"raw": soxr.resample(samples.mean(axis=1), rate, wanted), "sampling_rate": wanted}


# Where transformers has no pipeline, or one that answers otherwise; every other task goes by its pipeline.
BY_LOGITS: dict[str, Callable[[StockHandler, list[Request]], list[Any]]] = {
    "text-classification": _text_classification,
    "feature-extraction": _feature_extraction,
    "sentence-similarity": _sentence_similarity,
    "text-ranking": _text_ranking,
    "question-answering": _question_answering,
}
