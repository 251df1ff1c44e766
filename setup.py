"""The packages of a wheel; all else is in pyproject.toml, which cannot say that one of them lies in another folder."""

from setuptools import find_namespace_packages, setup

CONFIGS = find_namespace_packages(".", include=["configs", "configs.*"])

setup(
    packages=[
        *find_namespace_packages(".", include=["infinity_jax*"]),
        *(f"infinity_jax.{name}" for name in CONFIGS),
    ],
    package_dir={"infinity_jax.configs": "configs"},
)
