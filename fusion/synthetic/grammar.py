"""Phrases and clauses: one structure, said in English and in German.

Nothing here is random.  A phrase knows its two surface forms; `english` and `german` order a
clause's phrases by the rules of each language.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from fusion.synthetic import english as en
from fusion.synthetic import german as de
from fusion.synthetic.closed_class import (
    BE,
    HAVE,
    NOT_A,
    THE,
    WHAT,
    A,
    Determiner,
    Modal,
    Phrase,
    Preposition,
    Pronoun,
    Tense,
)
from fusion.synthetic.german import Case, Declension
from fusion.synthetic.lexicon import Adjective, Gender, Noun, Verb

Order = Enum("Order", "MAIN QUESTION SUBORDINATE")


class Nominal(Protocol):
    """Whatever can be subject or object."""

    @property
    def person(self) -> int: ...
    @property
    def plural(self) -> bool: ...
    @property
    def pronominal(self) -> bool:
        """Stands before all full phrases in the German middle field."""

    @property
    def definite(self) -> bool: ...
    def english(self, subject: bool) -> str: ...
    def german(self, case: Case) -> str: ...


@dataclass(frozen=True)
class Name:
    text: str
    person: int = 3
    plural: bool = False
    pronominal: bool = False
    definite: bool = True

    def english(self, subject: bool) -> str:
        return self.text

    def german(self, case: Case) -> str:
        return self.text + ("s" if case == "gen" else "")


@dataclass(frozen=True)
class NounPhrase:
    """`owner` replaces the article: the teacher's house, das Haus des Lehrers."""

    noun: Noun
    determiner: Determiner = THE
    adjectives: tuple[tuple[Phrase | None, Adjective], ...] = ()
    plural: bool = False
    owner: "NounPhrase | Name | None" = None
    relative: "Clause | None" = None
    person: int = 3
    pronominal: bool = False

    @property
    def definite(self) -> bool:
        return self.owner is not None or self.determiner.definite

    def english(self, subject: bool) -> str:
        words = [w for degree, a in self.adjectives for w in (degree.en if degree else "", a.en)]
        words = [w for w in words if w]
        words.append(self.noun.en_plural if self.plural else self.noun.en)
        if self.owner:
            lead: str | None = en.possessive(self.owner.english(False), self.owner.plural)
        elif self.plural:
            lead = self.determiner.en_plural
        elif self.determiner.en_singular == "a":
            lead = "" if self.noun.mass else en.indefinite_article(words[0])
        else:
            lead = self.determiner.en_singular
        clause = english(self.relative, Order.SUBORDINATE) if self.relative else ""
        return " ".join(filter(None, (lead, *words, clause)))

    def german(self, case: Case) -> str:
        lead, rest = self.german_parts(case)
        return " ".join(filter(None, (lead, rest)))

    def german_parts(self, case: Case) -> tuple[str, str]:
        """The article and the rest, so that a preposition can swallow the article."""
        determiner = THE if isinstance(self.owner, NounPhrase) else self.determiner
        bare = determiner is A and (self.plural or self.noun.mass)
        declension: Declension = "none" if bare else determiner.declension
        lead = de.article(determiner.de, declension, self.noun.gender, self.plural, case)
        if isinstance(self.owner, Name):
            lead, declension = self.owner.german("gen"), "none"
        ending = de.adjective_ending(declension, self.noun.gender, self.plural, case)
        words = [
            w
            for degree, a in self.adjectives
            for w in (degree.de if degree else "", a.stem + ending)
        ]
        words.append(de.decline(self.noun, self.plural, case))
        if isinstance(self.owner, NounPhrase):
            words.append(self.owner.german("gen"))
        if self.relative:
            words.append(f", {german(self.relative, Order.SUBORDINATE)},")
        return ("" if bare else lead), " ".join(filter(None, words))


