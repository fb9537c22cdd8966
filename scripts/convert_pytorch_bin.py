#!/usr/bin/env python3
"""Turns the pytorch_model.bin of older Hugging Face repositories (OPT among them) into safetensors that spinfer reads.

    pip install torch safetensors numpy
    convert_pytorch_bin.py DIR          writes model*.safetensors beside the .bin files, in the same dtypes

Files are loaded with weights_only, so that they cannot run code. Tensors that share memory (tied embeddings) are written
once, under the first name.
"""

import argparse
import json
import os
import sys
from pathlib import Path

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"
TIED = "lm_head.weight"  # left out where it is the embedding itself


def bin_files(directory):
    """File name → the names of its tensors, or None for all."""
    if (directory / INDEX).exists():
        files = {}
        for name, file in json.loads((directory / INDEX).read_text())["weight_map"].items():
            if Path(file).name != file:
                sys.exit(f"{directory / INDEX}: {file!r} is no file name inside the directory")
            files.setdefault(file, []).append(name)
        return files
    if (directory / SINGLE).exists():
        return {SINGLE: None}
    sys.exit(f"{directory}: neither {SINGLE} nor {INDEX} is there")


def tensors_of(path, names):
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    seen, tensors = {}, {}
    for name in sorted(names or loaded, key=lambda n: (n == TIED, n)):
        tensor = loaded[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if name == TIED and place in seen:
            continue
        seen[place] = name
        tensors[name] = tensor.contiguous().clone()
    return tensors


def save(tensors, path):
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    files, weight_map, total = bin_files(directory), {}, 0
    for number, (file, names) in enumerate(sorted(files.items()), 1):
        tensors = tensors_of(directory / file, names)
        target = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        save(tensors, directory / target)
        weight_map.update(dict.fromkeys(tensors, target))
        total += sum(t.numel() * t.element_size() for t in tensors.values())
        print(f"{file} -> {target}: {len(tensors)} tensors")
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
