"""What the ranks of a job compare before the first step."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest

from configs.schema import FinetuneConfig, PretrainConfig
from utils.config import keys_affecting, knobs
from utils.run.agreement import MAY_DIFFER, disagreement, facts_of_files, facts_of_start, file_fingerprint


def facts(config):
    return facts_of_start(config, device="cpu", precision="torch.float32")


@pytest.mark.parametrize("config_class", [PretrainConfig, FinetuneConfig])
def test_every_knob_is_compared_but_those_of_a_machine_or_of_rank_0(config_class):
    known = set(knobs(config_class))
    assert set(knobs(FinetuneConfig)) >= MAY_DIFFER
    assert MAY_DIFFER & known <= keys_affecting(config_class, "nothing")
    compared = facts(config_class()).keys()
    assert compared & known == known - MAY_DIFFER
    assert "logging.every_steps" in compared  # an exchange of all ranks
    assert {"torch", "torchvision", "numpy", "code (hash of its files)", "device", "precision", "run.seed"} <= compared


def test_weights_for_some_ranks_alone_are_seen_and_another_place_of_theirs_is_none():
    def of(weights):
        return facts(replace(PretrainConfig(), run=replace(PretrainConfig().run, weights=weights)))

    assert disagreement([("a", of("/here/last.pt")), ("b", of("/there/last.pt"))]) is None
    assert "run.weights given: False, rank 0 has True" in disagreement([("a", of("last.pt")), ("b", of(None))])


def test_like_facts_are_no_disagreement():
    assert disagreement([("a", {"x": [1], "y": None}), ("b", {"y": None, "x": [1]})]) is None


def test_rank_host_and_what_differs_are_named():
    alike = {"data.mean": [0.4], "train.images": 33, "train.classes": ["ant", "bee"]}
    ranks = [("first", alike), ("second", alike), ("third", alike | {"train.images": 32}), ("third", {})]
    message = disagreement(ranks)
    assert message.startswith(
        "rank 2 on host third (and 1 more ranks) is not like rank 0 on host first: train.images: 32, rank 0 has 33."
    )
    assert "data.mean" not in message


@pytest.mark.parametrize(
    ("value", "expected", "words"),
    [
        (["ant", "bee"], ["ant", "cat"], "number 1 is bee, rank 0 has cat"),
        (["ant"], ["ant", "cat"], "1 entries, rank 0 has 2"),
        ("x" * 200, "y", "x" * 40 + "…, rank 0 has y"),
        (1, 1.5, "1, rank 0 has 1.5"),
    ],
)
def test_differences_are_short(value, expected, words):
    assert f"fact: {words}." in disagreement([("a", {"fact": expected}), ("b", {"fact": value})])


def test_a_fact_that_one_rank_alone_has_is_a_difference():
    assert "fact: 1, rank 0 has -" in disagreement([("a", {}), ("b", {"fact": 1})])


def test_of_many_differences_four_are_listed():
    many = {f"knob{number}": number for number in range(9)}
    message = disagreement([("a", many), ("b", dict.fromkeys(many, -1))])
    assert message.count("rank 0 has") == 4 and "and 5 more" in message


def test_files_are_compared_by_their_bytes(tmp_path):
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    one.write_bytes(bytes(5000) + b"a")
    other.write_bytes(bytes(5000) + b"a")
    assert file_fingerprint(one) == file_fingerprint(other)
    other.write_bytes(bytes(5000) + b"b")
    assert file_fingerprint(one) != file_fingerprint(other)
    assert file_fingerprint(None) is None
    assert file_fingerprint("torchvision:IMAGENET1K_V1") == "no file torchvision:IMAGENET1K_V1"
    identity = {"images": 3, "fingerprint": "f"}
    assert facts_of_files({"train": identity, "val": identity}, str(one), None) == {
        "train.images": 3, "train.fingerprint": "f", "val.images": 3, "val.fingerprint": "f",
        "run.weights": file_fingerprint(one), "checkpoint to resume": None,
    }  # fmt: skip
    described = facts_of_files({}, str(one), None)
    (tmp_path / "one.pt.json").write_text("{}")
    assert disagreement([("a", described), ("b", facts_of_files({}, str(one), None))])  # one machine lacks the JSON
    os.remove(other)
    assert disagreement([("a", facts_of_files({}, None, one)), ("b", facts_of_files({}, None, other))])


def test_a_new_knob_is_compared_unless_somebody_says_otherwise():
    """The list names what may differ, so that forgetting a knob makes a check too strict and never too lax."""
    sections = {section.name for section in fields(FinetuneConfig)}
    assert {key.partition(".")[0] for key in MAY_DIFFER} <= sections