@dataclass(frozen=True)
class Coordination:
    """Two nominals joined by `and`; plural."""

    first: Nominal
    second: Nominal
    person: int = 3
    plural: bool = True
    pronominal: bool = False
    definite: bool = True

    def english(self, subject: bool) -> str:
        return f"{self.first.english(subject)} and {self.second.english(subject)}"

    def german(self, case: Case) -> str:
        return f"{self.first.german(case)} und {self.second.german(case)}"


@dataclass(frozen=True)
class RelativePronoun:
    gender: Gender
    plural: bool
    personal: bool
    person: int = 3
    pronominal: bool = True
    definite: bool = True

    def english(self, subject: bool) -> str:
        return "who" if self.personal and subject else "that"

    def german(self, case: Case) -> str:
        return de.relative_pronoun(self.gender, self.plural, case)


@dataclass(frozen=True)
class PrepPhrase:
    preposition: Preposition
    nominal: Nominal

    @property
    def en(self) -> str:
        relative = isinstance(self.nominal, RelativePronoun)
        words = "which" if relative else self.nominal.english(False)
        return f"{self.preposition.en} {words}".strip()

    @property
    def de(self) -> str:
        if not isinstance(self.nominal, NounPhrase):
            return f"{self.preposition.de} {self.nominal.german(self.preposition.case)}"
        lead, rest = self.nominal.german_parts(self.preposition.case)
        # A restrictive relative clause keeps the full article: in dem Haus, das ...
        may_contract = self.nominal.relative is None and not self.nominal.plural
        head = de.contract(self.preposition.de, lead) if may_contract else ""
        return " ".join(filter(None, (head or f"{self.preposition.de} {lead}".strip(), rest)))


@dataclass(frozen=True)
class Quality:
    """An adjective after a copula, with its degree (very) or what it is compared with."""

    adjective: Adjective
    degree: Phrase | None = None
    than: Nominal | None = None
    equal_to: Nominal | None = None

    @property
    def en(self) -> str:
        if self.than and self.adjective.comparative:
            return f"{self.adjective.comparative[0]} than {self.than.english(True)}"
        if self.equal_to:
            return f"as {self.adjective.en} as {self.equal_to.english(True)}"
        return " ".join(filter(None, (self.degree.en if self.degree else "", self.adjective.en)))

    @property
    def de(self) -> str:
        if self.than and self.adjective.comparative:
            return f"{self.adjective.comparative[1]} als {self.than.german('nom')}"
        if self.equal_to:
            return f"so {self.adjective.de} wie {self.equal_to.german('nom')}"
        return " ".join(filter(None, (self.degree.de if self.degree else "", self.adjective.de)))


@dataclass(frozen=True)
class Role:
    """A noun after a copula: ein guter Arzt; German drops the article of a bare profession."""

    phrase: NounPhrase

    @property
    def en(self) -> str:
        return self.phrase.english(False)

    @property
    def de(self) -> str:
        bare = self.phrase.noun.kind == "job" and not self.phrase.adjectives
        if bare and self.phrase.determiner is A:
            return de.decline(self.phrase.noun, self.phrase.plural, "nom")
        return self.phrase.german("nom")


@dataclass(frozen=True)
class Clause:
    """One finite clause.

    `frequency` covers often, never, already; `target` is a governed phrase, a direction or a
    passive's agent; `front` opens the clause in both languages (German inverts).
    """

    subject: Nominal
    verb: Verb
    tense: Tense = Tense.PRESENT
    modal: Modal | None = None
    negated: bool = False
    passive: bool = False
    dative: Nominal | None = None
    accusative: Nominal | None = None
    time: Phrase | None = None
    frequency: Phrase | None = None
    manner: Phrase | None = None
    place: PrepPhrase | None = None
    target: PrepPhrase | None = None
    predicate: Quality | Role | None = None
    front: Phrase | PrepPhrase | None = None
    infinitive: "Clause | None" = None
    content: "tuple[Phrase, Clause] | None" = field(default=None)

    @property
    def moved(self) -> Nominal | PrepPhrase | None:
        """What stands first because it is a relative pronoun or asked for."""
        for thing in (self.accusative, self.dative):
            if isinstance(thing, RelativePronoun) or thing is WHAT:
                return thing
        if self.place and isinstance(self.place.nominal, RelativePronoun):
            return self.place
        return None


