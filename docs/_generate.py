"""Fill the tables of the README and of docs/ from the files of results: `python -m docs._generate [--check]`."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
PAGES = (
    "README.md",
    "experiments/README.md",
    *(f"docs/{name}.md" for name in ("claims", "alpha-lora", "fine-tuning-study", "benchmarks")),
    *(f"docs/guides/{name}.md" for name in ("verify", "intruders")),
)


def table1() -> str:
    """Return Table 1 as the experiment wrote it, without its heading."""
    text = (EXPERIMENTS / "results/amazon_table1.md").read_text(encoding="utf-8")
    return text[text.index("## ") :].replace("## ", "### ").strip()


def caveat() -> str:
    """Return the caveat on the data that Table 1 was tuned on."""
    return json.loads((EXPERIMENTS / "results/amazon_table1.json").read_text(encoding="utf-8"))["caveat"]


def sensitivity() -> str:
    """Return one line for each choice: mean accuracies over the twelve pairs and the distance to the paper."""
    found = json.loads((EXPERIMENTS / "results/amazon_sensitivity.json").read_text(encoding="utf-8"))
    lines = ["| choice | value | α = 0 | α = 1 | α* | best α on the test split | rms to the paper, α = 1 |"]
    lines.append("| --- | --- | --: | --: | --: | --: | --: |")
    rows = [row for row in found["rows"] if row["base_source_gamma"] == found["rows"][0]["base_source_gamma"]]
    for row in rows:
        values = [row[f"accuracy_{rule}"] for rule in ("alpha=0", "alpha=1", "alpha*", "oracle")] + [row["rms_alpha=1"]]
        lines.append(
            f"| {row['choice']} | {row['value']} | "
            + " | ".join(f"{v:.1f}" for v in values[:-1])
            + f" | {values[-1]:.2f} |"
        )
    return "\n".join(lines)


def _benchmark(name: str) -> dict:
    """Return the last results of a benchmark."""
    files = sorted((ROOT / "benchmarks/results").glob(f"{name}-*.json"))
    return json.loads(files[-1].read_text(encoding="utf-8"))


def _measurements(benchmark: dict, rows: list[tuple[str, str, str]]) -> str:
    table = "\n".join(f"| {what} | {value} | {target} |" for what, value, target in rows)
    return f"On {benchmark['hardware']}, {benchmark['date']}:\n\n| what | measured | target |\n| --- | --: | --: |\n{table}"


def measured() -> str:
    """Return the transfer benchmark against its targets."""
    found = _benchmark("transfer")
    c, d, n, big = found["compressed"], found["draws"], found["dense"], found["large"]
    rows = [
        ("compressed sweep, p = 10⁹, 41 α × 10,000 trials, after compilation", f"{c['p_1e9']['median_s']:.2f} s", "≤ 1 s"),
        ("the same at p = 10³, ratio", f"{c['p_1e3_over_p_1e9']:.2f}", "0.8 to 1.25"),
        ("p = 10⁹: largest bias, without sign", f"{c['largest_bias_p_1e9']:.0e}", "< 10⁻⁶"),
        ("p = 10⁹: largest z, without sign", f"{c['largest_z_p_1e9']:.1f}", "≤ 4"),
        ("a million χ draws: `jax.random.gamma` over ours", f"{d['over_jax_random_gamma']:.1f} ×", ""),
        ("dense trial, p = 1000, n = 500, N = 2000", f"{n['rmtjax']['s_per_trial'] * 1e3:.0f} ms", ""),
        ("the best NumPy over ours", f"{n['numpy_over_rmtjax']:.2f} ×", "≥ 1"),
        ("dense over compressed, a trial", f"{n['dense_over_compressed_per_trial']:,.0f} ×", "≥ 1000"),
        ("10⁶ compressed trials: memory", f"{big['peak_memory_gb']:.2f} GB", "< 1.5 GB"),
        ("10⁶ compressed trials: compilation", f"{big['compile_s']:.1f} s", "< 15 s"),
        ("`rmtjax --help`", f"{found['help']['median_s']:.2f} s", "< 1 s"),
    ]  # fmt: skip
    return _measurements(found, rows)


def measured_spectra() -> str:
    """Return the benchmark of spectra against its targets."""
    found = _benchmark("spectra")
    s, e, d, n = (found[part] for part in ("spiked", "edges", "densities", "dense"))
    rows = [
        ("`bbp-wigner` at N = 10⁹, 19 θ × 10,000 trials, after compilation", f"{s['N_1e9']['median_s']:.2f} s", "≤ 5 s"),
        ("the same over N = 10³", f"{s['N_1e9_over_N_1e3']:.2f}", "≤ 1.25"),
        ("N = 10⁹: largest z, without sign", f"{s['largest_z']:.1f}", "≤ 4"),
        ("10,000 largest GOE eigenvalues at N = 10⁹", f"{e['N_1e9']['median_s']:.1f} s", "≤ 20 s"),
        ("their Kolmogorov–Smirnov p against Tracy–Widom", f"{e['ks_p']:.2f}", "> 0.01"),
        ("largest GOE eigenvalue, N = 1000: scikit-rmt over ours", f"{e['scikit_rmt_over_rmtjax_N_1000']:,.0f} ×", "≥ 500"),
        ("the same: SciPy's LAPACK over ours", f"{e['scipy_over_rmtjax_N_1000']:.0f} ×", ""),
        ("histogram of all eigenvalues, N = 10⁶: scikit-rmt over ours", f"{d['scikit_rmt_over_rmtjax']:,.0f} ×", "≥ 50"),
        *(
            (
                f"dense eigenvalues, {batch} of order {order}: the fastest other ({one['fastest_other']}) over ours",
                f"{one['over_rmtjax']:.2f} ×",
                "≥ 1",
            )
            for (batch, order), one in ((name.split("x"), one) for name, one in n.items())
        ),
    ]  # fmt: skip
    return _measurements(found, rows)


def measured_train_step() -> str:
    """Return the benchmark of training steps against its targets."""
    found = _benchmark("train-step-float32")
    speed, peak = found["tokens_per_s"], found["peak_bytes"]
    rows = [
        ("MiniLM, LoRA r = 8 on query and value, 32 × 128 tokens: tokens a second", f"{speed['rmtjax']:,.0f}", ""),
        ("PyTorch with PEFT", f"{speed['peft']:,.0f}", ""),
        ("time of a step, PEFT over ours", f"{found['peft_over_rmtjax']:.2f} ×", "≥ 1, aim 1.3"),
        ("the same program without pieces over ours", f"{found['one_piece_over_rmtjax']:.2f} ×", ""),
        (f"{found['T']} steps of α-LoRA, T = {found['T']}, over LoRA's", f"{found['alpha_lora_over_lora']:.3f}", "≤ 1.05"),
        ("peak memory, LoRA", f"{peak['lora'] / 1e9:.2f} GB", "at most PEFT's"),
        ("peak memory, α-LoRA", f"{peak['alpha-lora'] / 1e9:.2f} GB", ""),
        ("peak memory, PEFT", f"{peak['peft'] / 1e9:.2f} GB", ""),
        ("compilation of the step", f"{found['compile_s']:.1f} s", ""),
    ]  # fmt: skip
    return _measurements(found, rows)


def measured_engine() -> str:
    """Return the engine's overhead over the draws, against its targets."""
    found = _benchmark("engine")
    store, resume, page = found["storing"], found["resuming"], found["reporting"]
    start, verify = found["starting"], found["verifying"]
    rows = [
        ("compressed sweep: one process pinned to a core, over two", f"{found['processes']['one_over_two']:.2f} ×", "≥ 1.8"),
        ("a sweep that is stored, over one that is not", f"{store['over_plain']:.3f}", "≤ 1.02"),
        (
            f"a store of {resume['chunks']:,} chunks: from its opening to the next draw",
            f"{resume['ready_to_draw']['median_s']:.1f} s",
            "≤ 5 s",
        ),
        ("the same: to the end of the run, with all of them read", f"{resume['to_the_end_s']:.0f} s", ""),
        ("`rmtjax verify`, all claims, with nothing compiled before", f"{verify['first_s']:.0f} s", "≤ 240 s"),
        ("the same, started again", f"{verify['again']['median_s']:.0f} s", "≤ 90 s"),
        (
            f"a sweep of 41 cells at p = 10⁹, started again: {start['again_over_import_jax']:.1f} × `import jax`",
            f"{start['again']['median_s']:.2f} s",
            "≤ 2 s",
        ),
        ("of which imports", f"{start['imports']['median_s']:.2f} s", "≤ 1 s"),
        (
            "time to a sweep's result with 64 simulated devices, over that with one",
            f"{found['devices']['over_one_device']['64']:.2f}",
            "≤ 1.3",
        ),
        (
            f"the page of all {page['claims']} claims: its time and size",
            f"{page['median_s']:.1f} s, {page['bytes'] / 1e6:.2f} MB",
            "≤ 10 s, 5 MB",
        ),
    ]  # fmt: skip
    return _measurements(found, rows)


