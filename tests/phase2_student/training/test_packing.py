"""Samples in one row without padding: the same states and gradients as in padded rows."""

import json

import pytest
import torch
from run_cases import run
from torch.nn.functional import scaled_dot_product_attention

from firstsight.data.samples import load_samples
from firstsight.models.loading import backbone_states, load_student
from firstsight.pair import load_prompter
from firstsight.prompting import answer_index, collate
from firstsight.recipe import load_recipe
from phase2_student.training.packing import can_pack, packed_states


@pytest.fixture
def student(world):
    recipe = load_recipe(world / "recipe.yaml")
    return load_student(world / "models" / "student", recipe.student, dtype=torch.float32)


@pytest.fixture
def batch(world):
    """Four samples of unlike length, one of them with several images; padded."""
    recipe = load_recipe(world / "recipe.yaml")
    prompter = load_prompter(world / "models" / "student", recipe.student, max_length=512)
    samples = load_samples(recipe.source("train"))
    many = next(sample for sample in samples if len(sample.images) > 1)
    encoded = [prompter.encode(sample) for sample in [many, *samples[:3]]]
    assert len({len(sample.input_ids) for sample in encoded}) > 2
    return collate(encoded, prompter.tokenizer.pad_token_id), *answer_index(encoded)


def states_and_gradients(student, function, batch):
    inputs, rows, columns = batch
    student.zero_grad()
    states = function(student, inputs, rows, columns)
    states.square().sum().backward()
    return states.detach(), {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def assert_like_padded(student, batch):
    expected, expected_gradients = states_and_gradients(student, backbone_states, batch)
    states, gradients = states_and_gradients(student, packed_states, batch)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max()
        assert (gradient - expected_gradients[name]).abs().max() <= 1e-4 * scale + 1e-6, name


def test_a_block_diagonal_mask_gives_what_padding_gives(student, batch):
    assert can_pack(student)
    assert_like_padded(student, batch)


def test_samples_without_images_are_packed_as_well(student):
    lengths = (9, 4, 17)
    inputs = {"input_ids": torch.randint(5, 200, (3, 17), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = (torch.arange(17) < torch.tensor(lengths)[:, None]).long()
    inputs["mm_token_type_ids"] = torch.zeros(3, 17, dtype=torch.int64)
    rows, columns = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([7, 8, 3, 0, 16])
    assert_like_padded(student, (inputs, rows, columns))


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, softmax_scale=None, **_):
    """What flash_attn_varlen_func computes, in plain torch: each sequence by itself. [S, heads, head size]"""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    varlen.calls.append(cu_seqlens_q.diff().tolist())
    parts = []
    for start, end in zip(cu_seqlens_q.tolist(), cu_seqlens_q[1:].tolist(), strict=False):
        one = [part[None, start:end].transpose(1, 2) for part in (q, k, v)]
        out = scaled_dot_product_attention(*one, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        parts.append(out.transpose(1, 2)[0])
    return torch.cat(parts)


def test_flash_attention_is_given_the_samples_apart(student, batch, monkeypatch):
    """The kernel needs a GPU; everything up to it is transformers' own code for FlashAttention 2."""
    import transformers.modeling_flash_attention_utils as flash

    expected, expected_gradients = states_and_gradients(student, backbone_states, batch)
    varlen.calls = []

    def options(**given):
        kept = {name: given[name] for name in ("max_seqlen_q", "max_seqlen_k", "softmax_scale") if name in given}
        return {**kept, "causal": given["is_causal"]}

    monkeypatch.setattr(
        flash, "lazy_import_flash_attention", lambda *_, **__: ((None, varlen, None, None, None), (options, None))
    )
    for config in (student.config, student.config.text_config, student.config.vision_config):
        config._attn_implementation_internal = "flash_attention_2"
    states, gradients = states_and_gradients(student, packed_states, batch)
    lengths = batch[0]["attention_mask"].sum(dim=1).tolist()
    assert varlen.calls[-student.config.text_config.num_hidden_layers :] == [lengths] * (
        student.config.text_config.num_hidden_layers
    )
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).abs().max() <= 1e-4 * expected_gradients[name].abs().max() + 1e-6


def test_a_padding_free_run_has_the_losses_of_a_padded_one(world):
    losses = []
    for name, free in (("padded", "false"), ("packed", "true")):
        command = ["train", "--config", world / "recipe.yaml", "--no-progress", "--set", f"student.padding_free={free}"]
        result = run(*command, "--set", "training.num_train_epochs=1", "--set", f"training.output_dir=runs/{name}")
        assert result.exit_code == 0, result.output
        (row,) = json.loads((world / "runs" / name / "training_history.json").read_text())
        losses.append([row["train"]["loss"], row["validation"]["loss"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
