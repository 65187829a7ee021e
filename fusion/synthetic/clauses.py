"""Draw clauses: a verb, what its frame asks for, and adverbials that agree with the tense."""

from fusion.synthetic import closed_class as closed
from fusion.synthetic import grammar as g
from fusion.synthetic.closed_class import Tense
from fusion.synthetic.grammar import Clause, NounPhrase, PrepPhrase
from fusion.synthetic.lexicon import (
    GROUPS,
    NOUN_LIST,
    Adjective,
    Frame,
    Noun,
    Verb,
)
from fusion.synthetic.phrases import (
    DEGREES,
    FREQUENCIES,
    IN,
    INTO,
    MANNERS,
    NAMES,
    NEVER_YET,
    NOW,
    OFTEN,
    ON,
    OPINIONS,
    TENSE_TIMES,
    TO,
    TURNS,
    UNDER,
    WITH,
    WITHOUT,
    WOMEN,
)
from fusion.synthetic.sampler import PERSON, PRONOUNS, Discard, Sampler, matches

THINGS = (*GROUPS["OBJECT"].split(), "building", "room", "event", "idea", "nature")
SIMPLE = (Tense.PRESENT, Tense.PAST, Tense.PROGRESSIVE, Tense.FUTURE, Tense.PERFECT)
# Only verbs like these sound right with an adverb of manner.
MANNERED = frozenset(("work", "sing", "dance", "run", "swim", "sleep", "play"))
_PROTOTYPE = next(n for n in NOUN_LIST if n.en == "man")
_FRAME_WEIGHTS = (
    ("intr", 22),
    ("tr", 42),
    ("dat", 7),
    ("ditr", 10),
    ("prep", 9),
    ("loc", 9),
    ("dir", 7),
    ("put", 3),
)
_TENSE_WEIGHTS = tuple(zip(SIMPLE, (36, 34, 10, 12, 8), strict=True))
_CHANGING = frozenset(
    (
        "tired",
        "sad",
        "angry",
        "sick",
        "old",
        "happy",
        "nervous",
        "rich",
        "hungry",
        "pale",
        "thirsty",
    )
)
_PLACED = frozenset(
    (
        "work",
        "play",
        "dance",
        "swim",
        "read",
        "eat",
        "drink",
        "buy",
        "meet",
        "wait",
        "see",
        "sing",
        "lose",
        "find",
    )
)
_TO_PLACES = ("building", "station", "shore", "bridge", "farm")
_INTO_PLACES = ("building", "room", "city", "forest", "garden", "village", "valley")
_OUTDOORS = (((IN, "area"), 60), ((ON, "onarea"), 25), ((UNDER, "tree"), 15))
_ONTO = closed.Preposition("on", "auf", "acc")


def changed(c: Clause, changes: dict[str, object]) -> Clause:
    return Clause(**{**c.__dict__, **changes})


def quantified(nominal: g.Nominal | None) -> bool:
    """Negation beside these would change its scope or its German word."""
    if isinstance(nominal, g.Coordination):
        return quantified(nominal.first) or quantified(nominal.second)
    if nominal is closed.WHO:
        return True
    if not isinstance(nominal, NounPhrase):
        return False
    quantifiers = (closed.NO, closed.EVERY, closed.MANY, closed.SOME, closed.FEW, *closed.NUMERALS)
    return nominal.determiner in quantifiers


def _is_animal(nominal: g.Nominal) -> bool:
    return isinstance(nominal, NounPhrase) and nominal.noun.kind == "animal"


def _personal(nominal: g.Nominal) -> bool:
    """Somebody who can want to, ought to or be allowed to."""
    return not isinstance(nominal, NounPhrase) or nominal.noun.kind in PERSON


def _indefinite(nominal: g.Nominal) -> bool:
    return isinstance(nominal, NounPhrase) and not nominal.definite


