"""A process without `fuse`: opens portable folders as anybody would, and compares with what `fuse` computed.

Arguments: a folder that holds NAME/portable, photo.png and wanted.pt, and the names. Writes one JSON document.
"""

import json
import sys
import traceback
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
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer  # noqa: E402

SAVED = "visionfuse_mgm_slime"  # the folder that is saved again, and opened again
HOW = {"trust_remote_code": True}


def run(folder: Path, prompt: str, images: bool, saved: Path | None = None) -> dict:
    """Logits of a prompt and what is said after it. saved: where model and processor are saved to."""
    model = AutoModelForImageTextToText.from_pretrained(folder, **HOW).eval()
    processor = AutoProcessor.from_pretrained(folder, **HOW)
    if saved is not None:
        model.save_pretrained(saved)
        processor.save_pretrained(saved)
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
            saved = root / name / "saved" if name == SAVED else None
            got = run(root / name / "portable", want["prompt"], want["images"], saved)
            found[name] = {key: torch.equal(got[key], want[key]) for key in ("input_ids", "logits", "said")}
            if saved is not None:
                again = run(saved, want["prompt"], want["images"])
                words = AutoTokenizer.from_pretrained(root / name / "portable", **HOW)
                found["saved"] = {key: torch.equal(again[key], want[key]) for key in ("input_ids", "logits", "said")}
                found["words"] = words("w5 w6")["input_ids"]
        except Exception as error:
            found[name] = {"error": "".join(traceback.format_exception(error)[-6:])}
    found["fuse"] = sorted(one for one in sys.modules if one.split(".")[0] == "fuse")
    sys.stdout.write(json.dumps(found))
