"""Proposed rules are right on renamed copies of real models, and say so where they may not be."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from renaming import MODELS, Renamed, light, make_model, mixed, styled
from safetensors.torch import save_file
from styles import STYLES
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPTNeoXConfig,
    GPTNeoXModel,
    MarianConfig,
    MarianMTModel,
)

from fusion.checkpoints.directory import open_source
from fusion.keymap import KeyMap, Pattern
from fusion.proposals import Proposal, suggest, tensors_of
from fusion.warmstart import plan, warm_start

CASES_PER_MODEL = 10
OPAQUE = ("opaque", "opaque parts")


def propose(module: nn.Module, path: Path) -> Proposal:
    infos, ties = tensors_of(module)
    return suggest(infos, open_source(path).tensors(), ties)


def zeroed(kind: str, seed: int) -> nn.Module:
    model = make_model(kind, seed)
    with torch.no_grad():
        for tensor in model.state_dict(keep_vars=True).values():
            tensor.zero_()
    return model


def wrong_ones(module: nn.Module, path: Path, proposal: Proposal, wanted: nn.Module) -> list[str]:
    """Names whose values are not bit for bit those of the original, after a real warm start."""
    told = {"rules": proposal.rules, "ignore": proposal.ignore}
    if plan(module, path, **told).problems:
        return list(module.state_dict())
    warm_start(module, path, **told)
    state = module.state_dict()
    return [n for n, t in wanted.state_dict().items() if not torch.equal(t, state[n])]


def stated_as_certain(proposal: Proposal, names: list[str]) -> list[str]:
    """Those of the names that a rule claims without any doubt."""
    sure = [s for s in proposal.suggestions if s.confidence == "high" and not s.undecided]
    return [n for n in names if any(Pattern(one.target).match(n) is not None for one in sure)]


def renamed_copy(kind: str, case: int) -> tuple[nn.Module, Renamed, int]:
    """Every third case keeps the real words; the others are written in another vocabulary."""
    seed = 1000 * list(MODELS).index(kind) + case
    rng = random.Random(seed)
    model = make_model(kind, seed)
    if case % 3 == 0:
        return model, light(kind, model, rng), seed
    style = rng.choice([*STYLES, mixed(rng), mixed(rng)])
    return model, styled(kind, model, style, rng), seed


def written(copy: Renamed, path: Path, alphabetical: bool = False) -> Path:
    """A real file: torch's keeps the order, safetensors' has its own."""
    if alphabetical:
        save_file(copy.tensors, path / "weights.safetensors")
        return path / "weights.safetensors"
    torch.save(copy.tensors, path / "weights.pt")
    return path / "weights.pt"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """All generated cases, proposed and loaded once."""
    found: dict[str, list[Any]] = {}
    for kind in MODELS:
        for case in range(CASES_PER_MODEL):
            model, copy, seed = renamed_copy(kind, case)
            alphabetical = case % 4 == 3 and not copy.how.startswith(OPAQUE)
            path = written(copy, tmp_path_factory.mktemp("copy"), alphabetical)
            target = zeroed(kind, seed)
            proposal = propose(target, path)
            bad = wrong_ones(target, path, proposal, model)
            found[f"{kind} {case} ({copy.how})"] = [proposal, bad, target, path]
    return found


def test_nine_of_ten_renamed_copies_load_bit_for_bit_by_the_proposed_rules(
    counted: dict[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {name: bad for name, (_, bad, *_) in counted.items() if bad}
    certain = sum(proposal.is_certain for proposal, *_ in counted.values())
    with capsys.disabled():
        right = len(counted) - len(failed)
        print(f"\n{right} of {len(counted)} renamed copies in full; {certain} stated as certain")
        for name, bad in failed.items():
            print(f"  not right: {name}: {len(bad)} tensors")
    assert len(counted) == 60
    assert len(failed) <= len(counted) // 10


def test_no_wrong_rule_is_stated_as_certain(counted: dict[str, list[Any]]) -> None:
    for name, (proposal, bad, *_) in counted.items():
        assert stated_as_certain(proposal, bad) == [], name
        assert not (bad and proposal.is_certain), name


def test_every_tensor_of_both_sides_is_accounted_for(counted: dict[str, list[Any]]) -> None:
    for name, (proposal, _, target, path) in counted.items():
        infos, ties = tensors_of(target)
        keymap = KeyMap.parse(proposal.rules)
        used: set[str] = set()
        said = {*proposal.kept, *proposal.unmatched_targets}
        for tensor in infos:
            hit = keymap.rule_of(tensor)
            used |= {*hit[1]} if hit is not None else {tensor} & {*proposal.kept}
            said |= {tensor} if hit is not None else set()
        tied = {n for names in ties for n in names if said & {*names}}
        assert said | tied == set(infos), name
        assert used | {*proposal.unmatched_sources} == set(open_source(path).tensors()), name
        assert used.isdisjoint(proposal.unmatched_sources), name


def test_the_text_to_paste_says_the_same_rules(counted: dict[str, list[Any]]) -> None:
    for name, (proposal, *_) in counted.items():
        pasted = yaml.safe_load(proposal.to_yaml()) or {}
        assert pasted.get("rules", {}) == proposal.rules, name
        assert pasted.get("ignore", {}) == proposal.ignore, name


@pytest.mark.parametrize("kind", MODELS)
def test_words_without_meaning_in_alphabetical_order_are_never_certain(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind, 7)
    style = next(style for style in STYLES if style.name == "opaque")
    copy = styled(kind, model, style, random.Random(7))
    path = written(copy, tmp_path, alphabetical=True)
    proposal = propose(zeroed(kind, 7), path)
    bad = wrong_ones(zeroed(kind, 7), path, proposal, model)
    assert stated_as_certain(proposal, bad) == []
    doubts = " ".join(doubt for one in proposal.suggestions for doubt in one.undecided)
    assert "names that do not tell which is which; taken in the file's order, which is" in doubts


# Small nets whose rules can be read.


def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def stack(count: int, width: int = 4, inner: int = 6) -> nn.Module:
    layer = lambda: nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})  # noqa: E731
    return nn.ModuleDict({"layers": nn.ModuleList(layer() for _ in range(count))})


def test_new_modules_and_other_names_are_told_apart(tmp_path: Path) -> None:
    old = {"layer_a": nn.Linear(10, 3), "layer_b": nn.Linear(3, 3), "out": nn.Linear(3, 1)}
    path = saved(tmp_path, nn.ModuleDict(old).state_dict())
    new = nn.ModuleDict({"fc1": nn.Linear(10, 3), "fc2": nn.Linear(3, 3), "fc5": nn.Linear(3, 1)})
    proposal = propose(new, path)
    assert proposal.rules == {
        "fc1.{p}": "layer_a.{p}",
        "fc2.{p}": "layer_b.{p}",
        "fc5.{p}": "out.{p}",
    }
    assert not proposal.is_certain
    new["fc3"] = nn.Linear(3, 3)
    larger = propose(new, path)
    assert set(larger.unmatched_targets) == {"fc3.weight", "fc3.bias"}
    rule = next(one for one in larger.suggestions if one.target == "fc2.{p}")
    assert rule.confidence == "low" and "fc2.weight and fc3.weight" in rule.undecided[0]


def test_a_prefix_is_one_rule_and_certain(tmp_path: Path) -> None:
    net = stack(3)
    path = saved(tmp_path, {f"module.{n}": t for n, t in net.state_dict().items()})
    proposal = propose(net, path)
    assert proposal.rules == {"{p*}": "module.{p*}"}
    assert proposal.is_certain
    assert proposal.to_yaml() == (
        "rules:\n  # confidence high (names, shapes); 12 tensors\n  '{p*}': module.{p*}\n"
    )


def test_names_that_are_kept_need_no_rule(tmp_path: Path) -> None:
    net = stack(2)
    proposal = propose(net, saved(tmp_path, net.state_dict()))
    assert proposal.rules == {} and len(proposal.kept) == 8 and proposal.is_certain


def test_layers_that_count_from_one_are_renumbered(tmp_path: Path) -> None:
    net = stack(3)
    tensors = {f"enc.{int(n.split('.')[1]) + 1}.{n.split('.', 2)[2]}": t
               for n, t in net.state_dict().items()}  # fmt: skip
    proposal = propose(net, saved(tmp_path, tensors))
    assert proposal.rules == {
        "layers.{i}.{p*}": {"from": "enc.{i}.{p*}", "where": {"i": [1, 2, 3]}}
    } or proposal.rules == {
        "layers.{i}.{q}.{p}": {"from": "enc.{i}.{q}.{p}", "where": {"i": [1, 2, 3]}}
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "where", "how"),
    [
        (3, 6, [0, 2, 4], "one in 2 is taken"),
        (2, 3, [0, 2], "evenly spaced ones are taken"),
        (4, 2, [0, 1, 1, 1], "the last one is repeated"),
    ],
)
def test_another_number_of_layers_is_proposed_with_a_doubt(
    ours: int, theirs: int, where: list[int], how: str, tmp_path: Path
) -> None:
    old, new = stack(theirs), stack(ours)
    path = saved(tmp_path, {f"old.{n}": t for n, t in old.state_dict().items()})
    proposal = propose(new, path)
    assert {one.confidence for one in proposal.suggestions} == {"low"}
    assert all(how in one.undecided[0] for one in proposal.suggestions)
    warm_start(new, path, rules=proposal.rules, ignore=proposal.ignore)
    for here, there in enumerate(where):
        for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            taken = new.get_parameter(f"layers.{here}.{name}")
            assert torch.equal(taken, old.get_parameter(f"layers.{there}.{name}"))


def test_square_matrices_with_no_other_beside_them_may_be_transposed(tmp_path: Path) -> None:
    net = stack(2, width=4, inner=4)
    path = saved(tmp_path, {f"net.{n}": t for n, t in net.state_dict().items()})
    doubts = [doubt for one in propose(net, path).suggestions for doubt in one.undecided]
    assert any(doubt.startswith("may be transposed; the shapes fit both ways") for doubt in doubts)


def test_a_square_matrix_follows_the_layout_of_its_neighbours(tmp_path: Path) -> None:
    net = stack(2)
    for layer in net["layers"]:
        layer["q_proj"] = nn.Linear(4, 4)
    turned = {n: t.T if t.dim() == 2 else t for n, t in net.state_dict().items()}
    proposal = propose(net, saved(tmp_path, turned))
    rule = next(one for one in proposal.suggestions if "q_proj" in one.target)
    assert rule.source == {"from": "layers.{i}.q_proj.weight", "ops": ["transpose"]}
    assert "layout of the matrices that are not square" in rule.rests_on


@pytest.mark.parametrize(
    ("word", "doubt"),
    [
        ("in_proj", None),
        ("query_key_value", "some toolkits store it head by head"),
    ],
)
def test_the_order_within_a_packed_projection_is_known_or_doubted(
    word: str, doubt: str | None, tmp_path: Path
) -> None:
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    sizes = [(4, 4)] * 4 + [(4, 6), (6, 4)]
    layer = lambda: nn.ModuleDict({n: nn.Linear(*s) for n, s in zip(names, sizes, strict=True)})  # noqa: E731
    net = nn.ModuleDict({"layers": nn.ModuleList([layer(), layer()])})
    tensors: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        if "q_proj" in name:
            parts = [net.state_dict()[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            tensors[name.replace("q_proj", f"attn.{word}")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            tensors[name] = tensor
    proposal = propose(net, saved(tmp_path, tensors))
    packed = [one for one in proposal.suggestions if "split" in str(one.source)]
    assert len(packed) == 3 and {one.covers for one in packed} == {4}
    for one in packed:
        assert bool(one.undecided) == (doubt is not None)
        assert doubt is None or doubt in one.undecided[0]


def test_a_head_that_the_module_lacks_is_left_out_by_a_proposed_pattern(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=21, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=18,
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(tmp_path)
    encoder = BertModel(config, add_pooling_layer=False)
    proposal = propose(encoder, tmp_path)
    assert proposal.rules == {"{p*}": "bert.{p*}"}
    assert list(proposal.ignore) == ["classifier.{rest*}"]
    assert set(proposal.unmatched_sources) == {"classifier.weight", "classifier.bias"}
    assert plan(encoder, tmp_path, rules=proposal.rules, ignore=proposal.ignore).problems == ()


def small(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 21, "max_position_embeddings": 18, **more}


def test_a_relative_of_bert_is_read_and_its_other_head_is_not_taken_for_the_pooler(
    tmp_path: Path,
) -> None:
    sizes = small(dim=8, n_layers=2, n_heads=2, hidden_dim=12)
    DistilBertForMaskedLM(DistilBertConfig(**sizes)).save_pretrained(tmp_path)
    sizes = small(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    proposal = propose(BertModel(BertConfig(**sizes)), tmp_path)
    layers = {t: s for t, s in proposal.rules.items() if t.startswith("encoder")}
    there = "distilbert.transformer.layer.{i}."
    assert layers == {
        "encoder.layer.{i}.attention.self.query.{p}": there + "attention.q_lin.{p}",
        "encoder.layer.{i}.attention.self.key.{p}": there + "attention.k_lin.{p}",
        "encoder.layer.{i}.attention.self.value.{p}": there + "attention.v_lin.{p}",
        "encoder.layer.{i}.attention.output.dense.{p}": there + "attention.out_lin.{p}",
        "encoder.layer.{i}.attention.output.LayerNorm.{p}": there + "sa_layer_norm.{p}",
        "encoder.layer.{i}.intermediate.dense.{p}": there + "ffn.lin1.{p}",
        "encoder.layer.{i}.output.dense.{p}": there + "ffn.lin2.{p}",
        "encoder.layer.{i}.output.LayerNorm.{p}": there + "output_layer_norm.{p}",
    }
    assert "embeddings.token_type_embeddings.weight" in proposal.unmatched_targets
    assert stated_as_certain(proposal, ["pooler.dense.weight"]) == []


def test_packed_projections_of_other_conventions_are_doubted(tmp_path: Path) -> None:
    sizes = small(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    GPTNeoXModel(GPTNeoXConfig(**sizes)).save_pretrained(tmp_path)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
    packed = [one for one in propose(net, tmp_path).suggestions if "in_proj" in one.target]
    assert packed and {one.confidence for one in packed} == {"low"}
    assert all("head by head" in one.undecided[0] for one in packed)


def test_a_cast_that_loses_precision_is_written_out_and_doubted(tmp_path: Path) -> None:
    net = stack(2).half()
    path = saved(tmp_path, {f"a.{n}": t.float() for n, t in net.state_dict().items()})
    proposal = propose(net, path)
    assert all(one.source["ops"] == [{"cast": "float16"}] for one in proposal.suggestions)
    assert "loses precision" in proposal.suggestions[0].undecided[0]
    assert plan(net, path, rules=proposal.rules).problems == ()


def test_a_table_with_other_rows_names_what_may_help(tmp_path: Path) -> None:
    net = nn.ModuleDict({"emb": nn.Embedding(9, 4), "fc": nn.Linear(4, 3)})
    tensors = {"tok.emb.weight": torch.zeros(7, 4), "fc.weight": torch.zeros(3, 4),
               "fc.bias": torch.zeros(3)}  # fmt: skip
    proposal = propose(net, saved(tmp_path, tensors))
    why = proposal.unmatched_targets["emb.weight"]
    assert why == "9 rows here; tok.emb.weight has 7 (vocabulary or positions may help)"
    assert "#   emb.weight: 9 rows here" in proposal.to_yaml()


def test_a_file_that_fairseq_wrote_is_split_for_marian() -> None:
    folder = os.environ.get("FUSION_CHECKPOINTS")
    if folder is None:
        pytest.skip("FUSION_CHECKPOINTS names no folder of checkpoints")
    path = Path(folder) / "fairseq-written-tiny" / "checkpoint.pt"
    config = MarianConfig(
        vocab_size=496, d_model=32, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1, decoder_start_token_id=2,
        eos_token_id=2, bos_token_id=0, forced_eos_token_id=2,
    )  # fmt: skip
    model = MarianMTModel(config)
    proposal = propose(model, path)
    source = open_source(path)
    computed = {"final_logits_bias", "model.encoder.embed_positions.weight",
                "model.decoder.embed_positions.weight"}  # fmt: skip
    assert set(proposal.unmatched_targets) == computed
    assert len(proposal.suggestions) == 20
    assert all(one.confidence == "high" and not one.undecided for one in proposal.suggestions)
    warm_start(
        model, path, rules=proposal.rules, ignore=proposal.ignore,
        init=dict.fromkeys(computed, "zeros"),
    )  # fmt: skip
    state = model.state_dict()
    blocks = ["encoder.layers.1.self_attn", "decoder.layers.1.self_attn"]
    for block in [*blocks, "decoder.layers.1.encoder_attn"]:
        packed = source.read(f"{block}.in_proj_weight")
        for index, part in enumerate("qkv"):
            taken = state[f"model.{block}.{part}_proj.weight"]
            assert torch.equal(taken, packed[32 * index : 32 * (index + 1)])
    assert torch.equal(
        state["model.decoder.layers.2.fc1.bias"], source.read("decoder.layers.2.fc1.bias")
    )
    assert torch.equal(state["lm_head.weight"], source.read("decoder.embed_tokens.weight"))
