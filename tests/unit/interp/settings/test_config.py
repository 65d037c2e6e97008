"""Settings: what is taken, and what is said about what is not."""

from pathlib import Path
from typing import Any

import pytest

from interp.config import (
    ConfigError,
    ModelConfig,
    ProfileConfig,
    RulesConfig,
    Section,
    SelectConfig,
    TraceConfig,
    nearest,
    parse_section,
    read_yaml,
)

SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "rules": RulesConfig,
    "trace": TraceConfig,
    "profile": ProfileConfig,
    "select": SelectConfig,
}


def test_read_yaml_gives_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "trace:\n  samples: 4\n  span: subject\nrules: {source: é.json}\n", encoding="utf-8"
    )
    assert read_yaml(path) == {
        "trace": {"samples": 4, "span": "subject"},
        "rules": {"source": "é.json"},
    }
    path.write_text("# nothing but a comment\n", encoding="utf-8")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration .*c.yaml: .*No such file"),
        (b"trace: [", "cannot read the configuration .*c.yaml: while parsing"),
        (b"- trace", "c.yaml holds list; a mapping of sections is needed"),
        (b"trace", "c.yaml holds str; a mapping"),
        (b"\xff\xfe\x00x", "cannot read the configuration .*c.yaml"),
    ],
)
def test_read_yaml_refuses_and_names_the_file(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_parse_section_fills_in_defaults() -> None:
    parsed = parse_section(
        "trace", TraceConfig, {"samples": 7, "positions": ["last", "number"], "window": None}
    )
    assert parsed == TraceConfig(samples=7, positions=("last", "number"))
    for name, section in SECTIONS.items():
        assert parse_section(name, section, None) == parse_section(name, section, {}) == section()


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("trace", "sample", "did you mean 'samples'?"),
        ("trace", "noize", "did you mean 'noise'?"),
        ("model", "nmae", "did you mean 'name'?"),
        ("select", "witdh", "did you mean 'width'?"),
        ("profile", "zzz", "valid are metric, lookup_roles, bootstrap, confidence, seed"),
    ],
)
def test_parse_section_names_the_nearest_valid_key(section: str, key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section(section, SECTIONS[section], {key: 1})
    assert str(caught.value) == f"unknown setting '{section}.{key}': {hint}"


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("trace", {"samples": 1}, "trace.samples = 1: Input should be greater than or equal to 2"),
        ("trace", {"samples": "many"}, "trace.samples = 'many': Input should be a valid integer"),
        ("trace", {"noise": "loud"}, "trace.noise = 'loud': String should match pattern"),
        (
            "trace",
            {"components": ["mpl"]},
            "trace.components.0 = 'mpl': Input should be 'resid', 'mlp', 'attn'",
        ),
        ("trace", {"positions": ["verb"]}, "trace.positions.* = 'verb': Input should be 'prefix'"),
        (
            "trace",
            {"metrics": ["loss"]},
            "trace.metrics.0 = 'loss': no such metric; valid are mean_log_prob",
        ),
        (
            "trace",
            {"metrics": ["logit_difference"]},
            "compare with the answer to a counterfactual prompt; set corrup",
        ),
        ("trace", {"metrics": ["negative_kl", "negative_kl"]}, "may each be named once"),
        ("trace", {"memory": "lots"}, "memory 'lots': a size such as 4GiB or 512MiB is needed"),
        ("profile", {"confidence": 1}, "profile.confidence = 1: Input should be less than 1"),
        (
            "profile",
            {"lookup_roles": {"last": 1}},
            "profile.lookup_roles = {'last': 1}: Input should be a valid tuple",
        ),
        ("select", {"width": 0}, "select.width = 0: Input should be greater than or equal to 1"),
        ("rules", {"limit": 0}, "rules.limit = 0: Input should be greater than or equal to 1"),
        (
            "rules",
            {"split": "dev"},
            "rules.split = 'dev': Input should be 'train', 'validation' or 'test'",
        ),
        (
            "trace",
            ["samples"],
            r"section 'trace' holds \['samples'\]; a mapping of settings is needed",
        ),
        ("trace", 3, "section 'trace' holds 3; a mapping of settings is needed"),
    ],
)
def test_parse_section_names_the_value_and_what_is_allowed(
    section: str, values: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section(section, SECTIONS[section], values)


def test_parse_section_tells_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section("trace", TraceConfig, {"sample": 4, "seed": "x"})
    assert "did you mean 'samples'?" in str(caught.value) and "trace.seed = 'x'" in str(
        caught.value
    )


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TraceConfig().samples = 3  # pyrefly: ignore[read-only]


def test_nearest_lists_everything_when_nothing_is_near() -> None:
    assert nearest("qqq", ["alpha", "beta"]) == "valid are alpha, beta"
    assert nearest("bete", ["alpha", "beta"]) == "did you mean 'beta'?"


@pytest.mark.parametrize(
    ("given", "rule"), [(0.1, "0.1"), (2, "2"), ("0.1", "0.1"), ("s3", "s3"), (1e-05, "0.00001")]
)
def test_a_noise_of_a_number_is_its_deviation(given: Any, rule: str) -> None:
    assert parse_section("trace", TraceConfig, {"noise": given}) == TraceConfig(noise=rule)
