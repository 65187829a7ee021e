"""Scores are sacreBLEU's own; comparisons are its paired bootstrap."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import DataError
from fusion.evaluate import compare, score

REFERENCES = [
    "Ein Hund läuft durch den Schnee.",
    "Zwei Männer sitzen auf einer Bank im Park.",
    "Die Frau, die ein rotes Kleid trägt, lacht.",
    "Kinder spielen am Strand mit einem Ball.",
    "Ein Mann in Blau steht auf einer Leiter und putzt ein Fenster.",
]
GOOD = [
    "Ein Hund rennt durch den Schnee.",
    "Zwei Männer sitzen auf einer Bank im Park.",
    "Die Frau mit dem roten Kleid lacht.",
    "Kinder spielen mit einem Ball am Strand.",
    "Ein Mann in Blau steht auf einer Leiter und reinigt ein Fenster.",
]
BAD = [
    "ein Hund im Schnee",
    "Zwei Leute auf der Bank.",
    "Eine Frau trägt rot.",
    "Die Kinder am Strand.",
    "Mann auf Leiter.",
]


def cli(folder: Path, systems: dict[str, list[str]], *options: str) -> str:
    """What sacreBLEU's own command line prints for these systems."""
    files = {**systems, "reference": REFERENCES}
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", *systems]
    command += ["-m", "bleu", "chrf", "-w", "10", *options]
    environment = {k: v for k, v in os.environ.items() if k != "SACREBLEU_SEED"}
    environment["NO_COLOR"] = "1"
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.parametrize("system", [GOOD, BAD, REFERENCES], ids=["good", "bad", "perfect"])
def test_scores_and_signatures_equal_those_of_sacrebleu_s_command_line(
    system: list[str], tmp_path: Path
) -> None:
    bleu, chrf = json.loads(cli(tmp_path, {"system": system}, "-f", "json"))
    ours = score(system, REFERENCES)
    assert ours.bleu.score == pytest.approx(bleu["score"], abs=1e-9)
    assert ours.chrf.score == pytest.approx(chrf["score"], abs=1e-9)
    assert ours.bleu.signature == bleu["signature"]
    assert ours.chrf.signature == chrf["signature"]
    assert ours.sentences == 5


def test_a_chinese_target_gets_the_tokenizer_that_the_command_line_gives_it(tmp_path: Path) -> None:
    options = ("-f", "json", "-l", "en-zh")
    bleu, _ = json.loads(cli(tmp_path, {"system": GOOD}, *options))
    ours = score(GOOD, REFERENCES, target_lang="zh")
    assert "tok:zh" in ours.bleu.signature
    assert ours.bleu.signature == bleu["signature"]
    assert ours.bleu.score == pytest.approx(bleu["score"], abs=1e-9)


def test_other_targets_are_tokenised_by_13a_and_scored_cased() -> None:
    of_german = score(GOOD, REFERENCES, target_lang="de")
    assert of_german == score(GOOD, REFERENCES)
    assert "case:mixed" in of_german.bleu.signature
    assert "tok:13a" in of_german.bleu.signature
    assert score([line.lower() for line in GOOD], REFERENCES).bleu.score < of_german.bleu.score


def test_a_missing_japanese_tokenizer_is_one_message_with_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(DataError) as caught:
        score(["猫"], ["猫"], target_lang="ja")
    message = "target_lang ja: BLEU needs MeCab; pip install 'sacrebleu[ja]'"
    assert str(caught.value) == message


def test_the_length_ratio_is_hypothesis_over_reference_in_tokens() -> None:
    assert score(REFERENCES, REFERENCES).length_ratio == 1.0
    assert score(["a b c"], ["a b c d e f"]).length_ratio == 0.5


def test_an_evaluation_goes_to_json_as_plain_values() -> None:
    ours = score(GOOD, REFERENCES)
    plain = json.loads(json.dumps(ours.to_json()))
    assert plain["bleu"] == {
        "name": "BLEU",
        "score": ours.bleu.score,
        "signature": ours.bleu.signature,
    }
    assert sorted(plain) == ["bleu", "chrf", "length_ratio", "sentences"]


def test_a_comparison_equals_the_command_line_s_paired_bootstrap(tmp_path: Path) -> None:
    mixed = [GOOD[0], BAD[1], REFERENCES[2], GOOD[3], REFERENCES[4]]
    table = cli(tmp_path, {"good": GOOD, "mixed": mixed}, "--paired-bs", "-f", "text")
    baseline, system = (
        [float(found) for found in re.findall(r"([\d.]+) \([\d.]+ ±", row)]
        for row in table.splitlines()
        if "±" in row and "μ" not in row
    )
    p_values = [float(found) for found in re.findall(r"p = ([\d.]+)\)", table)]
    signatures = re.findall(r"^ - (?:BLEU|chrF2) +(\S+)$", table, re.MULTILINE)
    ours = compare(mixed, GOOD, REFERENCES)
    assert [ours.bleu.baseline, ours.chrf.baseline] == pytest.approx(baseline, abs=1e-8)
    assert [ours.bleu.score, ours.chrf.score] == pytest.approx(system, abs=1e-8)
    assert [ours.bleu.p_value, ours.chrf.p_value] == pytest.approx(p_values, abs=5e-5)
    assert [ours.bleu.signature, ours.chrf.signature] == signatures
    assert ours.bleu.difference == ours.bleu.score - ours.bleu.baseline
    assert min(p_values) > 0.002, "a p-value at its floor would compare nothing"


def test_a_system_does_not_differ_from_itself() -> None:
    ours = compare(GOOD, GOOD, REFERENCES, samples=100)
    assert ours.bleu.difference == ours.chrf.difference == 0
    assert ours.bleu.p_value == ours.chrf.p_value == 1.0


def test_a_comparison_repeats_with_its_seed_and_leaves_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "999")
    first = compare(GOOD, BAD, REFERENCES, samples=50, seed=7)
    assert os.environ["SACREBLEU_SEED"] == "999"
    monkeypatch.delenv("SACREBLEU_SEED")
    assert compare(GOOD, BAD, REFERENCES, samples=50, seed=7) == first
    assert "SACREBLEU_SEED" not in os.environ
    assert "seed:7" in first.bleu.signature
    plain = json.loads(json.dumps(first.to_json()))
    assert plain["bleu"]["difference"] == first.bleu.difference


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: score(GOOD[:3], REFERENCES),
            "hypotheses: 3 lines, but references: 5 lines",
        ),
        (lambda: score([], []), "hypotheses: no lines to score"),
        (
            lambda: compare(GOOD, BAD[:1], REFERENCES),
            "baseline: 1 lines, but references: 5 lines",
        ),
        (lambda: compare(GOOD, BAD, REFERENCES, samples=0), "samples: at least 1; found 0"),
        (
            lambda: compare(GOOD, BAD, REFERENCES, seed=0),
            "seed: at least 1, sacreBLEU takes 0 for no seed at all; found 0",
        ),
    ],
)
def test_lines_that_do_not_pair_up_are_one_message(call: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        call()
    assert str(caught.value) == message
