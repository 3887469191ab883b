"""English text that every CPython ships: calibration and validation sentences on a machine without other data.

It comes from the language reference behind `help()` (`pydoc_data.topics`) and from docstrings of the standard
library, read as source files: nothing is imported for its side effects. The result depends on the Python version only.
"""

from __future__ import annotations

import ast
import importlib
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from archiver.errors import DataError

SOURCE = "embedded:cpython"
LEAST_PER_SPLIT = 1000
# So many validate, the rest trains; which ones is settled by a fixed seed. More would make a build wait for numbers
# whose first three digits stay the same.
VALIDATION_SENTENCES = 1200
SEED = 20_260_801
WORDS = range(3, 61)

# Modules whose docstrings are prose; a fixed list, so that what a distribution adds or strips elsewhere is no matter.
_MODULES_TEXT = """
_pydecimal _pyio abc aifc argparse ast asyncore base64 bdb bz2 cProfile calendar cgi cmd code codecs
collections/__init__ concurrent/futures/_base configparser contextlib copy csv ctypes/__init__ dataclasses
datetime decimal difflib dis doctest email/message email/policy enum filecmp fileinput fnmatch fractions ftplib
functools getopt getpass gettext glob graphlib gzip hashlib heapq hmac http/client http/cookiejar http/cookies
http/server imaplib imp importlib/abc inspect ipaddress json/__init__ json/decoder json/encoder linecache locale
logging/__init__ logging/config logging/handlers lzma mailbox mimetypes multiprocessing/pool netrc numbers
optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats
pyclbr pydoc queue quopri random re/__init__ reprlib rlcompleter runpy sched secrets selectors shelve shlex
shutil smtplib socket socketserver ssl statistics string struct subprocess symtable tarfile tempfile textwrap
threading timeit tokenize trace traceback tracemalloc types typing unittest/case unittest/mock unittest/suite
urllib/parse urllib/request uuid warnings wave weakref webbrowser wsgiref/util xml/dom/minidom xml/sax/handler
zipapp zipfile
"""
MODULES = tuple(_MODULES_TEXT.split())

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[A-Z\"'(])")
_BULLET = r"[ \t]*(?:[-*•]|\d+[.)])[ \t]+"
# Each point of a list is a paragraph of its own.
_PARAGRAPH_END = re.compile(rf"\n\s*\n(?:{_BULLET})?|\n{_BULLET}")
_MARKUP = re.compile(r"``|`|(?<!\w)\*+(?=\w)|(?<=\w)\*+(?!\w)")
_CODE = re.compile(r">>>|\.\.\.|::|==|!=|->|=>|\w=\w| = |[{}\[\]<>|\\@#$~^]|\w\(\w+,|__\w+__\.|\.py\b")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")


def embedded_sentences(split: str) -> list[str]:
    """Sentences of 3 to 60 words, each once, in a fixed order.

    split: "train" or "validation"; they share no sentence, and each has at least 1000
    raises DataError for another split, or where this Python ships neither topics nor sources
    """
    if split not in ("train", "validation"):
        raise DataError(f"{SOURCE} has no split {split!r}; allowed: train, validation")
    sentences = _all_sentences()
    cut = VALIDATION_SENTENCES
    if len(sentences) < cut + LEAST_PER_SPLIT:
        raise DataError(
            f"this Python ships only {len(sentences)} English sentences, {cut + LEAST_PER_SPLIT} are needed: its "
            "standard library seems stripped of pydoc_data and sources; name data files in the recipe instead"
        )
    return list(sentences[:cut] if split == "validation" else sentences[cut:])


@lru_cache(maxsize=1)
def _all_sentences() -> tuple[str, ...]:
    unique: dict[str, str] = {}
    for text in _texts():
        for sentence in split_sentences(text):
            unique.setdefault(" ".join(_WORD.findall(sentence.lower())), sentence)
    sentences = sorted(unique.values())
    random.Random(SEED).shuffle(sentences)
    return tuple(sentences)


def _texts() -> Iterator[str]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        path = library / f"{module}.py"
        if path.is_file():
            yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def split_sentences(text: str) -> list[str]:
    """The sentences of 3 to 60 words in a plain text; headings, signatures, code and tables are left out."""
    sentences = []
    for paragraph in _PARAGRAPH_END.split(text):
        joined = _MARKUP.sub("", " ".join(paragraph.split()))
        for sentence in _SENTENCE_END.split(joined):
            if _is_prose(sentence):
                sentences.append(sentence)
    return sentences


def _is_prose(sentence: str) -> bool:
    words = _WORD.findall(sentence)
    if len(sentence.split()) not in WORDS or len(words) < WORDS.start:
        return False
    if not (sentence[0].isupper() and sentence[-1] in ".!?") or _CODE.search(sentence) or not sentence.isascii():
        return False
    # Prose is words: little punctuation, and most words are lower case.
    letters = sum(character.isalpha() or character == " " for character in sentence)
    lower = sum(word.islower() for word in words)
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    return balanced and letters >= 0.88 * len(sentence) and lower >= 0.6 * len(words)
