"""What NSARM's public code does to pictures: it spoils true ones, and gives drawn ones the colours of small ones.

The numbers are of the folder that `--golden` names, if it is one of NSARM's.
"""

import numpy as np
from helpers.golden_cases import go_through
from helpers.golden_folder import SINGLE_LAYER, assert_close, channels_last
from helpers.golden_nsarm import KINDS, padded

from infinity_jax.data.degradation import jpeg_formula, kernels, operations
from infinity_jax.upscaler import colour as colours


def pytest_generate_tests(metafunc):
    go_through(metafunc, "nsarm", KINDS)


def test_colour(colour):
    """Both corrections as floats, and the pictures that they and both together make."""
    arrays = colour.arrays
    drawn, low = arrays["sr_u8"], arrays["lq_u8"]
    resized = arrays["lq_resized_u8"].astype(np.float32) / 255
    for name, step in (("adain", colours.adain), ("wavelet", colours.wavelet)):
        made = step(drawn.astype(np.float32) / 255, resized)
        assert_close(made, channels_last(arrays[f"{name}_float"])[0], SINGLE_LAYER, name)
        picture = colours.corrected(drawn, low, name)
        assert np.abs(picture.astype(int) - arrays[f"{name}_u8"]).max() <= 1
    both = colours.corrected(drawn, low, "adain+wavelet")
    assert np.abs(both.astype(int) - arrays["adain_then_wavelet_u8"]).max() <= 1


def test_degradation(degradation):
    """Blur kernels, filtering, sharpening, resizing, JPEG by the formula, and the noise's levels."""
    arrays, info = degradation.arrays, degradation.info
    shapes = {"bivariate_generalized_Gaussian": kernels.GENERALISED, "bivariate_plateau": kernels.PLATEAU}
    for case in info["cases_of_kernels"]:
        if case["function"] == "circular_lowpass_kernel":
            ours = padded(kernels.sinc(case["cutoff"], case["kernel_size"]), case["pad_to"])
        else:
            second = case["sig_x"] if case["isotropic"] else case["sig_y"]
            shape = shapes.get(case["function"], kernels.GAUSSIAN)
            sigmas, beta = (case["sig_x"], second), case.get("beta", 1.0)
            ours = kernels.blur(case["kernel_size"], sigmas, case["theta"], shape, beta)
        assert_close(ours, arrays[f"kernel_{case['name']}"], 1e-6, case["name"])
    x = channels_last(arrays["image"])[0]
    kernel = padded(arrays["kernel_aniso_1"], kernels.LARGEST)
    made = {"filtered": operations.filtered(x, kernel), "sharpened": operations.sharpened(x)}
    for case in info["resizes"]:
        made[case["name"]] = operations.scaled(x, case["scale_factor"], case["mode"])
    made["resized_size_bicubic"] = operations.resized(x, (16, 16), "bicubic")
    for name, picture in made.items():
        assert_close(picture, channels_last(arrays[name])[0], SINGLE_LAYER, name)
    for quality in info["jpeg_qualities"]:
        theirs = channels_last(arrays[f"jpeg_{quality}"])[0]
        ours = jpeg_formula.jpeg(x[: theirs.shape[0], : theirs.shape[1]], quality)
        assert np.abs(ours - theirs).max() <= 1e-3 / 255
    counted = np.round(x * 255) / 255
    assert operations.poisson_levels(counted) == info["poisson_vals"]["colour"]
    grey = counted @ np.array([0.299, 0.587, 0.114])
    assert operations.poisson_levels(grey[..., None]) == info["poisson_vals"]["gray"]
