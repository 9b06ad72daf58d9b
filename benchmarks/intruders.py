"""Scans of a layer for intruders against the published method of two SVDs, and whether every verdict agrees.

`python -m benchmarks.intruders [--quick]`, with `pip install 'rmtjax[demo,peers]'` for PyTorch, whose SVD is the peer:
`torch.linalg.svd` of the matrix before and after and the cosines of all with all, as in PEFT's `reduce_intruder_dimension`.

The matrices are Gaussian with a LoRA update of rank 16 whose singular values spread over the threshold; the checkpoint is the
packaged MiniLM with an adapter on all its attention and dense layers, files and all. The verdicts are compared over layers of
several spectra and many thresholds, some of them just beside a cosine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

from benchmarks._common import alternate, ratio, save

TOP, THRESHOLD = 10, 0.5


def layer(n: int, m: int, rank: int = 16, seed: int = 0):
    """Return a Gaussian layer and an update with singular values from a fifth of the threshold to twice the threshold."""
    from rmtjax.intruders import Pair
    from rmtjax.linalg.krylov import LowRankUpdated

    random = np.random.default_rng(seed)
    w = (random.standard_normal((n, m)) / np.sqrt(m)).astype(np.float32)
    left, right = (np.linalg.qr(random.standard_normal((side, rank)))[0].astype(np.float32) for side in (n, m))
    left *= np.linspace(0.2, 2, rank, dtype=np.float32) * np.float32((n / m) ** 0.25)
    right = np.ascontiguousarray(right.T)
    return Pair("w", w, LowRankUpdated(w, None, left, right), (left, right))


def two_svds(pair, top: int = TOP):
    """Return cosines of the leading vectors by PyTorch, the peer."""
    import torch

    where = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    w, left, right = (torch.from_numpy(x).to(where) for x in (pair.base, *pair.factors))

    def run():
        base = torch.linalg.svd(w, full_matrices=False)[0]
        tuned = torch.linalg.svd(w + left @ right, full_matrices=False)[0]
        return (tuned.T @ base).abs().max(dim=1).values[:top].cpu().numpy()

    return run


def one_layer(n: int, m: int, repeats: int) -> dict:
    """Return times of a layer."""
    from rmtjax.intruders import scan_layer

    pair, seen = layer(n, m), {}
    there = pair if jax.default_backend() == "cpu" else pair.on_device()

    def ours():
        seen["ours"] = scan_layer(there, top_k=TOP, threshold_epsilon=THRESHOLD)

    def theirs():
        seen["theirs"] = run()

    run = two_svds(pair)
    times = alternate(repeats, rmtjax=ours, torch=theirs)
    verdicts = tuple("intruder" if c < THRESHOLD else "matched" for c in seen["theirs"])
    return {
        **times,
        "torch_over_rmtjax": ratio(times["torch"], times["rmtjax"]),
        "intruders": seen["ours"].intruders,
        "method": seen["ours"].algorithm,
        "same_verdicts": seen["ours"].verdicts == verdicts,
    }


def checkpoint(repeats: int) -> dict:
    """Return times of MiniLM and an adapter on 36 layers, reading included."""
    import torch
    from flax import nnx
    from safetensors.torch import load_file

    from rmtjax.adapters import apply_adapters, save_peft
    from rmtjax.intruders import scan
    from rmtjax.models import load_classifier, model_folder

    random = np.random.default_rng(0)
    model, _ = load_classifier("minilm", 2)
    names = ["query", "key", "value", "dense"]
    apply_adapters(model, "lora", rank=8, target_modules=names)
    from rmtjax.adapters import AdapterParam

    state = nnx.state(model, AdapterParam)
    nnx.update(model, nnx.map_state(lambda _, v: v.replace(0.1 * random.standard_normal(v.shape).astype("f")), state))
    with tempfile.TemporaryDirectory() as folder:
        save_peft(model, folder)
        base_file, file = Path(model_folder()) / "model.safetensors", Path(folder) / "adapter_model.safetensors"
        seen = {}

        def ours():
            seen["ours"] = scan("minilm", folder, top_k=TOP, threshold_epsilon=THRESHOLD)

        def theirs():
            base, adapter = load_file(base_file), load_file(file)
            found = {}
            for key in adapter:
                if key.endswith("lora_A.weight"):
                    path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    w = base[path.removeprefix("bert.") + ".weight"]
                    tuned = w + adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
                    u, v = (torch.linalg.svd(x, full_matrices=False)[0] for x in (w, tuned))
                    found[path] = (v.T @ u).abs().max(dim=1).values[:TOP]
            seen["theirs"] = int(sum((c < THRESHOLD).sum() for c in found.values()))

        times = alternate(repeats, rmtjax=ours, torch=theirs)
    found = seen["ours"]
    return {
        **times,
        "torch_over_rmtjax": ratio(times["torch"], times["rmtjax"]),
        "layers": len(found.layers),
        "without_svd": sum(one.algorithm != "svd" for one in found.layers),
        "intruders": [found.intruders, seen["theirs"]],
    }


def agreement(cases: int) -> dict:
    """Return verdicts of bounds against those of two SVDs."""
    from rmtjax.intruders import Pair, scan_layer
    from rmtjax.linalg.krylov import LowRankUpdated
    from rmtjax.linalg.svd import one_blas_thread

    random = np.random.default_rng(0)
    done = same = near = 0
    methods = {"bounds": 0, "eigh": 0, "svd": 0}
    with one_blas_thread():
        while done < cases:
            n, m = [(256, 256), (384, 192), (192, 384), (440, 440), (420, 560), (560, 420)][random.integers(6)]
            w = random.standard_normal((n, m)) / np.sqrt(m)
            kind = random.integers(4)
            if kind:
                u, s, vt = np.linalg.svd(w, full_matrices=False)
                if kind == 1:
                    s = 3 / np.arange(1, s.size + 1) ** random.uniform(0.3, 1)
                elif kind == 2:
                    s = np.exp(-np.arange(s.size) / random.uniform(30, 60))
                else:
                    s[:12] = np.sort(random.uniform(2, 5, 12))[::-1]
                w = (u * s) @ vt
            w = w.astype(np.float32)
            rank = random.integers(1, 17)
            left, right = (np.linalg.qr(random.standard_normal((side, rank)))[0].astype(np.float32) for side in (n, m))
            left *= (random.uniform(0.2, 2.5, rank) * (n / m) ** 0.25).astype(np.float32)
            update = random.integers(3)
            if update == 0:
                tuned = LowRankUpdated(w + (random.standard_normal((n, m)) * 0.3 / np.sqrt(m)).astype(np.float32))
            else:
                scale = None if update == 1 else (1 + 0.1 * random.standard_normal(n)).astype(np.float32)
                tuned = LowRankUpdated(w, scale, left, np.ascontiguousarray(right.T))
            pair = Pair("w", w, tuned, (left, np.ascontiguousarray(right.T)) if update == 1 else None)
            cosines = scan_layer(pair, exact=True).cosines
            beside = cosines[random.choice(TOP, 3, replace=False)] + random.choice([-1e-3, -1e-5, 1e-6, 1e-4], 3)
            for threshold in (*random.uniform(0.15, 0.95, 7), *np.clip(beside, 0.05, 0.98)):
                found = scan_layer(pair, top_k=TOP, threshold_epsilon=float(threshold))
                same += found.verdicts == tuple("intruder" if c < threshold else "matched" for c in cosines)
                methods[found.algorithm] += 1
                done += 1
            near += 3
    return {"cases": done, "same": same, "by": methods, "just_beside_a_cosine": near}


def peak(layers: int, size: int) -> dict:
    """Return the memory, beyond that of the imports, of a scan of many equal layers, in a separate process."""
    program = f"""
