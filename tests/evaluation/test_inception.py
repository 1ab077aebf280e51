"""FID: PNG-exact pixels, torch-fidelity's features from a local file, streaming statistics, the Frechet distance."""

from __future__ import annotations

import io
import math
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import no_download
from inceptions import random_inception
from PIL import Image
from torch import Tensor, nn

from refocus_ext.errors import UsageError
from refocus_ext.evaluation import frechet, inception
from refocus_ext.evaluation.frechet import FeatureStatistics, Gaussian, frechet_distance
from refocus_ext.evaluation.inception import INCEPTION_FILES, InceptionFeatures, load_inception, to_uint8
from refocus_ext.images import picture
from refocus_ext.images.crops import to_tensor

# ------------------------------------------------------------------------------------------------ pixels


def test_to_uint8_is_what_a_png_would_hold() -> None:
    image = torch.linspace(-1.3, 1.3, 3 * 16 * 16).view(3, 16, 16)
    file = io.BytesIO()
    picture.to_image(image).save(file, format="PNG")
    from_png = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(to_uint8(image), from_png)


def test_to_uint8_gives_every_level_of_a_file_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert torch.equal(to_uint8(to_tensor(Image.fromarray(levels))), torch.from_numpy(levels).permute(2, 0, 1))


# ------------------------------------------------------------------------------------------------ features


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_inception()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def features(weights: Path) -> InceptionFeatures:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(urllib.request, "urlopen", no_download)
        return load_inception(str(weights))


