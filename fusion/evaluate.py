"""BLEU and chrF of finished translations through sacreBLEU, always with their signatures.

Hypotheses and references are plain lines of text: cased, detokenised, one reference each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from fusion.errors import DataError


@dataclass(frozen=True)
class Score:
    """One number, 0 to 100, and the signature that says how it was computed."""

    name: Literal["BLEU", "chrF"]
    score: float
    signature: str


@dataclass(frozen=True)
class Evaluation:
    """Scores of one system; `length_ratio` is hypothesis / reference length in BLEU's tokens."""

    sentences: int
    bleu: Score
    chrf: Score
    length_ratio: float

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A system against a baseline on one metric; `p_value` is for "there is no difference"."""

    name: Literal["BLEU", "chrF"]
    score: float
    baseline: float
    p_value: float
    signature: str

    @property
    def difference(self) -> float:
        """How much the system is above the baseline."""
        return self.score - self.baseline


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same references, by paired bootstrap resampling."""

    sentences: int
    samples: int
    seed: int
    bleu: Difference
    chrf: Difference

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, with both differences spelled out."""
        plain = asdict(self)
        plain["bleu"]["difference"] = self.bleu.difference
        plain["chrf"]["difference"] = self.chrf.difference
        return plain


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_lang: str | None = None
) -> Evaluation:
    """BLEU and chrF as `python -m sacrebleu -m bleu chrf` gives them.

    Args:
        target_lang: as in sacreBLEU's `-l en-zh`: zh, ja and ko have tokenizers of their own, every
            other language is tokenised by 13a

    Raises:
        DataError: no lines, or not as many of one as of the other.
    """
    _check_lines("hypotheses", hypotheses, references)
    bleu, chrf = _bleu(target_lang), CHRF()
    of_bleu = bleu.corpus_score(list(hypotheses), [list(references)])
    of_chrf = chrf.corpus_score(list(hypotheses), [list(references)])
    return Evaluation(
        sentences=len(references),
        bleu=Score("BLEU", float(of_bleu.score), str(bleu.get_signature())),
        chrf=Score("chrF", float(of_chrf.score), str(chrf.get_signature())),
        length_ratio=float(of_bleu.ratio),
    )


def compare(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    *,
    samples: int = 1000,
    seed: int = 12345,
    target_lang: str | None = None,
) -> Comparison:
    """Whether a system differs from a baseline: `python -m sacrebleu --paired-bs`.

    Differs from it in one case: equal scores have p = 1, where sacreBLEU says 1 / (samples + 1).

    Raises:
        DataError: lines that do not pair up, or fewer than one sample, or a seed below 1.
    """
    _check_lines("hypotheses", hypotheses, references)
    _check_lines("baseline", baseline, references)
    if samples < 1:
        raise DataError(f"samples: at least 1; found {samples}")
    if seed < 1:
        raise DataError(f"seed: at least 1, sacreBLEU takes 0 for no seed at all; found {seed}")
    with _sacrebleu_seed(seed):
        test = PairedTest(
            [("baseline", list(baseline)), ("system", list(hypotheses))],
            {"BLEU": _bleu(target_lang), "chrF": CHRF()},
            [list(references)],
            test_type="bs",
            n_samples=samples,
        )
        signatures, results = test()
    return Comparison(
        sentences=len(references),
        samples=samples,
        seed=seed,
        bleu=_difference("BLEU", "BLEU", signatures, results),
        chrf=_difference("chrF", "chrF2", signatures, results),
    )


def _difference(
    name: Literal["BLEU", "chrF"], column: str, signatures: dict[str, Any], results: dict[str, Any]
) -> Difference:
    of_baseline, of_system = results[column]
    return Difference(
        name=name,
        score=float(of_system.score),
        baseline=float(of_baseline.score),
        p_value=1.0 if of_system.score == of_baseline.score else float(of_system.p_value),
        signature=str(signatures[column]),
    )


def _bleu(target_lang: str | None) -> Any:
    try:
        return BLEU(trg_lang=target_lang or "")
    except RuntimeError:  # MeCab is an extra of sacreBLEU
        raise DataError(
            f"target_lang {target_lang}: BLEU needs MeCab; pip install 'sacrebleu[{target_lang}]'"
        ) from None


def _check_lines(what: str, lines: Sequence[str], references: Sequence[str]) -> None:
    if len(lines) != len(references):
        raise DataError(f"{what}: {len(lines)} lines, but references: {len(references)} lines")
    if not references:
        raise DataError(f"{what}: no lines to score")


@contextmanager
def _sacrebleu_seed(seed: int) -> Iterator[None]:
    """The environment variable is the only way in to the seed of sacreBLEU's tests."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(seed)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
