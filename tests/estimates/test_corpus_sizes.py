"""Sizes of corpora, and tokens of their sentences."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from fusion.data import TokenBatchSampler
from fusion.errors import FusionError
from fusion.estimates.corpus import KNOWN, SAMPLE, Corpus, corpus, own_corpus
from fusion.estimates.lengths import Lengths, lengths, padding, usual_tokens_per_word
from fusion.recipe import CorpusSpec, Recipe

RecipeMaker = Callable[..., Recipe]


def with_text(recipe: Recipe, source: Path, target: Path) -> Recipe:
    spec = CorpusSpec(source=str(source), target=str(target))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": spec})})


@pytest.mark.parametrize(
    ("size", "pairs"),
    [
        ("29k", 29_000),
        ("4.5M", 4_500_000),
        ("100M", 100_000_000),
        ("1e6", 1_000_000),
        ("1,200", 1200),
    ],
)
def test_a_number_of_pairs_is_read(size: str, pairs: int) -> None:
    assert corpus(size, None).pairs == pairs


def test_known_corpora_have_their_published_sizes() -> None:
    assert corpus("WMT14", None).pairs == 4_500_966
    assert {name: round(one.pairs, -3) for name, one in KNOWN.items()} == {
        "multi30k": 29_000,
        "iwslt14": 160_000,
        "wmt14": 4_501_000,
    }


def test_a_size_that_is_none_is_refused_with_the_nearest() -> None:
    with pytest.raises(FusionError, match='--data: no corpus "wmt15"; nearest: "wmt14"'):
        corpus("wmt15", None)
    with pytest.raises(FusionError, match="--data recipe: its training text cannot be read"):
        corpus("recipe", None)


@pytest.mark.parametrize("size", ["4.5.6", "1e400", "1e99", "0", "0.4", "4,5M", "-3", "nan", ""])
def test_what_is_no_number_of_pairs_is_refused(size: str) -> None:
    with pytest.raises(FusionError, match="or a number of pairs such as 29k"):
        corpus(size, None)


def test_a_number_of_pairs_is_like_the_recipes_own_text() -> None:
    own = Corpus("the recipe's text", 10, (5.0, 6.0), distinct=0.5)
    found = corpus("1M", own)
    assert (found.pairs, found.words, found.distinct) == (1_000_000, (5.0, 6.0), 0.5)
    assert corpus("recipe", own) is own


def test_the_recipes_text_is_measured(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    source, target = tmp_path / "text.en.gz", tmp_path / "text.de"
    source.write_bytes(gzip.compress(b"the cat sleeps .\n" * 3 + b"a dog\n"))
    target.write_text("die katze schläft\n" * 3 + "ein hund\n", encoding="utf-8")
    found = own_corpus(with_text(make_recipe(), source, target))
    assert isinstance(found, Corpus)
    assert found.pairs == 4 and found.distinct == 0.5
    assert found.words == (3.5, 2.75)
    assert found.sample[-1] == ("a dog", "ein hund")


def test_a_long_text_is_sampled_at_even_distances(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(f"line {n}\n" for n in range(9 * SAMPLE)), encoding="utf-8")
    found = own_corpus(with_text(make_recipe(), path, path))
    assert isinstance(found, Corpus)
    assert found.pairs == 9 * SAMPLE and SAMPLE <= len(found.sample) < 2 * SAMPLE
    numbers = [int(source.split()[1]) for source, _ in found.sample]
    steps = {later - earlier for earlier, later in pairwise(numbers)}
    assert len(steps) == 1 and numbers[-1] > 8 * SAMPLE


def test_text_that_is_not_there_is_a_reason_not_an_error(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.en"
    found = own_corpus(with_text(make_recipe(), absent, absent))
    assert found == f"{absent}: No such file or directory"


@pytest.mark.parametrize("damage", ["cut off", "no gzip", "a flipped byte", "no UTF-8"])
def test_text_that_cannot_be_read_is_a_reason_that_names_its_file(
    make_recipe: RecipeMaker, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "text.en.gz"
    whole = gzip.compress("".join(f"line {n * n}\n" for n in range(2000)).encode())
    half = len(whole) // 2
    content = {
        "cut off": whole[:half],
        "no gzip": b"the cat sleeps .\n",
        "a flipped byte": whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :],
        "no UTF-8": gzip.compress(b"caf\xe9\n"),
    }
    path.write_bytes(content[damage])
    found = own_corpus(with_text(make_recipe(), path, path))
    assert isinstance(found, str) and found.startswith(f"{path}: ") and "None" not in found


def test_tokens_are_counted_by_each_tokenizer(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("the cat sleeps .\nthe teacher reads .\n", encoding="utf-8")
    recipe = with_text(make_recipe(), path, path)
    own = own_corpus(recipe)
    assert isinstance(own, Corpus)
    found = lengths(recipe, own, own)
    from fusion.parts import encoder_directory, host_directory
    from fusion.processor import load_tokenizer

    text = path.read_text(encoding="utf-8").splitlines()
    for folder, mean in (
        (host_directory(recipe), found.source),
        (encoder_directory(recipe.encoders["bert"]), found.encoders["bert"]),
    ):
        counts = [len(ids) for ids in load_tokenizer(folder)(text)["input_ids"]]
        assert mean == pytest.approx(sum(counts) / len(counts))
    assert found.longest >= max(found.source, found.target, *found.encoders.values())
    assert found.notes == []
    twice = lengths(recipe, Corpus("longer", 1, (own.words[0] * 2, own.words[1] * 2)), own)
    assert twice.source == pytest.approx(2 * found.source, abs=2)


def test_without_text_usual_figures_are_taken_and_said(make_recipe: RecipeMaker) -> None:
    found = lengths(make_recipe(), KNOWN["wmt14"], None)
    assert found.source > 22.5 and found.notes
    assert usual_tokens_per_word(2000) > usual_tokens_per_word(32000) > 1


def of_multi30k(encoders: dict[str, float]) -> Lengths:
    return Lengths(source=15.6, target=17.3, encoders=encoders, longest=18.7)


# Shares of padding in batches of all 29,000 pairs, by TokenBatchSampler.padding.
ALONE = {2048: 0.023, 4096: 0.035, 8192: 0.055, 16384: 0.08}
WITH_ENCODER = {1024: 0.033, 2048: 0.047, 4096: 0.062, 8192: 0.082, 16384: 0.114}


@pytest.mark.parametrize("encoders", [{}, {"bert": 14.4}])
def test_padding_is_that_of_multi30k_in_batches_of_every_size(encoders: dict[str, float]) -> None:
    text = of_multi30k(encoders)
    for tokens, measured in (WITH_ENCODER if encoders else ALONE).items():
        batches = 29_000 * text.longest / tokens
        assert padding(batches, bool(encoders)) == pytest.approx(measured, rel=0.05)
        sentences = text.batch(tokens, 29_000).sentences
        assert sentences == round(tokens / text.longest * (1 - padding(batches, bool(encoders))))


def test_padding_depends_on_the_number_of_batches_and_ends_where_nothing_was_measured() -> None:
    text = of_multi30k({})
    assert text.batch(8192, 29_000).sentences < text.batch(8192, 4_500_966).sentences
    assert padding(1, False) == padding(16, False) > padding(1e6, False) == padding(4213, False) > 0


def test_padding_is_that_of_the_batches_of_training() -> None:
    generator = Random(1)
    rows = []
    for _ in range(20_000):
        words = max(3, round(generator.gauss(12, 4)))
        rows.append([max(2, round(words * generator.gauss(1.3, 0.15))) for _ in range(3)])
    real = TokenBatchSampler(rows, 2048, seed=1).padding
    batches = sum(map(max, rows)) / 2048
    assert real / 1.4 < padding(batches, True) < real * 1.4
