"""`rmtjax finetune` as a user meets it."""

import functools
import json
import shutil

import pytest

from .helpers import files, write_base, write_task


@pytest.fixture
def run(command, monkeypatch, tmp_path, programs):
    """`rmtjax finetune` in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("RMTJAX_DATA", raising=False)
    monkeypatch.setattr("rmtjax.cli.finetune.device_for_each_core", lambda: None)  # JAX has begun long ago
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    return functools.partial(command, "finetune")


@pytest.fixture
def usual(base, data):
    """Arguments of a run of two epochs that takes a second."""
    return (
        "--task", "mrpc", "--data", data, "--model", base, "--rank", "2", "--epochs", "2", "--batch-size", "8",
        "--max-length", "16", 
    )  # fmt: skip


def test_what_a_run_prints_and_leaves(run, usual, base, data, tmp_path):
    status, out, err = run(*usual, "--out", tmp_path / "out", "--json", tmp_path / "r.json", "--seed", 3)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"mrpc in {data}: 21 to train on, 9 in dev; lengths 16"
    assert lines[1].startswith(f"{base}: ") and lines[1].endswith("; new: classifier.bias, classifier.weight")
    assert lines[2].startswith("2 epochs of 3 steps of 8 on 1 cpu device")
    assert any(line.split()[:4] == ["epoch", "step", "loss", "accuracy"] for line in lines)
    assert lines[-2].startswith("accuracy ") and " (best " in lines[-2]
    assert lines[-1] == f"wrote adapter, metrics.jsonl, curves.png, result.json, checkpoints into {tmp_path / 'out'}"
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == json.loads((tmp_path / "out/result.json").read_text())
    assert found["settings"]["seed"] == 3 and found["settings"]["epochs"] == 2 and found["finished"]
    assert not files(tmp_path / "here")  # nothing beside what was asked for
    before = files(tmp_path / "out/adapter")
    status, out, err = run(*usual, "--out", tmp_path / "out", "--seed", 3, "--resume")  # there is nothing left to do
    assert (status, err) == (0, "") and lines[-2].split(",")[0] in out
    assert files(tmp_path / "out/adapter") == before


@pytest.mark.thorough
def test_json_to_standard_output_is_alone(run, usual, tmp_path):
    more = ("--warmup-ratio", 0.5, "--max-grad-norm", 2, "--alpha-batch-size", 4)
    status, out, err = run(
        *usual, *more, "--adapter", "alpha-lora", "--task", "MRPC", "--epochs", 1, "-T", 2, "--json", "-"
    )
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["settings"]["task"] == "mrpc" and found["settings"]["alpha"] is True
    assert [found["settings"][name] for name in ("warmup_ratio", "max_grad_norm", "alpha_batch_size")] == [0.5, 2, 4]
    assert len(found["history"]) == 1 and len(found["alpha"]) == 2
    made = tmp_path / "here/mrpc-alpha-lora-0"  # nothing that was trained is lost for want of a name
    assert (made / "adapter/adapter_config.json").exists() and json.loads((made / "result.json").read_text()) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "mrcp"), "task 'mrcp' is unknown; did you mean 'mrpc'?"),
        (("--adapter", "lorra"), "adapter 'lorra' is unknown; did you mean 'lora'?"),
        (("--dtype", "float16"), "dtype 'float16' is unknown; did you mean 'bfloat16'? (known: bfloat16, float32)"),
        (("--alpha-share", "heads"), "alpha_share 'heads' is unknown"),
        (("--alpha-optimizer", "sgd"), "alpha_optimizer 'sgd' is unknown"),
        (("--rank", 0), "rank = 0: must be a whole number ≥ 1"),
        (("--rank", 17), "rank = 17: must be 1 to 16, the smaller side of bert.encoder.layer.0.attention.self.query"),
        (("--rank", 1, "--adapter", "spectral-rotational"), "rank = 1: must be at least 2 for spectral-rotational"),
        (("--epochs", 0), "epochs = 0: must be a whole number ≥ 1"),
        (("--batch-size", 0), "batch_size = 0: must be a whole number ≥ 1"),
        (("--alpha-every", 0), "alpha_every = 0: must be a whole number ≥ 1"),
        (("-T", -3), "alpha_every = -3: must be a whole number ≥ 1"),
        (("--learning-rate", 0), "learning_rate = 0.0: must be a finite number in (0, 10]"),
        (("--learning-rate", "nan"), "learning_rate = nan: must be a finite number in (0, 10]"),
        (("--learning-rate", 11), "learning_rate = 11.0: must be a finite number in (0, 10]"),
        (("--alpha-learning-rate", -1), "alpha_learning_rate = -1.0: must be a finite number in (0, 10]"),
        (("--weight-decay", -0.1), "weight_decay = -0.1: must be a finite number ≥ 0"),
        (("--warmup-ratio", 2), "warmup_ratio = 2.0: must be a finite number in [0, 1)"),
        (("--max-grad-norm", 0), "max_grad_norm = 0.0: must be a finite number > 0"),
        (("--alpha-batch-size", 0), "alpha_batch_size = 0: must be a whole number ≥ 1"),
        (("--lora-alpha", 0), "lora_alpha = 0.0: must be a finite number > 0"),
        (("--lora-alpha", "inf"), "lora_alpha = inf: must be a finite number > 0"),
        (("--val-split", 0), "val_split = 0.0: must be a finite number in (0, 1]"),
        (("--val-split", 1.5), "val_split = 1.5: must be a finite number in (0, 1]"),
        (("--val-split", 0.01, "--alpha"), "val_split = 0.01: leaves none of the 21 examples for α"),
        (("--val-split", 0.99, "--alpha"), "val_split = 0.99: leaves none of the 21 examples for the adapters"),
        (("--seed", -1), "seed = -1: must be a whole number from 0 to 2147483647"),
        (("--max-length", 33), "max_length = 33: must be 3 to 32, the model's positions"),
        (("--max-length", 2), "max_length = 2: must be 3 to 32"),
        (("--target-modules", ""), "target_modules = (): must be a list of path suffixes"),
        (("--target-modules", "walue"), "target_modules = ('walue',): matches no dense layer; the model has "),
        (("-T", 5), "alpha_every = 5: has no effect without alpha; allowed with alpha or the adapter alpha-lora"),
        (("--alpha-every", 20), "alpha_every = 20: has no effect without alpha"),
        (("--alpha-share", "module"), "alpha_share = 'module': has no effect without alpha"),
        (("--adapter", "full"), "rank = 2: has no effect with the adapter full; allowed with any other"),
        (
            ("--adapter", "spectral-additive", "--lora-alpha", 2),
            "lora_alpha = 2.0: has no effect with the adapter spec",
        ),
        (("--guard-top-k", 10), "guard_top_k = 10: has no effect without guard; allowed with guard"),
        (("--adapter", "alpha-lora", "--no-alpha"), "alpha = False: must be True with the adapter alpha-lora"),
        (("--save-every", 0), "save_every = 0: must be a whole number ≥ 1"),
        (("--data", "nowhere"), "folder nowhere does not exist"),
        (("--model", "./nowhere"), "model = ./nowhere: is not a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, usual, arguments, says, tmp_path):
    status, printed, err = run(*usual, *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert says in err
    assert printed == ""
    assert not (tmp_path / "out").exists() and not files(tmp_path)


def refused(run, *arguments):
    status, printed, err = run(*arguments)
    assert status == 2 and printed == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_unusable_data(run, usual, data, tmp_path):
    for name, lines, says in (
        ("train", 1, "train.tsv is empty for this split"),
        ("dev", 1, "dev.tsv is empty for this split"),
        ("dev", 0, "dev.tsv is empty"),
        ("dev", None, "dev.tsv is missing"),
    ):
        folder = tmp_path / f"{name}{lines}"
        shutil.copytree(data, folder)
        file = folder / "MRPC" / f"{name}.tsv"
        if lines is None:
            file.unlink()
        else:
            file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))
        assert says in refused(run, *usual, "--data", folder, "--out", tmp_path / "out")
    folder = write_task(tmp_path / "labels")
    file = folder / "MRPC/train.tsv"
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*text[:5], "2" + text[5][1:], *text[6:]]))
    says = refused(run, *usual, "--data", folder, "--out", tmp_path / "out")
    assert "train.tsv, line 6 holds the label '2'; allowed: 0, 1" in says
    assert "folder" in refused(run, *usual, "--data", tmp_path / "here", "--out", tmp_path / "out")  # holds no MRPC
    assert not (tmp_path / "out").exists()


def test_unusable_models(run, usual, tmp_path):
    out = "--out", tmp_path / "out"
    small = write_base(tmp_path / "small", vocab_size=14)
    says = refused(run, *usual, "--model", small, *out)
    assert "the tokeniser has tokens up to 14, but the model's vocabulary ends at 13" in says
    bare = write_base(tmp_path / "bare")
    (bare / "vocab.txt").unlink()
    assert "holds no tokenizer.json, no vocab.txt" in refused(run, *usual, "--model", bare, *out)
    cut = write_base(tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors is truncated" in refused(run, *usual, "--model", cut, *out)
    weights.unlink()
    assert "holds neither model.safetensors nor" in refused(run, *usual, "--model", cut, *out)
    (cut / "config.json").unlink()
    assert "holds no config.json" in refused(run, *usual, "--model", cut, *out)
    assert not (tmp_path / "out").exists()


def test_where_files_cannot_go(run, usual, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "out = " in refused(run, *usual, "--out", tmp_path / "file")
    assert "out = " in refused(run, *usual, "--out", tmp_path / "file/below")
    assert "json = " in refused(run, *usual, "--json", tmp_path / "file/r.json")
    assert "is a folder" in refused(run, *usual, "--json", tmp_path)
    assert files(tmp_path) == {tmp_path / "file": b"mine"}


@pytest.mark.thorough
def test_a_run_is_not_begun_again_nor_mixed_with_another(run, usual, tmp_path):
    out = "--out", tmp_path / "out"
    assert run(*usual, *out, "--epochs", 1)[0] == 0
    before = files(tmp_path / "out")
    assert "already holds a run; resume it with --resume" in refused(run, *usual, *out, "--epochs", 1)
    assert "epochs = 1, here 2" in refused(run, *usual, *out, "--resume")
    assert "seed = 0, here 1" in refused(run, *usual, *out, "--epochs", 1, "--seed", 1, "--resume")
    assert "task = 'mrpc', here 'rte'" in refused(
        run, *usual, *out, "--epochs", 1, "--resume", "--task", "rte", "--data", _as_rte(tmp_path)
    )
    assert files(tmp_path / "out") == before


def _as_rte(tmp_path):
    """Files of RTE's form."""
    folder = tmp_path / "rte"
    folder.mkdir()
    for split in ("train", "dev"):
        rows = [f"{i}\tred blue\tgreen\t{('entailment', 'not_entailment')[i % 2]}\n" for i in range(8)]
        (folder / f"{split}.tsv").write_text("".join(["index\tsentence1\tsentence2\tlabel\n", *rows]))
    return folder
