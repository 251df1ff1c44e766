"""SVG files: drawn as PNG, able to open nothing, within limits of time and memory."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from infinity_jax.data import pictures, svg
from infinity_jax.data.sources import open_source

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="20" height="10">'
RED = HEAD + '<rect width="10" height="10" fill="red"/></svg>'


def test_an_svg_is_drawn_with_its_proportions_on_white():
    decoded = np.asarray(pictures.decode_rgb(svg.draw(RED.encode())))
    assert decoded.shape == (svg.WIDTH // 2, svg.WIDTH, 3)
    assert decoded[100, 100].tolist() == [255, 0, 0] and decoded[100, 400].tolist() == [255] * 3


def test_lengths_in_points_are_understood():
    points = RED.replace('"20" height="10">', '"20pt" height="10pt">')
    width, height = pictures.decode_rgb(svg.draw(points.encode())).size
    assert width == svg.WIDTH and abs(height - width // 2) < 20  # lengths are rounded to whole pixels first


@pytest.mark.parametrize("name", ["FILE", "https://example.org/x.png", "file:///etc/passwd"])
@pytest.mark.parametrize("key", ["href", "xlink:href"])
def test_what_shows_another_file_or_address_is_refused(tmp_path, name, key):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    name = name.replace("FILE", str(tmp_path / "x.png"))
    content = f'{HEAD}<image {key}="{name}" width="10" height="10"/></svg>'.encode()
    with pytest.raises(pictures.BrokenPicture, match="other files and addresses are not opened"):
        svg.draw(content)


def test_a_file_is_not_opened_even_where_the_check_does_not_see_its_name(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    inner = f'{HEAD}<image href="{tmp_path}/x.png" width="20" height="10"/></svg>'.replace("#", "%23")
    quoted = inner.replace("<", "%3C").replace(">", "%3E").replace('"', "'")
    content = f'{HEAD}<image href="data:image/svg+xml;utf8,{quoted}" width="20" height="10"/></svg>'
    try:
        drawn = np.asarray(pictures.decode_rgb(svg.draw(content.encode())))
    except pictures.BrokenPicture:
        return
    assert (drawn == 255).all()


def entities(levels):
    steps = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, levels))
    return f'<!DOCTYPE svg [<!ENTITY e0 "x">{steps}]>{HEAD}<desc>&e{levels - 1};</desc></svg>'


def uses(levels):
    groups = "".join(f'<g id="a{i}">{f"""<use href="#a{i - 1}"/>""" * 10}</g>' for i in range(1, levels))
    return (
        f'{HEAD}<defs><rect id="a0" width="1" height="1"/>{groups}</defs><use href="#a{levels - 1}"/></svg>'
    )


@pytest.mark.parametrize(
    "content",
    [
        entities(10),
        uses(12),
        HEAD.replace('"10"', '"100000000"') + "</svg>",  # as high as a city is wide
        "<svg>" * 100_000,
        RED[:-20],
        "no XML",
        "",
    ],
    ids=["entities", "uses", "high", "deep", "cut", "text", "empty"],
)
def test_bombs_and_damage_are_broken_pictures(content):
    with pytest.raises(pictures.BrokenPicture):
        svg.draw(content.encode())


def test_a_folder_draws_each_svg_once_and_names_those_that_are_broken(tmp_path, monkeypatch, caplog):
    logging.getLogger("absl").propagate = True
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "red.svg").write_text(RED)
    (tmp_path / "f" / "red.txt").write_text("red")
    (tmp_path / "f" / "far.svg").write_text(HEAD + '<image href="http://x/y.png"/></svg>')
    (tmp_path / "f" / "far.txt").write_text("far")
    source = open_source(f"folder:{tmp_path}/f", "train", tmp_path / "data")
    assert len(source) == 1 and "far.svg: " in caplog.text and "not opened" in caplog.text
    monkeypatch.setattr(svg, "draw", lambda content: pytest.fail("it is kept"))
    assert Image.open(io.BytesIO(source[0]["image"])).format == "PNG"
