"""Draw words and noun phrases.

Nouns of a kind are drawn in proportion to 1 / (rank + 4), verbs of a frame and adjectives of a
noun to 1 / (rank + 10), so that frequencies fall off as in real text.  Only
`random.Random.random` is used: its sequence is the same on every platform and version of Python.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import TypeVar

from fusion.synthetic import closed_class as closed
from fusion.synthetic import grammar as g
from fusion.synthetic.closed_class import Phrase
from fusion.synthetic.grammar import NounPhrase, PrepPhrase
from fusion.synthetic.lexicon import (
    ADJECTIVE_LIST,
    GROUPS,
    NOUN_LIST,
    VERB_LIST,
    Adjective,
    Frame,
    Lexeme,
    Noun,
    Verb,
)
from fusion.synthetic.phrases import (
    ATTRIBUTIVE_DEGREES,
    LOCATIONS,
    NAMES,
)

T = TypeVar("T")
# A noun's place within its kind.
_NOUN_RANKS = {
    n: sum(m.kind == n.kind for m in NOUN_LIST[:position]) for position, n in enumerate(NOUN_LIST)
}
PERSON = tuple(GROUPS["PERSON"].split())
ANIMATE = frozenset(GROUPS["ANIMATE"].split())
# What people have: `my cup`, but hardly `my border`.
OWNED = tuple(
    f"{GROUPS['OBJECT']} family room idea house garden office dog cat horse friend neighbor "
    "colleague boss teacher doctor child guest coach lawyer enemy student".split()
)
PRONOUNS = (closed.HE, closed.SHE, closed.I, closed.WE, closed.THEY, closed.YOU)
POSSESSIVES = (closed.MY, closed.HIS, closed.HER, closed.OUR, closed.THEIR, closed.YOUR)


class Discard(Exception):
    """This draw led nowhere; draw another sentence."""


def matches(noun: Noun, kinds: Sequence[str]) -> bool:
    return noun.kind in kinds or noun.name in kinds


@cache
def _specificity(adjective: Adjective) -> int:
    """Adjectives of few nouns (correct, sharp) need a larger share of each to be learned."""
    nouns = sum(matches(n, adjective.kinds) for n in NOUN_LIST)
    return 1 if nouns > 60 else 3 if nouns > 15 else 5


_PLACES = frozenset(("building", "room", "area", "onarea", "shore", "station"))
# Nobody has several of these.
_SINGLE = frozenset(("mother", "father", "grandmother", "grandfather", "king", "queen", "boss"))


class Sampler:
    """Draws over the common words, one sentence at a time.

    `_focus` is one more lexeme, rare or held out, that a draw takes wherever it fits, once;
    `_replaced` is a common lexeme that no draw may take meanwhile.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weighted: dict[object, tuple[list[object], list[float]]] = {}
        self._used: list[Noun] = []
        self._focus: Lexeme | None = None
        self._replaced: Lexeme | None = None
        self._focused = False

    def chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def one(self, options: Sequence[T]) -> T:
        return options[int(self._rng.random() * len(options))]

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        spot = self._rng.random() * sum([weight for _, weight in options])
        for option, weight in options:
            spot -= weight
            if spot < 0:
                return option
        return options[-1][0]

    def zipf(self, key: object, options: Callable[[], list[tuple[T, float]]]) -> T:
        """Draw from the weighted list that `key` names; built once."""
        if key not in self._weighted:
            found = options()
            totals = list(accumulate(weight for _, weight in found))
            self._weighted[key] = ([option for option, _ in found], totals)
        candidates, bounds = self._weighted[key]
        if not candidates:
            raise Discard
        chosen = candidates[bisect_right(bounds, self._rng.random() * bounds[-1])]
        lexeme = chosen[0] if isinstance(chosen, tuple) else chosen
        if lexeme is self._replaced:
            raise Discard
        return chosen  # type: ignore[return-value]

    def require_focus(self) -> None:
        """Give up a draw that has missed the focus before its words are spelt out."""
        if self._focus is not None and not self._focused:
            raise Discard

    def noun(self, kinds: tuple[str, ...]) -> Noun:
        """A noun of these kinds that the sentence doesn't have yet."""
        focus = self._focus
        if isinstance(focus, Noun) and not self._focused and matches(focus, kinds):
            self._focused = True
            self._used.append(focus)
            return focus
        described = focus if isinstance(focus, Adjective) and not self._focused else None
        for attempt in range(9):
            noun = self.zipf(
                ("noun", kinds),
                lambda: [
                    (n, 1 / (_NOUN_RANKS[n] + 4))
                    for n in NOUN_LIST
                    if not n.rare and matches(n, kinds)
                ],
            )
            if described and attempt < 4 and not matches(noun, described.kinds):
                continue
            if noun not in self._used:
                self._used.append(noun)
                return noun
        raise Discard

    def verb(self, *frames: str) -> tuple[Verb, Frame]:
        focus = self._focus
        if isinstance(focus, Verb) and not self._focused:
            fitting = [f for f in focus.frames if f.name in frames]
            if fitting:
                self._focused = True
                return focus, self.one(fitting)
        return self.zipf(
            ("verb", frames),
            lambda: [
                ((v, f), 1 / (rank + 10))
                for rank, (v, f) in enumerate(
                    (v, f) for v in VERB_LIST if not v.rare for f in v.frames if f.name in frames
                )
            ],
        )

    def adjective(self, noun: Noun, predicative: bool = False) -> Adjective | None:
        focus = self._focus
        if (
            isinstance(focus, Adjective)
            and not self._focused
            and matches(noun, focus.kinds)
            and (predicative or not focus.predicative_only)
        ):
            self._focused = True
            return focus
        try:
            return self.zipf(
                ("adjective", noun.name),
                lambda: [
                    (a, _specificity(a) / (rank + 10))
                    for rank, a in enumerate(
                        a for a in ADJECTIVE_LIST if not a.rare and matches(noun, a.kinds)
                    )
                ],
            )
        except Discard:
            return None

    def phrase(self, kinds: tuple[str, ...], plain: bool = False, bare: bool = False) -> NounPhrase:
        """A noun phrase; `plain` keeps it definite, `bare` without adjectives."""
        noun = self.noun(kinds)
        if noun.mass:
            bare_noun = not plain and noun.kind not in ("event", "weather") and self.chance(0.6)
            bare_noun = bare_noun or noun.kind == "sport"
            determiner = closed.A if bare_noun else closed.THE
            return NounPhrase(noun, determiner, () if bare else self.epithets(noun, 0.2))
        plural = noun.name not in _SINGLE and self.chance(0.07 if noun.kind in _PLACES else 0.2)
        owned = matches(noun, OWNED)
        if plain or noun.kind == "family":
            mine = noun.kind == "family" or (owned and self.chance(0.3))
            determiner = self.one(POSSESSIVES) if mine else closed.THE
            return NounPhrase(noun, determiner, () if bare else self.epithets(noun, 0.2), plural)
        if owned and noun.kind not in ANIMATE and not plural and self.chance(0.07):
            owner = g.Name(self.one(NAMES)) if self.chance(0.5) else self.owner()
            return NounPhrase(noun, closed.THE, self.epithets(noun, 0.2), plural, owner)
        determiner = self.determiner(plural, owned)
        return NounPhrase(noun, determiner, self.epithets(noun, 0.35), plural)

    def owner(self) -> NounPhrase:
        noun = self.noun(PERSON)
        kinship = noun.kind == "family"
        return NounPhrase(noun, self.one(POSSESSIVES) if kinship else closed.THE)

    def determiner(self, plural: bool, owned: bool) -> closed.Determiner:
        if owned and self.chance(0.16):
            return self.one(POSSESSIVES)
        if plural:
            if self.chance(0.1):
                return self.one(closed.NUMERALS)
            choices = (
                (closed.THE, 40),
                (closed.A, 15),
                (closed.THIS, 8),
                (closed.MANY, 7),
                (closed.SOME, 6),
                (closed.FEW, 3),
            )
            return self.weighted(choices)
        return self.weighted(
            ((closed.THE, 50), (closed.A, 34), (closed.THIS, 8), (closed.EVERY, 2))
        )

    def epithets(
        self, noun: Noun, probability: float
    ) -> tuple[tuple[Phrase | None, Adjective], ...]:
        wanted = isinstance(self._focus, Adjective) and not self._focused
        if not self.chance(0.7 if wanted else probability):
            return ()
        adjective = self.adjective(noun)
        if adjective is None:
            return ()
        return ((self.one(ATTRIBUTIVE_DEGREES) if self.chance(0.06) else None, adjective),)

    def subject(self, kinds: tuple[str, ...]) -> g.Nominal:
        people = "person" in kinds or "job" in kinds
        wanted = self._focus is not None and not self._focused
        if people and self.chance(0.2 if wanted else 0.42):
            return self.one(PRONOUNS) if self.chance(0.75) else g.Name(self.one(NAMES))
        if people and self.chance(0.03):
            return g.Coordination(self.phrase(PERSON, plain=True), self.phrase(PERSON, plain=True))
        return self.phrase(kinds)

    def object(self, kinds: tuple[str, ...], subject: g.Nominal) -> g.Nominal:
        people = "person" in kinds or "job" in kinds
        if people and self.chance(0.25):
            pronouns = [p for p in PRONOUNS if self.distinct(p, subject)]
            return self.one(pronouns) if self.chance(0.75) else g.Name(self.one(NAMES))
        return self.phrase(kinds)

    @staticmethod
    def distinct(pronoun: closed.Pronoun, subject: g.Nominal) -> bool:
        """No `he ... him` or `I ... us`, which would want a reflexive."""
        return not (isinstance(subject, closed.Pronoun) and subject.person == pronoun.person)

    def location(self) -> PrepPhrase:
        preposition, kinds = self.weighted(LOCATIONS)
        return PrepPhrase(preposition, self.phrase(kinds, plain=True))
