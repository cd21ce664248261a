"""A process without `fuse`: opens portable folders as anybody would, and compares with what `fuse` computed.

Arguments: a folder that holds NAME/portable, photo.png and wanted.pt, and the names. Writes one JSON document.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class NoFuse(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] == "fuse":
            raise ModuleNotFoundError(f"there is no {fullname} here", name=fullname)


sys.meta_path.insert(0, NoFuse())

import torch  # noqa: E402

if not torch.version.cuda:  # a torchvision built for CUDA cannot be imported beside a CPU build of torch
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402


def run(folder: Path, prompt: str, images: bool, **how) -> dict:
    """Logits of a prompt and what is said after it."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **how).eval()
    processor = AutoProcessor.from_pretrained(folder, **how)
    picture = [Image.open(folder.parents[1] / "photo.png")] if images else None
    batch = processor(images=picture, text=[prompt], return_tensors="pt")
    extra = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model(**batch, **extra).logits
        said = model.generate(**batch, max_new_tokens=6, do_sample=False)
    return {"input_ids": batch["input_ids"], "logits": logits, "said": said}


if __name__ == "__main__":
    root, threads, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(threads)
    wanted = torch.load(root / "wanted.pt")
    found = {}
    for name in names:
        want = wanted[name]
        try:
            got = run(root / name / "portable", want["prompt"], want["images"], trust_remote_code=True)
            found[name] = {key: torch.equal(got[key], want[key]) for key in ("input_ids", "logits", "said")}
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    found["fuse"] = sorted(one for one in sys.modules if one.split(".")[0] == "fuse")
    sys.stdout.write(json.dumps(found))
