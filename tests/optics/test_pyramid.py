"""Properties of the focus schedule and of its views."""

import itertools
import json
import math
from typing import Any

import pytest
import torch

from refocus_ext.optics.names import BLUR_TABLE, BLURS
from refocus_ext.optics.psf import defocus
from refocus_ext.optics.pyramid import FocusPyramid

VAR_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SMALL = FocusPyramid(image_size=64, states=3, rho_max=6.0)
BLURRED = tuple(blur for blur in BLURS if BLUR_TABLE[blur].shaped_by != "nothing")


def cells(pyramid: FocusPyramid) -> list[float]:
    """n_k = n / s_k, latent cells that the view of each state still holds."""
    return [pyramid.latent_size / s for s in pyramid.factors]


def image(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def small(**fields: Any) -> FocusPyramid:
    return FocusPyramid(**{"image_size": 64, "states": 3, "rho_max": 6.0, **fields})


def test_the_papers_schedule() -> None:
    pyramid = FocusPyramid()
    assert pyramid.radii == (12.0, 9.0, 3.0, 0.0)
    assert pyramid.factors == (8, 4, 2, 1)
    assert pyramid.latent_size == 16 and cells(pyramid) == [2, 4, 8, 16]
    assert pyramid.noise_levels == pytest.approx((0.001, 0.004, 0.007, 0.01), rel=1e-12)
    assert pyramid.rayleigh_warnings() == []


def test_eq_2_as_printed_has_the_wrong_sign() -> None:
    for K in range(2, 9):
        radii = FocusPyramid(image_size=2048, states=K, rho_max=30.0).radii
        printed = [30 * (1 - math.cos(math.pi * k / (K - 1))) / 2 for k in range(K)]
        assert radii == pytest.approx(printed[::-1]) and radii[0] == 30 and radii[-1] == 0.0
        assert all(a > b for a, b in itertools.pairwise(radii))


def test_one_state_is_the_sharp_one() -> None:
    pyramid = FocusPyramid(states=1)
    assert pyramid.radii == (0.0,) and pyramid.factors == (1,) and pyramid.noise_levels == (1e-3,)
    assert pyramid.states_of(VAR_PATCH_NUMS) == (0,) * 10
    x = image(1, 3, 256, 256)
    assert pyramid.structure_views(x)[0] is x and not pyramid.alias(x, 0).any()


def test_states_of_the_token_scales() -> None:
    assert FocusPyramid().states_of(VAR_PATCH_NUMS) == (0, 0, 1, 1, 2, 2, 2, 3, 3, 3)
    assert FocusPyramid().last_scale_of_state(VAR_PATCH_NUMS) == (1, 3, 6, 9)
    assert SMALL.states_of((1, 2, 3, 4)) == (0, 1, 2, 2)
    assert SMALL.last_scale_of_state((1, 2, 3, 4)) == (0, 1, 3)
    assert SMALL.last_scale_of_state((3, 4)) == (None, None, 1)
    large = FocusPyramid(image_size=512)  # n = 32: n_k = 4, 8, 16, 32
    assert large.states_of((1, 2, 3, 4, 6, 9, 13, 18, 24, 32)) == (0, 0, 0, 0, 1, 2, 2, 3, 3, 3)
    assert large.states_of((1, 2, 3, 4, 5, 8, 9, 16, 17, 32)) == (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)


def test_state_of_scale_is_the_coarsest_that_holds_the_map() -> None:
    pyramid = FocusPyramid(image_size=208)  # n = 13: n_k = 1.625, 3.25, 6.5, 13
    for pn in range(1, 14):
        k = pyramid.state_of_scale(pn)
        assert pn <= cells(pyramid)[k] and all(pn > n for n in cells(pyramid)[:k])
    assert FocusPyramid().state_of_scale((2, 5)) == FocusPyramid().state_of_scale(5) == 2
    assert FocusPyramid().state_of_scale(4, latent=32) == 0
    outside: tuple[int | tuple[int, int], ...] = (0, 17, (4, 17))
    for map_size in outside:
        with pytest.raises(ValueError, match=r"not within 1 \.\. 16"):
            FocusPyramid().state_of_scale(map_size)


@pytest.mark.parametrize("patch_nums", [(), (1, 2, 3), (1, 3, 2, 4), (1, 2, 2, 4), (1, 2, 4, 8)])
def test_patch_nums_must_rise_to_the_latent_size(patch_nums: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patch_nums must rise to 4 = image_size 64 / stride 16"):
        SMALL.states_of(patch_nums)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 250}, "image_size 250 is not a multiple of the encoder stride 16; use 240 or 256"),
        ({"image_size": 8, "states": 1}, "image_size 8 .* use 16"),
        ({"image_size": 0}, "image_size must be a whole number of at least 1, got 0"),
        ({"image_size": 256.0}, "image_size must be a whole number"),
        ({"stride": 0}, "stride must be a whole number"),
        ({"states": 0}, "states must be a whole number of at least 1, got 0"),
        ({"states": 2.5}, "states must be a whole number"),
        ({"states": True}, "states must be a whole number"),
        ({"states": 6}, "6 focus states .* 16 x 16 latent of a 256 px image .* at most 5 states"),
        ({"image_size": 208, "states": 5}, "13 x 13 .* at most 4 states"),
        ({"rho_max": -1.0}, "rho_max must be finite and at least 0 pixels, got -1.0"),
        ({"rho_max": math.inf}, "rho_max must be finite"),
        ({"rho_max": math.nan}, "rho_max must be finite"),
        ({"blur": "box"}, f"unknown blur 'box'; choose one of {', '.join(BLURS)}"),
        ({"noise_min": 0.1}, "0 <= noise_min <= noise_max, got 0.1 and 0.01"),
        ({"noise_min": -1e-3}, "0 <= noise_min"),
        ({"noise_max": math.nan}, "noise_max, got 0.001 and nan"),
        ({"rho_max": 256.0}, "rho_max 256.* reaches 256 px .* at most 255 px at image_size 256: use a smaller rho_max"),
        ({"rho_max": 256.0, "blur": "none"}, "disk PSF .* reaches 256 px"),
        ({"rho_max": 110.0, "blur": "gaussian"}, "gaussian PSF .* reaches 275 px"),
        ({"image_size": 64, "stride": 8, "blur": "sinc"}, "sinc PSF .* reaches 64 px"),
    ],
)
def test_illegal_values_are_refused_in_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        FocusPyramid(**fields)
    assert "\n" not in str(error.value) and ". " not in str(error.value)


