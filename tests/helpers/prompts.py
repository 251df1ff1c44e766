"""Small prompt files of every benchmark, written by hand, and the files that its evaluator expects for them."""

import json
from pathlib import Path

LONG = "a photo of " + " and ".join(f"a bench number {i}" for i in range(12))
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "counting", "include": [{"class": "bench", "count": 12}], "prompt": LONG},
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a red  car"},
]
FILES = {
    "geneval": [f"{i:05d}/samples/000{k}.png" for i in range(3) for k in range(4)],
    "dpg": ["images/0.png", "images/COCOval2014000000001.png"],
    "hpsv2": [
        "images/anime/00000.jpg",
        "images/anime/00001.jpg",
        "images/concept-art/00000.jpg",
        "images/paintings/00000.jpg",
        "images/photo/00000.jpg",
    ],
    "image_reward": [f"images/{name}_{k}.png" for name in ("005695-0057", "000001-0002") for k in range(10)],
    "mjhq": ["animals/a1b2.png", "food/c3.png"],
    "coco": ["000000000009.png", "000000391895.png"],
}


def write(benchmark: str, folder: Path) -> Path:
    """Writes the prompts into `folder`; returns the path for --prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    if benchmark == "geneval":
        file = folder / "evaluation_metadata.jsonl"
        file.write_text("".join(json.dumps(entry) + "\n" for entry in GENEVAL))
        return file
    if benchmark == "dpg":
        (folder / "0.txt").write_text("a red ball\non a table\n")
        (folder / "COCOval2014000000001.txt").write_text("a blue cat")
        (folder / "notes.md").write_text("not a prompt")
        return folder
    if benchmark == "hpsv2":
        for style in ("concept-art", "paintings", "photo"):
            (folder / f"{style}.json").write_text(json.dumps([f"a heart, {style}"]))
        (folder / "anime.json").write_text(json.dumps(["a ball", "a cat"]))
        (folder / "drawbench.json").write_text(json.dumps(["of another benchmark"]))
        return folder
    contents = {
        "image_reward": [
            {"id": "005695-0057", "prompt": "a car"},
            {"id": "000001-0002", "prompt": "a green apple"},
        ],
        "mjhq": {
            "a1b2": {"category": "animals", "prompt": "a dog", "aesthetic_score": 6.1},
            "c3": {"category": "food", "prompt": "a cake"},
        },
        "coco": {
            "images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}],
            "annotations": [
                {"image_id": 391895, "id": 770, "caption": "A man on a bike."},
                {"image_id": 9, "id": 661, "caption": "Some food."},
                {"image_id": 391895, "id": 37, "caption": "A man with a red helmet. \n"},
            ],
        },
    }
    file = folder / f"{benchmark}.json"
    file.write_text(json.dumps(contents[benchmark]))
    return file