class ClauseSampler(Sampler):
    """Words and phrases, put into clauses."""

    def clause(
        self, tense: Tense, subject: g.Nominal | None = None, simple: bool = False
    ) -> Clause:
        """A clause around a full verb; `simple` leaves out adverbials."""
        frames = ("intr", "tr", "tr", "dat", "ditr", "prep", "loc", "dir", "put")
        wanted = isinstance(self._focus, Verb) and not self._focused
        names = frames if wanted else (self.weighted(_FRAME_WEIGHTS),)
        verb, frame = self.verb(*names)
        if subject is None:
            subject = self.subject(frame.subjects)
        elif "person" not in frame.subjects and "job" not in frame.subjects:
            raise Discard
        if tense is Tense.PROGRESSIVE and verb.stative:
            tense = Tense.PRESENT
        clause = self.fill(verb, frame, subject, tense)
        return clause if simple else self.adverbials(clause, frame)

    def fill(self, verb: Verb, frame: Frame, subject: g.Nominal, tense: Tense) -> Clause:
        match frame.name:
            case "tr":
                return Clause(subject, verb, tense, accusative=self.object(frame.objects, subject))
            case "dat":
                return Clause(subject, verb, tense, dative=self.object(frame.objects, subject))
            case "ditr":
                receiver, gift = self.receiver(subject), self.phrase(frame.objects)
                if receiver is closed.SHE and gift.determiner is closed.A:
                    raise Discard  # `her cups` would be somebody's
                return Clause(subject, verb, tense, dative=receiver, accusative=gift)
            case "prep":
                assert frame.preposition
                english, german, case = frame.preposition
                governed = closed.Preposition(english, german, "acc" if case == "acc" else "dat")
                target = PrepPhrase(governed, self.object(frame.objects, subject))
                return Clause(subject, verb, tense, target=target)
            case "loc":
                return Clause(subject, verb, tense, place=self.location_for(verb, subject))
            case "dir":
                kinds: tuple[str, ...]
                preposition, kinds = (TO, _TO_PLACES) if self.chance(0.6) else (INTO, _INTO_PLACES)
                if _is_animal(subject):
                    kinds = tuple(k for k in kinds if k not in ("building", "room", "station"))
                target = PrepPhrase(preposition, self.phrase(kinds, plain=True))
                return Clause(subject, verb, tense, target=target)
            case "put":
                thing = NounPhrase(
                    self.noun(frame.objects),
                    self.one((closed.THE, closed.A, closed.MY, closed.HER)),
                )
                surface = self.phrase(("table", "desk", "shelf", "chair", "bed"), plain=True)
                return Clause(
                    subject, verb, tense, accusative=thing, target=PrepPhrase(_ONTO, surface)
                )
        return Clause(subject, verb, tense)

    def receiver(self, subject: g.Nominal) -> g.Nominal:
        if self.chance(0.4):
            return self.one([p for p in PRONOUNS if self.distinct(p, subject)])
        return self.phrase(PERSON, plain=True) if self.chance(0.85) else g.Name(self.one(NAMES))

    def location_for(self, verb: Verb, subject: g.Nominal) -> PrepPhrase:
        if _is_animal(subject):
            outdoors = self.weighted(_OUTDOORS)
            return PrepPhrase(outdoors[0], self.phrase((outdoors[1],), plain=True))
        if verb.de in ("wohnen", "bleiben", "arbeiten", "tanzen", "spielen"):
            homes = ("house", "apartment", "city", "village", "castle", "hut", "hotel", "tent")
            kinds = homes if verb.de == "wohnen" else ("building", "room", "area")
            return PrepPhrase(IN, self.phrase(kinds, plain=True))
        return self.location()

    def adverbials(self, c: Clause, frame: Frame) -> Clause:
        """Add at most two of: time or frequency, negation, modal, manner, place."""
        changes: dict[str, object] = {}
        tense = c.tense
        if tense is Tense.PERFECT:
            changes["frequency"] = self.one(NEVER_YET)
        elif tense is Tense.PROGRESSIVE:
            changes["time"] = NOW[0] if self.chance(0.7) else NOW[1]
        elif self.chance(0.45) and not (c.verb.stative and tense is Tense.PRESENT):
            changes["time"] = self.one(TENSE_TIMES[tense])
        elif self.chance(0.2) and tense in (Tense.PRESENT, Tense.PAST):
            changes["frequency"] = self.one(FREQUENCIES)
        if tense is Tense.PRESENT and not c.verb.stative and self.chance(0.25):
            modals = (closed.CAN, closed.MUST, closed.WANT, closed.SHOULD, closed.MAY)
            changes["modal"] = self.one(modals if _personal(c.subject) else modals[:2])
            changes.pop("frequency", None)
        elif tense is Tense.PAST and not c.verb.stative and self.chance(0.08):
            past_modals = (closed.CAN, closed.MUST, closed.WANT)
            changes["modal"] = self.one(past_modals if _personal(c.subject) else past_modals[:2])
            changes.pop("frequency", None)
        others = (c.subject, c.accusative, c.dative, c.target.nominal if c.target else None)
        vague = _indefinite(c.subject) or any(quantified(o) for o in others)
        if vague and "frequency" in changes:
            changes["frequency"] = OFTEN
        plain_tense = tense in (Tense.PRESENT, Tense.PAST, Tense.FUTURE)
        modal = changes.get("modal")
        if (
            plain_tense
            and modal not in (closed.MUST, closed.MAY)
            and "frequency" not in changes
            and not vague
            and self.chance(0.13)
        ):
            changes["negated"] = True
        elif c.verb.en in MANNERED and frame.name == "intr" and self.chance(0.4):
            manner = self.one(MANNERS)
            if manner.en != "together" or c.subject.plural:
                changes["manner"] = manner
        elif frame.name in ("intr", "tr") and c.verb.en in _PLACED and self.chance(0.5):
            changes["place"] = self.location_for(c.verb, c.subject)
        elif frame.name in ("intr", "dir") and self.chance(0.1):
            changes["place"] = self.company(c.subject)
        merged = changed(c, changes)
        time = merged.time
        if time and tense is not Tense.PROGRESSIVE and self.chance(0.4):
            return changed(merged, {"front": time})
        if merged.place and frame.name == "loc" and self.chance(0.06) and not merged.negated:
            return changed(merged, {"front": merged.place})
        if self.chance(0.06) and merged.subject is not closed.WHO:
            dynamic = tense is Tense.PAST and not c.verb.stative and not merged.negated
            return changed(
                merged, {"front": self.one((*OPINIONS, *TURNS) if dynamic else OPINIONS)}
            )
        return merged

    def company(self, subject: g.Nominal) -> PrepPhrase:
        return PrepPhrase(self.one((WITH, WITH, WITHOUT)), self.object(PERSON, subject))

    def copular(self, tense: Tense, subject: g.Nominal | None = None) -> Clause:
        """X is big; X is a doctor; X is bigger than Y."""
        noun: Noun | None = None
        if subject is None:
            wanted = self._focus is not None and not self._focused
            if self.chance(0.08 if wanted else 0.25):
                subject = self.one(PRONOUNS) if self.chance(0.75) else g.Name(self.one(NAMES))
            else:
                kinds = self.one(((*PERSON, "animal"), THINGS, ("idea", "event", "text")))
                subject = self.phrase(kinds, plain=True, bare=True)
        if isinstance(subject, NounPhrase):
            noun = subject.noun
        elif self.chance(0.35) and not subject.plural:
            # German has another word for a woman of most professions.
            woman = subject is closed.SHE or (isinstance(subject, g.Name) and subject.text in WOMEN)
            role = NounPhrase(self.noun(("nurse",) if woman else ("job",)), closed.A)
            if role.noun.gender == "f" and not woman:
                raise Discard
            if self.chance(0.5):
                role = NounPhrase(role.noun, closed.A, self.epithets(role.noun, 1.0))
            return Clause(subject, closed.BE, tense, predicate=g.Role(role))
        adjective = self.adjective(noun or _PROTOTYPE, predicative=True)
        if adjective is None:
            raise Discard
        quality = self.quality(adjective, noun, subject)
        verb = closed.BE
        if adjective.en in _CHANGING and not quality.than and not quality.equal_to:
            verb = self.weighted(((closed.BE, 70), (closed.BECOME, 12), (closed.LOOK, 14)))
        return Clause(subject, verb, tense, predicate=quality)

    def quality(self, adjective: Adjective, noun: Noun | None, subject: g.Nominal) -> g.Quality:
        comparable = noun is not None and isinstance(subject, NounPhrase) and subject.definite
        if comparable and noun and self.chance(0.3):
            other = self.phrase((noun.kind,), plain=True, bare=True)
            if not matches(other.noun, adjective.kinds):
                raise Discard
            if adjective.comparative and self.chance(0.7):
                return g.Quality(adjective, than=other)
            return g.Quality(adjective, equal_to=other)
        return g.Quality(adjective, self.one(DEGREES) if self.chance(0.35) else None)

    def tense(self) -> Tense:
        return self.weighted(_TENSE_WEIGHTS)