def measured_intruders() -> str:
    """Return the benchmark of scans against its targets."""
    found = _benchmark("intruders")
    goals = {"768x768": 2.5, "3072x768": 2.5, "768x3072": 2.5, "2048x2048": 8, "4096x4096": 20}
    rows = []
    for name, one in found["layers"].items():
        what = f"a layer of {name.replace('x', ' × ')}, update of rank 16: {one['rmtjax']['median_s']:.2f} s"
        rows.append((f"{what}; PyTorch's two SVDs over it", f"{one['torch_over_rmtjax']:.1f} ×", f"≥ {goals[name]:g}"))
    mini, same, memory = found["minilm"], found["agreement"], found["memory"]
    rows += [
        (
            f"MiniLM and an adapter on {mini['layers']} layers, with reading: PyTorch over ours",
            f"{mini['torch_over_rmtjax']:.1f} ×",
            "≥ 2",
        ),
        (
            f"verdicts as by two SVDs, {same['cases']:,} cases, {same['just_beside_a_cosine']} of them just beside a cosine",
            f"{same['same']:,}",
            "all",
        ),
        (
            "of these decided by bounds, by eigendecompositions, by SVDs",
            ", ".join(f"{n:,}" for n in same["by"].values()),
            "",
        ),
        (
            f"memory, {memory['layers']} layers of {memory['size']}², in tensors of float32",
            f"{memory['over_largest_tensor']:.1f}",
            "≤ 6",
        ),
    ]
    return _measurements(found, rows)


