"""Draw sentences: the constructions, from statements to relative clauses."""

import random
import re
from collections.abc import Callable
from dataclasses import replace

from fusion.synthetic import closed_class as closed
from fusion.synthetic import grammar as g
from fusion.synthetic.clauses import ClauseSampler, changed, quantified
from fusion.synthetic.closed_class import Phrase, Tense
from fusion.synthetic.grammar import Clause, NounPhrase, Order, PrepPhrase
from fusion.synthetic.lexicon import (
    VERB_LIST,
    Adjective,
    Lexeme,
    forms,
)
from fusion.synthetic.phrases import (
    BECAUSE_OF,
    CONJUNCTIONS,
    DEGREES,
    DURING,
    FREQUENCIES,
    IF,
    IN,
    OPINIONS,
    TENSE_TIMES,
    THAT,
    VERY,
    WEATHER,
    WHEN,
    WHEN_PAST,
    WHETHER,
)
from fusion.synthetic.sampler import PERSON, PRONOUNS, Discard

EnglishGerman = tuple[str, str]
SHORTEST, LONGEST = 3, 20
_BASIC = (Tense.PRESENT, Tense.PRESENT, Tense.PAST)
_REQUESTED = frozenset(("open", "close", "clean", "wash", "repair", "turn", "explain", "read"))
# Hardly done on purpose: no `tries to lose`.
_UNPLANNED = frozenset(("lose", "injure", "forget", "break", "meet", "betray", "insult"))
_EXISTENCE = (
    (IN, ("city", "village", "valley"), ("building",)),
    (IN, ("kitchen", "room", "office", "bedroom"), ("furniture", "window", "door")),
    (IN, ("garden", "park", "valley", "forest"), ("tree", "flower", "rose", "bird")),
)
_EXCLUSIVE = (
    ("rot", "blau", "grün", "schwarz", "weiß", "gelb", "braun", "grau"),
    ("groß", "klein", "riesig"),
    ("alt", "neu", "modern", "jung"),
    ("billig", "teuer"),
    ("sauber", "schmutzig"),
    ("schnell", "langsam"),
    ("gut", "schlecht", "wunderbar", "schrecklich"),
    ("schön", "hässlich"),
    ("interessant", "langweilig"),
    ("warm", "kalt", "heiß"),
    ("lang", "kurz"),
    ("dunkel", "hell"),
    ("laut", "ruhig"),
    ("breit", "schmal"),
    ("richtig", "falsch"),
    ("schwierig", "einfach"),
)


def clash(one: Adjective, other: Adjective) -> bool:
    """The same adjective, two colours, or two opposites."""
    return any(one.de in group and other.de in group for group in (*_EXCLUSIVE, (one.de,)))


