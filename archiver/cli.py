"""The command line: init, build, inspect, verify, predict, chat, bench. It parses arguments and prints results.

Exit codes: 0 done · 2 the user's input is at fault · 3 the gate · 1 our fault (for verify: an unsound archive).
"""

import argparse
import errno
import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archiver.errors import ArchiverError
from archiver.version import __version__

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Every expected failure is one message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ArchiverError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was left half-written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `marpress inspect … | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marpress", description="Compress a Hugging Face model into a verified TorchServe archive, and serve it."
    )
    parser.add_argument("--version", action="version", version=f"marpress {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("init", help="look at a model and write a commented recipe for it")
    verb.add_argument("model_dir", metavar="MODEL_DIR")
    verb.add_argument("--task", metavar="T", help="a transformers task name; default: what the model is made for")
    verb.add_argument("--output", "-o", type=Path, help="write here instead of to standard output; never overwrites")
    verb.set_defaults(run=_init)

    verb = verbs.add_parser("build", help="recipe → MODEL_STORE/NAME.mar")
    verb.add_argument("recipe", type=Path, metavar="RECIPE")
    verb.add_argument(
        "--set", action="append", default=[], metavar="a.b=value", help="override one value of the recipe"
    )
    verb.add_argument("--model-store", type=Path, default=Path("model_store"), metavar="DIR")
    verb.add_argument("--check", action="store_true", help="find every mistake, and stop there")
    verb.add_argument("--json", action="store_true", help="print what `inspect --json` prints of the new archive")
    verb.set_defaults(run=_build)

    verb = verbs.add_parser("inspect", help="what is in an archive, where it came from, what it gave up and won")
    verb.add_argument("mar", type=Path, metavar="FILE.mar")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_inspect)

    verb = verbs.add_parser("verify", help="check every digest, load the handler alone, replay the stored examples")
    verb.add_argument("mar", type=Path, metavar="FILE.mar")
    verb.set_defaults(run=_verify)

    verb = verbs.add_parser("predict", help="send real requests to a server and print the answers")
    verb.add_argument("url", metavar="URL", help="http://HOST:PORT/predictions/NAME, or grpc://HOST:PORT/NAME")
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="a text, a JSON object, or @FILE with the body")
    verb.add_argument("--grpc", action="store_true", help="over gRPC; PORT is then the gRPC port")
    _add_trust(verb)
    verb.set_defaults(run=_predict)

    verb = verbs.add_parser("chat", help="talk to a served language model in the terminal, or line by line from a pipe")
    verb.add_argument(
        "url", metavar="URL", help="http://HOST:PORT/predictions/NAME, or its base URL for OpenAI clients"
    )
    verb.add_argument("--system", metavar="TEXT", help="the system message that the conversation begins with")
    verb.add_argument("--max-tokens", type=_tokens, metavar="N", help="of one answer; default: what room there is")
    verb.add_argument("--temperature", type=_temperature, metavar="T", help="0: always the likeliest token; default: 1")
    verb.add_argument("--model", metavar="NAME", help="sent as the request's model; default: the URL's")
    _add_trust(verb)
    verb.set_defaults(run=_chat)

    verb = verbs.add_parser("bench", help="live comparison of two archives, in turns, over REST and gRPC")
    verb.add_argument("mar", type=Path, metavar="FILE.mar")
    verb.add_argument("--against", metavar="OTHER.mar|stock", help="stock: a plain fp32 transformers handler")
    verb.add_argument("--recipe", type=Path, help="names the original model and the texts to send")
    verb.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override a value of --recipe")
    verb.add_argument("--clients", type=_counts, default=(1, 16, 64), metavar="1,16,64")
    verb.add_argument("--seconds", type=_positive, default=10.0, help="per side, number of clients and round")
    verb.add_argument("--protocols", type=_protocols, default=("rest", "grpc"), metavar="rest,grpc")
    verb.add_argument("--rounds", type=int, default=12, help="at most; fewer when the interval is narrow enough")
    verb.add_argument("--roofline", action="store_true", help="in process: how near it comes to what this host can do")
    verb.add_argument("--json", action="store_true")
    verb.set_defaults(run=_bench)
    return parser


def _add_trust(verb: argparse.ArgumentParser) -> None:
    """How a client shows its key, and whom it trusts."""
    key = verb.add_mutually_exclusive_group()
    key.add_argument("--token", help="the server's inference key")
    key.add_argument("--key-file", type=Path, help="TorchServe's key_file.json")
    verb.add_argument("--cacert", type=Path, help="PEM file of the authority that signed the server's certificate")


def _init(options: argparse.Namespace) -> int:
    from archiver.recipe.starter import write_recipe

    text = write_recipe(options.model_dir, options.task)
    if options.output is None:
        print(text, end="")
        return 0
    try:
        with options.output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return _refuse(f"{options.output} exists already: remove it, or name another file with --output")
    except OSError as error:
        return _refuse(f"{options.output} cannot be written: {error.strerror}")
    print(f"wrote {options.output}; build it with: marpress build {options.output}", file=sys.stderr)
    return 0


def _build(options: argparse.Namespace) -> int:
    from archiver.progress import Progress
    from archiver.recipe.load import load_recipe

    progress = Progress()
    recipe = load_recipe(options.recipe, options.set)
    from archiver.pipeline import build as pipeline

    if options.check:
        pipeline.check_only(recipe, progress)
        print(f"{options.recipe}: no mistakes found")
        return 0
    progress.say(f"building {recipe.name} {recipe.version}")
    try:
        built = pipeline.build(recipe, options.model_store, progress)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        advice = "free some of it, or name a folder on another disk" if full else "name a folder that can be written"
        return _refuse(f"{options.model_store}: {error.strerror or error}; {advice}")
    from archiver.report.summary import summarize

    report = _report(built.path)
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else summarize(report, built.path))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from archiver.report.summary import summarize

    try:
        report = _report(options.mar)
    except (OSError, ArchiverError) as error:
        return _refuse(f"{options.mar} cannot be inspected: {_reason(error)}")
    print(json.dumps(report, indent=2, ensure_ascii=False) if options.json else summarize(report, options.mar))
    return 0


def _report(mar: Path) -> dict[str, Any]:
    from archiver.report.inspection import inspect_mar

    return inspect_mar(mar)


def _verify(options: argparse.Namespace) -> int:
    from archiver.packaging.verify import verify

    try:
        problems = verify(options.mar)
    except OSError as error:
        return _refuse(f"{options.mar} cannot be read: {_reason(error)}")
    for problem in problems:
        print(f"{options.mar.name}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{options.mar.name}: sound; every digest matches, and the stored examples are answered as stored")
    return 1 if problems else 0


def _predict(options: argparse.Namespace) -> int:
    from archiver.torchserve.client import predict

    return predict(
        options.url,
        options.inputs,
        grpc=options.grpc,
        token=options.token,
        key_file=options.key_file,
        cacert=options.cacert,
    )


def _chat(options: argparse.Namespace) -> int:
    from archiver.torchserve.chat import chat

    return chat(
        options.url,
        system=options.system,
        model=options.model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        token=options.token,
        key_file=options.key_file,
        cacert=options.cacert,
    )


def _bench(options: argparse.Namespace) -> int:
    from archiver.bench.command import bench, roofline_of

    say = functools.partial(print, file=sys.stderr, flush=True)
    if options.roofline:
        if options.against is not None:
            return _refuse("--roofline measures one archive by itself: leave --against out")
        result, table = roofline_of(options.mar, options.recipe, options.set, progress=say)
        print(json.dumps(result, indent=2) if options.json else table)
        return 0
    result, table = bench(
        options.mar,
        options.against,
        options.recipe,
        options.set,
        clients=options.clients,
        seconds=options.seconds,
        protocols=options.protocols,
        max_rounds=options.rounds,
        progress=say,
    )
    print(json.dumps(result, indent=2) if options.json else table)
    return 0


def _refuse(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(",") if part.strip().isdigit())
    if not counts or len(counts) != len(text.split(",")) or not all(1 <= count <= 1024 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers from 1 to 1024 with commas between are expected")
    return counts


def _protocols(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    if not set(chosen) <= {"rest", "grpc"}:
        raise argparse.ArgumentTypeError(f"{text!r}: rest, grpc or both are expected")
    return chosen


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 is expected")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: a number between 0 and 100 is expected")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds between 0 and 600 are expected")
    return value
