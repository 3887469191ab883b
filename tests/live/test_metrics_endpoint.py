"""/metrics speaks Prometheus' text format, and our numbers in it add up."""

from __future__ import annotations

import re
import time

from live_client import Rest, metrics

from archiver.torchserve.client import get_rest
from archiver.torchserve.server import TorchServe
from handlers.metrics import METRICS

NAME = "films"


def test_the_numbers_of_known_traffic(server: TorchServe) -> None:
    before = metrics(server, NAME)
    with Rest(server) as rest:
        for _ in range(5):
            assert rest.post(NAME, {"inputs": ["a dull film", "not one funny scene, not one!"]}).status == 200
        assert rest.post(NAME, {"inputs": 5}).status == 400
    counted = {
        "marpress_requests": 6,
        "marpress_request_errors": 1,
        "marpress_inputs": 10,
        "marpress_batches": 5,  # what is refused makes none
        "marpress_batch_seconds_count": 5,
        "marpress_wait_seconds_count": 5,
    }
    deadline = time.monotonic() + 10
    while True:
        after = metrics(server, NAME)
        grown = {name: after.get(name, 0) - before.get(name, 0) for name in after}
        if grown.get("marpress_batches", 0) >= 5 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert {name: grown.get(name) for name in counted} == counted
    assert 0 < grown["marpress_batch_seconds_sum"] < 60
    assert 10 * 5 <= grown["marpress_tokens"] <= grown["marpress_computed_tokens"] <= 10 * 32
    assert after["marpress_batch_size"] == 1
    assert 0 <= after["marpress_padding_waste"] < 1

    text = get_rest(f"{server.properties['metrics_address']}/metrics", token=server.management_key).text
    shown = dict(re.findall(r"^# TYPE (marpress_\w+) (\w+)$", text, re.MULTILINE))
    assert {"marpress_requests", "marpress_batch_seconds", "marpress_padding_waste"} <= set(shown)
    assert shown == {name: METRICS[name].kind for name in shown}
    assert re.search(r'^marpress_batch_seconds_bucket\{ModelName="films",.*le="', text, re.MULTILINE)
    assert "ts_inference_requests_total" in text