def _pm(pair: tuple[float | None, float | None], sign: str = "", digits: int = 2) -> str:
    if pair[0] is None:
        return "–"
    of_one = pair[1] is None  # seed, which has no error
    return (f"{pair[0]:{sign}.{digits}f}" + ("" if of_one else f" ± {pair[1]:.{digits}f}")).replace("-", "−")


def table2() -> str:
    """Return Table 2: ours, beside the paper's."""
    found = json.loads((EXPERIMENTS / "results/glue_table2.json").read_text(encoding="utf-8"))["numbers"]["rows"]
    lines = [
        "| task | metric | seeds | LoRA | α-LoRA | gain | p | paper: LoRA | paper: α-LoRA |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in found:
        paper = [_pm(pair) for pair in row["paper"]] if row["paper"] else ["–", "–"]
        ours = [_pm(row["lora"]), _pm(row["alpha_lora"]), f"**{_pm(row['gain'], '+')}**", f"{row['p']:.2f}"]
        lines.append("| " + " | ".join([row["task"], row["metric"], str(len(row["seeds"])), *ours, *paper]) + " |")
    return "\n".join(lines)


def overhead() -> str:
    """Return α's overhead over LoRA: parameters, time, memory."""
    lora, alpha = (
        json.loads((EXPERIMENTS / f"results/glue/mrpc-{name}-0.json").read_text(encoding="utf-8"))["parameters"]
        for name in ("lora", "alpha-lora")
    )
    step = _benchmark("train-step-float32")
    peak = step["peak_bytes"]
    return (
        f"What α costs here: {alpha['trainable'] - lora['trainable']:,} parameters ({lora['trainable']:,} with LoRA, "
        f"{alpha['trainable']:,} with α-LoRA, of {lora['total']:,}), "
        f"{100 * (step['alpha_lora_over_lora'] - 1):.1f} % of the time at T = {step['T']}, and "
        f"{(peak['alpha-lora'] - peak['lora']) / 1e9:.2f} GB beside {peak['lora'] / 1e9:.2f}."
    )


def large_study() -> str:
    """Return the results of the study of ten thousand cells."""
    found = json.loads((EXPERIMENTS / "results/large_study.json").read_text(encoding="utf-8"))["numbers"]
    minutes = found["wall_s"] / 60
    return (
        f"**{found['cells']:,} cells** of dimensions, aspect ratios, ridges and alignments, "
        f"{found['trials'] / found['cells']:,.0f} trials each, in {minutes:.0f} minutes on two "
        f"cores: the law {'holds' if found['holds'] else 'is refuted'}, within the bias that the claim states; what is beyond "
        f"that is {abs(found['worst_z']):.1f} standard errors at most, with a P-value of {found['p_holm']:.2g} after Holm. Of "
        f"the {found['large_cells']:,} cells with dimension p ≥ 10⁶, {100 * found['large_share_beyond_2']:.1f} % are beyond two "
        f"standard errors (4.6 % expected), and their z are normal (Kolmogorov–Smirnov, P = {found['large_ks_p']:.2f})."
    )


def ablations() -> str:
    """Return the effects of T, the share and the adapter on MRPC."""
    found = json.loads((EXPERIMENTS / "results/glue_ablations.json").read_text(encoding="utf-8"))["numbers"]
    lines = ["| what | seeds | MRPC accuracy |", "| --- | --: | --: |"]
    for key, name in (("T", "T"), ("split", "`val_split`")):
        group = found[key]
        for value, pair, seeds in zip(group["value"], group["mean_se"], group["seeds"], strict=True):
            lines.append(f"| α-LoRA, {name} = {value:g} | {len(seeds)} | {_pm(pair)} |")
    for name in ("LoRA", "rsLoRA", "DoRA"):
        if name not in found:
            continue
        one = found[name]
        for label, key in ((name, "without"), (f"{name} with α", "with")):
            gain = ""
            if key == "with" and len(one["seeds"]) > 2:
                gain = f", gain {_pm(one['gain'], '+')}, p = {one['p']:.2f}"
            elif key == "with":  # two differences say nothing about their spread
                gain = f", gain {_pm((one['gain'][0], None), '+')}"
            lines.append(f"| {label} | {len(one['seeds'])} | {_pm(one[key])}{gain} |")
    return "\n".join(lines)


def study() -> str:
    """Return the effect of each way of fine-tuning on spectra and on earlier knowledge, and the claims that hold."""
    found = json.loads((EXPERIMENTS / "results/intruder_study.json").read_text(encoding="utf-8"))["numbers"]
    first = found["tasks"][0]
    learned = [key for key in next(iter(found["table"].values())) if key.startswith("learned_")]
    tables = {
        "seeds": {"score": f"{first} accuracy, %", "intruders": "intruders", "predicted": "expected",
                  "effective_rank": "effective rank", "norm": "‖Δ‖", "forgotten": "embeddings lost, %"},
        "seeds_of_all_tasks": {key: f"{task}, learned" for key, task in zip(learned, found["tasks"], strict=True)}
        | {"lost": "lost by then, %", "forgotten_at_the_end": "embeddings lost by then, %"},
    }  # fmt: skip
    lines = []
    for which, columns in tables.items():
        lines += [f"| way | seeds | {' | '.join(columns.values())} |", f"| --- |{' --: |' * (1 + len(columns))}"]
        for row in found["table"].values():
            cells = [_pm(row[what], digits=1).replace(" ", "\u00a0") for what in columns]
            lines.append(f"| {row['label']} | {len(row[which])} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["| claim | measured | p (Holm) | verdict |", "| --- | --- | --: | --- |"]
    for one in found["claims"]:
        if "spearman" in one:
            number = f"ρ = {one['spearman']:+.2f} over {one['ways']} ways".replace("-", "−")
        else:
            more, less = (found["table"][one[side]]["label"] for side in ("more", "less"))
            number = f"{more} − {less}: {_pm(one['difference'], '+')}"
        lines.append(f"| {one['claim']} | {number} | {one['p_holm']:.2g} | {one['verdict']} |")
    for one in found["controls"]:
        number = f"ρ = {one['spearman']:+.2f} over {one['ways']} ways".replace("-", "−")
        lines.append(f"| *for comparison: {one['claim']}* | {number} | {one['p']:.2g}, uncorrected | – |")
    return "\n".join(lines)


def _z(finding: dict) -> str:
    z = finding["z"]
    if z is None:  # every trial gave the same
        return "∞" if finding["mean"] > finding["expected"] else "−∞"
    if abs(z) < 0.05:
        return "0"
    return (f"{z:+.1f}" if abs(z) < 1000 else f"{z:+.0e}".replace("e+0", "e")).replace("-", "−")


def statements() -> str:
    """Return every claim: its source, its equation, and the verdict of verifying all claims together."""
    from rmtjax.claims import GROUPS

    found = json.loads((EXPERIMENTS / "results/verify.json").read_text(encoding="utf-8"))
    verdicts: dict[str, list[dict]] = {}
    for finding in found["findings"]:
        if finding["against"] == "law":
            verdicts.setdefault(finding["claim"], []).append(finding)
    lines = []
    for title, names in (
        ("*Intruder Dimensions*", ("spectra", "updates")),
        ("*α-LoRA*", ("transfer",)),
        ("Errata of both, as printed and corrected", ("errata",)),
    ):
        lines += [f"| **{title}** | | | |"]
        for claim in (claim for name in names for claim in GROUPS[name]):
            of = verdicts[claim.name]
            worst = max(of, key=lambda f: math.inf if f["z"] is None else abs(f["z"]))
            holds = all(f["holds"] for f in of)
            word = "holds" if holds else "refuted"
            count = sum(f["tests"] for f in of)
            source = claim.source.replace("|", r"\|")
            if not claim.name.startswith(("erratum", "corrected")):
                source = source.replace("Intruder Dimensions, ", "").replace("α-LoRA, ", "")
            equation = claim.equation.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
            said = f"{word}, {count} tests, z {_z(worst)}" if count > 1 else f"{word}, z {_z(worst)}"
            lines.append(f"| `{claim.name}` | {said} | $`{equation}`$ | {source} |")
    made = next(iter(found["runs"].values()))
    head = (
        f"{len(verdicts)} claims verified together at family-wise level {found['level']:g}, seed {made['seed']}, "
        f"{made['device']}. z: by how many standard errors a mean lies beyond its law and the bias that the claim states, "
        "where it does so most; 0 where none does.\n\n| claim | verdict | equation | source |\n| --- | --- | --- | --- |\n"
    )
    return head + "\n".join(lines)


def experiments() -> str:
    """Return the first line of every script's docstring."""
    lines = []
    for file in sorted(EXPERIMENTS.glob("*/*.py"), key=lambda file: file.name):
        if not file.name.startswith("_"):
            about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).splitlines()[0]
            lines.append(f"| [{file.name}]({file.relative_to(EXPERIMENTS).as_posix()}) | {about} |")
    return "\n".join(lines)


def measured_svd() -> str:
    """Return the benchmark of decompositions: the algorithm of `auto`, and the others' times over its time."""
    found = _benchmark("svd-float32")
    names = {"svd": "SVD", "svdvals": "singular values", "eigh": "eigh", "eigvalsh": "eigenvalues"}
    peers = ("jax.numpy", "numpy", "scipy", "torch")
    lines = [
        f"On {found['hardware']}, {found['date']}, float32, matrix products at {found['peak_gflops']:.0f} GFLOP/s; the others' "
        "time over `auto`'s:",
        "",
        "| what | batch × n × m | `auto` takes | matrices/s | GFLOP/s | jax.numpy | NumPy | SciPy | PyTorch |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for case in found["cases"]:
        if case["what"] not in ("svd", "eigvalsh"):
            continue
        auto = case["times"]["rmtjax auto"]
        cells = [
            names.get(case["what"], f"{case['k']} largest"),
            " × ".join(map(str, case["shape"])),
            case["auto"],
            f"{auto['matrices_per_s']:,.3g}" if auto["matrices_per_s"] < 100 else f"{auto['matrices_per_s']:,.0f}",
            f"{auto['gflops']:.3g}",
            *(f"{case['over_auto'][peer]:.2f}" if peer in case["over_auto"] else "–" for peer in peers),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(found["cases"], key=lambda case: case.get("auto_over_best", 0))
    shape = " × ".join(map(str, worst["shape"]))
    figure = sorted((ROOT / "benchmarks/results").glob("svd-float32-*.png"))[-1].name
    lines += [
        "",
        f"All of them, and the other operations:\n\n![Times of all algorithms and peers](../benchmarks/results/{figure})\n",
        "The algorithm that `auto` takes over the fastest of "
        f"ours that is as precise: {worst['auto_over_best']:.2f} at most "
        f"({names.get(worst['what'], 'largest')}, {shape}: {worst['auto']} against {worst['best']}).",
    ]
    return "\n".join(lines)


def headlines() -> str:
    """Return the benchmarks' main results."""
    transfer, step = _benchmark("transfer"), _benchmark("train-step-float32")
    scans, svd = _benchmark("intruders")["layers"], _benchmark("svd-float32")
    large = scans["4096x4096"]
    rows = [
        ("α-FTC at p = 10⁹: 41 α × 10,000 trials", f"{transfer['compressed']['p_1e9']['median_s']:.2f} s",
         f"a dense trial at p = 1000: {transfer['dense']['dense_over_compressed_per_trial']:,.0f} ×"),
        ("a LoRA step of MiniLM, 32 × 128 tokens", f"{32 * 128 / step['tokens_per_s']['rmtjax']:.1f} s",
         f"PyTorch with PEFT {step['peft_over_rmtjax']:.1f} ×"),
        ("the scan of a layer of 4096²", f"{large['rmtjax']['median_s']:.1f} s",
         f"PyTorch's two SVDs {large['torch_over_rmtjax']:.1f} ×"),
    ]  # fmt: skip
    table = "\n".join(f"| {what} | {here} | {there} |" for what, here, there in rows)
    return f"On {svd['hardware']}:\n\n| what | time | others, relative to it |\n| --- | --: | --- |\n{table}"


def _rate(benchmark: dict, operation: str, shape: list[int]) -> float:
    case = next(c for c in benchmark["cases"] if c["what"] == operation and c["shape"] == shape)
    return case["times"]["rmtjax auto"]["matrices_per_s"]


def _of(some: int, every: int, noun: str) -> str:
    return f"all {every} {noun}" if some == every else f"{some} of {every} {noun}"


def verdicts() -> str:
    """Return the number of claims that hold."""
    found = json.loads((EXPERIMENTS / "results/verify.json").read_text(encoding="utf-8"))
    holds: dict[str, bool] = {}
    for finding in found["findings"]:
        if finding["against"] == "law":
            holds[finding["claim"]] = holds.get(finding["claim"], True) and finding["holds"]
    laws = [held for name, held in holds.items() if not name.startswith("erratum")]
    errata = [held for name, held in holds.items() if name.startswith("erratum")]
    text = (
        f"{len(holds)} claims are verified together: {_of(sum(laws), len(laws), 'laws')} hold, and "
        f"{_of(len(errata) - sum(errata), len(errata), 'equations')} that the papers misprint are refuted."
    )
    return textwrap.fill(text, 100)


def _study() -> dict:
    return json.loads((EXPERIMENTS / "results/intruder_study.json").read_text(encoding="utf-8"))["numbers"]


def expected() -> str:
    """Return the accuracy of the predicted numbers of intruders."""
    table = _study()["table"]

    def both(*names: str) -> str:
        found, told = (sum(table[name][what][0] for name in names) for what in ("intruders", "predicted"))
        return f"{found:.1f} found, {told:.1f} expected"

    return (
        "The expected count is a mean over directions of the update that have nothing to do with the base's. In the "
        "[study](../fine-tuning-study.md), per run, it is close for LoRA of three ranks and rsLoRA "
        f"({both('lora-r1', 'lora-r8', 'lora-r64', 'rslora-r8')} in sum), and too low for the additive spectral adapter "
        f"({both('spectral-additive-r8')}). It does not apply to α, which rescales rows ({both('alpha-lora-r8')}), nor to "
        f"rotations of what is there ({both('spectral-rotational-r8')})."
    )


def study_summary() -> str:
    """Return the study's main results."""
    found = _study()
    table, claims = found["table"], found["claims"]
    first = found["tasks"][0]

    def told(name: str) -> str:
        row = table[name]
        return f"{row['label']} {row['intruders'][0] or 'none'} at {row['score'][0]:.1f} %"

    def those(verdict: str) -> list[str]:
        return [one["claim"] for one in claims if one["verdict"] == verdict]

    holds, against, still = map(those, ("holds", "contradicted", "open"))
    names = ("lora-r8", "full", "orthogonal-r8", "guarded-lora-r8")
    refuted = f"Contradicted: {'; '.join(against)}" if against else "None is contradicted"
    return (
        f"Ten ways, three tasks in turn, all-MiniLM-L6-v2. Intruders after {first} in the twelve matrices that adapters change, "
        f"and accuracy: {', '.join(map(told, names))}. Of {len(claims)} claims about them {len(holds)} hold on this model: "
        f"{'; '.join(holds)}. {refuted}. Open, with two to five seeds: {'; '.join(still)}."
    )


def mitigation() -> str:
    """Return the effect of scaling intruders down, beside shrinking the whole update as far."""
    found = json.loads((EXPERIMENTS / "results/intruder_mitigation.json").read_text(encoding="utf-8"))["numbers"]
    lines = [
        "| way | seeds | λ | | intruders | embeddings lost, % | MRPC, Matthews |",
        "| --- | --: | --: | --- | --: | --: | --: |",
    ]
    for row in found["ways"].values():
        for i, scale in enumerate(found["scales"]):
            for way, name in (("mended", "intruders × λ"), ("shrunk", "the update shrunk as far")):
                if i == 0 and way == "shrunk":
                    continue
                cells = [_pm(row[way][what][i]) for what in ("intruders", "forgotten", "matthews")]
                name = "as trained" if i == 0 else name
                lines.append(f"| {row['label']} | {len(row['seeds'])} | {scale:g} | {name} | {' | '.join(cells)} |")
    for what, name in (("forgotten", "embeddings lost"), ("matthews", "Matthews correlation")):
        one, other = found[f"{what}_changed"], found[f"{what}_beyond"]
        lines += [
            "",
            f"At λ = {found['scales'][-1]:g}, over {one['runs']} runs: {name} {_pm(one['mean_se'], '+')} points against what "
            f"was trained (P = {one['p']:.2g}), {_pm(other['mean_se'], '+')} against the update shrunk as far "
            f"(P = {other['p']:.2g}).",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Rewrite the pages, or report whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if something would change")
    check = parser.parse_args(argv).check
    parts = (
        statements, table1, caveat, sensitivity, table2, overhead, ablations, study, mitigation, large_study, measured,
        measured_spectra, measured_engine, measured_train_step, measured_intruders, measured_svd, experiments, headlines,
        verdicts, expected, study_summary,
    )  # fmt: skip
    stale = []
    for page in PAGES:
        old = new = (ROOT / page).read_text(encoding="utf-8")
        for part in parts:
            pattern = rf"(<!-- {part.__name__} -->\n).*?(<!-- /{part.__name__} -->)"
            new = re.sub(pattern, lambda m, part=part: f"{m[1]}{part()}\n{m[2]}", new, flags=re.S)
        if old != new:
            stale.append(page)
            if not check:
                (ROOT / page).write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"not what the results say: {', '.join(stale)}; run python -m docs._generate")


if __name__ == "__main__":
    main()
