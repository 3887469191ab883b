"""What a server that we start writes to its log, and what the log says when a worker did not come up."""

from __future__ import annotations

import re
from pathlib import Path

# TorchServe's own log configuration also copies everything to the console (a file that would grow without bound here)
# and its rolled files overwrite one another within a day. Loggers and line layout are TorchServe's.
_ROLLING = """\
    <RollingFile name="{name}" fileName="logs/{name}.log" filePattern="logs/{name}.%i.log.gz">
      <PatternLayout pattern="%d{{ISO8601}} [%-5p] %t %c - %m%n"/>
      <Policies><SizeBasedTriggeringPolicy size="20 MB"/></Policies>
      <DefaultRolloverStrategy max="5"/>
    </RollingFile>
"""
_LOGGER = '    <Logger name="{logger}" level="info" additivity="false"><AppenderRef ref="{file}"/></Logger>\n'
_FILES = {
    "ACCESS_LOG": "access_log",
    "MODEL_LOG": "model_log",
    "MODEL_METRICS": "model_metrics",
    "TS_METRICS": "ts_metrics",
}
LOG4J = (
    "<Configuration>\n  <Appenders>\n"
    + "".join(_ROLLING.format(name=name) for name in ("ts_log", *_FILES.values()))
    + "  </Appenders>\n  <Loggers>\n"
    + "".join(_LOGGER.format(logger=logger, file=file) for logger, file in _FILES.items())
    # The asynchronous channel tells of every request that it waits for the next one.
    + '    <Logger name="org.pytorch.serve.wlm.AsyncBatchAggregator" level="warn"/>\n'
    + '    <Logger name="io.netty" level="error"/>\n    <Logger name="org.apache" level="off"/>\n'
    + '    <Root level="info"><AppenderRef ref="ts_log"/></Root>\n  </Loggers>\n</Configuration>\n'
)

# A worker that dies this often without logging a reason (killed from outside, out of memory) is not coming up.
_SILENT_DEATHS = 3
_LOADING = re.compile(r"^(?:Failed to load model|Load model) .*?exception (.*)$")
_DIED = "Backend worker process died."
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?::|$)")
_TRACEBACK = "Traceback (most recent call last):"


def worker_failure(folder: Path, model: str) -> str | None:
    """Why a worker of `model` could not load it, in the worker's own words; None when the log tells of no failure.

    folder: the run folder; its logs/ holds model_log.log (what workers print) and ts_log.log (what the server says)
    """
    said = _messages(folder / "logs" / "model_log.log", rf"W-\d+-{re.escape(model)}_[^ ]* MODEL_LOG")
    for start, line in enumerate(said):
        failed = _LOADING.match(line)
        if failed:
            sentence = [failed[1]]
            for more in said[start + 1 :]:
                if more.startswith(_TRACEBACK):
                    break
                sentence.append(more)
            return "\n".join(sentence).strip() or "the handler's initialize failed without a message"
        if line.startswith(_DIED):
            # A traceback ends with the exception, not indented; of a chain of several, the last one counts.
            final = [more for more in said[start + 1 :] if _EXCEPTION.match(more)]
            return final[-1] if final else "the worker process died without saying why"
    deaths = _messages(folder / "logs" / "ts_log.log", rf"W-\d+-{re.escape(model)}_[^ ]* .*WorkerThread")
    if sum(line.startswith("Retry worker") for line in deaths) >= _SILENT_DEATHS:
        return (
            f"the worker process died {_SILENT_DEATHS} times without saying why (killed from outside, or out of memory)"
        )
    return None


def last_lines(folder: Path, count: int = 15) -> str:
    """The last lines of the server's logs, the console first (a Java that does not start writes only there)."""
    lines: list[str] = []
    for path in (folder / "console.log", folder / "logs" / "ts_log.log", folder / "logs" / "model_log.log"):
        if path.exists():
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(lines) or "(nothing was logged)"


def _messages(path: Path, speaker: str) -> list[str]:
    if not path.exists():
        return []
    pattern = re.compile(rf"^\S+ \[\w+ *\] {speaker} - (.*)$")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [match[1] for match in map(pattern.match, lines) if match]