def test_the_limits_themselves_are_legal() -> None:
    x = image(1, 1, 256, 256)
    assert cells(FocusPyramid(states=5))[0] == 1
    assert FocusPyramid(rho_max=255.5).focused(x, 0).shape == x.shape
    for states in range(1, 6):
        assert FocusPyramid(states=states, blur="sinc").focused(x, 0).shape == x.shape
    FocusPyramid(rho_max=0.0, noise_min=0.0, noise_max=0.0)
    FocusPyramid(noise_min=0.01, noise_max=0.01)


def test_rayleigh_warnings_name_the_state() -> None:
    warnings = FocusPyramid(rho_max=9.0).rayleigh_warnings()  # 9, 6.75, 2.25 against 9.76, 4.88, 2.44
    assert len(warnings) == 2
    for part in ("state 1 ", " 9 px", "decimated by 8", " 9.76 px"):
        assert part in warnings[0]
    for part in ("state 3 ", " 2.25 px", "decimated by 2", " 2.44 px"):
        assert part in warnings[1]
    assert len(FocusPyramid(rho_max=0.0, blur="gaussian").rayleigh_warnings()) == 3
    for blur in ("none", "sinc"):
        assert FocusPyramid(rho_max=0.0, blur=blur).rayleigh_warnings() == []


@pytest.mark.parametrize("blur", BLURRED)
def test_the_last_state_is_the_image_itself(blur: str) -> None:
    pyramid, x = small(blur=blur), image(2, 3, 64, 64)
    views = pyramid.structure_views(x)
    assert pyramid.refocuses and len(views) == 3 and views[2] is x and pyramid.focused(x, 2) is x
    for k in (0, 1):
        assert torch.equal(views[k], defocus(x, blur, pyramid.radii[k], pyramid.factors[k]))
    assert views[0].std() < views[1].std() < x.std()
    assert torch.equal(pyramid.low(x, 2), x) and torch.equal(pyramid.decimated(x, 2), x)
    assert not pyramid.alias(x, 2).any()