def _english_verb(c: Clause, supported: bool) -> tuple[str, str]:
    """The finite auxiliary (if any) and the rest; `supported` asks for do-support."""
    person, plural, verb = c.subject.person, c.subject.plural, c.verb
    base = f"be {verb.en_participle}" if c.passive else verb.en
    past = c.tense is Tense.PAST
    if c.modal and c.modal.to:
        if supported:
            return ("did" if past else en.do(person, plural)), f"want to {base}"
        wants = "wants" if person == 3 and not plural else "want"
        return "", f"{c.modal.en_past if past else wants} to {base}"
    if c.modal:
        return (c.modal.en_past or "" if past else c.modal.en), base
    if c.tense is Tense.FUTURE:
        return "will", base
    if c.tense is Tense.PERFECT:
        return en.have(person, plural), f"been {verb.en_participle}" if c.passive else (
            verb.en_participle
        )
    if c.passive:
        return en.be(person, plural, past), verb.en_participle
    if c.tense is Tense.PROGRESSIVE:
        return en.be(person, plural, False), verb.en_ing
    if verb is BE:
        return en.be(person, plural, past), ""
    if supported:
        return ("did" if past else en.do(person, plural)), base
    return "", verb.en_past if past else en.present(verb, person, plural)


def _english_objects(c: Clause, moved: object) -> list[str]:
    """What follows the verb, the particle after a pronoun (picks him up)."""
    objects = [o.english(False) for o in (c.dative, c.accusative) if o and o is not moved]
    particle = [c.verb.particle] if c.verb.particle else []
    pronoun = not c.verb.fixed_preposition and c.accusative and c.accusative.pronominal
    return [*objects, *particle] if pronoun and c.accusative is not moved else [*particle, *objects]


def english(c: Clause, order: Order) -> str:
    question = order is Order.QUESTION
    moved = c.moved
    aux, main = _english_verb(c, supported=c.negated or question)
    words: list[str] = []
    if isinstance(moved, PrepPhrase):
        words.append(moved.en)
    elif moved:
        words.append(moved.english(False))
    if c.front:
        words.append(c.front.en + ("," if isinstance(c.front, PrepPhrase) else ""))
    subject = c.subject.english(True)
    words += [aux, subject] if question else [subject, aux]
    words += ["not" if c.negated else "", c.frequency.en if c.frequency else "", main]
    words += _english_objects(c, moved)
    for part in (c.target, c.predicate, c.manner, c.place, c.time):
        if part and part is not moved and part is not c.front:
            words.append(part.en)
    if c.infinitive:
        words.append("to " + _english_infinitive(c.infinitive))
    if c.content:
        words += [c.content[0].en, english(c.content[1], Order.SUBORDINATE)]
    return " ".join(filter(None, words)).replace("can not", "cannot")


def _english_infinitive(c: Clause) -> str:
    parts = [c.verb.en, *_english_objects(c, None)]
    parts += [p.en for p in (c.target, c.manner, c.place, c.time) if p]
    return " ".join(parts)


def _german_verb(c: Clause) -> tuple[str, list[str]]:
    """The finite form without its prefix, and the verbs of the right bracket."""
    person, plural, verb = c.subject.person, c.subject.plural, c.verb
    base = de.infinitive(verb)
    done = de.participle(verb)
    closing = [done, "werden"] if c.passive else [base]
    if c.modal:
        if c.tense is Tense.PAST:
            return de.preterite(c.modal.de_past, person, plural), closing
        if plural:
            return c.modal.infinitive, closing
        return (c.modal.de_second if person == 2 else c.modal.de), closing
    if c.tense is Tense.FUTURE:
        will = "werden" if plural else {1: "werde", 2: "wirst", 3: "wird"}[person]
        return will, closing
    if c.passive:
        return de.preterite("wurde", person, plural), [done]
    if c.tense is Tense.PAST and verb.preterite:
        return de.preterite(verb.preterite, person, plural), []
    if c.tense in (Tense.PAST, Tense.PERFECT):
        return de.present(BE if verb.sein else HAVE, person, plural), [done]
    return de.present(verb, person, plural), []


