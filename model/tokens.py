"""Files of token ids, made once of sources whose length in tokens nobody knows before: JSONL, and any tokenizer.json.

Each source becomes one file beside the checkpoints: its documents one after the other, each with an end-of-document
token, 2 or 4 bytes a token in the machine's order. Sources are shared out among the ranks and read piece by piece; what
an attempt has finished the next one finds.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import xxhash

from model.config import BYTES, TrainerConfig
from model.data import END_OF_DOCUMENT, Document

PIECE_BYTES = 1 << 20  # of a text that is tokenized at once, cut at an end of line
TOGETHER = 256  # documents of a JSONL file that are tokenized at once
JSONL = ".jsonl"
# What tokenizers call the end of a document: OPT, GPT-2, Llama 3, Gemma.
ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids. `name` stands for it: two with the same name give the same ids."""

    name: str
    encode: Encode
    end: int


def load_tokenizer(config: TrainerConfig) -> Tokenizer:
    """The tokenizer asked for. Raises ValueError where its file is none, or has more tokens than the model."""
    if config.tokenizer == BYTES:
        return Tokenizer(BYTES, lambda texts: [list(text.encode()) for text in texts], END_OF_DOCUMENT)
    import tokenizers

    path = os.path.expanduser(config.tokenizer)
    try:
        content = Path(path).read_bytes()
        loaded = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"tokenizer: {path} is no tokenizer.json that can be read: {error}") from error
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    most = max(vocabulary.values(), default=-1) + 1
    if most > config.token_ids:
        raise ValueError(
            f"tokenizer: {path} has {most} token ids and the model {config.token_ids}; "
            f"set trainer.vocabulary to {-(-most // 8) * 8} or more, a multiple of 8"
        )
    end = next((vocabulary[name] for name in ENDS if name in vocabulary), None)
    if end is None:
        raise ValueError(f"tokenizer: {path} has no end-of-document token; one of {', '.join(ENDS)} is needed")
    return Tokenizer(
        xxhash.xxh3_128_hexdigest(content),
        lambda texts: [one.ids for one in loaded.encode_batch(texts, add_special_tokens=False)],
        end,
    )


def needs_tokens(document: Document, config: TrainerConfig) -> bool:
    """Whether a source cannot be read as it is."""
    return config.tokenizer != BYTES or document.path.endswith(JSONL)


def token_file(folder: Path, source: Document, config: TrainerConfig, tokenizer: Tokenizer) -> Path:
    """Where the tokens of a source are; another place when the source, or how it is read, has changed."""
    at = os.stat(source.path)
    made_of = (os.path.abspath(source.path), at.st_size, at.st_mtime_ns, tokenizer.name, _width(config))
    made_of += (config.text_key,) if source.path.endswith(JSONL) else ()
    return folder / f"{os.path.basename(source.path)}.{xxhash.xxh3_64_hexdigest(repr(made_of).encode())}.tokens"


def make_tokens(target: Path, source: Document, config: TrainerConfig, tokenizer: Tokenizer) -> None:
    """Write the tokens of one source, completely or not at all.

    Raises ValueError with file and line for what is no text, OSError where it cannot be read or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            for ids in _tokens_of(source.path, config, tokenizer):
                file.write(np.asarray(ids, _dtype(config)).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def as_tokens(target: Path, source: Document, config: TrainerConfig) -> Document:
    """The document that a file of tokens is."""
    width = _width(config)
    return Document(str(target), 0, target.stat().st_size // width, width, source.name)


def _width(config: TrainerConfig) -> int:
    """Bytes of a token id."""
    return 2 if config.token_ids <= 1 << 16 else 4


def _dtype(config: TrainerConfig) -> str:
    return f"u{_width(config)}"


def _tokens_of(path: str, config: TrainerConfig, tokenizer: Tokenizer) -> Iterator[Sequence[int]]:
    """Token ids of a source, some at a time."""
    if not path.endswith(JSONL):
        told = False
        for text in _pieces(path):
            ids = tokenizer.encode([text])[0]
            told = told or len(ids) > 0
            yield ids
        if told:
            yield [tokenizer.end]
        return
    texts = _texts(path, config.text_key)
    while together := list(islice(texts, TOGETHER)):
        for ids in tokenizer.encode(together):
            yield ids
            yield [tokenizer.end]


def _pieces(path: str) -> Iterator[str]:
    """A text, cut at ends of lines. Raises ValueError where it is no UTF-8."""
    line = 1
    with open(path, "rb") as file:
        while data := file.read(PIECE_BYTES):
            data += file.readline()
            try:
                yield data.decode()
            except UnicodeDecodeError as error:
                at = line + data.count(b"\n", 0, error.start)
                raise ValueError(f"data: {path}, line {at}: not UTF-8 ({error.reason})") from error
            line += data.count(b"\n")


def _texts(path: str, key: str) -> Iterator[str]:
    """The texts of a JSONL file; empty lines and empty texts are passed over. Raises ValueError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = _text(line, key)
            except ValueError as error:
                raise ValueError(f"data: {path}, line {number}: {error}") from error
            if text:
                yield text


def _text(line: bytes, key: str) -> str:
    try:
        value = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError('not an object such as {"text": "..."}')
    if key not in value:
        raise ValueError(
            f"no key {key!r} (keys: {', '.join(list(value)[:8]) or 'none'}); trainer.text_key names another"
        )
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is no text: {str(text)[:40]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r} is no text: half a character (a surrogate) at {error.start}") from error
    return text
