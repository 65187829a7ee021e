"""The ledger is total, survives its file, and counts what is shared once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import LedgerError
from fusion.ledger import Entry, Ledger, Origin

TEXT = st.text(max_size=8)
MAYBE = st.none() | TEXT
ENTRIES = st.builds(
    Entry,
    name=st.text(min_size=1, max_size=8),
    kind=st.sampled_from(["parameter", "buffer"]),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "bfloat16", "int64"]),
    origin=st.sampled_from(Origin),
    frozen=st.booleans(),
    source=MAYBE,
    keys=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    operations=st.lists(TEXT, max_size=2).map(tuple),
    digest=MAYBE,
    rule=MAYBE,
    seed=st.none() | st.integers(0, 2**63),
    tied_to=MAYBE,
    saved_digest=MAYBE,
)
LEDGERS = st.builds(
    lambda entries, ignored: Ledger({entry.name: entry for entry in entries}, ignored),
    st.lists(ENTRIES, max_size=5),
    st.dictionaries(TEXT, TEXT, max_size=3),
)
WEIGHT = Entry("a.weight", "parameter", (2, 3), "float32", Origin.LOADED, source="s", keys=("w",))
TIED = Entry("b.weight", "parameter", (2, 3), "float32", Origin.TIED, tied_to="a.weight")
BIAS = Entry("c.bias", "parameter", (5,), "float32", Origin.INITIALISED, rule="zeros", seed=0)
FROZEN = Entry("d.scale", "parameter", (), "float32", Origin.LOADED, frozen=True)
BUFFER = Entry("e.table", "buffer", (100,), "int64", Origin.COMPUTED)


def small() -> Ledger:
    ledger = Ledger(ignored={"pooler": "not used"})
    for entry in (WEIGHT, TIED, BIAS, FROZEN, BUFFER):
        ledger.add(entry)
    return ledger


@given(LEDGERS)
def test_a_ledger_survives_its_file(ledger: Ledger) -> None:
    text = ledger.to_json()
    assert Ledger.from_json(text, "ledger.json") == ledger
    assert list(Ledger.from_json(text, "ledger.json").entries) == list(ledger.entries)
    assert Ledger.from_json(text, "ledger.json").to_json() == text


def test_the_file_has_one_entry_per_line_and_says_nothing_of_what_is_absent() -> None:
    lines = small().to_json().splitlines()
    rows = [json.loads(line.strip().rstrip(",")) for line in lines if line.startswith("    {")]
    assert [row["name"] for row in rows] == [entry.name for entry in small()]
    assert rows[2]["seed"] == 0
    assert "digest" not in rows[2]
    assert rows[3].get("shape", []) == []


def test_a_tensor_that_is_accounted_for_twice_is_an_error() -> None:
    ledger = small()
    with pytest.raises(LedgerError, match=r"^a\.weight: accounted for twice$"):
        ledger.add(WEIGHT)
    with pytest.raises(LedgerError, match=r"^a\.weight: accounted for twice$"):
        ledger.merge(small())


def test_merging_takes_in_entries_and_what_was_ignored() -> None:
    ledger = small()
    ledger.merge(small().prefixed("encoders.bert."))
    assert len(ledger) == 10
    assert ledger["encoders.bert.c.bias"].seed == 0
    assert ledger.ignored == {"pooler": "not used", "encoders.bert.pooler": "not used"}


def test_a_ledger_that_became_a_child_has_its_ties_inside_itself() -> None:
    child = small().prefixed("host.")
    assert child["host.b.weight"].tied_to == "host.a.weight"
    assert child["host.a.weight"].tied_to is None
    assert child["host.a.weight"].key == "w"
    assert all(e.tied_to is None or e.tied_to in child.entries for e in child)
    assert small().prefixed("") == small()


@given(LEDGERS, TEXT, TEXT)
def test_prefixes_add_up(ledger: Ledger, outer: str, inner: str) -> None:
    assert ledger.prefixed(inner).prefixed(outer) == ledger.prefixed(outer + inner)


def test_a_part_keeps_its_names_and_is_independent_of_the_whole() -> None:
    whole = small().prefixed("host.")
    whole.merge(small().prefixed("hosts."))
    part = whole.part("host.")
    assert list(part.entries) == [f"host.{entry.name}" for entry in small()]
    part.ignored["more"] = "reason"
    assert "more" not in whole.ignored


def test_tied_parameters_count_once_and_buffers_not_at_all() -> None:
    ledger = small()
    assert ledger.parameters() == (6 + 5, 1)
    assert ledger.parameters([TIED, BUFFER]) == (0, 0)
    assert ledger.parameters([replace(WEIGHT, frozen=True)]) == (0, 6)
    assert ledger.counts() == {"loaded": 2, "tied": 1, "initialised": 1, "computed": 1}


def test_saved_digests_are_recorded_beside_those_of_composition() -> None:
    ledger = Ledger({"a.weight": replace(WEIGHT, digest="old"), "c.bias": BIAS})
    saved = ledger.with_saved_digests({"a.weight": "new"})
    assert (saved["a.weight"].digest, saved["a.weight"].saved_digest) == ("old", "new")
    assert saved["c.bias"] == BIAS
    assert ledger["a.weight"].saved_digest is None


ROW = '{"name": "a", "kind": "parameter", "shape": [1], "dtype": "float32", "origin": "loaded"}'


def test_the_smallest_file_is_read() -> None:
    text = f'{{"format": 2, "ignored": {{}}, "entries": [{ROW}]}}'
    assert Ledger.from_json(text, "x")["a"].shape == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a ledger: JSONDecodeError: "),
        ("[]", "not a ledger: TypeError: "),
        ("{}", "not a ledger: KeyError: 'format'"),
        ('{"format": 1}', "ledger format 1; this version reads 2"),
        ('{"format": 2}', "not a ledger: KeyError: 'ignored'"),
        ('{"format": 2, "ignored": {}, "entries": ["a"]}', "not a ledger: AttributeError: "),
        ('{"format": 2, "ignored": {}, "entries": 3}', "not a ledger: TypeError: "),
        ('{"format": 2, "ignored": [3], "entries": []}', "not a ledger: TypeError: "),
        (f'{{"format": 2, "ignored": {{}}, "entries": [{ROW}, {ROW}]}}', "a: accounted for twice"),
        (
            f'{{"format": 2, "ignored": {{}}, "entries": [{ROW.replace("loaded", "found")}]}}',
            "not a ledger: ValueError: 'found' is not a valid Origin",
        ),
        (
            f'{{"format": 2, "ignored": {{}}, "entries": [{ROW.replace("[1]", """["x"]""")}]}}',
            "not a ledger: ValueError: ",
        ),
        (
            f'{{"format": 2, "ignored": {{}}, "entries": [{ROW.replace("dtype", "type")}]}}',
            "not a ledger: TypeError: ",
        ),
    ],
)
def test_a_file_that_is_no_ledger_is_one_message(text: str, message: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger.from_json(text, "dir/ledger.json")
    assert str(caught.value).startswith(f"dir/ledger.json: {message}")