def pictures(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, 24, 40), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_features_are_torch_fidelitys(features: InceptionFeatures, weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = pictures()
    direct = FeatureExtractorInceptionV3("direct", ["192", "2048"], feature_extractor_weights_path=str(weights)).eval()
    with torch.no_grad():
        expected = direct(images)[1]
    found = features(images)
    assert found.shape == (2, InceptionFeatures.width) and found.dtype == torch.float32
    assert torch.equal(found, expected) and not torch.allclose(found[0], found[1])


def test_features_of_an_image_are_its_own_in_train_mode_too(features: InceptionFeatures) -> None:
    images = pictures()
    features.train()
    assert not any(module.training for module in features.modules())
    assert torch.allclose(features(images)[:1], features(images[:1]), atol=1e-4)
    assert not any(p.requires_grad for p in features.parameters())


def test_convolutions_are_fp32_and_the_setting_returns(
    features: InceptionFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []
    handle = features.network.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    features(pictures(1))
    handle.remove()
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_features_are_of_uint8_only(features: InceptionFeatures) -> None:
    with pytest.raises(ValueError, match=r"uint8 images.*float32"):
        features(torch.zeros(1, 3, 32, 32))


def test_spatial_features_are_the_first_channels_of_the_block_channels_last(features: InceptionFeatures) -> None:
    """Found again in a run of the blocks by hand, up to the sixth of mixed, mixed_1, ... (Mixed_6d) and its 1x1 branch."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = pictures()
    found = features.activations(images)
    x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    before = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2"
    mixed = "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c"
    with torch.no_grad():
        for name in f"{before} {mixed}".split():
            x = features.network.get_submodule(name)(x)
        branch = features.network.get_submodule("Mixed_6d.branch1x1")
        conv = nn.functional.conv2d(x, branch.get_parameter("conv.weight"))
        expected = branch.get_submodule("bn")(conv).relu()
    assert expected.shape == (2, 192, 17, 17) and found.spatial_BS.shape == (2, 2023)
    assert torch.equal(found.pool_BD, features(images))
    places = found.spatial_BS.view(2, 17, 17, 7)
    for y, x_, channel in ((0, 0, 0), (3, 16, 6), (16, 2, 4)):
        assert torch.allclose(places[:, y, x_, channel], expected[:, channel, y, x_], atol=1e-5)
    assert not features.network.get_submodule("Mixed_6d.branch1x1")._forward_hooks


def test_class_logits_leave_the_bias_out(features: InceptionFeatures, weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    direct = FeatureExtractorInceptionV3(
        "direct", ["logits_unbiased", "logits"], feature_extractor_weights_path=str(weights)
    )
    unbiased, biased = direct.eval()(pictures())
    found = features.class_logits(features(pictures()))
    assert torch.allclose(found, unbiased, atol=1e-4) and not torch.allclose(found, biased, atol=1e-4)


def test_only_the_published_file_is_standard(
    features: InceptionFeatures, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not features.standard
    monkeypatch.setattr(inception, "sha256", lambda path: "6726825d" + 56 * "0")
    assert load_inception(str(weights)).standard


@pytest.mark.parametrize("name", INCEPTION_FILES)
def test_either_name_is_found_in_the_hub_folder(
    name: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).symlink_to(weights)
    assert isinstance(load_inception(""), InceptionFeatures)


@pytest.mark.parametrize("given", ["", "nowhere/inception.pth"])
def test_a_missing_file_is_one_sentence_that_says_how_to_get_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_download)
    with pytest.raises(UsageError) as error:
        load_inception(given)
    assert given in str(error.value)
    assert inception.INCEPTION_URL in str(error.value) and "--inception-weights FILE" in str(error.value)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_foreign_file_is_refused_and_never_unpickled(state: dict[str, Tensor], tmp_path: Path) -> None:
    """torch-fidelity's own loading would run what a pickle says."""
    trap = tmp_path / "trap"
    lacking = {name: value for name, value in state.items() if name != "fc.bias"}
    for number, contents in enumerate((Payload(trap), lacking, {"a": torch.zeros(1)})):
        path = tmp_path / f"{number}.pth"
        torch.save(contents, path)
        with pytest.raises(UsageError, match=rf"{number}\.pth is not .*--inception-weights FILE"):
            load_inception(str(path))
    assert not trap.exists()


# ------------------------------------------------------------------------------------------------ statistics


def sample(count: int, width: int = 12, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mix + offset


def statistics_of(*batches: Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics


@pytest.mark.parametrize("at_once", [1, 50, 4096])
@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_streaming_equals_one_shot_even_far_from_zero(
    offset: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frechet, "AT_ONCE", at_once)
    x = sample(200, offset=offset)
    s = statistics_of(*x.split([1, 60, 0, 3, 136]))
    assert s.count == 200
    assert np.allclose(s.mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    assert np.allclose(s.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-7 if offset else 1e-12)


def test_merged_parts_equal_the_whole_and_stay_themselves() -> None:
    x = sample(90)
    a, b, empty = statistics_of(x[:40]), statistics_of(x[40:]), FeatureStatistics()
    before = [(part.mean.clone(), part.covariance.clone()) for part in (a, b)]
    empty.merge(a)
    empty.merge(FeatureStatistics())
    empty.merge(b)
    whole = statistics_of(x)
    assert empty.count == 90
    assert torch.allclose(empty.mean, whole.mean) and torch.allclose(empty.covariance, whole.covariance)
    assert (a.count, b.count) == (40, 50)
    for part, (mean, covariance) in zip((a, b), before, strict=True):
        assert torch.equal(part.mean, mean) and torch.equal(part.covariance, covariance)


def test_half_precision_features_are_summed_in_float64() -> None:
    x = sample(50).to(torch.bfloat16)
    assert torch.allclose(statistics_of(*x.split(7)).covariance, x.double().T.cov())


def test_statistics_refuse_what_they_cannot_tell() -> None:
    with pytest.raises(ValueError, match="no features"):
        _ = FeatureStatistics().mean
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = statistics_of(sample(1)).covariance
    with pytest.raises(ValueError, match="width 5 cannot be merged with those of width 12"):
        statistics_of(sample(3), sample(3, width=5))
    with pytest.raises(ValueError, match=r"must be \(B,D\)"):
        statistics_of(torch.zeros(2, 3, 4))


# ------------------------------------------------------------------------------------------------ Frechet distance


def by_sqrtm(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The textbook's formula."""
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    shift = (a.mean - b.mean).square().sum().item()
    return shift + (a.covariance + b.covariance).trace().item() - 2 * np.trace(root).real


def test_distance_is_zero_for_the_same_set_in_another_order() -> None:
    x = sample(300)
    a, b = statistics_of(x), statistics_of(*x.flip(0).split(17))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(0, abs=1e-10)


def test_distance_equals_scipys_square_root_and_torch_fidelitys_formula() -> None:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    a, b = statistics_of(sample(300, seed=1)), statistics_of(sample(200, seed=2, offset=0.5))
    distance = frechet_distance(a, b)
    assert distance > 1 and distance == pytest.approx(by_sqrtm(a, b), rel=1e-9)
    theirs = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (a, b)]
    assert distance == pytest.approx(fid_statistics_to_metric(*theirs, verbose=False)[KEY_METRIC_FID], rel=1e-9)
    assert distance == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_distance_of_a_shifted_set_is_the_squared_shift() -> None:
    x = sample(100)
    assert frechet_distance(statistics_of(x), statistics_of(x + 0.25)) == pytest.approx(12 * 0.25**2, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b"),
    [([4.0, 9, 1, 2], [1.0, 1, 1, 8]), ([4.0, 9, 0, 0], [1.0, 0, 0, 2]), ([0.0, 0, 0, 0], [1.0, 0, 0, 0])],
)
def test_closed_form_of_commuting_gaussians_singular_or_not(a: list[float], b: list[float]) -> None:
    """Same axes, turned at random: the distance is sum (sqrt a - sqrt b)^2."""
    axes = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    mean = torch.zeros(4, dtype=torch.float64)
    A, B = (Gaussian(mean, axes @ torch.tensor(v, dtype=torch.float64).diag() @ axes.T) for v in (a, b))
    expected = sum((math.sqrt(x) - math.sqrt(y)) ** 2 for x, y in zip(a, b, strict=True))
    assert frechet_distance(A, B) == pytest.approx(expected, abs=1e-10)


def test_fewer_images_than_features_lose_no_digits() -> None:
    """Singular covariances, 20 images of 100 features: the eigenvalues of A B would be wrong by 1e-6 here."""
    x, y = sample(20, width=100, seed=1), sample(20, width=100, seed=2)
    a, b = statistics_of(x), statistics_of(y)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    # tr (A B)^(1/2) is the nuclear norm of the centred samples' product
    centred = [(z - z.mean(0)) / math.sqrt(19) for z in (x, y)]
    cross = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc").item()
    shift = (x.mean(0) - y.mean(0)).square().sum().item()
    traces = sum(z.square().sum().item() for z in centred)
    assert frechet_distance(a, b) == pytest.approx(shift + traces - 2 * cross, rel=1e-10)


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="width 5 cannot be compared with those of width 12"):
        frechet_distance(statistics_of(sample(9)), statistics_of(sample(9, width=5)))
