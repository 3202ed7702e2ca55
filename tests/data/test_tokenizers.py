"""Tokenizers: the one of `shapes`, and small ones of BERT's and CLIP's kind."""

import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import BertWordPieceTokenizer

from ldm_jax.data.shapes import captions, scenes
from ldm_jax.data.shapes.tokenizer import make_shapes_tokenizer
from ldm_jax.data.tokenizers import SHAPES_FILE, load_tokenizer
from ldm_jax.errors import ConfigError

TEXTS = ["a huge red star on a white background", "two", ""]


def describe(count):
    for index in range(count):
        rng = np.random.default_rng(index)
        kind = scenes.CLASS_NAMES[index % len(scenes.CLASS_NAMES)]
        scene = scenes.sample_scene(rng, kind, 4)
        yield captions.describe(scene, scenes.draw_scene(scene, 32))


@pytest.fixture(scope="module")
def shapes():
    return load_tokenizer("shapes", max_length=50)


def test_stored_file_is_what_the_captions_need():
    stored = tokenizers.Tokenizer.from_file(str(SHAPES_FILE))
    assert stored.to_str() == make_shapes_tokenizer().to_str()


def test_captions_of_shapes_are_known_word_for_word(shapes):
    names = {i: word for word, i in shapes._backend.get_vocab().items()}
    seen = set()
    for text, row in zip(texts := list(describe(400)), shapes(texts), strict=True):
        words = [names[i] for i in row if names[i] != "[PAD]"]
        assert words == ["[START]", *text.replace(",", " ,").split(), "[END]"]
        seen |= set(words)
    # These two are for scenes that are hardly ever drawn.
    assert set(captions.vocabulary()) - seen <= {"an", "middle"}


def test_shapes_are_padded_cut_and_read_from_bytes(shapes):
    ids = shapes([TEXTS[0], b"a star", "A  Star", "a purple cow"])
    assert ids.shape == (4, 50) and ids.dtype == np.int32
    assert np.all(ids[1, 4:] == 0) and np.all(ids[1, :4] > 0)
    np.testing.assert_array_equal(ids[1], ids[2])
    assert ids[3, 3] == 1  # unknown
    assert shapes.null_ids == (2, 3, 0)
    assert shapes.vocab_size == 4 + len(captions.vocabulary())
    cut = load_tokenizer("shapes", max_length=5)(TEXTS)
    assert cut.shape == (3, 5) and cut[0, 4] == 3  # ends with the end


def test_tokenizers_go_to_other_processes(shapes):
    copy = pickle.loads(pickle.dumps(shapes))
    np.testing.assert_array_equal(copy(TEXTS), shapes(TEXTS))


def test_a_single_string_is_refused(shapes):
    with pytest.raises(ValueError, match="must be a list, got 'a star'"):
        shapes("a star")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tokenizer like that of bert-base-uncased, with a small vocabulary."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(TEXTS, vocab_size=60, show_progress=False)
    pieces.save_model(str(folder))
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_bert_is_loaded_from_a_folder(bert_folder):
    bert = load_tokenizer(str(bert_folder), max_length=12)
    ids = bert(TEXTS)
    assert ids.shape == (3, 12) and ids.dtype == np.int32
    known = json.loads((bert_folder / "tokenizer.json").read_text())["model"]["vocab"]
    start, end, pad = (known[word] for word in ("[CLS]", "[SEP]", "[PAD]"))
    assert bert.null_ids == (start, end, pad)
    np.testing.assert_array_equal(ids[2], [start, end] + [pad] * 10)
    assert bert.vocab_size == len(known)


def test_clip_pads_with_its_end_and_open_clip_with_zeros(tmp_path):
    start, end = "<|startoftext|>", "<|endoftext|>"
    (tmp_path / "vocab.json").write_text(
        json.dumps({"a</w>": 0, "s": 1, "t</w>": 2, "st</w>": 3, start: 4, end: 5})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\ns t</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": start,
                "eos_token": end,
                "unk_token": end,
                "pad_token": end,
            }
        )
    )
    clip = load_tokenizer(tmp_path, max_length=6)
    np.testing.assert_array_equal(clip(["A st"]), [[4, 0, 3, 5, 5, 5]])
    assert clip.null_ids == (4, 5)
    open_clip = load_tokenizer(tmp_path, max_length=6, pad_id=0)
    np.testing.assert_array_equal(open_clip(["A st"]), [[4, 0, 3, 5, 0, 0]])
    assert open_clip.null_ids == (4, 5, 0)


@pytest.mark.parametrize("pad_id", [-1, 49408])
def test_what_fills_the_rest_is_an_id(pad_id):
    with pytest.raises(ConfigError, match=f"pad_id={pad_id} is not an id .* from 0 to"):
        load_tokenizer("shapes", pad_id=pad_id)


def test_padding_is_required(tmp_path):
    shutil.copy(SHAPES_FILE, tmp_path / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has no padding token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["no/such-tokenizer", "folder"])
def test_what_cannot_be_loaded_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=f"{name}' cannot be loaded") as error:
        load_tokenizer(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reachable", [True, False])
def test_the_hub_is_asked_once_whether_it_is_there(monkeypatch, reachable):
    asked, backend = [], load_tokenizer("shapes")._backend

    class Session:
        def head(self, url, timeout):
            asked.append(timeout)
            if not reachable:
                raise OSError("Name or service not known")

    def load(name, local_files_only, **options):
        asked.append(local_files_only)
        if name == "absent":
            raise OSError("many words")
        return backend

    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", load)
    # What is in the cache needs no hub.
    assert load_tokenizer(f"cached-{reachable}", 5).max_length == 5
    message = (
        "many words" if reachable else "out of reach .Name or service not known.; g"
    )
    with pytest.raises(ConfigError, match=message):
        load_tokenizer("absent")
    assert asked == [5, not reachable] * 2


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_the_code_of_a_folder_is_neither_run_nor_asked_about(
    bert_folder, tmp_path, monkeypatch, file
):
    def ask(*arguments):
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    folder, marker = tmp_path / "bert", tmp_path / "marker"
    shutil.copytree(bert_folder, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    own = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(json.dumps({"auto_map": own, "model_type": "evil"}))
    with pytest.raises(ConfigError) as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value) and not marker.exists()
    if file == "tokenizer_config.json":
        assert "code of its own, which is never run" in str(error.value)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"version": 3}', ""])
def test_a_malformed_tokenizer_is_an_error_in_one_line(bert_folder, tmp_path, content):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        folder = tmp_path / file
        shutil.copytree(bert_folder, folder)
        (folder / file).write_text(content)
        with pytest.raises(ConfigError, match="cannot be loaded|no padding") as error:
            load_tokenizer(folder)
        assert "\n" not in str(error.value)
