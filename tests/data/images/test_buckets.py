from __future__ import annotations

import pytest

from sfumato.data.images.buckets import (
    Buckets,
    bucket_sizes,
    centre_crop,
    crop_box,
    crop_offset,
    round_limits,
)
from tests.golden.derived import settings

FIXTURE = settings("c_buckets")


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: case["id"])
def test_every_image_meets_the_bucket_that_sd_scripts_chooses(case: dict) -> None:
    step = case["bucket_reso_steps"]
    limits = round_limits(case["min_bucket_reso"], case["max_bucket_reso"], step)
    assert limits == (case["adjusted_min"], case["adjusted_max"])
    buckets = Buckets(tuple(case["resolution"]), *limits, step, case["no_upscale"])
    if not case["no_upscale"]:
        found = bucket_sizes(buckets.resolution, *limits, step)
        assert [list(size) for size in found] == case["bucket_resolutions"]
    assert [framing(buckets, tuple(size)) for size in FIXTURE["sizes"]] == [
        {**image, "ar_error": pytest.approx(image["ar_error"], abs=1e-12)} for image in case["images"]
    ]


def framing(buckets: Buckets, size: tuple[int, int]) -> dict:
    fit = buckets.fit(size)
    return {
        "image": list(size),
        "bucket": list(fit.bucket),
        "resized": list(fit.resized),
        "ar_error": fit.ratio_error,
        "center_crop_px": list(centre_crop(fit.resized, fit.bucket)),
        "crop_ltrb": list(crop_box(fit.bucket, size)),
        "original_size_hw": list(size[::-1]),
        "crop_top_left": list(crop_offset(fit.bucket, size, False)),
        "crop_top_left_if_flipped": list(crop_offset(fit.bucket, size, True)),
        "target_size_hw": list(fit.bucket[::-1]),
    }


def test_an_image_covers_its_bucket_whatever_its_shape() -> None:
    buckets = Buckets((512, 512))
    for size in [(33, 2000), (2000, 33), (511, 513), (1, 1)]:
        fit = buckets.fit(size)
        assert fit.resized[0] >= fit.bucket[0]
        assert fit.resized[1] >= fit.bucket[1]


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (4000, 40), (40, 4000)])
def test_a_small_resolution_leaves_a_long_image_one_step_in_height(size: tuple[int, int]) -> None:
    fit = Buckets((64, 64), 64, 64, 64, no_upscale=True).fit(size)
    assert min(fit.bucket) == 64
    assert fit.resized[0] >= fit.bucket[0]
    assert fit.resized[1] >= fit.bucket[1]


def test_without_buckets_everything_gets_the_resolution() -> None:
    assert Buckets((96, 64), enabled=False).fit((500, 500)).bucket == (96, 64)


def test_limits_below_one_step_become_one_step() -> None:
    assert round_limits(10, 1000, 64) == (64, 1024)