import numpy as np, sys
from safetensors.numpy import save_file
import tempfile
from pathlib import Path
from rmtjax.intruders import scan
def status(name):
    return 1024 * next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name))
with tempfile.TemporaryDirectory() as folder:
    random = np.random.default_rng(0)
    for name in ('base', 'tuned'):
        save_file({{f'layer.{{i}}.weight': random.standard_normal(({size}, {size}), dtype=np.float32)
                   for i in range({layers})}}, Path(folder) / f'{{name}}.safetensors')
    random = np.random.default_rng(1)
    small = {{f'layer.{{i}}.weight': random.standard_normal((64, 64), dtype=np.float32) for i in range(2)}}
    for name in ('a', 'b'):
        save_file(small, Path(folder) / f'{{name}}.safetensors')
    scan(Path(folder) / 'a.safetensors', Path(folder) / 'b.safetensors', top=3)
    Path('/proc/self/clear_refs').write_text('5')
    before = status('VmRSS')
    scan(Path(folder) / 'base.safetensors', Path(folder) / 'tuned.safetensors')
    print(status('VmHWM') - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    used = int(done.stdout.split()[-1])
    return {"layers": layers, "size": size, "bytes": used, "over_largest_tensor": used / (4 * size * size)}


def main(argv: list[str] | None = None) -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and no file, to see that it works")
    quick = parser.parse_args(argv).quick
    shapes = [(256, 256)] if quick else [(768, 768), (3072, 768), (768, 3072), (2048, 2048), (4096, 4096)]
    content: dict = {"layers": {}}
    if find_spec("torch") is not None:
        for n, m in shapes:
            repeats = 1 if quick else 5 if n * m > 1 << 23 else 7
            content["layers"][f"{n}x{m}"] = one = one_layer(n, m, repeats)
            print(f"{n}×{m}: {one['rmtjax']['median_s']:.3f} s, PyTorch over ours {one['torch_over_rmtjax']:.1f}", one)
        content["minilm"] = checkpoint(1 if quick else 7)
        print(content["minilm"])
    content["agreement"] = agreement(20 if quick else 2000)
    print(content["agreement"])
    content["memory"] = peak(2, 256) if quick else peak(8, 4096)
    print(content["memory"])
    if not quick:
        from rmtjax._provenance import versions

        print(save("intruders", {**content, "more_versions": versions("torch")}))


if __name__ == "__main__":
    main()
