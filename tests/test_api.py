"""The Python interface: tokens are the tokenizer's own, likelihoods are those of sampling, what does not fit is a sentence."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from students import write_run
from torch import Tensor
from torch.nn import functional as F

from refocus_ext import api
from refocus_ext.errors import UsageError


@pytest.fixture
def student(tmp_path: Path) -> api.Student:
    return api.load_student(write_run(tmp_path / "run"))


def test_a_students_tokens_follow_its_pyramid(student: api.Student, images: Tensor, tmp_path: Path) -> None:
    tokens = api.encode(student, images)
    tokenizer = api.load_tokenizer(tmp_path / "run" / "vae.pth")  # the run beside it has its pyramid
    assert all(torch.equal(a, b) for a, b in zip(tokens, api.encode(tokenizer, images), strict=True))
    plain = api.encode(student, images)
    assert all(torch.equal(a, b) for a, b in zip(plain, student.tokens(images), strict=True))


def test_prefixes_end_with_the_decoded_image(student: api.Student, images: Tensor) -> None:
    tokens = api.encode(student, images)
    shown = api.prefixes(student, images)
    assert len(shown) == 4 and torch.equal(shown[-1], api.decode(student, tokens))
    assert all(torch.equal(a, b) for a, b in zip(shown, api.prefixes(student, tokens), strict=True))
    assert float(shown[0].abs().max()) <= 1


def test_log_likelihood_is_that_of_every_token(student: api.Student, images: Tensor) -> None:
    result = api.log_likelihood(student, images, labels=[0, 1, 2])
    tokens = api.encode(student, images)
    student.var.cond_drop_rate = 0.0
    logits = student.var(torch.tensor([0, 1, 2]), student.vae.quantize.idxBl_to_var_input(tokens))
    log_BLV = F.log_softmax(logits.double(), dim=-1)
    expected = torch.zeros(3, dtype=torch.float64)
    for b in range(3):
        for position, token in enumerate(torch.cat(tokens, 1)[b].tolist()):
            expected[b] += log_BLV[b, position, token]
    torch.testing.assert_close(result.total_B, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.scale_BS.sum(1), result.total_B)


def test_the_probabilities_of_the_first_token_sum_to_one(student: api.Student, images: Tensor) -> None:
    rest = [idx[:1].expand(64, -1) for idx in api.encode(student, images)[1:]]
    every = [torch.arange(64)[:, None], *rest]
    assert float(api.log_likelihood(student, every, 3).scale_BS[:, 0].exp().sum()) == pytest.approx(1, rel=1e-5)


def test_classes_change_it_and_repeated_calls_do_not(student: api.Student, images: Tensor) -> None:
    drop = student.var.cond_drop_rate
    a, b = (api.log_likelihood(student, images, 1).total_B for _ in range(2))
    assert torch.equal(a, b) and student.var.cond_drop_rate == drop > 0
    assert not torch.equal(a, api.log_likelihood(student, images).total_B)
    none = api.log_likelihood(student, images, student.num_classes).total_B
    assert torch.equal(none, api.log_likelihood(student, images).total_B)


def test_features_are_a_layers_outputs(student: api.Student, images: Tensor) -> None:
    first, last = api.features(student, images, 1, 0), api.features(student, images, 1)
    assert first.shape == last.shape == (3, 30, 128) and not torch.equal(first, last)
    assert torch.equal(last, api.features(student, images, 1, 1))
    assert all(math.isfinite(value) for value in last.flatten().tolist())


def test_what_does_not_fit_is_a_sentence(student: api.Student, images: Tensor) -> None:
    tokens = api.encode(student, images)
    for call, words in (
        (lambda: api.encode(student, images[:, :, :32]), r"this model takes \(B, 3, 64, 64\)"),
        (lambda: api.encode(student, images * 127), "must be floats in"),
        (lambda: api.decode(student, tokens[1:]), "this model has maps of"),
        (lambda: api.decode(student, [idx + 64 for idx in tokens]), "whose codes are 0 to 63"),
        (lambda: api.features(student, images, 0, 2), "has the layers 0 to 1"),
        (lambda: api.log_likelihood(student, images, [1, 2]), "2 labels were given for 3 images"),
        (lambda: api.log_likelihood(student, images, 6), "label 6 is out of range"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