def test_blur_none_is_upstreams_pyramid_on_the_structure_path_only() -> None:
    pyramid, x = small(blur="none"), image(2, 3, 64, 64)
    assert not pyramid.refocuses
    state = torch.get_rng_state()
    for training in (False, True):
        views = pyramid.structure_views(x, training=training)
        assert len(views) == 3 and all(view is x for view in views)
    assert torch.equal(torch.get_rng_state(), state)
    for k in range(3):
        assert torch.equal(pyramid.low(x, k), SMALL.low(x, k)) and torch.equal(pyramid.alias(x, k), SMALL.alias(x, k))
    assert pyramid.alias(x, 0).any()


def test_noise_has_the_states_level_and_follows_the_generator() -> None:
    pyramid, x = small(noise_min=0.1, noise_max=0.3), image(4, 3, 64, 64)

    def noisy(seed: int) -> list[torch.Tensor]:
        return pyramid.structure_views(x, torch.Generator().manual_seed(seed), training=True)

    first, again, other = noisy(0), noisy(0), noisy(1)
    noise = [view - pyramid.focused(x, k) for k, view in enumerate(first)]
    for k, beta in enumerate((0.1, 0.2, 0.3)):
        assert noise[k].std().item() == pytest.approx(beta, rel=0.02) and abs(noise[k].mean().item()) < 0.01
        assert torch.equal(first[k], again[k]) and not torch.equal(first[k], other[k])
    assert abs((noise[0] * noise[1]).mean().item()) < 1e-3  # each state draws its own
    state = torch.get_rng_state()
    pyramid.structure_views(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_low_is_the_decimated_focus_plus_scaled_noise() -> None:
    x = image(2, 3, 64, 64)
    for k, s in enumerate(SMALL.factors):
        low = SMALL.low(x, k)
        assert low.shape == (2, 3, 64 // s, 64 // s) and torch.equal(low, SMALL.focused(x, k)[..., ::s, ::s])
        eps = torch.randn(low.shape)
        torch.testing.assert_close(SMALL.low(x, k, eps) - low, SMALL.noise_levels[k] * eps, rtol=0, atol=1e-6)


def test_decimation_keeps_every_sth_pixel() -> None:
    x = torch.arange(64 * 64.0).reshape(1, 1, 64, 64)
    assert SMALL.decimated(x, 0).shape == (1, 1, 16, 16)
    assert SMALL.decimated(x, 0)[0, 0, 3, 5] == 12 * 64 + 20


@pytest.mark.parametrize("blur", BLURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_plus_alias_is_the_decimated_image(blur: str, dtype: torch.dtype) -> None:
    # Bright images, where |A| <= |D| / 2 makes the sum exact, and white noise around zero, where A often exceeds D.
    noise = image(2, 3, 64, 64, dtype=dtype)
    for x, exact in ((0.7 + 0.15 * noise, True), (noise, False)):
        for k in range(3):
            pyramid = small(blur=blur)
            low, alias, decimated = pyramid.low(x, k), pyramid.alias(x, k), pyramid.decimated(x, k)
            dominated = alias.abs() <= decimated.abs() / 2
            assert dominated.any() and (dominated.all() or not exact)
            assert torch.equal((low + alias)[dominated], decimated[dominated])
            assert (low + alias - decimated).abs().max() <= torch.finfo(dtype).eps
            if dtype == torch.float32:  # rounded once: float64 holds the difference of two float32 to the bit
                assert torch.equal(alias, (decimated.double() - low.double()).float())


def test_no_blur_radius_means_no_alias() -> None:
    x = image(1, 3, 64, 64)
    for k in range(3):
        assert not small(rho_max=0.0).alias(x, k).any()


def test_a_constant_has_no_alias_and_a_carrier_is_all_alias() -> None:
    flat = torch.full((1, 3, 64, 64), 0.4)
    stripes = torch.ones(1, 1, 64, 64)
    stripes[..., 1::2] = -1  # 0.5 cycles/pixel: plain decimation by 2 or 4 turns it into a flat 1
    for k in (0, 1):
        assert SMALL.alias(flat, k).abs().max() < 1e-6
        assert torch.equal(SMALL.decimated(stripes, k), torch.ones_like(SMALL.decimated(stripes, k)))
        assert (SMALL.alias(stripes, k) - 1).abs().max() < 0.1


@pytest.mark.parametrize("blur", ["disk", "none"])
def test_gradcheck_through_low_and_alias(blur: str) -> None:
    pyramid = FocusPyramid(image_size=8, states=3, rho_max=2.3, blur=blur, stride=2)
    x = image(1, 2, 8, 8, dtype=torch.float64).requires_grad_()
    for k in range(3):
        assert torch.autograd.gradcheck(lambda t, k=k: pyramid.low(t, k), (x,))
    for k in range(2):
        assert torch.autograd.gradcheck(lambda t, k=k: pyramid.alias(t, k), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_view(dtype: torch.dtype) -> None:
    x = image(1, 3, 64, 64).to(dtype)
    plain = [*SMALL.structure_views(x), *(SMALL.alias(x, k) for k in range(3))]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [*SMALL.structure_views(x), *(SMALL.alias(x, k) for k in range(3))]
    assert all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(plain, cast, strict=True))


def test_wrong_states_and_sizes_are_refused() -> None:
    x = image(1, 3, 64, 64)
    for view in (SMALL.focused, SMALL.low, SMALL.decimated, SMALL.alias):
        for k in (-1, 3):
            with pytest.raises(ValueError, match=rf"index {k} is not within 0 \.\. 2"):
                view(x, k)
        for wrong in (x[..., :32], x[0], x[..., :32, :32]):
            with pytest.raises(ValueError, match=r"built for \(B, C, 64, 64\)"):
                view(wrong, 0)


def test_travels_through_json() -> None:
    pyramid = small(blur="gaussian", noise_min=0.0)
    assert FocusPyramid.from_dict(json.loads(json.dumps(pyramid.to_dict()))) == pyramid
    assert FocusPyramid.from_dict({}) == FocusPyramid()
    with pytest.raises(ValueError, match="unknown pyramid fields radius; known are image_size, states"):
        FocusPyramid.from_dict({"radius": 3})
    with pytest.raises(ValueError, match="at most 5 states"):
        FocusPyramid.from_dict({"states": 9})


def alias_energy(x: torch.Tensor, s: int) -> float:
    """Energy that decimation by s folds into the new band: decimates all that stands at or above 0.5 / s, exactly."""
    in_band = torch.fft.fftfreq(x.shape[-1], dtype=torch.float64).abs() < 0.5 / s
    outside = torch.fft.ifft2(torch.fft.fft2(x) * ~(in_band[:, None] & in_band[None, :])).real
    return outside[..., ::s, ::s].square().sum().item()


def test_aliasing_of_a_zone_plate() -> None:
    # docs/measured.md: the disk aliases 14 to 21 dB less than a box average of s x s pixels.
    r = torch.arange(256, dtype=torch.float64) - 128
    zone = torch.cos(math.pi * (r[:, None] ** 2 + r[None, :] ** 2) / 256)[None, None]
    table = {8: (-35.8, -21.8), 4: (-36.9, -15.8), 2: (-27.3, -9.6)}
    for k, (s, (disk_dB, box_dB)) in enumerate(table.items()):
        box = torch.fft.ifft2(torch.fft.fft2(zone) * torch.fft.fft2(torch.ones(s, s) / s**2, s=(256, 256))).real
        plain = alias_energy(zone, s)
        disk, boxed = (10 * math.log10(alias_energy(v, s) / plain) for v in (FocusPyramid().focused(zone, k), box))
        assert disk == pytest.approx(disk_dB, abs=0.2) and boxed == pytest.approx(box_dB, abs=0.3)
        assert boxed - disk >= 13.5