class SentenceSampler(ClauseSampler):
    """A stream of English-German sentences."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._patterns: list[tuple[Callable[[], EnglishGerman], int]] = [
            (self.statement, 46),
            (self.description, 16),
            (self.yes_no_question, 6),
            (self.wh_question, 6),
            (self.two_clauses, 8),
            (self.because, 6),
            (self.when_or_if, 6),
            (self.reported, 7),
            (self.to_infinitive, 4),
            (self.passive, 4),
            (self.relative_subject, 5),
            (self.relative_object, 4),
            (self.existence, 4),
            (self.request, 2),
            (self.weather, 1),
            (self.described_thing, 3),
        ]

    def draw(self) -> EnglishGerman:
        while True:
            self._used, self._focused = [], False
            try:
                english, german = self.weighted(self._patterns)()
            except Discard:
                continue
            if SHORTEST <= len(english.split()) <= LONGEST:
                return english, german

    def draw_with(self, focus: Lexeme, instead_of: Lexeme | None = None) -> EnglishGerman:
        """A sentence that contains `focus`, once, and not `instead_of`."""
        self._focus, self._replaced = focus, instead_of
        wanted = frozenset(forms(focus))
        try:
            while True:
                pair = self.draw()
                said = wanted.intersection(re.findall(r"\w+", pair[0].lower()))
                if self._focused and said:
                    return pair
        finally:
            self._focus = self._replaced = None

    def say(self, c: Clause, order: Order = Order.MAIN, end: str = ".") -> EnglishGerman:
        self.require_focus()
        return (
            g.sentence(g.english(c, order), end),
            g.sentence(g.german(c, order), end),
        )

    def statement(self) -> EnglishGerman:
        c = self.clause(self.tense())
        plain = not (c.negated or c.modal or c.frequency)
        who = c.subject
        if plain and isinstance(who, NounPhrase) and who.determiner in (closed.THE, closed.A):
            plain = not who.noun.mass and who.owner is None
            if plain and self.chance(0.05):
                c = changed(c, {"subject": replace(who, determiner=closed.NO)})
        return self.say(c)

    def description(self) -> EnglishGerman:
        c = self.copular(self.weighted(((Tense.PRESENT, 70), (Tense.PAST, 30))))
        if c.predicate and self.chance(0.12) and not quantified(c.subject) and c.verb is closed.BE:
            if isinstance(c.predicate, g.Quality) and not c.predicate.than:
                # Not `nicht ziemlich alt`.
                plain = replace(c.predicate, degree=VERY if c.predicate.degree else None)
                c = changed(c, {"negated": True, "predicate": plain})
        elif c.predicate and isinstance(c.predicate, g.Quality) and self.chance(0.1):
            c = changed(c, {"frequency": self.one(FREQUENCIES)})
        elif self.chance(0.12):
            c = changed(c, {"front": self.one(OPINIONS)})
        return self.say(c)

    def described_thing(self) -> EnglishGerman:
        """This is an old house."""
        noun = self.noun(("building", "thing", "text", "vehicle", "clothes", "animal"))
        if self.chance(0.3):
            phrase = NounPhrase(noun, closed.THE, self.epithets(noun, 0.2), owner=self.owner())
        else:
            phrase = NounPhrase(noun, closed.A, self.epithets(noun, 0.9))
        this = closed.Pronoun("this", "this", "das", "das", "dem", "sich", 3, False)
        return self.say(Clause(this, closed.BE, predicate=g.Role(phrase)))

    def yes_no_question(self) -> EnglishGerman:
        if self.chance(0.25):
            return self.say(self.copular(self.one(_BASIC)), Order.QUESTION, "?")
        c = self.clause(self.one(_BASIC), simple=True)
        if c.tense is Tense.PRESENT and not c.verb.stative and self.chance(0.35):
            c = changed(
                c, {"modal": self.one((closed.CAN, closed.WANT, closed.SHOULD, closed.MAY))}
            )
        return self.say(c, Order.QUESTION, "?")

    def wh_question(self) -> EnglishGerman:
        tense = self.one(_BASIC)
        asked = self.one(("who", "what", "where", "why", "when", "which"))
        if asked == "who":
            return self.say(self.clause(tense, closed.WHO, simple=True), Order.MAIN, "?")
        if asked == "which":
            verb, frame = self.verb("tr")
            kinds = tuple(k for k in frame.subjects if k != "family")
            asked_for = NounPhrase(self.noun(kinds), closed.WHICH, plural=self.chance(0.3))
            c = self.fill(verb, frame, asked_for, tense)
            return self.say(c, Order.MAIN, "?")
        if asked == "what":
            verb, frame = self.verb("tr")
            if (
                "family" in frame.objects
                or "animal" in frame.objects
                or "family" not in frame.subjects
            ):
                raise Discard
            return self.say(
                Clause(self.subject(frame.subjects), verb, tense, accusative=closed.WHAT),
                Order.QUESTION,
                "?",
            )
        c = self.clause(tense, simple=True)
        if asked == "where":
            if c.place or c.target or c.verb.stative or c.verb.en in ("die", "happen", "hurry"):
                raise Discard
            return self.say(changed(c, {"front": Phrase("where", "wo")}), Order.QUESTION, "?")
        word = Phrase("why", "warum") if asked == "why" else Phrase("when", "wann")
        if asked == "when" and c.verb.stative:
            raise Discard
        return self.say(changed(c, {"front": word}), Order.QUESTION, "?")

    def two_clauses(self) -> EnglishGerman:
        """Two main clauses with and or but; the second may take up a thing as `it`."""
        word = self.one((Phrase("and", "und"), Phrase("but", "aber")))
        tense = self.one(_BASIC)
        if self.chance(0.4):
            noun = self.noun(
                ("furniture", "thing", "vehicle", "building", "text", "clothes", "room")
            )
            plural = self.chance(0.2)
            subject = NounPhrase(
                noun, self.one((closed.THE, closed.MY, closed.HIS, closed.THIS)), plural=plural
            )
            first = self.copular(tense, subject)
            adjective = self.adjective(noun, predicative=True)
            if not isinstance(first.predicate, g.Quality) or adjective is None:
                raise Discard
            if clash(adjective, first.predicate.adjective):
                raise Discard
            second = Clause(
                closed.it(noun, plural),
                closed.BE,
                tense,
                predicate=g.Quality(adjective, first.predicate.degree),
            )
        else:
            first = self.clause(tense, simple=True)
            second = self.clause(tense, self.one(PRONOUNS), simple=True)
        return self.join(first, word, second, Order.MAIN)

    def join(self, first: Clause, word: Phrase, second: Clause, order: Order) -> EnglishGerman:
        self.require_focus()
        comma = "" if order is Order.SUBORDINATE or word.en == "and" else ","
        # German has a comma before every conjunction but `und`.
        german_comma = "" if word.de == "und" else ","
        english = f"{g.english(first, Order.MAIN)}{comma} {word.en} {g.english(second, order)}"
        german = f"{g.german(first, Order.MAIN)}{german_comma} {word.de} {g.german(second, order)}"
        return g.sentence(english), g.sentence(german)

    def because(self) -> EnglishGerman:
        word, tense = self.one(CONJUNCTIONS), self.one(_BASIC)
        first = self.clause(tense, simple=True)
        if word.en in ("because", "although") and self.chance(0.5):
            second = self.copular(tense, self.one(PRONOUNS))
        else:
            second = self.clause(tense, simple=True)
            if second.verb.stative and word.en in ("before", "until", "while"):
                raise Discard
        return self.join(first, word, second, Order.SUBORDINATE)

    def when_or_if(self) -> EnglishGerman:
        """The subordinate clause first: German then starts with the finite verb."""
        word = self.one((WHEN, IF, WHEN_PAST))
        tense = Tense.PAST if word is WHEN_PAST else Tense.PRESENT
        if word is not WHEN_PAST and self.chance(0.3):
            condition = Clause(closed.WEATHER_IT, self.one(WEATHER))
        else:
            condition = self.clause(tense, simple=True) if self.chance(0.7) else self.copular(tense)
        result = self.clause(
            Tense.FUTURE if word is IF and self.chance(0.5) else tense, simple=True
        )
        self.require_focus()
        english = f"{word.en} {g.english(condition, Order.SUBORDINATE)}, "
        german = f"{word.de} {g.german(condition, Order.SUBORDINATE)}, "
        return (
            g.sentence(english + g.english(result, Order.MAIN)),
            g.sentence(german + g.german(result, Order.QUESTION)),
        )

    def reported(self) -> EnglishGerman:
        verb, frame = self.verb("that", "whether")
        subject = self.subject(frame.subjects)
        tense = Tense.PAST if self.chance(0.4) and not verb.preterite else Tense.PRESENT
        inner_tense = self.one((Tense.PRESENT, Tense.PAST, Tense.FUTURE))
        if tense is Tense.PAST:
            inner_tense = Tense.PAST
        if inner_tense is Tense.FUTURE or self.chance(0.6):
            inner = self.clause(inner_tense, simple=True)
        else:
            inner = self.copular(inner_tense)
        word, negated = (WHETHER if frame.name == "whether" else THAT), False
        if verb.de == "wissen" and tense is Tense.PRESENT and self.chance(0.4):
            word, negated = WHETHER, True
        if quantified(subject) and negated:
            raise Discard
        return self.say(Clause(subject, verb, tense, negated=negated, content=(word, inner)))

    def to_infinitive(self) -> EnglishGerman:
        verb, frame = self.verb("zu")
        subject = self.subject(frame.subjects)
        inner_verb, inner_frame = self.verb("tr", "dat")
        if (
            "person" not in inner_frame.subjects
            or inner_verb.stative
            or inner_verb.en in _UNPLANNED
        ):
            raise Discard
        inner = self.fill(inner_verb, inner_frame, subject, Tense.PRESENT)
        tense = self.one((Tense.PRESENT, Tense.PAST))
        return self.say(Clause(subject, verb, tense, infinitive=inner))

    def passive(self) -> EnglishGerman:
        verb, frame = self.verb("tr")
        if verb.stative or verb.particle or verb.en in ("meet", "play"):
            raise Discard
        patient = self.phrase(frame.objects)
        c = Clause(patient, verb, Tense.PAST, passive=True)
        roll = self._rng.random()
        if roll < 0.45:
            agent = self.phrase(tuple(k for k in frame.subjects), plain=True)
            c = changed(c, {"target": PrepPhrase(closed.Preposition("by", "von", "dat"), agent)})
        elif roll < 0.7:
            c = changed(c, {"time": self.one(TENSE_TIMES[Tense.PAST])})
        elif not quantified(patient):
            c = changed(
                c,
                {
                    "tense": Tense.PRESENT,
                    "modal": self.one((closed.MUST, closed.CAN, closed.SHOULD)),
                },
            )
        return self.say(c)

    def relative_subject(self) -> EnglishGerman:
        """The man who lives in the city helps the woman."""
        noun = self.noun(("person", "job", "animal"))
        plural = self.chance(0.25)
        pronoun = g.RelativePronoun(noun.gender, plural, noun.kind != "animal")
        tense = self.one(_BASIC)
        if noun.kind == "animal" or self.chance(0.25):
            adjective = self.adjective(noun, predicative=True)
            if adjective is None:
                raise Discard
            inner = Clause(
                pronoun, closed.BE, tense, predicate=g.Quality(adjective, self.one(DEGREES))
            )
        else:
            inner = self.clause(tense, pronoun, simple=True)
        determiner = self.one((closed.THE, closed.THE, closed.THE, closed.A, closed.THIS))
        head = NounPhrase(noun, determiner, (), plural, relative=inner)
        if self.chance(0.5) and noun.kind != "animal":
            return self.say(self.clause(self.one(_BASIC), head, simple=True))
        known = self.one((("know", "kennen"), ("see", "sehen"), ("like", "mögen")))
        verb = next(v for v in VERB_LIST if (v.en, v.de) == known)
        if verb is self._replaced:
            raise Discard
        subject = self.one(PRONOUNS) if self.chance(0.7) else self.phrase(PERSON, plain=True)
        return self.say(Clause(subject, verb, accusative=head))

    def relative_object(self) -> EnglishGerman:
        """The book that the man reads is old."""
        verb, frame = self.verb("tr")
        if "family" in frame.objects or "person" not in frame.subjects or "sport" in frame.objects:
            raise Discard
        noun = self.noun(frame.objects)
        plural = not noun.mass and self.chance(0.25)
        pronoun = g.RelativePronoun(noun.gender, plural, False)
        tense = self.one(_BASIC)
        inner = Clause(self.subject(frame.subjects), verb, tense, accusative=pronoun)
        head = NounPhrase(noun, closed.THE, (), plural, relative=inner)
        adjective = self.adjective(noun, predicative=True)
        if adjective is None:
            raise Discard
        degree = self.one(DEGREES) if self.chance(0.4) else None
        return self.say(
            Clause(head, closed.BE, self.one(_BASIC), predicate=g.Quality(adjective, degree))
        )

    def existence(self) -> EnglishGerman:
        """There is a church in the village: In dem Dorf gibt es eine Kirche."""
        preposition, kinds, things = self.one(_EXISTENCE)
        place = PrepPhrase(preposition, self.phrase(kinds, plain=True))
        plural = self.chance(0.4)
        noun = self.noun(things)
        if plural:
            determiner = self.one((closed.MANY, closed.SOME, closed.FEW, *closed.NUMERALS))
        else:
            determiner = closed.NO if self.chance(0.15) else closed.A
        thing = NounPhrase(noun, determiner, self.epithets(noun, 0.4), plural)
        past = self.chance(0.25)
        be = ("were" if plural else "was") if past else ("are" if plural else "is")
        german_verb = "gab" if past else "gibt"
        return (
            g.sentence(f"there {be} {thing.english(True)} {place.en}"),
            g.sentence(f"{place.de} {german_verb} es {thing.german('acc')}"),
        )

    def request(self) -> EnglishGerman:
        """Please open the window: the polite imperative is the infinitive with Sie."""
        verb, frame = self.verb("tr")
        if verb.en not in _REQUESTED:
            raise Discard
        thing = self.phrase(frame.objects, plain=True)
        german = f"{verb.de} Sie bitte {thing.german('acc')} {verb.prefix}".rstrip()
        particle = f"{verb.en} {verb.particle}".rstrip()
        return g.sentence(f"please {particle} {thing.english(False)}"), g.sentence(german)

    def weather(self) -> EnglishGerman:
        verb = self.one(WEATHER)
        if self.chance(0.5):
            tense = self.one((Tense.PRESENT, Tense.PAST, Tense.FUTURE))
            time = self.one(TENSE_TIMES[tense])
            front = time if self.chance(0.5) else None
            return self.say(Clause(closed.WEATHER_IT, verb, tense, time=time, front=front))
        c = self.clause(Tense.PAST, simple=True)
        preposition = self.one((BECAUSE_OF, DURING))
        kinds = ("weather",) if preposition is BECAUSE_OF else ("event",)
        place = PrepPhrase(preposition, NounPhrase(self.noun(kinds)))
        return self.say(changed(c, {"front": place}))
