"""Secrets are refused in a recipe, by the name of the key or by their shape, and nothing shows them."""

import json

import pytest
import yaml
from click.testing import CliRunner

from firstsight.errors import RecipeError
from firstsight.recipe import load_recipe
from firstsight.secrets import masked, masked_text, secret_places
from phase2_student.cli import main

HF = "hf_" + "aBcD1234" * 4
SECRETS = {
    "training: {hub_token: abc}": "training.hub_token",
    "training: {deepspeed: {comet: {apiKey: abc}}}": "training.deepspeed.comet.apiKey",
    "training: {fsdp_config: {db-password: abc}}": "training.fsdp_config.db-password",
    "training: {fsdp_config: {secret_access_key: abc}}": "training.fsdp_config.secret_access_key",
    f"training: {{run_name: run of {HF}}}": "training.run_name",
    f"training: {{report_to: [wandb, {HF}]}}": "training.report_to[1]",
    "cache: {path: 's3://me:pass@bucket/cache'}": "cache.path",
    "cache: {path: 'az://c/x?sv=1&sig=abc%3D'}": "cache.path",
    f"teacher: {{model: {HF}}}": "teacher.model",
    "training: {run_name: AKIAABCDEFGHIJKLMNOP}": "training.run_name",
    f"data: {{system_prompt: 'sk-{'a1' * 15}'}}": "data.system_prompt",
}


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_a_recipe_is_refused_by_its_place_and_not_shown(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert f"{SECRETS[text]}: looks like a secret" in str(refused.value)
    assert not any(each in str(refused.value) for each in (HF, "abc", "pass@", "AKIA", "a1a1"))
    assert "***" in yaml.safe_dump(masked(yaml.safe_load(text)))
    assert not list(secret_places(masked(yaml.safe_load(text)))) or "***" in str(masked(yaml.safe_load(text)))


@pytest.mark.parametrize(
    "text",
    [
        "cache: {generate_max_tokens: 64}",
        "teacher: {batch_tokens: 4096}",
        "training: {include_num_input_tokens_seen: all, seed: 3}",
        "data: {system_prompt: 'What is the secret? Say the password, or 5 tokens.'}",
        "cache: {path: 's3://bucket/cache'}",
        "training: {run_name: hf_demo}",
        "training: {hub_token: null}",
        "teacher: {model: sk-learn/some-model}",
    ],
)
def test_what_is_no_secret_is_taken(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    load_recipe(path)


def test_overrides_are_masked_whatever_is_wrong_with_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{}", encoding="utf-8")
    for override in (f"hub_token={HF}", f"training.hub_token={HF}", "hub_token=short", f"training.run_name=[{HF}"):
        done = CliRunner().invoke(main, ["train", "--config", str(path), "--set", override])
        assert done.exit_code == 2, done.output
        assert HF not in done.output
        assert "short" not in done.output


def test_text_is_masked():
    assert masked_text(f"401 for {HF} at https://me:pw@host/x") == "401 for *** at https://***@host/x"
    assert masked_text("loss.alpha=0.5, T = 2") == "loss.alpha=0.5, T = 2"
    nested = {"a": [{"api_key": "x"}, "plain"], "tokens": 3, "token": ""}
    assert json.dumps(masked(nested)) == '{"a": [{"api_key": "***"}, "plain"], "tokens": 3, "token": ""}'