# These stand before a definite object (meistens das Buch), the others after (das Buch oft).
_EARLY = ("manchmal", "meistens")


def _german_middle(c: Clause, subject: bool, moved: object, inverted: bool = False) -> list[str]:
    """The middle field: pronouns, time, definite, frequency, indefinite, nicht, manner, place.

    After inversion, pronouns precede a subject that is none (gestern hat mir der Mann geholfen).
    """
    accusative = c.accusative if c.accusative is not moved else None
    dative = c.dative if c.dative is not moved else None
    negated = c.negated
    if negated and isinstance(accusative, NounPhrase) and accusative.determiner is A:
        accusative = NounPhrase(accusative.noun, NOT_A, accusative.adjectives, accusative.plural)
        negated = False
    objects: list[tuple[Nominal | None, Case]] = [(accusative, "acc"), (dative, "dat")]
    pronouns = [o.german(k) for o, k in objects if o and o.pronominal]
    if c.verb.reflexive:
        pronouns = [c.subject.reflexive if isinstance(c.subject, Pronoun) else "sich", *pronouns]
    words = [c.subject.german("nom")] if subject else []
    # `hat sie der Mann` could be read with `sie` as subject, so that `sie` and `es` stay behind.
    first = inverted and not c.subject.pronominal and not {"sie", "es"} & set(pronouns)
    words = [*pronouns, *words] if first else [*words, *pronouns]
    early = c.frequency is not None and c.frequency.de in _EARLY
    words += [c.time.de] if c.time and c.time is not c.front else []
    words += [c.frequency.de] if c.frequency and early else []
    words += [o.german(k) for o, k in objects[::-1] if o and not o.pronominal and o.definite]
    words += [c.frequency.de] if c.frequency and not early else []
    words += [o.german(k) for o, k in objects[::-1] if o and not o.pronominal and not o.definite]
    words += ["nicht"] if negated else []
    for part in (c.manner, c.place, c.target, c.predicate):
        if part and part is not moved and part is not c.front:
            words.append(part.de)
    return words


def _german_tail(c: Clause) -> list[str]:
    tail = []
    if c.infinitive:
        inner = _german_middle(c.infinitive, subject=False, moved=None)
        tail.append(f", {' '.join([*inner, de.zu_infinitive(c.infinitive.verb)])},")
    if c.content:
        conjunction, clause = c.content
        tail.append(f", {conjunction.de} {german(clause, Order.SUBORDINATE)},")
    return tail


def german(c: Clause, order: Order) -> str:
    """Verb second, first or last; a separable prefix rejoins a final verb."""
    finite, closing = _german_verb(c)
    prefix = "" if closing else c.verb.prefix
    moved = c.moved
    lead = ""
    if isinstance(moved, PrepPhrase):
        lead = moved.de
    elif moved:
        lead = moved.german("acc" if moved is c.accusative else "dat")
    if order is Order.SUBORDINATE:
        middle = _german_middle(c, subject=True, moved=moved)
        words = [lead, *middle, *closing, prefix + finite]
    else:
        first = c.front.de if c.front else lead
        if not first and order is Order.MAIN:
            first = c.subject.german("nom")
            middle = _german_middle(c, subject=False, moved=moved)
        else:
            middle = _german_middle(c, subject=True, moved=moved, inverted=True)
        words = [first, finite, *middle, prefix, *closing]
    return " ".join(filter(None, [*words, *_german_tail(c)]))


def sentence(text: str, end: str = ".") -> str:
    """Capitalise, close with `end`, and settle the commas that met on the way."""
    text += end
    if "," in text:
        text = re.sub(r"\s+,", ",", text)
        text = re.sub(r",(\s*,)+", ",", text)
        text = re.sub(r",\s*([.?!])", r"\1", text)
    return text[0].upper() + text[1:]
