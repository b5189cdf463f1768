"""JSONL and tokenizers: files of tokens made once, every mistake with its line, and the same samples on any mesh."""

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from rank_harness import TRAINER, Training

from model import tokens
from model.config import TrainerConfig
from model.data import Corpus, Document, find_documents, split


def config(**settings) -> TrainerConfig:
    return TrainerConfig.from_mapping(TRAINER | {"data": "unused"} | settings)


def made(path: Path, asked: TrainerConfig) -> Document:
    """The document of tokens of one source."""
    (source,) = find_documents([str(path)])
    tokenizer = tokens.load_tokenizer(asked)
    target = tokens.token_file(path.parent / "tokens", source, asked, tokenizer)
    tokens.make_tokens(target, source, asked, tokenizer)
    return tokens.as_tokens(target, source, asked)


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A small tokenizer.json, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the dog on the log\n"] * 50, trainer)
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_lines_of_json_are_documents_each_with_its_end(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"text": "ab"}, {"text": ""}, {"id": 7, "text": "é"})
    with source.open("a") as file:
        file.write("\n   \n")
    document = made(source, config())
    assert document.read(0, document.length).tolist() == [97, 98, 256, 0xC3, 0xA9, 256]
    assert (document.width, document.name, document.tokens) == (2, "a.jsonl", 6)


def test_another_key_and_another_file_make_other_tokens(tmp_path):
    source = lines(tmp_path / "a.jsonl", {"text": "no", "content": "yes"})
    document = made(source, config(text_key="content"))
    assert bytes(document.read(0, 3).astype("u1")) == b"yes"
    assert document.path != made(source, config()).path
    lines(source, {"text": "no", "content": "yes, more"})
    assert made(source, config(text_key="content")).path != document.path


def test_a_tokenizer_s_own_ids_come_back_as_its_text(tmp_path, words):
    from tokenizers import Tokenizer

    asked = config(tokenizer=str(words))
    source = lines(tmp_path / "a.jsonl", {"text": "the cat sat"}, {"text": "the dog"})
    document = made(source, asked)
    ids = document.read(0, document.length).tolist()
    loaded = Tokenizer.from_file(str(words))
    end = loaded.token_to_id("</s>")
    assert ids.count(end) == 2
    assert ids[-1] == end
    first = ids.index(end)
    assert loaded.decode(ids[:first]) == "the cat sat"
    assert loaded.decode(ids[first + 1 : -1]) == "the dog"
    assert len(ids) < len("the cat sat the dog")
    (tmp_path / "b.txt").write_text("the cat\nsat")
    whole = made(tmp_path / "b.txt", asked)
    assert loaded.decode(whole.read(0, whole.length - 1).tolist()) == "the cat\nsat"


def test_sequences_run_on_over_documents_and_files_of_both_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    source = lines(tmp_path / "b.jsonl", {"text": "de"}, {"text": "fgh"})
    (plain,) = find_documents([str(tmp_path / "a.txt")])
    corpus = Corpus([plain, made(source, config())], 5)
    stream = [97, 98, 99, 256, 100, 101, 256, 102, 103, 104, 256]
    assert corpus.sequences == 2
    assert [corpus.sequence(i).tolist() for i in (0, 1)] == [stream[:6], stream[5:11]]
    assert corpus.batch([1, 0]).dtype == torch.int64
    assert split([made(source, config())], 0.5)[1][0].length == 3


@pytest.mark.parametrize(
    ("line", "words_"),
    [
        ('{"text": "a"', "not JSON"),
        ("[1]", "not an object"),
        ('{"txt": "a", "id": 1}', "no key 'text' (keys: txt, id); trainer.text_key"),
        ('{"text": 5}', "'text' is no text: '5'"),
        ('{"text": null}', "'text' is no text: 'None'"),
        ('{"text": "\\ud800"}', "half a character"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number_and_leaves_nothing_behind(tmp_path, line, words_):
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + data + b'\n{"text": "good"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl") as caught:
        made(tmp_path / "a.jsonl", config())
    assert f"{tmp_path}/a.jsonl, line 3: " in str(caught.value)
    assert words_ in str(caught.value)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_text_that_is_no_utf8_is_named_with_its_line_for_a_tokenizer(tmp_path, words):
    (tmp_path / "a.txt").write_bytes(b"one\n" * 400_000 + b"tw\xffo\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 400001: not UTF-8"):
        made(tmp_path / "a.txt", config(tokenizer=str(words)))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, words):
    with pytest.raises(ValueError, match=r"has 274 token ids and the model 264; set trainer.vocabulary to 280"):
        tokens.load_tokenizer(config(tokenizer=str(words), vocabulary=264))
    (tmp_path / "no.json").write_text("{}")
    for path, reason in ((tmp_path / "no.json", "no tokenizer.json"), (tmp_path / "gone.json", "No such file")):
        with pytest.raises(ValueError, match=reason) as caught:
            tokens.load_tokenizer(config(tokenizer=str(path)))
        assert str(path) in str(caught.value)
    nameless = json.loads(words.read_text())
    nameless["added_tokens"] = []
    nameless["model"]["vocab"].pop("</s>")
    (tmp_path / "nameless.json").write_text(json.dumps(nameless))
    with pytest.raises(ValueError, match="no end-of-document token"):
        tokens.load_tokenizer(config(tokenizer=str(tmp_path / "nameless.json")))


def test_a_large_file_is_never_in_memory_as_a_whole(tmp_path):
    with (tmp_path / "a.jsonl").open("w") as file:
        for _ in range(20_000):
            file.write('{"text": "' + "x" * 1000 + '"}\n')
    tracemalloc.start()
    document = made(tmp_path / "a.jsonl", config())
    Corpus([document], 128).sequence(7)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert document.length == 20_000 * 1001
    assert most < 4 << 20


@pytest.mark.slow
def test_ranks_share_out_the_sources_and_the_next_attempt_finds_the_tokens(training: Training, tmp_path, words):
    for number in range(5):
        lines(tmp_path / f"{number}.jsonl", *({"text": f"the cat {i} sat on mat {number}"} for i in range(200)))
    settings = {"data": str(tmp_path / "*.jsonl"), "tokenizer": str(words), "vocabulary": 304, "steps": 4}
    whole, statuses = training.run(**settings, checkpoint={"every": 2})
    assert statuses == [0, 0, 0, 0], training.log()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    assert len(before) == 5
    resumed, statuses = training.run(restore=whole.commits[2], **settings)
    assert statuses == [0, 0, 0, 0], training.log()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()} == before
    assert resumed.of("done")[0]["final_digest"] == whole.of("done")[0]["final_digest"]


@pytest.mark.slow
def test_every_rank_s_bad_lines_end_all_ranks_with_one_message(training: Training, tmp_path):
    for number in (0, 2):
        (tmp_path / f"{number}.jsonl").write_text('{"text": "fine"}\nnot json\n')
    lines(tmp_path / "1.jsonl", {"text": "fine"})
    agent, statuses = training.run(data=str(tmp_path / "*.jsonl"), steps=2)
    assert statuses == [1, 1, 1, 1]
    message = agent.of("error")[0]["message"]
    assert "0.jsonl, line 2" in message
    assert "2.jsonl, line 2" in message
    (tmp_path / "0.jsonl").write_text("\n")
    (tmp_path / "2.jsonl").write_text('{"text": ""}\n')
    lines(tmp_path / "1.jsonl", {"text": ""})
    agent, _ = training.run(data=str(tmp_path / "*.jsonl"), steps=2)
    assert "no text in any of the 3 files" in agent.of("error")[0]["message"]
