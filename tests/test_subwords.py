"""SentencePiece models become directories that plain transformers loads."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, MarianTokenizer

from fusion.errors import RecipeError
from fusion.recipe import SentencePieceSpec
from fusion.subwords import train_tokenizer

SYLLABLES = ["ba", "ko", "li", "mu", "ne", "pa", "ri", "so", "tü", "ße", "да", "ни", "日", "本"]


def text(lines: int = 300, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(200)]
    return [" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(lines)]


def trained(directory: Path, lines: list[str] | None = None, **options: object) -> Path:
    spec = SentencePieceSpec(**({"vocab_size": 120} | options))
    train_tokenizer(spec, lines or text(), directory, "en", "de")
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer") / "joint")


@pytest.mark.parametrize("loader", [AutoTokenizer, MarianTokenizer])
def test_plain_transformers_loads_the_directory(directory: Path, loader: type) -> None:
    tokenizer = loader.from_pretrained(directory)
    assert type(tokenizer) is MarianTokenizer
    assert (tokenizer.source_lang, tokenizer.target_lang) == ("en", "de")
    assert tokenizer.model_max_length == 512


def test_ids_are_those_of_marian(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (0, 1, 119)
    assert len(tokenizer) == tokenizer.vocab_size == 120
    ids = json.loads((directory / "vocab.json").read_text(encoding="utf-8")).values()
    assert sorted(ids) == list(range(120))


def test_both_languages_share_one_model(directory: Path) -> None:
    assert (directory / "source.spm").read_bytes() == (directory / "target.spm").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    line = text()[0]
    assert tokenizer(line)["input_ids"] == tokenizer(text_target=line)["input_ids"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_unicode_text_survives_a_round_trip(tmp_path: Path, model_type: str) -> None:
    lines = [*text(), "Größe café naïve 日本語 🙂 данные"]
    tokenizer = AutoTokenizer.from_pretrained(
        trained(tmp_path / "t", lines, model_type=model_type, vocab_size=130)
    )
    for line in [*lines[:20], lines[-1]]:
        ids = tokenizer(line)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == line


def test_unknown_characters_become_unk(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.unk_token_id in tokenizer("ba ☃ ko")["input_ids"]


@pytest.mark.parametrize("lines", [text(), ["<pad> <pad><pad> ba", *text()] * 3])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_text_that_spells_special_tokens_is_text(
    tmp_path: Path, lines: list[str], model_type: str
) -> None:
    directory = trained(tmp_path / "t", lines, model_type=model_type)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) == 120 and tokenizer.pad_token_id == 119
    ids = tokenizer("ba </s> <pad> ko<pad>")["input_ids"]
    assert tokenizer.pad_token_id not in ids and ids.index(tokenizer.eos_token_id) == len(ids) - 1
    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("ba </s>")["input_ids"].count(0) == 1


def test_the_same_text_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join(text()), encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from fusion.recipe import SentencePieceSpec as S\n"
        "from fusion.subwords import train_tokenizer\n"
        "lines = Path(sys.argv[1]).read_text(encoding='utf-8').split('\\n')\n"
        "train_tokenizer(S(vocab_size=120), lines, Path(sys.argv[2]), 'en', 'de')\n"
    )
    root = str(Path(__file__).parents[1])
    for seed in ("1", "2"):
        arguments = [sys.executable, "-c", script, str(tmp_path / "text"), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(arguments, env=environment, cwd=root, check=True)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == ["source.spm", "target.spm", "tokenizer_config.json", "vocab.json"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("reserved", [[], ["<pad>"]])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_little_text_names_the_largest_vocabulary_that_works(
    tmp_path: Path, model_type: str, reserved: list[str]
) -> None:
    lines = [*text(20), *reserved]
    with pytest.raises(RecipeError, match=r"host\.tokenizer\.vocab_size: 8000 .* largest") as error:
        trained(tmp_path / "t", lines, vocab_size=8000, model_type=model_type)
    largest = int(re.findall(r"\d+", str(error.value))[-1])
    assert len(list(tmp_path.iterdir())) == 0
    tokenizer = AutoTokenizer.from_pretrained(
        trained(tmp_path / "t", lines, vocab_size=largest, model_type=model_type)
    )
    assert len(tokenizer) == largest
    with pytest.raises(RecipeError, match="too many"):
        trained(tmp_path / "u", lines, vocab_size=largest + 1, model_type=model_type)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_many_characters_name_a_vocabulary_that_works(tmp_path: Path, model_type: str) -> None:
    lines = [" ".join(chr(0x4E00 + i) for i in range(60)), *text()]
    with pytest.raises(RecipeError, match=r"vocab_size: 40 .* too few .* at least \d+") as error:
        trained(tmp_path / "t", lines, vocab_size=40, model_type=model_type)
    least = int(re.findall(r"at least (\d+)", str(error.value))[0])
    trained(tmp_path / "t", lines, vocab_size=least, model_type=model_type)


@pytest.mark.parametrize("lines", [[""], [" ", "\t"]])
def test_no_text_is_one_clear_error(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(RecipeError, match="no text to train"):
        trained(tmp_path / "t", lines)


def test_no_line_is_too_long_to_learn_from(tmp_path: Path) -> None:
    lines = [*text(), " ".join(["ǆuro"] * 3000)]
    tokenizer = AutoTokenizer.from_pretrained(trained(tmp_path / "t", lines))
    assert tokenizer.unk_token_id not in tokenizer("ǆuro")["input_ids"]


def test_an_old_tokenizer_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    directory = trained(tmp_path / "t")
    trained(directory, text(seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    (directory / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match=r"thesis\.tex"):
        trained(directory)
    assert (directory / "thesis.tex").exists()


def test_a_very_long_line_is_learned_from_in_seconds(tmp_path: Path) -> None:
    words = [f"w{number % 97}" for number in range(60_000)]
    spec = SentencePieceSpec(vocab_size=80)
    train_tokenizer(spec, [" ".join(words)], tmp_path / "long", "en", "de")
    train_tokenizer(spec, [" ".join(words[n : n + 200]) for n in range(0, len(words), 200)],
                    tmp_path / "short", "en", "de")  # fmt: skip
    long, short = ((tmp_path / name / "source.spm").read_bytes() for name in ("long", "short"))
    assert long == short
