"""From the settings to documents that all ranks read alike. Collectives on the main thread, before the first step."""

import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from model import tokens
from model.config import TrainerConfig
from model.data import Document, find_documents, fingerprint
from model.parallel import World, agree

APPEARS_S = 60.0  # a network file system shows a new file of another node late
_FEW = 8


def load(config: TrainerConfig, world: World, folder: Path) -> tuple[list[Document], str]:
    """The documents to train and validate on, and a name that stands for the tokenizer. A collective.

    Token files that are missing are made in `folder`, each by one rank. Raises ValueError on all ranks where files
    differ between ranks or are not what they should be; each is named with the line.
    """
    sources = find_documents(config.data)
    if not agree(fingerprint(sources), world):
        raise ValueError(f"data: {len(sources)} files here, other files on other ranks; give all nodes the same files")
    tokenizer = tokens.load_tokenizer(config)
    targets = {
        source: tokens.token_file(folder, source, config, tokenizer)
        for source in sources
        if tokens.needs_tokens(source, config)
    }
    if targets:
        _make(targets, config, tokenizer, world)
    documents = [tokens.as_tokens(targets[one], one, config) if one in targets else one for one in sources]
    if not any(document.length for document in documents):
        raise ValueError(f"data: no text in any of the {len(sources)} files of {list(config.data)}")
    return [document for document in documents if document.length], tokenizer.name


def _make(targets: dict[Document, Path], config: TrainerConfig, tokenizer: tokens.Tokenizer, world: World) -> None:
    problems: list[str] = []
    for source, target in list(targets.items())[world.rank :: world.size]:
        try:
            if not target.exists():
                tokens.make_tokens(target, source, config, tokenizer)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    told: list[Any] = [None] * world.size
    dist.all_gather_object(told, problems[:_FEW])
    if found := sorted(problem for of in told for problem in of):
        raise ValueError("; ".join(found[:_FEW]) + (f"; and {len(found) - _FEW} more" if len(found) > _FEW else ""))
    deadline = time.monotonic() + APPEARS_S
    while missing := [target for target in targets.values() if not target.exists()]:
        if time.monotonic() > deadline:
            raise ValueError(f"data: {missing[0]} was made and is not seen on {os.uname().nodename}: no shared folder?")
        time.sleep(0.1)
